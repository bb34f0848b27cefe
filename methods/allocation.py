"""Allocation: which layers are pruned; how many weights each keeps is `methods.counts`'."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from methods.counts import Allocation as Allocation  # counts of layers are part of an allocation
from methods.counts import allocate as allocate
from methods.counts import kept_of as kept_of

PRUNABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def prunable_weights(
    model: nn.Module, keep_dense: Sequence[str] = (), kinds: tuple[type[nn.Module], ...] = PRUNABLE
) -> dict[str, nn.Parameter]:
    """Name -> weight of every layer of these `kinds` (convolution, linear) that matches no `keep_dense` pattern.

    Patterns are shell-style, against the layer's name ("stem", "*.shortcut", "fc") or, after "type:", its class
    ("type:Linear"). ValueError when a pattern matches no layer: a misspelt one would silently prune what should stay
    dense.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
    for pattern in keep_dense:
        if not any(_matches(name, module, pattern) for name, module in layers.items()):
            raise ValueError(f"keep_dense pattern {pattern!r} matches none of the layers {', '.join(layers)}")
    return {
        f"{name}.weight": module.weight  # type: ignore[misc]
        for name, module in layers.items()
        if not any(_matches(name, module, pattern) for pattern in keep_dense)
    }


def _matches(name: str, module: nn.Module, pattern: str) -> bool:
    kind = pattern.removeprefix("type:")
    return fnmatchcase(name if kind == pattern else type(module).__name__, kind)
