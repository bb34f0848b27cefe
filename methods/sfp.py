"""SFP: soft filter pruning (He et al. 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from methods.base import Context, Masked
from methods.dpf import choose_filters
from methods.knob import Knob
from methods.passes import DENSE, Passes
from methods.schedules import Epochs, cubic


@dataclass(kw_only=True)
class SFP(Masked):
    """At each epoch's end the filters of smallest l2 norm in each layer are set to zero; the next epoch trains all.

    He et al. 2018, algorithm 1. `sparsity`: the share of each layer's filters, reached along Zhu & Gupta's cubic
    from epoch 0 to `end_epoch` (0: at once, SFP's own; Lin et al. 2020, A.2, ramp it as all their methods). Between
    the ends of epochs nothing is enforced: the masks are full. Momentum is kept, as in the official code.
    """

    end_epoch: Epochs = 0.0

    knobs: ClassVar[tuple[Knob, ...]] = ()  # its sparsity is that of filters

    def check(self, epochs: float) -> None:
        if self.end_epoch > epochs:
            raise ValueError(f"the ramp ends at epoch {self.end_epoch:g}, after the run's end at epoch {epochs:g}")

    def passes(self, layers: Mapping[str, Mapping[str, Any]]) -> Passes:
        return DENSE  # the mask is that of the moment between two epochs: all filters are trained

    def on_epoch(self, ctx: Context) -> None:
        for index, mask in enumerate(self.mask.tensors):
            self.mask.set(index, torch.ones_like(mask, dtype=torch.bool))

    @torch.no_grad()
    def after_step(self, ctx: Context) -> None:
        if (ctx.step + 1) % ctx.steps_per_epoch:
            return
        progress = ctx.epoch / self.end_epoch if self.end_epoch else 1.0
        for index, mask in enumerate(choose_filters(self.mask.weights, "uniform", cubic(0.0, self.sparsity, progress))):
            self.mask.set(index, mask)
        self.mask.project()
