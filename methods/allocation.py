"""Allocation: which layers are pruned; how many weights each keeps is `methods.counts`'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from methods.counts import Allocation as Allocation  # counts of layers are part of an allocation
from methods.counts import allocate as allocate
from methods.counts import kept_of as kept_of

PRUNABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def prunable_weights(
    model: nn.Module, keep_dense: Sequence[str] = (), also: Sequence[str] = ()
) -> dict[str, nn.Parameter]:
    """Name -> weight of every convolution, linear and recurrent layer, and of those that match an `also` pattern, but
    not of those that match a `keep_dense` pattern.

    A recurrent layer has several (weight_ih_l0, weight_hh_l0 ...), in its own order. Patterns are shell-style, against
    the layer's name ("stem", "*.shortcut", "fc") or, after "type:", its class ("type:Linear"). `also`: patterns of
    further layers to prune, of any other kind (embeddings). ValueError when a pattern matches no layer: a misspelt one
    would silently prune what should stay dense, or the other way round.
    """
    own = {name: module for name, module in model.named_modules() if _weights(module)}
    others = {name: module for name, module in own.items() if not isinstance(module, (*PRUNABLE, nn.RNNBase))}
    left_out = others.keys() - _matching(others, also, "also")
    layers = {name: module for name, module in own.items() if name not in left_out}
    dense = _matching(layers, keep_dense, "keep_dense")
    return {
        f"{name}.{weight}": getattr(module, weight)
        for name, module in layers.items()
        if name not in dense
        for weight in _weights(module)
    }


def _weights(module: nn.Module) -> list[str]:
    """The names of a layer's own weights."""
    if isinstance(module, PRUNABLE):
        return ["weight"]  # which a parametrisation may compute
    return [name for name, _ in module.named_parameters(recurse=False) if name.startswith("weight")]


def _matching(layers: Mapping[str, nn.Module], patterns: Sequence[str], option: str) -> set[str]:
    """The names of the layers that match one of the patterns; every pattern must match one."""
    found: set[str] = set()
    for pattern in patterns:
        names = {name for name, module in layers.items() if _matches(name, module, pattern)}
        if not names:
            raise ValueError(f"{option} pattern {pattern!r} matches none of the layers {', '.join(layers)}")
        found |= names
    return found


def _matches(name: str, module: nn.Module, pattern: str) -> bool:
    kind = pattern.removeprefix("type:")
    return fnmatchcase(name if kind == pattern else type(module).__name__, kind)
