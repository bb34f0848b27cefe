"""IteRand: edge-popup whose pruned weights are drawn anew ever again (Chijiwa et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from methods.base import Context
from methods.edge_popup import EdgePopup


@dataclass(kw_only=True)
class IteRand(EdgePopup):
    """Edge-popup that replaces pruned weights, each with probability `rate`, every `period` steps.

    Chijiwa et al. 2021, algorithm 3 and equation 3 (K_per and r; both named in B.2): a replaced weight is a new draw
    from the distribution that its layer began with. Kept weights, and all scores, stay as they are. As in the official
    code, it happens before the forward pass of step t (from 0) when t + 1 is a multiple of `period`, by the mask of
    that pass.
    """

    period: Annotated[int, "1 <= x"]
    rate: Annotated[float, "0 <= x <= 1"]

    def before_forward(self, ctx: Context) -> None:
        if (ctx.step + 1) % self.period == 0:
            with ctx.timed("redraw"):
                self.randomize(ctx.rng)

    @torch.no_grad()
    def randomize(self, rng: torch.Generator) -> None:
        """Replace pruned weights. What the network computes with does not change: they are behind the mask."""
        for index, frozen in enumerate(self.frozen):
            lucky = torch.rand(frozen.numel(), generator=rng) < self.rate
            where = (lucky.to(frozen.device) & ~self.mask.kept(index)).nonzero().view(-1)
            drawn = self.drawn(index, where.numel(), rng)
            frozen.view(-1).index_copy_(0, where, drawn.to(frozen))
