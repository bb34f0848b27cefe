"""Lottery tickets by iterative magnitude pruning (Frankle & Carbin 2019): one round of it, and how many there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from methods.allocation import kept_of
from methods.base import Context, Masked
from methods.ranking import top_over_all, top_per_layer
from methods.schedules import Epochs


@dataclass(kw_only=True)
class Ticket(Masked):
    """Training from the initial weights, within the mask of the largest weights that the parent trained.

    Frankle & Carbin 2019, iterative pruning with resetting: a chain of stages of which each trains to its end; the
    first one's parent is dense. Survivors are the largest |w| of the parent's kept weights at its end, as many as
    `sparsity` leaves. `allocation`: "global" ranks over all layers (their deep networks), "uniform" within each.
    """

    allocation: Literal["global", "uniform"] = "global"

    def begin(self, ctx: Context) -> None:
        if not self.adopted:
            raise ValueError("a lottery ticket needs a parent run's weights; leave start as the method has it")
        super().begin(ctx)

    @torch.no_grad()
    def adopt(self, masks: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
        if masks:
            self.mask.load(masks)
        kept = [self.mask.kept(index) for index in range(len(self.mask.names))]
        scores = [weights[n].abs().view(-1).masked_fill(~k, -1) for n, k in zip(self.mask.names, kept, strict=True)]
        sizes = [score.numel() for score in scores]
        if self.allocation == "global":
            survivors = top_over_all(scores, kept_of(sum(sizes), self.sparsity))
        else:
            survivors = top_per_layer(scores, [kept_of(size, self.sparsity) for size in sizes])
        for index, (mask, before) in enumerate(zip(survivors, kept, strict=True)):
            if bool((mask & ~before).any()):
                raise ValueError(f"sparsity {self.sparsity:g} keeps more of {self.mask.names[index]} than the parent")
            self.mask.set(index, mask)
        self.adopted = True


@dataclass(kw_only=True)
class Lottery(Ticket):
    """A round that keeps the share 1 - `rate` of what its parent kept; the last one as much as `sparsity` leaves.

    Frankle & Carbin 2019; `methods.schedules.lottery_parent` says which round comes before.
    """

    rate: Annotated[float, "0 < x < 1"] = 0.2


@dataclass(kw_only=True)
class Rewound(Lottery):
    """Iterative magnitude pruning whose rounds begin with the weights of an early epoch, not with the initial ones.

    Frankle et al. 2020 (Linear mode connectivity and the lottery ticket hypothesis), section 4: train the first
    `rewind_epochs`; from there to the end, dense; prune; set the survivors to what they were after `rewind_epochs`,
    train from there to the end; and so on. The optimizer begins anew in every round. `sparsity` 0 is the dense round.
    """

    rewind_epochs: Epochs

    def check(self, epochs: float) -> None:
        super().check(epochs)
        if not self.rewind_epochs:
            raise ValueError("rewind_epochs = 0 rewinds to the initial weights; that is method=lottery")


@dataclass(kw_only=True)
class IMP(Ticket):
    """The last of `rounds` rounds, all of which keep the same share of what their parents kept.

    Chijiwa et al. 2021, table 7: training, then `rounds` times pruning, rewinding to the initial weights and training.
    `methods.schedules.imp_parent` says which round comes before.
    """

    rounds: Annotated[int, "1 <= x"] = 3
