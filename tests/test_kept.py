"""Kept weights: the best of each name, copies that nothing touches, and states that hold them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from runner.kept import Kept


def offered(kept: Kept, *values: float, name: str = "dense") -> list[int]:
    """After each epoch with such a test metric, the epoch that is kept."""
    found = []
    for epoch, value in enumerate(values, start=1):
        kept.offer(name, {"epoch": epoch, "test/accuracy": value}, lambda: {"model": {}})
        found.append(kept.entries[name]["line"]["epoch"])
    return found


@pytest.mark.parametrize(
    ("up", "values", "epochs"),
    [
        (True, (3.0, 5.0, 4.0, 5.0, 6.0), [1, 2, 2, 2, 5]),
        (False, (3.0, 5.0, 2.0, 2.0, 1.0), [1, 1, 3, 3, 5]),
        (True, (math.nan, 1.0, math.nan, math.inf, 2.0), [1, 2, 2, 2, 5]),
        (False, (math.nan, 9.0, -math.inf), [1, 2, 2]),
    ],
)
def test_the_best_epoch_is_kept(up: bool, values: tuple[float, ...], epochs: list[int]) -> None:
    assert offered(Kept("test/accuracy", up), *values) == epochs


def test_names_do_not_meet() -> None:
    kept = Kept("test/accuracy", True)
    offered(kept, 9.0, name="dense")
    offered(kept, 1.0, 2.0, name="sparse")
    assert {name: line["epoch"] for name, line in kept.summary().items()} == {"dense": 1, "sparse": 2}


def test_copies_do_not_change_with_the_weights() -> None:
    kept, weight = Kept("test/accuracy", True), torch.zeros(3)
    line: dict[str, Any] = {"epoch": 1, "test/accuracy": 1.0}
    kept.offer("dense", line, lambda: {"model": {"w": weight}, "method": {"masks": {"w": weight > 0}}})
    state = kept.state_dict()
    again = Kept("test/accuracy", True)
    again.load_state_dict(state)
    weight += 1
    line["epoch"] = 7
    state["dense"]["model"]["w"] += 2
    assert again.entries["dense"]["model"]["w"].tolist() == [0, 0, 0]
    assert again.entries["dense"]["line"]["epoch"] == 1
    assert not again.entries["dense"]["method"]["masks"]["w"].any()


def test_weights_are_only_taken_when_they_are_kept() -> None:
    kept = Kept("test/accuracy", True)
    offered(kept, 2.0)

    def never() -> dict[str, Any]:
        raise AssertionError("taken")

    kept.offer("dense", {"epoch": 2, "test/accuracy": 2.0}, never)
