"""OptG: optimising gradient-driven criteria (Zhang et al. 2022): scores and weights are trained together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import nn

from methods.allocation import kept_of
from methods.base import Context, Sparsity
from methods.knob import Knob, share
from methods.masks import Masks
from methods.passes import Passes, count
from methods.ranking import Ranking, ranked
from methods.reparam import Feedback


@dataclass(kw_only=True)
class OptG(Feedback):
    """The network computes with m * w, m the top share by scores s; s is trained straight through m, beside w.

    Zhang et al. 2022, whose section 3 shows that such scores add up -lr w dL/d(m w): a gradient-driven criterion over
    the training, of dropped weights as of kept ones. The gradient of s is w dL/d(m w), that of w is m dL/d(m w); weight
    decay acts on all of w and not on s, which starts at 0. s is trained by the run's optimizer at its learning rate
    times sigma(`beta` (e - E/2)), e = 0, 1, ... the epoch and E the number of epochs; before the first step of epoch
    e, m is chosen anew at sparsity `sparsity` times the same factor, and stays for the epoch. Thus training is all but
    dense at first, and nearly all pruning happens around the middle.

    `allocation`: "global" ranks the scores of all layers together (theirs). Kept counts are rounded to the nearest;
    where the last epoch's factor leaves more than `sparsity` does (a short run), m is chosen once more after the last
    step. The official code sets every score's learning rate so and ignores its own option mask_lr.
    """

    sparsity: Sparsity
    beta: Annotated[float, "0 <= x"] = 1.0
    allocation: Ranking = "global"

    knobs: ClassVar[tuple[Knob, ...]] = share()

    def setup(self, model: nn.Module) -> nn.Module:
        model = super().setup(model)
        self.mask = Masks(self.weights)
        self.scores = [nn.Parameter(torch.zeros_like(w)) for w in self.computed]
        return model

    def param_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        return [*super().param_groups(model), {"params": self.scores, "weight_decay": 0.0, "lr_scale": 1.0}]

    @torch.no_grad()
    def on_epoch(self, ctx: Context) -> None:
        factor = self.factor(ctx.epoch - 1, ctx.total_steps // ctx.steps_per_epoch)
        (group,) = (g for g in ctx.optimizer.param_groups if any(p is self.scores[0] for p in g["params"]))
        group["lr_scale"] = factor
        self.choose(self.sparsity * factor)
        torch._foreach_copy_(self.computed, self.dense)
        self.compress()

    def factor(self, epoch: int, epochs: int) -> float:
        """sigma(beta (e - E/2))."""
        x = self.beta * (epoch - epochs / 2)
        return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))

    def choose(self, sparsity: float) -> None:
        """Let the mask keep the best scores at `sparsity`."""
        shapes = [tuple(w.shape) for w in self.dense]
        for index, mask in enumerate(ranked(self.scores, shapes, self.allocation, sparsity)):
            self.mask.set(index, mask)

    def refresh(self, ctx: Context, step: int) -> None:
        if step == ctx.total_steps and sum(self.mask.counts()) > self.target:
            self.choose(self.sparsity)

    @property
    def target(self) -> int:
        """How many weights `sparsity` leaves."""
        return kept_of(sum(w.numel() for w in self.dense), self.sparsity)

    def compress(self) -> None:
        self.mask.project()

    @torch.no_grad()
    def before_step(self, ctx: Context) -> bool:
        triples = zip(self.computed, self.dense, self.scores, strict=True)
        trained = [(w.grad, dense, score) for w, dense, score in triples if w.grad is not None]
        for grad, dense, score in trained:
            score.grad = grad * dense
        self.mask.mask_grads()
        return super().before_step(ctx)

    def masks(self) -> dict[str, torch.Tensor]:
        return self.mask.as_dict()

    def mask_changes(self) -> int:
        return self.mask.changes()

    def passes(self, layers: Mapping[str, Mapping[str, Any]]) -> Passes:
        """The gradient of every score is that of its product m w, whether the weight is kept or not."""
        kept = count(layers, "kept")
        return Passes(forward=kept, error=kept)

    def state_dict(self) -> dict[str, Any]:
        scores = {name: s.detach() for name, s in zip(self.weights, self.scores, strict=True)}
        return {**super().state_dict(), "masks": self.mask.as_dict(), "scores": scores}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.mask.load(state["masks"])
        for name, own in zip(self.weights, self.scores, strict=True):
            own.copy_(state["scores"][name])
