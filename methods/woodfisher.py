"""WoodFisher: gradual pruning by the inverse of the empirical Fisher matrix (Singh & Alistarh 2020)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from methods.base import Context
from methods.fisher import InverseFisher
from methods.gmp import GMP
from methods.ranking import Ranking


@dataclass(kw_only=True)
class WoodFisher(GMP):
    """Prune what raises the loss's quadratic model least, and let the surviving weights make up for it.

    Singh & Alistarh 2020, sections 4 and 5, after the optimal brain surgeon: weight q has the saliency
    w_q^2 / (2 [F^-1]_qq) and takes -w_q F^-1 e_q / [F^-1]_qq along, summed over the weights that one pruning drops (as
    their code does; for one weight per block that is the minimiser of the quadratic model). F is the empirical Fisher
    matrix of `fisher_samples` gradients, each the mean over `fisher_batch` training samples, plus `damping`, within
    blocks of `block_size` consecutive weights (`methods.fisher`). Weights dropped before are left out of F.

    When and how much is pruned: `methods.gmp`, but here there is a pruning at `start_epoch` as well, to
    `initial_sparsity` if that is above 0 (their code). `allocation`: "global" ranks saliencies over all layers (their
    joint ranking), "uniform" and "erk" within layers. `update_scale` multiplies the update of the surviving weights.

    Memory: 4 x `fisher_samples` bytes per weight, 41 GB for ResNet-50 at 400 (their blocks of 2,000: 204 GB). Where
    that is more than the trainer's `scratch_gib`, layers are taken in groups that fit, and the gradients are measured
    twice for each group: once to rank, once to update. A single layer is never split: 3.8 GB at most in ResNet-50.

    Gradients are taken with batch norm in training mode.
    """

    allocation: Ranking = "global"
    fisher_samples: Annotated[int, "1 <= x"] = 400
    fisher_batch: Annotated[int, "1 <= x"] = 400
    block_size: Annotated[int, "1 <= x"] = 2000
    damping: Annotated[float, "0 < x"] = 1e-5
    update_scale: Annotated[float, "0 <= x"] = 1.0

    first: ClassVar[int] = 0

    def after_step(self, ctx: Context) -> None:
        self.mask.hold(ctx.optimizer, self.forgets)  # before: the Fisher matrix is that of the network as it computes
        if sparsity := self.due(ctx):
            self.prune_by_fisher(ctx, sparsity)
            self.mask.project()

    @torch.no_grad()
    def prune_by_fisher(self, ctx: Context, sparsity: float) -> None:
        """Keep the weights of largest saliency at `sparsity`, of those that are kept, and update these."""
        weights = [w.view(-1) for w in self.mask.weights]
        before = [self.mask.kept(i) for i in range(len(weights))]
        groups = self.groups(ctx.scratch)
        held: dict[int, InverseFisher] = {}
        saliencies: dict[int, Tensor] = {}
        for group in groups:
            held.clear()  # before the next ones are made: two groups do not fit
            held.update(self.measured(ctx, group, before))
            # The constant damping / 2 ranks nothing.
            saliencies |= {i: weights[i].square() / inverse.diagonal() for i, inverse in held.items()}
        self.keep([saliencies[i] for i in range(len(weights))], sparsity)
        dropped = [was & ~self.mask.kept(i) for i, was in enumerate(before)]
        updates: dict[int, Tensor] = {}
        for group in groups:
            if len(groups) > 1:
                held.clear()
                held.update(self.measured(ctx, group, before))
            for i, inverse in held.items():
                basis = torch.where(dropped[i], weights[i] / inverse.diagonal(), 0)
                updates[i] = inverse.times(basis)
        # Not before: all gradients are those at the weights as they were.
        for i, weight in enumerate(weights):
            weight.sub_(updates[i], alpha=self.update_scale)

    def measured(self, ctx: Context, group: list[int], kept: list[Tensor]) -> dict[int, InverseFisher]:
        """The inverses of the layers of a group, over the `kept` weights (elsewhere the unit matrix)."""
        inverses = {
            i: InverseFisher(
                self.mask.weights[i].detach().view(-1),
                samples=self.fisher_samples,
                block=self.block_size,
                damping=self.damping,
            )
            for i in group
        }
        for grads in self.gradients(ctx):
            for i, inverse in inverses.items():
                inverse.add(grads[i] * kept[i])
        return inverses

    def gradients(self, ctx: Context) -> Iterator[list[Tensor]]:
        """The flat gradients of all pruned layers, sample by sample."""
        for grads in ctx.grad_samples(self.fisher_samples, self.fisher_batch):
            if missing := [name for name in self.mask.names if name not in grads]:
                raise ValueError(f"the loss has no gradient with respect to {missing[0]}; add it to keep_dense")
            yield [grads[name].reshape(-1) for name in self.mask.names]

    def groups(self, scratch: float) -> list[list[int]]:
        """Layers, in order, in groups whose factors fit into `scratch` bytes; one layer at least in each."""
        groups: list[list[int]] = []
        room = 0.0
        for i, weight in enumerate(self.mask.weights):
            needed = InverseFisher.bytes_of(weight.numel(), self.fisher_samples, self.block_size)
            if not groups or needed > room:
                groups.append([])
                room = scratch
            groups[-1].append(i)
            room -= needed
        return groups
