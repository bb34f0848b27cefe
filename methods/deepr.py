"""DeepR: deep rewiring (Bellec et al. 2018)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from methods.base import Context
from methods.masks import random_positions
from methods.schedules import EpochRanges
from methods.static import Static


@dataclass(kw_only=True)
class DeepR(Static):
    """A random walk over connections with fixed signs; a connection that would change its sign goes dormant.

    Bellec et al. 2018, algorithm 1: w = s theta with a fixed sign s per position (that of the initial weight) and, for
    active theta, theta <- theta - eta (dE/dtheta + alpha) + sqrt(2 eta T) nu, nu ~ N(0, 1), eta the learning rate.
    theta < 0 goes dormant; as many dormant positions of the layer are reborn at theta = 0, uniformly at random. The
    gradient part of the update is the run's own optimizer's (momentum included).

    `rebirth`: "any" dormant position, those that died in this step among them (Bellec's algorithm), or "others" (the
    code of Mostafa & Wang 2019). That code also adds the noise to the gradient; here it is added to theta.
    """

    alpha: Annotated[float, "0 <= x"] = 1e-5
    temperature: Annotated[EpochRanges | str | float, "0 <= x"] = 1e-5
    rebirth: Literal["any", "others"] = "any"

    def __post_init__(self) -> None:
        self.temperatures = EpochRanges.parse(self.temperature)  # type: ignore[arg-type]

    def setup(self, model: nn.Module) -> nn.Module:
        model = super().setup(model)
        self.signs = [torch.ones_like(w, requires_grad=False) for w in self.mask.weights]
        return model

    def begin(self, ctx: Context) -> None:
        # Here and not in setup: a stage has its parent's weights by now. And before they are masked: dormant positions
        # have the signs of their initial weights too. sign(0) would leave a position without a direction to live in.
        for sign, weight in zip(self.signs, self.mask.weights, strict=True):
            sign.copy_(torch.where(weight.detach() < 0, -1.0, 1.0))
        super().begin(ctx)
        self._find_active()

    def _find_active(self) -> None:
        """Positions of the active weights per layer; the order is part of the state, since noise is drawn along it."""
        self.active = [self.mask.kept(i).nonzero().view(-1) for i in range(len(self.mask.weights))]

    @torch.no_grad()
    def before_step(self, ctx: Context) -> bool:
        # d(alpha theta)/dw = alpha s. At theta = 0 too: there the L1 term of a fixed-sign weight has a gradient.
        pairs = [(w.grad, s) for w, s in zip(self.mask.weights, self.signs, strict=True) if w.grad is not None]
        torch._foreach_add_([g for g, _ in pairs], [s for _, s in pairs], alpha=self.alpha)
        return super().before_step(ctx)

    @torch.no_grad()
    def after_step(self, ctx: Context) -> None:
        self.mask.project()
        std = math.sqrt(2 * ctx.lr * self.temperatures.at(ctx.epoch))
        for index, weight in enumerate(self.mask.weights):
            flat, sign, active = weight.view(-1), self.signs[index].view(-1), self.active[index]
            noise = torch.randn(active.numel(), generator=ctx.rng).to(flat)
            # index_select and index_copy_: several times faster than indexing, in every step.
            value = flat.index_select(0, active).add_(noise, alpha=std)
            flat.index_copy_(0, active, value)
            dead = (value * sign.index_select(0, active) < 0).nonzero().view(-1)
            if dead.numel():
                self._rewire(index, dead, ctx)

    def _rewire(self, index: int, dead: Tensor, ctx: Context) -> None:
        """Replace the active entries `dead` (indices into `active`) by dormant positions."""
        flat, mask, active = self.mask.weights[index].view(-1), self.mask.tensors[index].view(-1), self.active[index]
        died = active[dead]
        flat[died] = 0
        if self.rebirth == "any":
            mask[died] = 0
        born = draw_dormant(mask, mask.numel() - active.numel(), dead.numel(), ctx.rng, died)
        mask[died] = 0
        mask[born] = 1
        active[dead] = born

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "signs": dict(zip(self.mask.names, self.signs, strict=True)),
            "active": dict(zip(self.mask.names, self.active, strict=True)),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        for sign, saved in zip(self.signs, state["signs"].values(), strict=True):
            sign.copy_(saved)
        # Copies: `_rewire` changes them in place, and they may be another method's state.
        saved = zip(state["active"].values(), self.mask.weights, strict=True)
        self.active = [active.to(weight.device, copy=True) for active, weight in saved]


def draw_dormant(mask: Tensor, dormant: int, count: int, rng: torch.Generator, spare: Tensor) -> Tensor:
    """`count` distinct positions drawn uniformly from those where the flat `mask` is zero.

    `dormant`: a lower bound of their number. Rejection sampling, since deaths are few and positions many; where
    dormant positions are scarce, an exact draw, and where there are fewer than `count`, `spare` positions are added.
    """
    if dormant < 4 * count:
        free = mask == 0
        enough = min(count, int(free.count_nonzero()))
        born = random_positions(free, enough, rng)
        return torch.cat([born, spare[: count - enough]])
    chosen: dict[int, None] = {}
    while len(chosen) < count:
        drawn = torch.randint(mask.numel(), (2 * (count - len(chosen)),), generator=rng)
        chosen.update(dict.fromkeys(drawn[mask[drawn.to(mask.device)].cpu() == 0].tolist()))
    return torch.tensor(list(chosen)[:count], device=mask.device)
