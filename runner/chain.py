"""What a run and all runs that it builds on took together: the `chain` of a summary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def chain(final: Mapping[str, Any], parent: Mapping[str, Any] | None) -> dict[str, Any]:
    """`final`: a run's last line of metrics; `parent`: the summary of the run that it starts from, None without one.

    stages; flops/training, of all stages; flops/training_ratio, to one dense training of the first stage's samples,
    flops/dense; time/training_s. What a stage does not tell (an older version recorded it) has no sum.
    """
    before = {"stages": 0} if parent is None else parent.get("chain") or {}
    if "stages" not in before:
        return {}
    found: dict[str, Any] = {"stages": before["stages"] + 1}
    for name in ("flops/training", "time/training_s"):
        if name in final and (name in before or parent is None):
            found[name] = before.get(name, 0.0) + final[name]
    if "flops/training" in found:
        own = final["flops/training"] / final["flops/training_ratio"]
        found["flops/dense"] = own if parent is None else before["flops/dense"]
        found["flops/training_ratio"] = found["flops/training"] / found["flops/dense"]
    return found
