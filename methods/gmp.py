"""Gradual magnitude pruning (Zhu & Gupta 2017), from scratch or from a trained dense model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from methods.allocation import allocate, kept_of
from methods.base import Context, Masked, Sparsity
from methods.ranking import Ranking, top_over_all, top_per_layer
from methods.schedules import Epochs, apportion, cubic, step_of


@dataclass(kw_only=True)
class GMP(Masked):
    """Prune the smallest weights in `iterations` steps along Zhu & Gupta's cubic (equation 1), never regrowing.

    Pruning i of T follows the last step of epoch `start_epoch` + i `every_epochs` (fractions of an epoch allowed) and
    reaches sparsity s + (s_0 - s) (1 - i / T)^3, s_0 = `initial_sparsity`; the last one reaches s exactly. Nothing is
    pruned before the first. `allocation`: "uniform" or "erk" rank within layers, "global" over all of them.
    `layer_floor`: no layer keeps fewer weights than this; the others make up for it.
    """

    iterations: Annotated[int, "1 <= x"]
    every_epochs: Epochs
    start_epoch: Epochs = 0.0
    initial_sparsity: Sparsity = 0.0
    allocation: Ranking = "uniform"
    layer_floor: Annotated[int, "0 <= x"] = 0

    forgets = True

    #: The first i that prunes.
    first: ClassVar[int] = 1

    def check(self, epochs: float) -> None:
        if self.start_epoch + self.iterations * self.every_epochs > epochs:
            raise ValueError(
                f"the last of {self.iterations} prunings every {self.every_epochs:g} epochs from epoch "
                f"{self.start_epoch:g} lies after the run's end at epoch {epochs:g}"
            )
        if self.initial_sparsity > self.sparsity:
            raise ValueError(f"initial_sparsity = {self.initial_sparsity:g} exceeds sparsity = {self.sparsity:g}")
        if self.allocation == "global" and self.layer_floor:
            raise ValueError("layer_floor needs allocation uniform or erk; global ranking has no layer counts")

    def setup(self, model: nn.Module) -> nn.Module:
        model = super().setup(model)
        self._counts(self.sparsity)  # a floor that cannot be held fails now, not at the last pruning
        return model

    def after_step(self, ctx: Context) -> None:
        if (sparsity := self.due(ctx)) is not None:
            self.prune(sparsity)
        self.mask.hold(ctx.optimizer, self.forgets)

    def due(self, ctx: Context) -> float | None:
        """The sparsity that a pruning after this step reaches; None where no pruning is due."""
        # What falls before the first step follows it: a ramp shorter than a step (a profile's) prunes too.
        done = [
            i
            for i in range(self.first, self.iterations + 1)
            if max(1, step_of(self.start_epoch + i * self.every_epochs, ctx.steps_per_epoch)) == ctx.step + 1
        ]
        return cubic(self.initial_sparsity, self.sparsity, max(done) / self.iterations) if done else None

    def prune(self, sparsity: float) -> None:
        """Keep the largest kept weights at `sparsity`."""
        self.keep([w.detach().abs().view(-1) for w in self.mask.weights], sparsity)

    @torch.no_grad()
    def keep(self, scores: Sequence[Tensor], sparsity: float) -> None:
        """Keep the weights of largest scores (flat, none negative) at `sparsity`, of those that are kept."""
        kept = [self.mask.kept(i) for i in range(len(self.mask.weights))]
        scores = [s.masked_fill(~k, -1) for s, k in zip(scores, kept, strict=True)]
        if self.allocation == "global":
            masks = top_over_all(scores, kept_of(sum(s.numel() for s in scores), sparsity))
        else:
            masks = top_per_layer(scores, self._counts(sparsity))
        for index, mask in enumerate(masks):
            self.mask.set(index, mask & kept[index])

    def _counts(self, sparsity: float) -> list[int]:
        """Weights to keep per layer (none of them for global ranking), never more than there still are."""
        if self.allocation == "global":
            return []
        shapes = [tuple(w.shape) for w in self.mask.weights]
        counts, held = allocate(self.allocation, shapes, sparsity, self.layer_floor), self.mask.counts()
        if all(count <= here for count, here in zip(counts, held, strict=True)):
            return counts
        # Largest remainders are not monotone: as the total falls by a few, a layer's count may rise by one, and nothing
        # regrows. The others take its surplus, so that the total stays exact.
        return apportion(min(sum(counts), sum(held)), counts, held)
