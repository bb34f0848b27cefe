"""A table's cell: what was asked, what was measured seed by seed, and how far that is from the published value."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from results.published import Published
from results.statistics import interval, mean, sample_std

#: Of a whole cell. differs: the composed config says something else than the paper; absent: the paper prints nothing
#: there, and nothing was run; needs: a method, model or option of its configuration is not there yet; beyond: a derived
#: cell asks for a point that its runs' curve does not reach.
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
    "needs",
    "beyond",
)

# Of a cell without a single value: what a reader must know first.
_WORST = ("running", "failed", "diverged", "blocked", "missing", "beyond")


@dataclass(frozen=True)
class Cell:
    """`values`: the scaled metric by seed, of the runs that completed; `states`: how each wanted seed stands
    (completed, diverged, failed, running, blocked, missing). `text` is what a cell of kind config reads.
    """

    paper: str
    table: str  #: PAPER/TABLE
    row: str
    column: str
    overrides: tuple[str, ...]
    key: str | None
    kind: str = "runs"
    seeds: tuple[int, ...] = ()
    metric: str | None = None
    direction: str | None = None
    unit: str = ""
    digits: int = 2
    spread: str = "std"  #: what is printed behind the ±: see `results.settings`
    profile: str | None = None
    states: Mapping[int, str] = field(default_factory=dict)
    values: Mapping[int, float] = field(default_factory=dict)
    runs: Mapping[int, Path] = field(default_factory=dict)
    text: str | None = None
    fixed_status: str | None = None  #: of a cell whose status does not follow from its seeds
    published: Published | None = None
    needs: tuple[str, ...] = ()
    operands: tuple[str, ...] = ()  #: addresses of the cells that a derived one is made of
    best: bool = False  #: the best of its comparison group beyond chance
    footnotes: tuple[str, ...] = ()  #: what to know of the runs behind it
    problems: tuple[str, ...] = ()
    config: Mapping[str, Any] | None = field(default=None, repr=False)

    @property
    def address(self) -> str:
        return f"{self.table}/{self.row}/{self.column}"

    @property
    def n(self) -> int:
        return len(self.values)

    @cached_property
    def mean(self) -> float | None:
        return mean(list(self.values.values()))

    @cached_property
    def std(self) -> float | None:
        return sample_std(list(self.values.values()))

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """Student's 95 % confidence interval of the mean; None of fewer than two values."""
        return interval(list(self.values.values()))

    @property
    def reach(self) -> float | None:
        """What is printed behind the ±: by `spread`; None of fewer than two values."""
        if self.spread == "std":
            return self.std
        return None if self.interval is None else (self.interval[1] - self.interval[0]) / 2

    @property
    def inside(self) -> bool | None:
        """Whether the published mean lies inside the interval; None where they cannot be compared."""
        if self.difference is None or self.published is None or self.published.mean is None:
            return None
        if self.interval is None:
            return None
        low, high = self.interval
        return low <= self.published.mean <= high

    @property
    def status(self) -> str:
        if self.fixed_status is not None:
            return self.fixed_status
        if self.n and self.n == len(self.seeds):
            return "ok"
        if self.n:
            return "partial"
        states = set(self.states.values())
        return next((state for state in _WORST if state in states), "missing")

    @property
    def settled(self) -> bool:
        """Nothing is left to do or to explain: complete, blank or diverged as in the paper, or (of some seeds or all)
        beyond its curve.
        """
        if self.status == "diverged":
            whole = all(state == "diverged" for state in self.states.values())
            return whole and self.published is not None and self.published.mark == "diverged"
        whole = self.status == "ok" and (self.mean is None or math.isfinite(self.mean))
        beyond = self.status == "partial" and set(self.states.values()) <= {"completed", "beyond"}
        return whole or beyond or self.status in ("absent", "beyond")

    @property
    def difference(self) -> float | None:
        """Measured less published mean; None under a profile, whose numbers are not comparable to the paper's."""
        if self.profile is not None or self.mean is None or self.published is None or self.published.mean is None:
            return None
        return self.mean - self.published.mean

    def count(self) -> Counter[str]:
        """How many wanted seeds are in each state."""
        return Counter(self.states.values())
