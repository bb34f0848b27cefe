"""A table's cell: what was asked, what was measured seed by seed, and how far that is from the published value."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from results.published import Published

#: Of a whole cell. The last two belong to `kind: config` tables: the composed config says something else than the
#: paper, and the paper prints nothing there.
STATUSES = (
    "ok",
    "partial",
    "missing",
    "running",
    "failed",
    "diverged",
    "blocked",
    "uncalibrated",
    "differs",
    "absent",
)

# Of a cell without a single value: what a reader must know first.
_WORST = ("running", "failed", "diverged", "blocked", "missing")


@dataclass(frozen=True)
class Cell:
    """`values`: the metric by seed, of the runs that completed; `states`: how each wanted seed stands
    (completed, diverged, failed, running, blocked, missing). `text` is what a `kind: config` cell reads.
    """

    paper: str
    table: str  #: PAPER/TABLE
    row: str
    column: str
    overrides: tuple[str, ...]
    key: str | None
    seeds: tuple[int, ...] = ()
    metric: str | None = None
    direction: str | None = None
    unit: str = ""
    digits: int = 2
    profile: str | None = None
    states: Mapping[int, str] = field(default_factory=dict)
    values: Mapping[int, float] = field(default_factory=dict)
    runs: Mapping[int, Path] = field(default_factory=dict)
    text: str | None = None
    fixed_status: str | None = None  #: of a cell whose status does not follow from its seeds
    published: Published | None = None
    problems: tuple[str, ...] = ()
    config: Mapping[str, Any] | None = field(default=None, repr=False)

    @property
    def address(self) -> str:
        return f"{self.table}/{self.row}/{self.column}"

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float | None:
        return mean(list(self.values.values()))

    @property
    def std(self) -> float | None:
        return sample_std(list(self.values.values()))

    @property
    def status(self) -> str:
        if self.fixed_status is not None:
            return self.fixed_status
        if self.n == len(self.seeds):
            return "ok"
        if self.n:
            return "partial"
        states = set(self.states.values())
        return next((state for state in _WORST if state in states), "missing")

    @property
    def settled(self) -> bool:
        """Nothing is left to do or to explain: complete, blank as in the paper, or diverged as the paper's did."""
        if self.status == "diverged":
            whole = all(state == "diverged" for state in self.states.values())
            return whole and self.published is not None and self.published.mark == "diverged"
        return self.status in ("ok", "absent")

    @property
    def difference(self) -> float | None:
        """Measured less published mean; None under a profile, whose numbers are not comparable to the paper's."""
        if self.profile is not None or self.mean is None or self.published is None or self.published.mean is None:
            return None
        return self.mean - self.published.mean

    def count(self) -> Counter[str]:
        """How many wanted seeds are in each state."""
        return Counter(self.states.values())


def mean(values: Sequence[float]) -> float | None:
    """The arithmetic mean; None of nothing, and nan or inf as they come."""
    if not values:
        return None
    if not all(map(math.isfinite, values)):
        return sum(values) / len(values)
    return statistics.fmean(values)


def sample_std(values: Sequence[float]) -> float | None:
    """The sample standard deviation (n - 1); None of fewer than two values, nan when one of them is not finite."""
    if len(values) < 2:
        return None
    if not all(map(math.isfinite, values)):
        return math.nan
    return statistics.stdev(values)
