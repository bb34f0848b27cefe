"""AC/DC: alternating compressed and decompressed training (Peste et al. 2021), and its dense fine-tuning."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from methods.allocation import kept_of, prunable_weights
from methods.base import Context, Masked, Method, Sparsity
from methods.masks import Masks, reset_momentum
from methods.passes import Passes, count, within
from methods.phases import alternating, whole_phases
from methods.ranking import ranked, top_of_groups, top_per_layer
from methods.schedules import Epochs

_PATTERN = re.compile(r"([1-9]\d*):([1-9]\d*)")


@dataclass(kw_only=True)
class Phases(Method):
    """What describes an AC/DC training: its sparsity and its phases, in epochs (Peste et al. 2021, section 3.2).

    `warmup_epochs` dense (delta_w), then `sparse_epochs` (delta_c) and `dense_epochs` (delta_d) in turn, last
    `last_dense_epochs` (delta_D) and `last_sparse_epochs`: see `methods.phases.alternating`.
    `allocation`: "global" ranks all weights together; "uniform" and "erk" rank within layers; a pattern "N:M" keeps N
    of every M consecutive weights along the input channels. `embedding_sparsity`: of every embedding layer; 0 leaves
    them dense.
    """

    sparsity: Sparsity
    allocation: str = "global"
    embedding_sparsity: Sparsity = 0.0
    warmup_epochs: Epochs = 10.0
    sparse_epochs: Epochs = 5.0
    dense_epochs: Epochs = 5.0
    last_dense_epochs: Epochs = 10.0
    last_sparse_epochs: Epochs = 15.0

    def check(self, epochs: float) -> None:
        pattern = _PATTERN.fullmatch(self.allocation)
        if pattern is None:
            if self.allocation not in ("global", "uniform", "erk"):
                raise ValueError(
                    f"allocation = {self.allocation!r} should be global, uniform, erk or a pattern like 2:4"
                )
            return
        n, m = map(int, pattern.groups())
        if n > m or abs(self.sparsity - (1 - n / m)) > 1e-9:
            raise ValueError(
                f"allocation = {self.allocation} keeps {n} of {m} weights; "
                + (
                    f"set sparsity={1 - n / m:g}, not {self.sparsity:g}"
                    if n <= m
                    else "the first number is the smaller"
                )
            )


@dataclass(kw_only=True)
class ACDC(Phases, Masked):
    """Dense and sparse training in turn; a sparse phase begins with the largest weights and trains them alone.

    Peste et al. 2021, algorithm 1. Entering a sparse phase, the mask of the largest |w| is chosen and the rest is set
    to zero; within it, gradients are masked and weights projected. Entering a dense phase, the mask is all ones, the
    weights that were dropped restart at zero, and the momentum of all parameters is reset (`reset_momentum`): really,
    unlike in the official code, whose reset looks for a `grad` that is None by then. Kept counts are exact; the
    official "greater than the k-th largest" keeps one fewer. Phases begin and end with epochs (`whole_phases`).
    `phase_epochs`, if any, are the lengths of all phases instead: dense and sparse in turn, the last one sparse. Of the
    dense epochs' weights and of the sparse ones' the best by the test metric are kept, as "dense" and "sparse".
    """

    phase_epochs: list[Epochs] = field(default_factory=list)
    reset_momentum: bool = True

    kept: ClassVar[tuple[str, ...]] = ("dense", "sparse")

    def check(self, epochs: float) -> None:
        super().check(epochs)
        lengths = list(self.phase_epochs)
        if not lengths:
            for name in ("sparse_epochs", "dense_epochs", "last_dense_epochs", "last_sparse_epochs"):
                if not getattr(self, name) > 0:
                    raise ValueError(f"{name} = 0: only warmup_epochs may be; a phase has a length")
        elif len(lengths) % 2 or min(lengths[1:]) <= 0:
            raise ValueError(
                f"phase_epochs = {lengths} should be the lengths of dense and sparse phases in turn, the last one "
                f"sparse, all above 0 but perhaps the first"
            )
        elif abs(sum(lengths) - epochs) >= 1:
            raise ValueError(f"phase_epochs are {sum(lengths):g} epochs in all, but the run has {epochs:g}")

    def lengths(self, epochs: float) -> list[float]:
        """Lengths of the phases in a run of so many epochs, as its options say: fractions of epochs in a profile."""
        if self.phase_epochs:
            return list(self.phase_epochs)
        return alternating(
            epochs,
            warmup=self.warmup_epochs,
            sparse=self.sparse_epochs,
            dense=self.dense_epochs,
            last_dense=self.last_dense_epochs,
            last_sparse=self.last_sparse_epochs,
        )

    def setup(self, model: nn.Module) -> nn.Module:
        model = super().setup(model)
        self.sparse = False
        self.embeddings: list[bool] = [False] * len(self.weights)
        if self.embedding_sparsity:
            self._add_embeddings(model)
        if pattern := _PATTERN.fullmatch(self.allocation):
            for name, weight, embedding in zip(self.mask.names, self.mask.weights, self.embeddings, strict=True):
                if not embedding and weight.numel() % int(pattern[2]):
                    raise ValueError(
                        f"{name} has {weight.numel()} weights, which do not divide into groups of {pattern[2]}; "
                        f"add its layer to keep_dense"
                    )
        return model

    def _add_embeddings(self, model: nn.Module) -> None:
        """Embeddings join the prunable weights; a weight that two layers share counts once, as an embedding's."""
        layers = [name for name, layer in model.named_modules() if isinstance(layer, nn.Embedding)]
        found = prunable_weights(model, self.keep_dense, also=layers)
        tables = {f"{name}.weight" for name in layers}
        shared = {id(weight) for name, weight in found.items() if name in tables}
        self.weights = {n: w for n, w in found.items() if n in tables or id(w) not in shared}
        self.embeddings = [name in tables for name in self.weights]
        if not any(self.embeddings):
            raise ValueError("embedding_sparsity is set, but the model has no embedding layer that may be pruned")
        self.mask = Masks(self.weights)

    def on_epoch(self, ctx: Context) -> None:
        epochs = ctx.total_steps // ctx.steps_per_epoch
        starts = list(accumulate(whole_phases(self.lengths(epochs), epochs), initial=0))
        phase = max(index for index, start in enumerate(starts[:-1]) if start < ctx.epoch)
        if ctx.epoch != starts[phase] + 1:
            return
        if phase % 2:
            self.compress()
        elif phase:
            self.decompress(ctx)

    @torch.no_grad()
    def compress(self) -> None:
        """Enter a sparse phase."""
        magnitudes = list(torch._foreach_abs([weight.detach() for weight in self.mask.weights]))
        for index, mask in zip(self._order(), self.choose(magnitudes), strict=True):
            self.mask.set(index, mask)
        self.mask.project()
        self.sparse = True

    def _order(self) -> list[int]:
        """The numbers of the weights: those of convolutions and linear layers first, then of embeddings."""
        return sorted(range(len(self.embeddings)), key=self.embeddings.__getitem__)

    def choose(self, scores: list[Tensor]) -> list[Tensor]:
        """Flat boolean masks of the weights to keep, in the order of `_order`."""
        layers = [score for score, embedding in zip(scores, self.embeddings, strict=True) if not embedding]
        tables = [score for score, embedding in zip(scores, self.embeddings, strict=True) if embedding]
        if pattern := _PATTERN.fullmatch(self.allocation):
            n, m = map(int, pattern.groups())
            masks = [top_of_groups(score, n, m) for score in layers]
        else:
            shapes = [tuple(score.shape) for score in layers]
            masks = ranked(layers, shapes, self.allocation, self.sparsity)  # type: ignore[arg-type]
        return masks + top_per_layer(tables, [kept_of(t.numel(), self.embedding_sparsity) for t in tables])

    @torch.no_grad()
    def decompress(self, ctx: Context) -> None:
        """Enter a dense phase."""
        for mask in self.mask.tensors:
            mask.fill_(1)
        if self.reset_momentum:
            reset_momentum(ctx.optimizer)
        self.sparse = False

    def before_step(self, ctx: Context) -> bool:
        return super().before_step(ctx) if self.sparse else True

    def after_step(self, ctx: Context) -> None:
        if self.sparse:
            super().after_step(ctx)

    def keeps(self) -> str:
        return "sparse" if self.sparse else "dense"

    def passes(self, layers: Mapping[str, Mapping[str, Any]]) -> Passes:
        computes = count(layers, "nonzero")  # appendix C.2: 3 F_C when sparse, 2 F_D + F when dense
        return within(computes) if self.sparse else Passes(forward=computes, error=computes)

    def adopt(self, masks: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
        raise ValueError("AC/DC chooses its masks when a sparse phase begins; start.take should be weights")

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "sparse": self.sparse}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.sparse = bool(state["sparse"])


@dataclass(kw_only=True)
class ACDCDense(Phases):
    """Dense training in the place of an AC/DC training's last sparse phase, from its best dense checkpoint.

    Peste et al. 2021, section 4 ("to recover a dense model") and appendix B.2. A stage: the options describe its
    parent, whose length is `epochs`; dense training itself knows none of them.
    """

    epochs: int

    def passes(self, layers: Mapping[str, Mapping[str, Any]]) -> Passes:
        computes = count(layers, "nonzero")
        return Passes(forward=computes, error=computes)
