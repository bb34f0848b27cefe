"""Numbers do not change unnoticed: every method's first steps beside those that are kept (tests/golden.py)."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from tests import golden

KEPT: dict[str, dict[str, Any]] = json.loads(golden.FILE.read_text())
# Other processors add in another order; eight steps make some 1e-6 of it, a change of a rule far more.
ROUNDING = 2e-5


def difference(found: dict[str, Any], kept: dict[str, Any]) -> str | None:
    """In words; None where the numbers are the same up to rounding."""
    for epoch, (new, old) in enumerate(zip(found["epochs"], kept["epochs"], strict=True), 1):
        if new != pytest.approx(old, rel=ROUNDING, abs=1e-9):
            return f"epoch {epoch} had {old} and has {new}"
    return None if found["kept"] == kept["kept"] else f"layers kept {kept['kept']} and keep {found['kept']}"


@pytest.mark.parametrize("model", golden.MODELS)
@pytest.mark.parametrize("method", golden.NAMES)
def test_the_first_steps_are_those_of_before(method: str, model: str) -> None:
    kept, found = KEPT.get(f"{method} {model}"), golden.trajectory(method, model)
    if kept is None or kept["key"] != found["key"]:
        pytest.fail(f"no trajectory of {method} on {model} with the key {found['key']}: python -m tests.golden")
    if differs := difference(found, kept):
        pytest.fail(f"{method} on {model}: {differs}. If that is meant, raise a revision, then python -m tests.golden")


def test_a_change_of_a_thousandth_is_seen() -> None:
    kept = KEPT["set digits"]
    changed = copy.deepcopy(kept)
    assert difference(changed, kept) is None
    changed["epochs"][1][1] *= 1.0001
    assert difference(changed, kept) == f"epoch 2 had {kept['epochs'][1]} and has {changed['epochs'][1]}"
    changed = copy.deepcopy(kept)
    changed["kept"]["fc1.weight"] += 1
    assert (difference(changed, kept) or "").startswith("layers kept")


def test_nothing_is_kept_that_nobody_asks_for() -> None:
    assert set(KEPT) == {f"{method} {model}" for method in golden.NAMES for model in golden.MODELS}
