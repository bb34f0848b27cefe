"""SNIP: single-shot network pruning by connection sensitivity (Lee et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from methods.base import Context
from methods.fixed import Fixed
from methods.ranking import ranked


@dataclass(kw_only=True)
class SNIP(Fixed):
    """A mask chosen before the first step: the weights of largest |w dL/dw|, which then stay.

    Lee et al. 2019, equations 5 and 6 and algorithm 1: connection sensitivity is the magnitude of the loss's gradient
    with respect to a mask entry at 1, over `batches` training batches (theirs: 1), normalised over all layers, which
    changes no rank; the top share of all is kept (`allocation` "global"). The weights scored are those trained; the
    official code trains another initialisation, scores with batch norm in inference mode, and counts biases.
    """

    batches: Annotated[int, "1 <= x"] = 1

    @torch.no_grad()
    def choose(self, ctx: Context) -> None:
        with torch.enable_grad():
            grads = ctx.mean_grads(self.batches)
        names, weights = self.mask.names, self.mask.weights
        if missing := [name for name in names if name not in grads]:
            raise ValueError(f"the loss has no gradient with respect to {missing[0]}; add it to keep_dense")
        saliency = [(w * grads[name]).abs() for name, w in zip(names, weights, strict=True)]
        shapes = [tuple(w.shape) for w in weights]
        for index, mask in enumerate(ranked(saliency, shapes, self.allocation, self.sparsity)):
            self.mask.set(index, mask)
