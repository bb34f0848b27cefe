"""SET: sparse evolutionary training (Mocanu et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from methods.base import Context
from methods.masks import top_mask
from methods.rewiring import Rewiring
from methods.schedules import apportion


@dataclass(kw_only=True)
class SET(Rewiring):
    """Per layer, drop the weights of smallest magnitude and grow as many at random among the empty positions.

    `count`: weights dropped at each rewiring in the whole model (K in Mostafa & Wang 2019, Table 4), split over the
    layers in proportion to their kept weights. Every layer keeps its number of weights. A layer never drops more than
    it has empty positions for, so that all dropped weights can move.
    """

    count: Annotated[int, "1 <= x"]

    def drop(self, kept: list[Tensor], ctx: Context) -> list[Tensor]:
        sizes = [int(k.count_nonzero()) for k in kept]
        caps = [min(size, k.numel() - size) for size, k in zip(sizes, kept, strict=True)]
        counts = apportion(min(self.count, sum(caps)), sizes, caps)
        dropped = []
        for index, (mask, size, count) in enumerate(zip(kept, sizes, counts, strict=True)):
            magnitude = self.mask.weights[index].detach().abs().view(-1).masked_fill(~mask, -1)
            dropped.append(mask & ~top_mask(magnitude, size - count))
        return dropped

    def growth(self, dropped: list[int], before: list[Tensor], after: list[Tensor], ctx: Context) -> list[int]:
        return dropped
