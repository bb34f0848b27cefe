"""Static random sparsity: a random mask drawn at initialisation and never changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import nn

from methods.allocation import Allocation, allocate
from methods.base import Context, Masked
from methods.masks import Masks, random_positions


@dataclass(kw_only=True)
class Static(Masked):
    """A random mask with exact counts per layer, drawn before the first step.

    The baseline "static sparse" of Mostafa & Wang 2019, and the starting point of SET, DeepR and DSR. Surviving weights
    keep their dense initialisation, as in the official code.
    """

    allocation: Allocation = "uniform"
    layer_floor: Annotated[int, "0 <= x"] = 0

    def setup(self, model: nn.Module) -> nn.Module:
        model = super().setup(model)
        shapes = [tuple(w.shape) for w in self.mask.weights]
        self.counts = allocate(self.allocation, shapes, self.sparsity, self.layer_floor)
        return model

    def begin(self, ctx: Context) -> None:
        if not self.adopted:
            draw(self.mask, self.counts, ctx.rng)
        super().begin(ctx)


def draw(mask: Masks, counts: Sequence[int], rng: torch.Generator) -> None:
    """Make each layer's mask a random one of so many weights."""
    for index, count in enumerate(counts):
        everywhere = mask.kept(index).fill_(True)
        kept = everywhere.new_zeros(everywhere.shape)
        kept[random_positions(everywhere, count, rng)] = True
        mask.set(index, kept)
