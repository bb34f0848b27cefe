"""STR (Kusupati et al. 2020) and GPO (Wang et al. 2022): soft thresholds that are trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from methods.base import Context
from methods.knob import Knob
from methods.soft_threshold import Link, Scheduled, Scope, SoftThreshold, Source, Trained, products
from methods.thresholds import Scheduler

#: What sets the sparsity (Kusupati et al. 2020): the weight decay that makes thresholds grow, and where they start.
TRAINED = (
    Knob(option="s_init", low=-1e5, high=-1.0, guess=-3200.0),
    Knob(option="threshold_decay", low=1e-8, high=10.0, guess=3.05e-5),
)


@dataclass(kw_only=True)
class STR(SoftThreshold):
    """Trains the threshold d = g(s) with the weights, by its true gradient; weight decay on s is what makes it grow.

    s starts at `s_init`; g (`threshold`) is the sigmoid, or exp for recurrent networks. `scope`: a threshold for each
    layer, or one "global" one (STR-GS). `threshold_decay` is the weight decay of s; null: that of the run, as in the
    paper.

    With a `scheduler` (sine, linear or log2) the threshold is not trained: one for all layers follows that schedule up
    to `final_threshold`, under STR's gradient (Chen et al. 2023, table 5). The other schedulers are STDS's, to which
    gradient = subgradient gives the same.
    """

    s_init: Annotated[float, "-1e6 <= x <= 10"]
    threshold: Link = "sigmoid"
    scope: Scope = "layer"
    threshold_decay: Annotated[float, "0 <= x"] | None = None
    gradient: Literal["subgradient", "identity"] = "subgradient"
    scheduler: Literal["sine", "linear", "log2"] | None = None
    final_threshold: Annotated[float, "0 <= x"] | None = None

    knobs: ClassVar[tuple[Knob, ...]] = TRAINED

    def check(self, epochs: float) -> None:
        if (self.scheduler is None) != (self.final_threshold is None):
            given, missing = ("scheduler", "final_threshold")[:: 1 if self.scheduler else -1]
            raise ValueError(f"{given} is set without {missing}; a scheduled threshold needs both, a trained one none")

    def make_source(self) -> Source:
        if self.scheduler is None:
            return Trained(self.weights, self.s_init, self.threshold, self.scope, self.threshold_decay)
        scheduler: Scheduler = self.scheduler
        return Scheduled(final=self.final_threshold, scheduler=scheduler)


@dataclass(kw_only=True)
class GPO(SoftThreshold):
    """The network computes with (1 - k) S_d(w) + k w; k = `beta_scale` |beta| and d = sigmoid(s), both trained.

    beta starts at `beta_init`, so that training begins at the identity, k = 1, and weight decay `beta_decay` on beta
    turns it into STR. Gradients are the true ones (Chen et al. 2023, equations 24 and 27). s and beta are layer-wise.

    No weight is exactly zero while k > 0: what counts as zero are those with |w| <= d.
    """

    s_init: Annotated[float, "-1e6 <= x <= 10"]
    beta_init: Annotated[float, "0 <= x"] = 1e6
    beta_scale: Annotated[float, "0 <= x"] = 1e-6
    beta_decay: Annotated[float, "0 <= x"] = 1e-4
    threshold: Link = "sigmoid"
    threshold_decay: Annotated[float, "0 <= x"] | None = None
    gradient: Literal["subgradient"] = "subgradient"

    knobs: ClassVar[tuple[Knob, ...]] = TRAINED

    def make_source(self) -> Source:
        like = self.computed[0]
        self.beta = nn.Parameter(like.new_full((len(self.computed),), self.beta_init))
        self.k = self.shares()
        self.scratch = [torch.empty_like(w, requires_grad=False) for w in self.computed]
        return Trained(self.weights, self.s_init, self.threshold, "layer", self.threshold_decay)

    def param_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        return [*super().param_groups(model), {"params": [self.beta], "weight_decay": self.beta_decay}]

    def shares(self) -> list[Tensor]:
        """k of every layer."""
        return list((self.beta_scale * self.beta.detach().abs()).unbind())

    def refresh(self, ctx: Context, step: int) -> None:
        super().refresh(ctx, step)
        self.k = self.shares()

    def compress(self) -> None:
        self.clip(self.computed, self.scratch)
        torch._foreach_sub_(self.computed, self.scratch)
        torch._foreach_mul_(self.scratch, self.k)
        torch._foreach_add_(self.computed, self.scratch)

    def backward(self, grads: list[Tensor], ctx: Context) -> None:
        self.clip(self.dense, self.computed)
        self.beta.grad = self.beta_scale * self.beta.detach().sign() * products(grads, self.computed)
        torch._foreach_sub_(self.computed, self.dense)
        torch._foreach_sign_(self.computed)  # of clipped w less w: -1 or 1 beyond the threshold, 0 elsewhere
        rest = [1 - k for k in self.k]
        self.source.learn(-products(grads, self.computed) * torch.stack(rest), ctx)
        torch._foreach_abs_(self.computed)
        torch._foreach_mul_(self.computed, rest)
        torch._foreach_add_(self.computed, self.k)
        torch._foreach_mul_(grads, self.computed)

    def clip(self, weights: list[Tensor], out: list[Tensor]) -> None:
        """Write w - S_d(w) to `out`: w where |w| <= d, else sign(w) d."""
        limits: Any = self.at_hand() or self.source.limits()
        for weight, limit, place in zip(weights, limits, out, strict=True):
            torch.clamp(weight, -limit, limit, out=place)

    def masks(self) -> dict[str, Tensor]:
        return {}

    def effective(self) -> dict[str, Tensor]:
        limits = self.source.limits()
        assert isinstance(limits, list)
        triples = zip(self.weights.items(), self.dense, limits, strict=True)
        return {name: w.detach() * (dense.abs() > d) for (name, w), dense, d in triples}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "beta": self.beta.detach()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.beta.copy_(state["beta"])
        self.k = self.shares()
