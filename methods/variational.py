"""Layers whose weights are Gaussian: variational dropout with the local reparameterisation (Molchanov et al. 2017)."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-8
#: The approximation of the divergence: equation 14.
K1, K2, K3 = 0.63576, 1.87320, 1.48695


def divergence(log_alpha: Tensor) -> Tensor:
    """KL(N(theta, alpha theta^2) || log-uniform prior) of every weight, up to the constant that makes it 0 at infinity.

    Molchanov et al. 2017, equation 14: -KL = k1 sigmoid(k2 + k3 log alpha) - 1/2 log(1 + 1 / alpha) - k1.
    """
    return 0.5 * F.softplus(-log_alpha) - K1 * torch.sigmoid(K2 + K3 * log_alpha) + K1


class Variational(nn.Module):
    """Mixed into a layer: its weight is the mean theta of q(w) = N(theta, sigma^2), `log_sigma2` of the same shape.

    In training the layer's outputs are drawn from the Gaussian that this makes of them (one number per output, not per
    weight: the local reparameterisation of Kingma et al. 2015, section 2.3): mean f(x, theta), variance
    f(x^2, sigma^2), every output on its own, also where those of a convolution share weights (Molchanov et al.).
    There log alpha = log sigma^2 - log theta^2 is held in [-`clip`, `clip`]. In inference weights are theta where log
    alpha is below `threshold`, else 0.

    A state without `log_sigma2` (a dense parent's) leaves it as it is.
    """

    weight: Any  # the layer's own parameters
    bias: Any
    log_sigma2: nn.Parameter
    threshold: float
    clip: float

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        state_dict.setdefault(f"{prefix}log_sigma2", self.log_sigma2.detach())
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def log_alpha(self) -> Tensor:
        """log(sigma^2 / theta^2), as trained: not clipped."""
        return self.log_sigma2 - torch.log(self.weight.square() + EPSILON)

    def clipped(self) -> Tensor:
        """log alpha as training and its divergence have it."""
        return self.log_alpha().clamp(-self.clip, self.clip)

    def sparse(self) -> Tensor:
        """The weights of inference."""
        return torch.where(self.log_alpha() < self.threshold, self.weight, 0)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's map with these parameters."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.linear(x, self.sparse(), self.bias)
        mean = self.linear(x, self.weight, self.bias)
        sigma2 = self.clipped().exp() * (self.weight.square() + EPSILON)
        kind = x.device.type
        # Variances would leave the range of fp16.
        half = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
        with torch.autocast(kind, enabled=False) if half else nullcontext():
            variance = self.linear((x.float() if half else x).square(), sigma2, None)
        # Behind inputs that are all 0 it is 0, where the square root has no gradient; some kernels round it below.
        deviation = (variance.clamp(min=0) + EPSILON).sqrt()
        return mean + (deviation * torch.randn_like(deviation)).to(mean.dtype)


class VariationalLinear(Variational, nn.Linear):
    """A linear layer with Gaussian weights."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)


class VariationalConv1d(Variational, nn.Conv1d):
    """A convolution with Gaussian weights."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._conv_forward(x, weight, bias)


class VariationalConv2d(Variational, nn.Conv2d):
    """A convolution with Gaussian weights."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._conv_forward(x, weight, bias)


class VariationalConv3d(Variational, nn.Conv3d):
    """A convolution with Gaussian weights."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._conv_forward(x, weight, bias)


_KINDS: dict[type[nn.Module], type[Variational]] = {
    nn.Linear: VariationalLinear,
    nn.Conv1d: VariationalConv1d,
    nn.Conv2d: VariationalConv2d,
    nn.Conv3d: VariationalConv3d,
}


def randomise(layer: Any, name: str, log_sigma2: float, threshold: float, clip: float) -> Variational:
    """Make a plain layer a variational one, in place, so that its names and whoever holds it stay.

    ValueError when it is of a class that computes with its weight in another way.
    """
    if type(layer) not in _KINDS:
        raise ValueError(
            f"the layer {name} is a {type(layer).__name__}, whose outputs' variance is not known; add it to keep_dense"
        )
    layer.__class__ = _KINDS[type(layer)]
    layer.log_sigma2 = nn.Parameter(torch.full_like(layer.weight, log_sigma2))
    layer.threshold, layer.clip = threshold, clip
    return layer


@torch.no_grad()
def settle(layer: Any) -> None:
    """Make a variational layer a plain one again, with the weights of its inference."""
    layer.weight.copy_(layer.sparse())
    del layer.log_sigma2, layer.threshold, layer.clip
    layer.__class__ = next(plain for plain, kind in _KINDS.items() if kind is type(layer))
