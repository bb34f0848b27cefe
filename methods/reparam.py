"""Reparameterisation: the network computes with a function of the weights that the optimizer trains."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from methods.base import Context, Method


@dataclass(kw_only=True)
class Feedback(Method):
    """Gradients are taken at C(w) and applied to w: straight-through training with any compressor C.

    Between steps the model's parameters hold C(w), so that whatever looks at the model (evaluation, checkpoints, a
    stage that starts from it) sees the network as it computes; w is kept in `dense`. Around the optimizer's step the
    parameters hold w: weight decay and momentum are those of w. Lin et al. 2020, section 4 ("extension to other
    compression schemes"), w(t+1) = w(t) - lr g(C(w(t))); a mask (`methods.dpf`) is one C, a quantiser another
    (`methods.quantised`). With C the identity this is the optimizer's own trajectory, bit for bit.
    """

    def setup(self, model: nn.Module) -> nn.Module:
        model = super().setup(model)
        if not self.weights:
            raise ValueError("the model has no convolution or linear layer left to compress; check keep_dense")
        self.computed: list[Tensor] = list(self.weights.values())
        self.dense = [torch.empty_like(w, requires_grad=False) for w in self.computed]
        return model

    @abstractmethod
    def compress(self) -> None:
        """Replace `computed`, which holds w, by C(w), in place."""

    def refresh(self, ctx: Context, step: int) -> None:
        """Before C is applied at the beginning of `step`: choose what C depends on (a mask, say) from `dense`."""

    @torch.no_grad()
    def begin(self, ctx: Context) -> None:
        torch._foreach_copy_(self.dense, self.computed)
        self.refresh(ctx, 0)
        self.compress()

    @torch.no_grad()
    def before_step(self, ctx: Context) -> bool:
        torch._foreach_copy_(self.computed, self.dense)
        return True

    @torch.no_grad()
    def after_step(self, ctx: Context) -> None:
        torch._foreach_copy_(self.dense, self.computed)
        self.refresh(ctx, ctx.step + 1)
        self.compress()

    @torch.no_grad()
    def distance(self) -> float:
        apart = torch._foreach_norm(torch._foreach_sub(self.dense, self.computed))
        whole = torch._foreach_norm(self.dense)
        squares = [torch.stack(norms).double().square().sum() for norms in (apart, whole)]
        return float(squares[0] / squares[1])

    def state_dict(self) -> dict[str, Any]:
        return {"dense": dict(zip(self.weights, self.dense, strict=True))}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, own in zip(self.weights, self.dense, strict=True):
            own.copy_(state["dense"][name])
