"""Edge-popup: a subnetwork of random weights that are never trained (Ramanujan et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from methods.allocation import kept_of, prunable_weights
from methods.base import Context
from methods.knob import Knob, share
from methods.masks import Masks, Pursuit, top_mask
from methods.passes import Passes, count
from methods.reparam import Feedback


@dataclass(kw_only=True)
class EdgePopup(Feedback):
    """The network computes with m * w: w is random and frozen, m keeps each layer's best by score, scores are trained.

    Ramanujan et al. 2020, section 3, as used by Chijiwa et al. 2021, B.2: of every layer the share `pruned` (p) with
    the lowest scores goes. Straight-through: the gradient of a score is w dL/d(m w), whether its weight is kept or not.
    The optimizer, with its momentum and weight decay, is the scores'. The first and the last layer are pruned like any
    other. Everything else is frozen: biases of pruned layers at 0, batch norm at multipliers 1 and biases 0 (B.1; with
    `train_norms` it is trained). In the words of `methods.reparam`, C(s) = m(s) w, and `dense` holds the scores.

    `draw`: the distribution of w, "signed_constant" (SC), +-sqrt(2 / fan_in) with equal chance, or "kaiming_uniform"
    (KU), uniform in +-sqrt(6 / fan_in); fan_in is the number of weights of one output. `also`: layers to prune that
    other methods leave alone (embeddings), patterns as in `keep_dense`; what neither is stays as the model has it.

    Where the two official codes differ (A: Chijiwa et al.'s, the default where the papers are silent; B:
    hidden-networks, Ramanujan et al.'s):
    `rank`: by the "score" (A) or by its "magnitude" (B), whose gradient then carries the score's sign.
    `rounding`, of n weights: "percentile" (A) drops the lowest round(p (n - 1)), but none that ties with the lowest
    kept one; "floor" (B) drops int(p n); "nearest" keeps round((1 - p) n). The last two break ties by position.
    `scores` start uniform in +-sqrt(6 / fan_in), "relu" (A), or in +-1 / sqrt(fan_in), "default" (B: PyTorch's own).
    `scale_fan`, for w: "none" (A); fan_in times the share "kept", as Ramanujan et al. print it (section 3.2); times
    the share "pruned", as B computes it (of signed constants and normal weights; its KU has no such scale).
    """

    pruned: Annotated[float, "0 <= x < 1"]
    draw: Literal["signed_constant", "kaiming_uniform"] = "signed_constant"
    also: list[str] = field(default_factory=list)
    train_norms: bool = False
    rank: Literal["score", "magnitude"] = "score"
    rounding: Literal["percentile", "floor", "nearest"] = "percentile"
    scores: Literal["relu", "default"] = "relu"
    scale_fan: Literal["none", "kept", "pruned"] = "none"

    knobs: ClassVar[tuple[Knob, ...]] = share("pruned")

    def setup(self, model: nn.Module) -> nn.Module:
        model = super().setup(model)
        self.frozen = [torch.empty_like(w, requires_grad=False) for w in self.computed]
        self.mask = Masks(self.weights)
        self.pursuits = [Pursuit() for _ in self.weights]
        self._freeze(model)
        return model

    def find(self, model: nn.Module) -> dict[str, nn.Parameter]:
        return prunable_weights(model, self.keep_dense, self.also)

    @torch.no_grad()
    def _freeze(self, model: nn.Module) -> None:
        """Everything but the pruned weights; biases of their layers are 0, batch norms do nothing but normalise."""
        norms = {id(p) for m in model.modules() if isinstance(m, _NormBase) for p in m.parameters(recurse=False)}
        layers = {name.rpartition(".")[0] for name in self.weights}
        for name, parameter in model.named_parameters():
            layer, _, own = name.rpartition(".")
            if name in self.weights or (self.train_norms and id(parameter) in norms):
                continue
            parameter.requires_grad_(False)
            if id(parameter) in norms:
                parameter.fill_(1.0 if own == "weight" else 0.0)
            elif layer in layers and own.startswith("bias"):
                parameter.zero_()

    @torch.no_grad()
    def begin(self, ctx: Context) -> None:
        for index, shape in enumerate(w.shape for w in self.frozen):
            self.frozen[index].view(-1).copy_(self.drawn(index, shape.numel(), ctx.rng))
            bound = math.sqrt((6 if self.scores == "relu" else 1) / fan_in(shape))
            self.dense[index].view(-1).copy_(uniform(shape.numel(), bound, ctx.rng))
        torch._foreach_copy_(self.computed, self.dense)
        self.compress()

    def drawn(self, index: int, count: int, rng: torch.Generator) -> Tensor:
        """`count` weights (on the CPU) from the distribution of layer `index`."""
        shares = {"none": 1.0, "kept": 1 - self.pruned, "pruned": self.pruned}
        fan = fan_in(self.frozen[index].shape) * shares[self.scale_fan]
        if self.draw == "signed_constant":
            return torch.randint(2, (count,), generator=rng).mul_(2).sub_(1).mul(math.sqrt(2 / fan))
        return uniform(count, math.sqrt(6 / fan), rng)

    def check(self, epochs: float) -> None:
        if self.scale_fan == "pruned" and self.pruned == 0:
            raise ValueError("scale_fan = pruned makes no weights of pruned = 0; use scale_fan = kept")

    def compress(self) -> None:
        for index, (computed, frozen) in enumerate(zip(self.computed, self.frozen, strict=True)):
            self.choose(index, computed.abs_() if self.rank == "magnitude" else computed)
            torch.mul(frozen, self.mask.tensors[index], out=computed)

    def choose(self, index: int, scores: Tensor) -> None:
        """Bring the mask of layer `index` up to the `scores`: it keeps the best."""
        n, pursuit = scores.numel(), self.pursuits[index]
        if self.rounding == "percentile":
            least = pursuit.kth_largest(scores.detach().reshape(-1), n - round(self.pruned * (n - 1)))
            torch.ge(scores, least, out=self.mask.tensors[index])
        else:
            keep = n - int(self.pruned * n) if self.rounding == "floor" else kept_of(n, self.pruned)
            self.mask.set(index, top_mask(scores, keep, pursuit))

    @torch.no_grad()
    def before_step(self, ctx: Context) -> bool:
        pairs = [
            (w.grad, self.frozen[i] * self.dense[i].sign() if self.rank == "magnitude" else self.frozen[i])
            for i, w in enumerate(self.computed)
            if w.grad is not None
        ]
        torch._foreach_mul_([g for g, _ in pairs], [f for _, f in pairs])
        return super().before_step(ctx)

    def passes(self, layers: Mapping[str, Mapping[str, Any]]) -> Passes:
        """The gradient of every score is that of its product m w, whether the weight is kept or not."""
        kept = count(layers, "kept")
        return Passes(forward=kept, error=kept)

    def masks(self) -> dict[str, Tensor]:
        return self.mask.as_dict()

    def mask_changes(self) -> int:
        return self.mask.changes()

    def distance(self) -> None:  # type: ignore[override]
        return None  # scores are no weights

    def state_dict(self) -> dict[str, Any]:
        frozen = dict(zip(self.weights, self.frozen, strict=True))
        return {**super().state_dict(), "frozen": frozen, "masks": self.mask.as_dict()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        for name, own in zip(self.weights, self.frozen, strict=True):
            own.copy_(state["frozen"][name])
        self.mask.load(state["masks"])


def fan_in(shape: torch.Size) -> int:
    """The number of weights that one output has: of (out, in, ...), in times the rest."""
    return math.prod(shape[1:])


def uniform(count: int, bound: float, rng: torch.Generator) -> Tensor:
    """`count` numbers, uniform in [-bound, bound), on the CPU."""
    return torch.rand(count, generator=rng).mul_(2 * bound).sub_(bound)
