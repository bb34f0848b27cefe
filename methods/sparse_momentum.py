"""SM: sparse momentum (Dettmers & Zettlemoyer 2019)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from methods.base import Context
from methods.masks import top_mask
from methods.passes import Passes, count
from methods.schedules import apportion
from methods.static import Static


@dataclass(kw_only=True)
class SparseMomentum(Static):
    """Once per epoch: prune the smallest weights of each layer, redistribute and regrow by the momentum's magnitude.

    Dettmers & Zettlemoyer 2019, algorithm 1. After the last step of an epoch, but for the run's last one, every layer
    loses the share p of its smallest kept weights, p falling from `prune_rate` along a cosine to 0 at the run's end.
    The weights lost are shared out to the layers in proportion to the mean |momentum| of their surviving weights and
    grow, at zero, where the |momentum| of their empty positions is largest. What does not fit into a layer goes to the
    others; the total stays exact. Gradients and momentum are those of all positions: only the weights are masked.
    Neither that a just pruned weight may regrow nor a reset of its momentum is excluded or made, as in the official
    code. Starts from a random mask, `allocation` "uniform" as there. The optimizer must keep a momentum.
    """

    prune_rate: Annotated[float, "0 <= x <= 1"] = 0.5

    def passes(self, layers: Mapping[str, Mapping[str, Any]]) -> Passes:
        kept = count(layers, "kept")
        return Passes(forward=kept, error=kept)  # the momentum of all positions needs all gradients: 2 f + F

    def before_step(self, ctx: Context) -> bool:
        return True  # dense gradients: the momentum of empty positions decides what grows

    def after_step(self, ctx: Context) -> None:
        self.mask.project()
        if (ctx.step + 1) % ctx.steps_per_epoch == 0 and ctx.step + 1 < ctx.total_steps:
            self.move((ctx.step + 1) / ctx.total_steps, self._momenta(ctx))

    def _momenta(self, ctx: Context) -> list[Tensor]:
        """|momentum| of each weight, flat."""
        states = [ctx.optimizer.state.get(w, {}) for w in self.mask.weights]
        found = [state.get("momentum_buffer", state.get("exp_avg")) for state in states]
        if any(m is None for m in found):
            raise ValueError("sparse momentum needs an optimizer with momentum; set schedule.optimizer.momentum")
        return [m.abs().view(-1) for m in found]

    @torch.no_grad()
    def move(self, progress: float, momenta: list[Tensor]) -> None:
        """One prune, redistribute, regrow cycle at `progress` in [0, 1] of the training."""
        rate = self.prune_rate * 0.5 * (1 + math.cos(math.pi * progress))
        survivors, lost = [], 0
        for index, weight in enumerate(self.mask.weights):
            kept = self.mask.kept(index)
            count = int(kept.count_nonzero())
            stay = count - math.floor(rate * count)
            survivors.append(top_mask(weight.abs().view(-1).masked_fill(~kept, -1), stay))
            lost += count - stay
        sizes = [int(kept.count_nonzero()) for kept in survivors]
        means = [
            float(m[kept].mean(dtype=torch.float64)) if size else 0.0
            for m, kept, size in zip(momenta, survivors, sizes, strict=True)
        ]
        room = [kept.numel() - size for kept, size in zip(survivors, sizes, strict=True)]
        for index, count in enumerate(apportion(lost, means, room)):
            grown = top_mask(momenta[index].masked_fill(survivors[index], -1), count)
            # What was pruned and comes back starts at zero like everything that grows.
            self.mask.weights[index].view(-1).masked_fill_(~survivors[index], 0)
            self.mask.set(index, survivors[index] | grown)
