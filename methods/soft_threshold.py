"""Soft threshold reparameterisation: the network computes with S_d(w) = sign(w) max(|w| - d, 0).

Chen et al. 2023, algorithm 1, with its parts: the gradient rule (`SoftThreshold.gradient`) and where the threshold
comes from (a `Source`: one that follows a schedule, or trained ones). `methods.stds` and `methods.str` choose.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from methods.base import Context
from methods.passes import Passes, count, within
from methods.reparam import Feedback
from methods.thresholds import Threshold

Link = Literal["sigmoid", "exp"]
Scope = Literal["layer", "global"]


class Source(ABC):
    """Where thresholds come from. `names`: of the layers they belong to, or "all"; `trains`: whether by gradients."""

    names: list[str]
    trains = False

    @abstractmethod
    def update(self, ctx: Context, step: int) -> None:
        """Bring the thresholds to their values after `step` finished steps."""

    @abstractmethod
    def limits(self) -> float | list[Tensor]:
        """The threshold of all weights, or one of no dimension for each."""

    @abstractmethod
    def values(self) -> Tensor:
        """The thresholds, one for each name."""

    @abstractmethod
    def learn(self, pulls: Tensor, ctx: Context) -> None:
        """`pulls`: of each weight, the sum of dL/dC(w) sign(w) over its elements beyond the threshold."""

    def params(self) -> list[dict[str, Any]]:
        """Parameter groups of its own."""
        return []

    @abstractmethod
    def start_epoch(self) -> None:
        """Diagnostics begin anew."""

    def diagnostics(self) -> dict[str, float]:
        """Of the epoch, beside the thresholds themselves."""
        return {}

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""


class Scheduled(Source):
    """One threshold for all weights, which follows a schedule (`methods.thresholds`)."""

    names = ["all"]

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.schedule: Threshold | None = None
        self.value = 0.0

    def update(self, ctx: Context, step: int) -> None:
        if self.schedule is None or self.schedule.steps != ctx.total_steps:  # a budget of FLOPs lengthens a begun run
            steps = ctx.steps_per_epoch
            epochs = ctx.total_steps // steps
            self.schedule = Threshold(**self.options, epochs=epochs, steps_per_epoch=steps, rate=ctx.learning_rate)
        self.value = self.schedule.at(step)

    def limits(self) -> float:
        return self.value

    def values(self) -> Tensor:
        return torch.tensor([self.value], dtype=torch.float64)

    def learn(self, pulls: Tensor, ctx: Context) -> None:
        raise TypeError("a scheduled threshold does not learn")

    def start_epoch(self) -> None:
        """There is nothing but the threshold."""

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


class Trained(Source):
    """Trained thresholds d = g(s), one for each weight or one for all (Kusupati et al. 2020).

    dL/ds = -g'(s) sum of dL/dC(w) sign(w) over |w| > d. The optimizer trains s with the run's weight decay, or with
    `decay`. s is no parameter of the model: its gradient follows from those of the weights, which are synchronised
    already, and the model keeps its names.
    """

    trains = True

    def __init__(self, weights: dict[str, nn.Parameter], start: float, link: Link, scope: Scope, decay: Any):
        layers = [name.removesuffix(".weight") for name in weights]
        self.names = layers if scope == "layer" else ["all"]
        self.index = list(range(len(layers))) if scope == "layer" else [0] * len(layers)
        like = next(iter(weights.values()))
        self.s = nn.Parameter(torch.full((len(self.names),), start, dtype=like.dtype, device=like.device))
        self.map = torch.sigmoid if link == "sigmoid" else torch.exp
        self.link, self.decay = link, decay
        self.d = self.map(self.s.detach())
        self.logs = torch.zeros_like(self.d, dtype=torch.float64)
        self.counts = torch.zeros_like(self.logs)

    def params(self) -> list[dict[str, Any]]:
        return [{"params": [self.s], **({} if self.decay is None else {"weight_decay": self.decay})}]

    def update(self, ctx: Context, step: int) -> None:
        self.d = self.map(self.s.detach())

    def limits(self) -> list[Tensor]:
        each = self.d.unbind()
        return [each[i] for i in self.index]

    def values(self) -> Tensor:
        return self.d

    def learn(self, pulls: Tensor, ctx: Context) -> None:
        slope = self.d * (1 - self.d) if self.link == "sigmoid" else self.d
        total = pulls if len(self.names) == len(pulls) else pulls.sum(0, keepdim=True)
        self.s.grad = -slope * total
        (group,) = (g for g in ctx.optimizer.param_groups if any(p is self.s for p in g["params"]))
        ratio = (self.s.grad.abs() / (group["weight_decay"] * self.s.detach().abs())).double()
        usable = ratio.isfinite()  # not without decay, nor in a step that fp16 overflows and leaves out
        self.logs += torch.where(usable, ratio.log(), 0)
        self.counts += usable

    def start_epoch(self) -> None:
        self.logs.zero_()
        self.counts.zero_()

    def diagnostics(self) -> dict[str, float]:
        means = (self.logs / self.counts).exp().tolist()
        pairs = zip(self.names, means, self.counts.tolist(), strict=True)
        return {f"gradient_to_decay:{name}": mean for name, mean, count in pairs if count}

    def state_dict(self) -> dict[str, Any]:
        return {"s": self.s.detach(), "logs": self.logs, "counts": self.counts}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.s.copy_(state["s"])
        self.d = self.map(self.s.detach())
        self.logs.copy_(state["logs"])
        self.counts.copy_(state["counts"])


@dataclass(kw_only=True)
class SoftThreshold(Feedback):
    """Trains w and computes with S_d(w); the optimizer's weight decay and momentum are those of w.

    Algorithm 1: step t computes with w(t) and d(t); then w takes its step, d(t+1) is set and w(t+1) mapped.
    `gradient`, of C(w) with respect to w: "subgradient" is the indicator |w| > d (STR), "identity" is 1 (STDS).
    `prune_batch_norm` maps the scales of batch normalisation too. The present support |w| > d is reported as masks.

    LATS's official code lets no gradient pass at w = 0 exactly, where the paper's identity does.
    """

    gradient: Literal["subgradient", "identity"]
    prune_batch_norm: bool = False

    @abstractmethod
    def make_source(self) -> Source:
        """The thresholds, once the weights are known."""

    def setup(self, model: nn.Module) -> nn.Module:
        model = super().setup(model)
        if self.prune_batch_norm:
            norms = ((name, module.weight) for name, module in model.named_modules() if isinstance(module, _NormBase))
            self.weights |= {f"{name}.weight": weight for name, weight in norms if weight is not None}
            self.computed = list(self.weights.values())
            self.dense = [torch.empty_like(w, requires_grad=False) for w in self.computed]
        self.source = self.make_source()
        self.began, self.rates = self.source.values().tolist(), 0.0
        return model

    def param_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        return [*super().param_groups(model), *self.source.params()]

    def passes(self, layers: Mapping[str, Mapping[str, Any]]) -> Passes:
        """The gradient of all weights is needed where it passes to all of them."""
        computes = count(layers, "nonzero")
        return within(computes) if self.gradient == "subgradient" else Passes(forward=computes, error=computes)

    def refresh(self, ctx: Context, step: int) -> None:
        self.source.update(ctx, step)

    def compress(self) -> None:
        limits = self.at_hand()
        if limits is None:
            torch._foreach_sub_(self.computed, self.clipped())
        else:
            for weight, limit in zip(self.computed, limits, strict=True):
                torch.ops.aten.softshrink.out(weight, limit, out=weight)

    def at_hand(self) -> list[float] | None:
        """The threshold of each weight as a number, on the CPU, where it takes no waiting; None elsewhere, and for
        thresholds that are not finite.
        """
        if self.computed[0].device.type != "cpu":
            return None
        limits = self.source.limits()
        numbers = [limits] * len(self.computed) if isinstance(limits, float) else [d.item() for d in limits]
        return numbers if all(0 <= d <= torch.finfo(self.computed[0].dtype).max for d in numbers) else None

    def clipped(self) -> list[Tensor]:
        """w - S_d(w): w where |w| <= d, else sign(w) d. `computed` must hold w."""
        limits = self.source.limits()
        clipped = torch._foreach_clamp_max(self.computed, limits)
        torch._foreach_clamp_min_(clipped, -limits if isinstance(limits, float) else [-each for each in limits])
        return list(clipped)

    def on_epoch(self, ctx: Context) -> None:
        self.began, self.rates = self.source.values().tolist(), 0.0
        self.source.start_epoch()

    @torch.no_grad()
    def before_step(self, ctx: Context) -> bool:
        if self.gradient == "subgradient" or self.source.trains:
            self.backward([torch.zeros_like(w) if w.grad is None else w.grad for w in self.computed], ctx)
        return super().before_step(ctx)

    def backward(self, grads: list[Tensor], ctx: Context) -> None:
        """From gradients with respect to C(w), which `computed` holds, to those with respect to w, in place, and d.

        `computed` is used up: in the steps of small networks fresh memory costs more than arithmetic.
        """
        torch._foreach_sign_(self.computed)  # 0 where |w| <= d; nobody needs C(w) any more in this step
        signs = self.computed
        if self.gradient == "subgradient":
            torch._foreach_mul_(grads, signs)
            pulls = grads
        else:
            torch._foreach_mul_(signs, grads)
            pulls = signs
        if self.source.trains:
            self.source.learn(summed(pulls), ctx)
        if self.gradient == "subgradient":
            torch._foreach_mul_(grads, signs)

    def after_step(self, ctx: Context) -> None:
        super().after_step(ctx)
        self.rates += ctx.lr

    def masks(self) -> dict[str, Tensor]:
        return {name: weight.detach() != 0 for name, weight in self.weights.items()}

    def mask_changes(self) -> int:
        return self.computed[0]._version  # the support may change with every step

    def diagnostics(self) -> dict[str, float]:
        found = {}
        for name, before, now in zip(self.source.names, self.began, self.source.values().tolist(), strict=True):
            found[f"threshold:{name}"] = now
            if self.rates:
                found[f"l1_penalty:{name}"] = (now - before) / self.rates
        return found | self.source.diagnostics()

    def state_dict(self) -> dict[str, Any]:
        inner = {"source": self.source.state_dict(), "began": self.began, "rates": self.rates}
        return {**super().state_dict(), **inner}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.source.load_state_dict(state["source"])
        self.began, self.rates = state["began"], state["rates"]


def summed(tensors: Sequence[Tensor]) -> Tensor:
    """The sum of each tensor's elements."""
    return torch.stack([each.sum() for each in tensors])


def products(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """The inner product of each pair."""
    return torch.stack([torch.dot(a.reshape(-1), b.reshape(-1)) for a, b in zip(left, right, strict=True)])
