"""Top-KAST: always sparse training (Jayakumar et al. 2020), plain and with Powerprop (Schwarz et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from methods.allocation import allocate, kept_of
from methods.base import Context, Sparsity
from methods.knob import Knob, share
from methods.masks import Masks, Pursuit, ones
from methods.passes import Passes, count
from methods.ranking import Ranking, top_over_all, top_per_layer
from methods.reparam import Feedback


@dataclass(kw_only=True)
class TopKAST(Feedback):
    """The network computes with the largest weights (the set A) and trains these and some more (the set B).

    Jayakumar et al. 2020, section 2. A: the share D = 1 - `sparsity` of largest |theta|; B, which holds A: the share
    1 - `backward_sparsity`. Both are chosen anew every `period` steps, from the first, and after the last. Gradients
    are taken at theta on A and applied to theta on B, with those of the exploration loss (section 2.3)
    `exploration` (1/2 sum over A of theta^2 + 1/(2 D) sum over B without A of theta^2), D each layer's own density.
    Weights outside of B get neither gradient nor decay and move not at all: momentum left from before is not applied,
    and fades. The parameters hold what the network computes with, so that it is evaluated with A alone; theta is kept
    in `dense`. `allocation`: "uniform" within layers, the paper's; "erk"; "global" ranks over all layers. A run that
    would never choose its sets anew is refused.
    """

    sparsity: Sparsity
    backward_sparsity: Sparsity
    exploration: Annotated[float, "0 <= x"]
    period: Annotated[int, "1 <= x"] = 1
    allocation: Ranking = "uniform"

    knobs: ClassVar[tuple[Knob, ...]] = share()

    def check(self, epochs: float) -> None:
        if self.backward_sparsity > self.sparsity:
            raise ValueError(
                f"backward_sparsity = {self.backward_sparsity:g} exceeds sparsity = {self.sparsity:g}, but what the "
                f"network computes with is part of what trains"
            )

    def setup(self, model: nn.Module) -> nn.Module:
        model = super().setup(model)
        self.forward_set, self.backward_set = Masks(self.weights), Masks(self.weights)
        self.allocated: dict[float, list[int]] = {}
        self.pursuits = [[Pursuit() for _ in self.weights] for _ in range(2)]  # of the least |theta| of A, and of B
        self.scores = [torch.empty_like(t) for t in self.backward_set.tensors]  # |theta|
        self.strength = [torch.empty_like(t) for t in self.backward_set.tensors]  # in the exploration loss
        return model

    def begin(self, ctx: Context) -> None:
        if 1 < ctx.total_steps <= self.period:
            raise ValueError(
                f"period = {self.period}, but the run has {ctx.total_steps} steps, so that the sets of its initial "
                f"weights would stay throughout; set method.period to {ctx.total_steps - 1} or less, or a smaller "
                f"schedule.batch_size for more steps"
            )
        super().begin(ctx)

    def compress(self) -> None:
        for computed, theta, kept in zip(self.computed, self.dense, self.forward_set.tensors, strict=True):
            torch.mul(theta, kept, out=computed)

    def refresh(self, ctx: Context, step: int) -> None:
        if step % self.period == 0 or step == ctx.total_steps:
            for score, theta in zip(self.scores, self.dense, strict=True):
                torch.abs(theta, out=score)
            forward = self._top(self.sparsity, self.pursuits[0])
            backward = self._top(self.backward_sparsity, self.pursuits[1])
            for index, (a, b) in enumerate(zip(forward, backward, strict=True)):
                self.forward_set.set(index, a)
                self.backward_set.set(index, b.logical_or_(a))  # rounding could leave an ERK layer one short of A
                self._weigh(index, ones(a))

    def _top(self, sparsity: float, pursuits: list[Pursuit]) -> list[Tensor]:
        if self.allocation == "global":
            return top_over_all(self.scores, kept_of(sum(s.numel() for s in self.scores), sparsity), pursuits[0])
        return top_per_layer(self.scores, self.counts(sparsity), pursuits)

    def counts(self, sparsity: float) -> list[int]:
        """How many weights a set of this sparsity has in each layer, of an allocation by layers."""
        if sparsity not in self.allocated:
            assert self.allocation != "global"
            shapes = [tuple(score.shape) for score in self.scores]
            self.allocated[sparsity] = allocate(self.allocation, shapes, sparsity)
        return self.allocated[sparsity]

    def passes(self, layers: Mapping[str, Mapping[str, Any]]) -> Passes:
        """2 f_A + f_B, as Peste et al. 2021, appendix C.2, count it."""
        forward = count(layers, "kept")
        return Passes(forward, forward, dict(zip(self.backward_set.names, self.backward_set.counts(), strict=True)))

    def _weigh(self, index: int, kept: int) -> None:
        """Each weight's part in the exploration loss: 1 in the set A, of `kept` weights, 1 / D elsewhere."""
        a, strength = self.forward_set.tensors[index], self.strength[index]
        outside = float(torch.ones((), dtype=strength.dtype) / (max(kept, 1) / a.numel()))
        torch.sub(outside, a, alpha=outside - 1, out=strength)  # exact, as long as 1 / D < 2^24

    @torch.no_grad()
    def before_step(self, ctx: Context) -> bool:
        grads = [weight.grad for weight in self.computed if weight.grad is not None]
        if len(grads) < len(self.computed):
            name = next(name for name, weight in self.weights.items() if weight.grad is None)
            raise ValueError(f"the loss has no gradient with respect to {name}; add its layer to keep_dense")
        # The optimizer sees theta on B and zeros elsewhere: its own weight decay, if any, is that of B too. Until
        # `after_step` `dense` holds the rest of theta.
        for computed, theta, kept in zip(self.computed, self.dense, self.backward_set.tensors, strict=True):
            torch.mul(theta, kept, out=computed)
            theta.sub_(computed)
        self.transport(grads)
        torch._foreach_mul_(grads, self.backward_set.tensors)
        torch._foreach_addcmul_(grads, self.computed, self.strength, value=self.exploration)
        return True

    def transport(self, grads: list[Tensor]) -> None:
        """Make gradients at what the network computes with those at theta, in place: here they are the same.

        Those outside of B, where `computed` has zeros in the place of theta, are dropped afterwards.
        """

    @torch.no_grad()
    def after_step(self, ctx: Context) -> None:
        torch._foreach_addcmul_(self.dense, self.computed, self.backward_set.tensors)
        self.refresh(ctx, ctx.step + 1)
        self.compress()

    def masks(self) -> dict[str, Tensor]:
        return self.forward_set.as_dict()

    def mask_changes(self) -> int:
        return self.forward_set.changes() + self.backward_set.changes()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "masks": self.masks(), "backward": self.backward_set.as_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.forward_set.load(state["masks"])
        self.backward_set.load(state["backward"])
        for index, kept in enumerate(self.forward_set.counts()):
            self._weigh(index, kept)


@dataclass(kw_only=True)
class Powerprop(TopKAST):
    """Top-KAST whose weights are powers: w = theta |theta|^(alpha - 1).

    Schwarz et al. 2021, section 2 and their combination with Top-KAST. theta starts at sign(w) |w|^(1 / alpha), so that
    the network starts as it would; the gradient is alpha |theta|^(alpha - 1) dL/dw, so that small weights move little,
    and at theta = 0 is dL/dw for alpha = 1 and 0 above. Sets are those of the largest |theta|, which are those of the
    largest |w|; the exploration loss is theta's (theirs is not printed).
    """

    alpha: Annotated[float, "1 <= x"]

    @torch.no_grad()
    def begin(self, ctx: Context) -> None:
        for weight in self.computed:
            weight.copy_(weight.sign() * weight.abs() ** (1 / self.alpha))
        super().begin(ctx)

    def compress(self) -> None:
        super().compress()
        for weight in self.computed:
            weight.mul_(weight.abs() ** (self.alpha - 1))

    def transport(self, grads: list[Tensor]) -> None:
        for grad, theta in zip(grads, self.computed, strict=True):
            grad.mul_(self.alpha * theta.abs() ** (self.alpha - 1))
