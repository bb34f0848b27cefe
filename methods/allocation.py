"""Allocation: how many weights each layer keeps when the whole model keeps a given share, exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Literal

from torch import nn

from methods.schedules import apportion

Allocation = Literal["uniform", "erk"]
PRUNABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def prunable_weights(
    model: nn.Module, keep_dense: Sequence[str] = (), also: Sequence[str] = ()
) -> dict[str, nn.Parameter]:
    """Name -> weight of every convolution, linear and recurrent layer, but those that match a `keep_dense` pattern.

    A recurrent layer has several (weight_ih_l0, weight_hh_l0 ...), in its own order. Patterns are shell-style, against
    the layer's name ("stem", "*.shortcut", "fc") or, after "type:", its class ("type:Linear"). `also`: patterns of
    further layers to prune, of any other kind (embeddings). ValueError when a pattern matches no layer: a misspelt one
    would silently prune what should stay dense, or the other way round.
    """
    own = {name: module for name, module in model.named_modules() if _weights(module)}
    layers = {name: module for name, module in own.items() if isinstance(module, (*PRUNABLE, nn.RNNBase))}
    others = {name: module for name, module in own.items() if name not in layers}
    for option, patterns, among in (("keep_dense", keep_dense, layers), ("also", also, others)):
        for pattern in patterns:
            if not any(_matches(name, module, pattern) for name, module in among.items()):
                raise ValueError(f"{option} pattern {pattern!r} matches none of the layers {', '.join(among)}")
    return {
        f"{name}.{weight}": getattr(module, weight)
        for name, module in own.items()
        if any(_matches(name, module, pattern) for pattern in (keep_dense if name in layers else also))
        != (name in layers)
        for weight in _weights(module)
    }


def _weights(module: nn.Module) -> list[str]:
    """The names of a layer's own weights."""
    if isinstance(module, PRUNABLE):
        return ["weight"]  # which a parametrisation may compute
    return [name for name, _ in module.named_parameters(recurse=False) if name.startswith("weight")]


def _matches(name: str, module: nn.Module, pattern: str) -> bool:
    kind = pattern.removeprefix("type:")
    return fnmatchcase(name if kind == pattern else type(module).__name__, kind)


def kept_of(total: int, sparsity: float) -> int:
    """The number of weights kept of `total` at `sparsity`: (1 - sparsity) total, rounded to the nearest, half up."""
    return math.floor((1 - sparsity) * total + 0.5 + 1e-12 * total)


def allocate(
    allocation: Allocation, shapes: Sequence[Sequence[int]], sparsity: float, layer_floor: int = 0
) -> list[int]:
    """Kept weights per layer; they add up to exactly `kept_of(total, sparsity)`.

    uniform: every layer the same density. erk (Erdos-Renyi kernel, Evci et al. 2020, section 3): the density of a layer
    is proportional to sum(shape) / prod(shape); layers that would exceed density 1 are capped and their surplus is
    redistributed over the others until the total is exact.
    `layer_floor`: no layer keeps fewer than this (or than all it has); the other layers make up for it.
    ValueError when the floors need more weights than the sparsity leaves.
    """
    sizes = [math.prod(shape) for shape in shapes]
    mass = [float(sum(shape)) for shape in shapes] if allocation == "erk" else [float(size) for size in sizes]
    total = kept_of(sum(sizes), sparsity)
    floors = [min(layer_floor, size) for size in sizes]
    if sum(floors) > total:
        raise ValueError(f"a floor of {layer_floor} weights per layer needs {sum(floors)}, but only {total} are kept")
    raised: set[int] = set()
    while True:
        others = [i for i in range(len(sizes)) if i not in raised]
        left = total - sum(floors[i] for i in raised)
        counts = dict(zip(others, apportion(left, [mass[i] for i in others], [sizes[i] for i in others]), strict=True))
        short = {i for i in others if counts[i] < floors[i]}
        if not short:
            return [counts.get(i, floors[i]) for i in range(len(sizes))]
        raised |= short
