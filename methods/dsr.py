"""DSR: dynamic sparse reparameterization (Mostafa & Wang 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from methods.base import Context
from methods.rewiring import Rewiring


@dataclass(kw_only=True)
class DSR(Rewiring):
    """Drop by one global, adaptive magnitude threshold; grow where layers have most surviving weights.

    Mostafa & Wang 2019, algorithm 1. At each rewiring every kept weight with |w| < H goes, but the last of a layer
    (of those, the one with the lowest index stays, as in the official code). Then H is halved when more than
    (1 + tolerance) `count` weights went, doubled when fewer than (1 - tolerance) `count`. As many weights are grown,
    at random positions that were empty before: each layer's share is proportional to its surviving weights; the
    rounding remainder goes to a random layer and a full layer's surplus overflows to the others, both as in the
    official code. The total stays exactly constant; momentum is not reset.
    """

    count: Annotated[int, "1 <= x"]
    tolerance: Annotated[float, "0 <= x < 1"] = 0.1
    threshold: Annotated[float, "0 < x"] = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        self.current_threshold = self.threshold

    def drop(self, kept: list[Tensor], ctx: Context) -> list[Tensor]:
        dropped = []
        for index, mask in enumerate(kept):
            gone = mask & (self.mask.weights[index].detach().view(-1).abs() < self.current_threshold)
            if int(gone.count_nonzero()) == int(mask.count_nonzero()):
                gone[mask.nonzero()[:1]] = False
            dropped.append(gone)
        total = sum(int(gone.count_nonzero()) for gone in dropped)
        if total > (1 + self.tolerance) * self.count:
            self.current_threshold /= 2
        elif total < (1 - self.tolerance) * self.count:
            self.current_threshold *= 2
        return dropped

    def growth(self, dropped: list[int], before: list[Tensor], after: list[Tensor], ctx: Context) -> list[int]:
        survivors = [int(kept.count_nonzero()) for kept in after]
        room = [int((~kept).count_nonzero()) for kept in before]
        total = sum(dropped)
        grown = spread(min(total, sum(room)), survivors, room, ctx.rng)
        # More dropped than there are empty positions in the whole model: the rest returns to where it was dropped.
        back = spread(total - sum(grown), survivors, dropped, ctx.rng)
        return [a + b for a, b in zip(grown, back, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "threshold": self.current_threshold}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.current_threshold = state["threshold"]


def spread(total: int, weights: list[int], room: list[int], rng: torch.Generator) -> list[int]:
    """Split `total` over layers in proportion to `weights`, within `room`, as the DSR authors' code does.

    Each round rounds every share to the nearest integer (halves to even) and gives the remainder to a random layer;
    what does not fit goes into the next round, among the layers that still have room. The sum is exactly `total`.
    """
    counts = [0] * len(weights)
    while (left := total - sum(counts)) > 0:
        open_layers = [i for i, cap in enumerate(room) if counts[i] < cap]
        mass = sum(weights[i] for i in open_layers)
        share = {i: round(left * (weights[i] / mass if mass else 1 / len(open_layers))) for i in open_layers}
        lucky = open_layers[int(torch.randint(len(open_layers), (1,), generator=rng))]
        share[lucky] = max(0, share[lucky] + left - sum(share.values()))
        for i in open_layers:
            counts[i] += min(share[i], room[i] - counts[i], total - sum(counts))
    return counts
