"""What the three products of a training step compute with, layer by layer: a method's own rule of what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Counts = Mapping[str, float]
"""Name of a weight -> how many of its elements take part. A weight that is not listed takes part whole."""


@dataclass(frozen=True)
class Passes:
    """A step on one sample multiplies three times: forward, the error backwards, and the gradient of the weights.

    Each costs what inference costs with that many weights per layer, so that a dense step costs 3 F (F: FLOPs of dense
    inference): the convention of Evci et al. 2020 (appendix H), that Peste et al. 2021 (C.2) and Top-KAST take over.
    `factor` multiplies all of it, for methods that train more than one number per weight.
    """

    forward: Counts = field(default_factory=dict)
    error: Counts = field(default_factory=dict)
    gradient: Counts = field(default_factory=dict)
    factor: float = 1.0


DENSE = Passes()


def within(counts: Counts) -> Passes:
    """All three products with the same weights: 3 f."""
    return Passes(counts, counts, counts)


def count(layers: Mapping[str, Mapping[str, Any]], of: Literal["kept", "nonzero", "total"]) -> dict[str, float]:
    """Of each layer its elements that are kept by the mask, not zero as the network computes, or all."""
    return {name: layer[of] for name, layer in layers.items()}


def mixed(one: Counts, other: Counts, share: float) -> dict[str, float]:
    """(1 - share) one + share other: what a pass computes with on average that is `other` in that share of steps.

    Both list the same layers.
    """
    return {name: (1 - share) * kept + share * other[name] for name, kept in one.items()}
