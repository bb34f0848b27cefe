"""GraNet: gradual pruning with zero-cost neuroregeneration (Liu et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch

from methods.allocation import Allocation, allocate
from methods.base import Context, Sparsity
from methods.gmp import GMP
from methods.masks import reset_state
from methods.passes import Passes, count, mixed
from methods.ranking import Ranking
from methods.rigl import moved
from methods.schedules import cubic, step_of
from methods.static import draw


@dataclass(kw_only=True)
class GraNet(GMP):
    """Prune gradually from a sparse start; after every pruning, and to the end of training, exchange weak weights.

    Liu et al. 2021, section 4. Begins with a random mask at `initial_sparsity`, split over layers by
    `start_allocation`. Update i = 1, 2, ... follows the last step of epoch `start_epoch` + i `every_epochs`: first the
    smallest |w| go along Zhu & Gupta's cubic (equation 2), which reaches `sparsity` at update `iterations` and, by
    `allocation`, ranks all layers together (theirs) or within layers. Then ("neuroregeneration") each layer drops the
    share r of what it keeps, the smallest |w|, and grows as many where |gradient| is largest among all that are then
    empty. r falls from `drop_fraction` to `end_fraction` along a cosine over the whole training.

    Where the paper is silent, the official code's choices: the step of an update is taken, then the masks change, by
    the gradient of that step's batch at all positions; dropped counts are rounded up; a weight that an exchange drops
    and grows keeps its value and momentum, all other grown ones start at zero without. Its cubic stops one pruning
    short of its end; this one does not. No exchange follows the last step, since nothing would train what has grown.
    """

    initial_sparsity: Sparsity = 0.5
    start_allocation: Allocation = "erk"
    allocation: Ranking = "global"
    drop_fraction: Annotated[float, "0 <= x <= 1"] = 0.5
    end_fraction: Annotated[float, "0 <= x <= 1"] = 0.0

    #: The share of the epoch's steps that an exchange follows.
    exchanging = 0.0

    def check(self, epochs: float) -> None:
        super().check(epochs)
        if not self.every_epochs:
            raise ValueError("every_epochs = 0 leaves no time between two updates; give it a number above 0")
        if self.end_fraction > self.drop_fraction:
            raise ValueError(f"end_fraction = {self.end_fraction:g} exceeds drop_fraction = {self.drop_fraction:g}")

    def begin(self, ctx: Context) -> None:
        if not self.adopted:
            shapes = [tuple(w.shape) for w in self.mask.weights]
            draw(self.mask, allocate(self.start_allocation, shapes, self.initial_sparsity), ctx.rng)
        self.on_epoch(ctx)  # a budget of FLOPs asks before the first epoch what a step costs
        super().begin(ctx)

    def on_epoch(self, ctx: Context) -> None:
        steps = range(ctx.step + 1, ctx.step + 1 + ctx.steps_per_epoch)
        self.exchanging = sum(self.exchanges(step, ctx) for step in steps) / ctx.steps_per_epoch

    def number(self, step: int, ctx: Context) -> int | None:
        """The number (from 1) of the update that follows `step` finished steps; None where none does."""
        near = round((step / ctx.steps_per_epoch - self.start_epoch) / self.every_epochs)
        for i in (near + 1, near, near - 1):
            after = step_of(self.start_epoch + i * self.every_epochs, ctx.steps_per_epoch)
            if i >= 1 and max(1, after) == step:
                return i
        return None

    def due(self, ctx: Context) -> float | None:
        number = self.number(ctx.step + 1, ctx)
        return None if number is None else cubic(self.initial_sparsity, self.sparsity, number / self.iterations)

    def exchanges(self, step: int, ctx: Context) -> bool:
        """Whether an exchange follows `step` finished steps."""
        return step < ctx.total_steps and self.number(step, ctx) is not None

    def before_step(self, ctx: Context) -> bool:
        if self.exchanges(ctx.step + 1, ctx):
            self.grads = []
            for name, weight in zip(self.mask.names, self.mask.weights, strict=True):
                if weight.grad is None:
                    raise ValueError(f"the loss has no gradient with respect to {name}; add its layer to keep_dense")
                self.grads.append(weight.grad.clone())
        return super().before_step(ctx)

    def after_step(self, ctx: Context) -> None:
        super().after_step(ctx)  # which prunes
        if self.exchanges(ctx.step + 1, ctx):
            self.exchange(ctx)

    @torch.no_grad()
    def exchange(self, ctx: Context) -> None:
        """Drop and grow by the gradients of the step that has just been taken."""
        wave = 0.5 * (1 + math.cos(math.pi * (ctx.step + 1) / ctx.total_steps))
        share = self.end_fraction + (self.drop_fraction - self.end_fraction) * wave
        for index, (weight, grad) in enumerate(zip(self.mask.weights, self.grads, strict=True)):
            after, grown = moved(self.mask.kept(index), weight.detach(), grad, share, math.ceil)
            self.mask.set(index, after)
            reset_state(ctx.optimizer, weight, grown)  # what was empty before is zero already
        self.mask.project()
        self.grads = []

    def passes(self, layers: Mapping[str, Mapping[str, Any]]) -> Passes:
        """3 f, but a dense gradient of the weights in the steps before an exchange: their section 4."""
        kept = count(layers, "kept")
        return Passes(kept, kept, mixed(kept, count(layers, "total"), self.exchanging))

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "exchanging": self.exchanging}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.exchanging = state["exchanging"]
