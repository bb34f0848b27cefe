"""Rewiring: drop some weights and grow as many, every so many steps. The common part of SET and DSR (and RigL ...)."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from methods.base import Context
from methods.masks import random_positions, reset_state
from methods.schedules import EpochRanges
from methods.static import Static


@dataclass(kw_only=True)
class Rewiring(Static):
    """Drop and grow weights every `period` steps; the total number of kept weights never changes.

    `period`: steps, a number or epoch ranges. A rewiring follows the step whose index (from 0) is a positive multiple
    of the period, as in the DSR authors' code. `stop`: share of the training after which the topology is frozen (their
    code: 95 %). Grown weights start at zero; positions dropped in a rewiring are not grown in it. `reset_momentum`
    zeroes the optimizer state of grown weights; none of the papers here does it.
    """

    period: Annotated[EpochRanges | str | float, "1 <= x"]
    stop: Annotated[float, "0 <= x <= 1"] = 0.95
    reset_momentum: bool = False

    def __post_init__(self) -> None:
        self.periods = EpochRanges.parse(self.period)  # type: ignore[arg-type]
        self.forgets = self.reset_momentum

    def due(self, ctx: Context) -> bool:
        """Whether a rewiring follows the current step."""
        period = int(self.periods.at(ctx.epoch))
        return ctx.step > 0 and ctx.step % period == 0 and ctx.step < self.stop * ctx.total_steps

    def after_step(self, ctx: Context) -> None:
        self.mask.hold(ctx.optimizer, self.forgets)
        if self.due(ctx):
            self.rewire(ctx)

    @torch.no_grad()
    def rewire(self, ctx: Context) -> None:
        """Drop, then grow as many."""
        before = [self.mask.kept(i) for i in range(len(self.mask.weights))]
        dropped = self.drop(before, ctx)
        after = [kept & ~gone for kept, gone in zip(before, dropped, strict=True)]
        grow = self.growth([int(gone.count_nonzero()) for gone in dropped], before, after, ctx)
        for index, count in enumerate(grow):
            # Free positions are those empty before the drop; a layer too full for that takes back dropped ones.
            free = ~before[index]
            grown = random_positions(free, min(count, int(free.count_nonzero())), ctx.rng)
            after[index][grown] = True
            missing = count - grown.numel()
            if missing:
                regrown = random_positions(dropped[index] & ~after[index], missing, ctx.rng)
                after[index][regrown] = True
            self.mask.set(index, after[index])
            if self.reset_momentum:
                reset_state(ctx.optimizer, self.mask.weights[index], after[index] & (~before[index] | dropped[index]))
            # Dropped weights that were taken back also restart at zero.
            self.mask.weights[index].view(-1).masked_fill_(dropped[index], 0)
        self.mask.project()

    @abstractmethod
    def drop(self, kept: list[Tensor], ctx: Context) -> list[Tensor]:
        """Flat boolean masks of the weights to drop, a subset of `kept`, per layer."""

    @abstractmethod
    def growth(self, dropped: list[int], before: list[Tensor], after: list[Tensor], ctx: Context) -> list[int]:
        """How many weights each layer grows; together as many as were `dropped`."""
