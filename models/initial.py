"""Initial weights that a paper asks for, in the place of a network's own."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor, nn

Initial = Literal["kaiming_normal", "kaiming_normal_in", "kaiming_uniform"]


def initialise(model: nn.Module, initial: Initial) -> None:
    """Draw the weights of a model's layers anew.

    "kaiming_normal": those of convolutions He-normal with fan-out, "kaiming_normal_in" with fan-in; all else stays.
    "kaiming_uniform": those of convolutions and linear layers uniform in +-sqrt(6 / fan_in), their biases 0 (Chijiwa et
    al. 2021). ValueError for another `initial`.
    """
    require(initial)
    uniform = initial == "kaiming_uniform"
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear if uniform else nn.Conv2d):
            draw(module.weight, initial)
            if uniform and module.bias is not None:
                nn.init.zeros_(module.bias)


def draw(weight: Tensor, initial: Initial) -> None:
    """Fill one weight (outputs, inputs, ...) as `initial` says."""
    if initial == "kaiming_uniform":
        nn.init.kaiming_uniform_(weight, mode="fan_in", nonlinearity="relu")
    elif initial == "kaiming_normal_in":
        nn.init.kaiming_normal_(weight, mode="fan_in", nonlinearity="relu")
    else:
        nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")


def require(initial: str) -> None:
    """ValueError unless `initial` is the name of one."""
    known = get_args(Initial)
    if initial not in known:
        raise ValueError(f"init is {', '.join(map(repr, known[:-1]))} or {known[-1]!r}, not {initial!r}")
