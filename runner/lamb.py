"""Lamb (You et al. 2020) as NVIDIA's public code of Transformer-XL has it, which timm's cannot be set to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import torch
from torch import Tensor

Beta = Annotated[float, "0 <= x < 1"]


class Lamb(torch.optim.Optimizer):
    """Adam's direction r = m / (sqrt(v) + eps) + weight_decay * p, per tensor of the length lr * ratio.

    ratio = min(||p||, norm_bound) / (||r|| + eps), or 1 where ||p|| or ||r|| is 0. The moments are not corrected for
    their start at 0 (version 3 of the paper). The bound is phi of the paper's algorithm 2; timm's Lamb has none, and
    one of 10 binds at the first step already: normal embeddings of 19,997 x 1,024 with std 0.005 have the norm 22.6.
    With norm_bound = inf it is timm's with bias_correction=False, always_adapt=True, max_grad_norm=None, to eps.
    """

    def __init__(
        self,
        *,
        params: Any,
        lr: Annotated[float, "0 <= x"],
        weight_decay: Annotated[float, "0 <= x"] = 0.0,
        beta1: Beta = 0.9,
        beta2: Beta = 0.999,
        eps: Annotated[float, "0 < x"] = 1e-6,
        norm_bound: Annotated[float, "0 < x"] = 10.0,
    ) -> None:
        options = {"beta1": beta1, "beta2": beta2, "eps": eps, "norm_bound": norm_bound}
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, **options})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step on every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._step(params, group)
        return loss

    def _step(self, params: list[Tensor], group: dict[str, Any]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p] = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        grads = [p.grad for p in params if p.grad is not None]
        first = [self.state[p]["exp_avg"] for p in params]
        second = [self.state[p]["exp_avg_sq"] for p in params]
        torch._foreach_lerp_(first, grads, 1 - group["beta1"])
        torch._foreach_mul_(second, group["beta2"])
        torch._foreach_addcmul_(second, grads, grads, 1 - group["beta2"])
        scale = torch._foreach_sqrt(second)
        torch._foreach_add_(scale, group["eps"])
        direction = torch._foreach_div(first, scale)
        if group["weight_decay"]:
            torch._foreach_add_(direction, params, alpha=group["weight_decay"])
        lengths, moves = torch.stack(torch._foreach_norm(params)), torch.stack(torch._foreach_norm(direction))
        ratios = lengths.clamp(max=group["norm_bound"])
        ratios = torch.where((lengths > 0) & (moves > 0), ratios / (moves + group["eps"]), 1.0)
        torch._foreach_mul_(direction, list((ratios * -group["lr"]).unbind()))
        torch._foreach_add_(params, direction)
