"""Kept weights: beside the last ones, the best under each name that a method gives (AC/DC: dense, sparse)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map_only

Taken = dict[str, Any]


class Kept:
    """For each name the epoch with the best `metric`, its line of metrics and its weights, copied to the CPU.

    The copies are part of every checkpoint, so that a resumed run keeps what the uninterrupted one would, and a copy
    can neither be lost nor be of another epoch than its line says. `up`: larger is better. Of equal epochs the first
    counts.
    """

    def __init__(self, metric: str, up: bool) -> None:
        self.metric = metric
        self.sign = 1.0 if up else -1.0
        self.entries: dict[str, Taken] = {}

    def offer(self, name: str, line: Mapping[str, Any], weights: Callable[[], dict[str, Any]]) -> None:
        """Keep what `weights` gives if no epoch of this name was as good as the one that `line` tells of."""
        best = self.entries.get(name)
        if best is None or self._score(line) > self._score(best["line"]):
            self.entries[name] = {"line": dict(line), **copied(weights())}

    def _score(self, line: Mapping[str, Any]) -> float:
        value = self.sign * line[self.metric]
        return value if math.isfinite(value) else -math.inf

    def summary(self) -> dict[str, Any]:
        """Each name's line of metrics, for the run's summary."""
        return {name: entry["line"] for name, entry in self.entries.items()}

    def state_dict(self) -> dict[str, Taken]:
        """For the checkpoint."""
        return self.entries

    def load_state_dict(self, state: Mapping[str, Taken]) -> None:
        """Go on from what `state_dict` gave."""
        self.entries = {name: copied(entry) for name, entry in state.items()}


def copied(state: dict[str, Any]) -> dict[str, Any]:
    """The same with tensors of its own, on the CPU."""
    return tree_map_only(Tensor, lambda tensor: tensor.detach().to("cpu", copy=True), state)
