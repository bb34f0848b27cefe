"""RigL: dropping by magnitude, growing by gradient (Evci et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from methods.base import Context
from methods.masks import ones, reset_state, top_mask
from methods.passes import Passes, count, mixed
from methods.static import Static


@dataclass(kw_only=True)
class RigL(Static):
    """Every `period` steps, drop the smallest weights of each layer and grow those of largest gradient.

    Evci et al. 2020, algorithm 1. At a step t > 0 that `period` divides, before the share `stop` of the training, the
    gradient of all positions, averaged over the batch and all ranks, moves the masks instead of the weights. Of its n
    kept weights a layer drops floor(f n), the smallest |w|, f = `drop_fraction` / 2 (1 + cos(pi t / T)), T the share
    `stop` of all steps; as many grow where |gradient| is largest among all that are then empty. Thus a weight that was
    just dropped may be grown at once: it keeps its value and its momentum, as in the official code. Other grown weights
    start at zero and without momentum. Starts from a random mask; `allocation` and what each layer keeps never change.
    `from_start`: the official code also updates before the first step. Where fp16 overflowed, an entry of the gradient
    has no claim to be grown. A run too short for a single update is refused: its mask would be a static one.
    """

    drop_fraction: Annotated[float, "0 <= x <= 1"]
    period: Annotated[int, "1 <= x"] = 100
    stop: Annotated[float, "0 < x <= 1"] = 0.75
    from_start: bool = False

    forgets = True

    def begin(self, ctx: Context) -> None:
        last = math.ceil(self.stop * ctx.total_steps) - 1  # the last step at which masks may move
        if last < self.period and not self.from_start:
            raise ValueError(
                f"period = {self.period}, but masks move up to step {last} of the run's {ctx.total_steps} only, so "
                f"that RigL would never move them; set method.period to {max(last, 1)} or less, or a smaller "
                f"schedule.batch_size for more steps (method=static is without moves)"
            )
        super().begin(ctx)

    def due(self, ctx: Context) -> bool:
        """Whether this step updates the masks and no weights."""
        after_start = ctx.step > 0 or self.from_start
        return after_start and ctx.step % self.period == 0 and ctx.step < self.stop * ctx.total_steps

    def before_step(self, ctx: Context) -> bool:
        if not self.due(ctx):
            return super().before_step(ctx)
        self.update(ctx)
        return False

    def passes(self, layers: Mapping[str, Mapping[str, Any]]) -> Passes:
        """Evci et al. 2020, appendix H: (3 f_S dT + 2 f_S + f_D) / (dT + 1), throughout the training."""
        kept = count(layers, "kept")
        return Passes(kept, kept, mixed(kept, count(layers, "total"), 1 / (self.period + 1)))

    @torch.no_grad()
    def update(self, ctx: Context) -> None:
        """Drop and grow by the gradients as they are."""
        progress = ctx.step / (self.stop * ctx.total_steps)
        fraction = self.drop_fraction / 2 * (1 + math.cos(math.pi * progress))
        for index, (name, weight) in enumerate(zip(self.mask.names, self.mask.weights, strict=True)):
            if weight.grad is None:
                raise ValueError(f"the loss has no gradient with respect to {name}; add its layer to keep_dense")
            before = self.mask.kept(index)
            after, grown = moved(before, weight.detach(), weight.grad, fraction)
            self.mask.set(index, after)
            weight.view(-1).masked_fill_(grown, 0)
            reset_state(ctx.optimizer, weight, grown)


def moved(
    before: Tensor, weight: Tensor, grad: Tensor, fraction: float, whole: Callable[[float], int] = math.floor
) -> tuple[Tensor, Tensor]:
    """(the mask after one update, what of it is new), flat booleans; ties go to the lower index.

    `whole` makes a number of weights of a share of them.
    """
    size = ones(before)
    count = whole(fraction * size)
    survivors = top_mask(weight.abs().view(-1).masked_fill(~before, -1), size - count)
    claims = grad.abs().reshape(-1).nan_to_num(nan=0.0, posinf=0.0)
    after = survivors | top_mask(claims.masked_fill(survivors, -1), count)
    return after, after & ~before
