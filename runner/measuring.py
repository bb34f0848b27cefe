"""What a model measures of itself while it is tested, such as how often its neurons fire."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from runner.world import World


@runtime_checkable
class Measuring(Protocol):
    """A model that measures something; one that does not has none of these."""

    def begin_measuring(self) -> None:
        """From here on, and from nothing."""

    def end_measuring(self) -> Tensor:
        """No longer; returns sums that add up over batches and processes."""

    def measured(self, sums: Tensor) -> dict[str, float]:
        """Metrics by their whole names, from the added sums."""


@contextmanager
def measuring(model: Any, world: World) -> Iterator[dict[str, float]]:
    """Gives a dictionary that holds, once the block is over, what the model measured within it on all ranks."""
    found: dict[str, float] = {}
    if not isinstance(model, Measuring):
        yield found
        return
    model.begin_measuring()
    try:
        yield found
    finally:
        sums = model.end_measuring()
    found |= model.measured(world.sum(sums))
