"""A mask that is fixed before the first step: one-shot pruning, fine-tuning and retraining of a found mask."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from methods.base import Context, Masked
from methods.ranking import Ranking, ranked


@dataclass(kw_only=True)
class Fixed(Masked):
    """Training within a mask that never changes: the one taken from a parent run, else that of the largest |w|.

    On a trained dense parent's weights this is one-shot magnitude pruning and fine-tuning (Han et al. 2015); with a
    parent's weights and mask, fine-tuning of what it found; with its mask alone, retraining from the initial weights.
    `allocation` ("global" ranks over all layers, "uniform" and "erk" within each) and `sparsity` rule the mask where
    none is taken; a taken mask's sparsity is its parent's.
    """

    allocation: Ranking = "global"

    def begin(self, ctx: Context) -> None:
        if not self.adopted:
            self.choose(ctx)
        super().begin(ctx)

    @torch.no_grad()
    def choose(self, ctx: Context) -> None:
        """Keep the largest weights as they are before the first step."""
        weights = [w.detach() for w in self.mask.weights]
        shapes = [tuple(w.shape) for w in weights]
        masks = ranked(torch._foreach_abs(weights), shapes, self.allocation, self.sparsity)
        for index, mask in enumerate(masks):
            self.mask.set(index, mask)
