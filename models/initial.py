"""Initial weights that a paper asks for, in the place of a network's own."""

from __future__ import annotations

from typing import Literal

from torch import nn

Initial = Literal["kaiming_normal", "kaiming_uniform"]
INITIAL = ("kaiming_normal", "kaiming_uniform")


def kaiming_uniform(model: nn.Module) -> None:
    """Weights of convolutions and linear layers uniform in +-sqrt(6 / fan_in), their biases 0 (Chijiwa et al. 2021)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_uniform_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def kaiming_normal(model: nn.Module) -> None:
    """Weights of convolutions He-normal with fan-out; all else stays."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def require(initial: str) -> None:
    """ValueError unless `initial` is the name of one."""
    if initial not in INITIAL:
        raise ValueError(f"init is {' or '.join(map(repr, INITIAL))}, not {initial!r}")
