"""A grid of values that goes on while the best lies at an edge (Lin et al. 2020, A.2). No torch here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from results.search import Trial


@dataclass(frozen=True, kw_only=True)
class Spacing:
    """The first `values` and how the grid goes on beyond its edges; ValueError for what makes no grid.

    `step` (None: the distance of the two values at that edge) or `ratio` lead from an edge to the next point. Points
    lie strictly between `low` and `high` (None: no bound): a next one that does not is put half-way between the edge
    and the bound. Whole values stay whole. There are at most `max_values`.
    """

    values: Sequence[float]
    step: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    max_values: int = 12

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("values = [] is an empty grid; give the first values, such as [0.05, 0.1, 0.15, 0.2]")
        for value in self.values:
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"values has {value!r}; a grid is made of numbers")
            if (self.low is not None and value <= self.low) or (self.high is not None and value >= self.high):
                raise ValueError(f"values has {value!r}, which is not above low = {self.low} and below {self.high}")
        if len(set(map(_rounded, self.values))) != len(self.values):
            raise ValueError(f"values = {list(self.values)} names a value twice")
        if self.step is not None and not (math.isfinite(self.step) and self.step > 0):
            raise ValueError(f"step = {self.step} should be above 0")
        if self.ratio is not None and not (math.isfinite(self.ratio) and self.ratio > 1):
            raise ValueError(f"ratio = {self.ratio} should be above 1")
        if self.step is not None and self.ratio is not None:
            raise ValueError("step and ratio exclude one another; leave one of them null")
        if self.ratio is not None and min(self.values) <= 0:
            raise ValueError(f"ratio = {self.ratio} needs values above 0")
        if self.step is None and self.ratio is None and len(self.values) == 1:
            raise ValueError("step = null is the distance of two values, and there is one; give the step or the ratio")
        if self.max_values < len(self.values):
            raise ValueError(f"max_values = {self.max_values} is less than the {len(self.values)} first values")

    def beyond(self, edge: float, up: bool) -> float | None:
        """The point that follows `edge` on that side; None when there is no room for one within the bounds."""
        if self.ratio is not None:
            point = edge * self.ratio if up else edge / self.ratio
        else:
            first = sorted(self.values)
            step = self.step if self.step is not None else first[-1] - first[-2] if up else first[1] - first[0]
            point = edge + step if up else edge - step
        bound = self.high if up else self.low
        if bound is not None and (_rounded(point) >= bound if up else _rounded(point) <= bound):
            point = (edge + bound) / 2
        whole = all(isinstance(value, int) for value in self.values)
        point = int(point) if whole else _rounded(point)
        inside = (self.low is None or point > self.low) and (self.high is None or point < self.high)
        return point if inside and (point > edge if up else point < edge) else None


class Grid:
    """The trials on a grid, and which values come next. `up`: the highest is the best, else the lowest."""

    def __init__(self, spacing: Spacing, up: bool = True) -> None:
        self.spacing = spacing
        self.up = up
        self.values = sorted(map(_rounded, spacing.values))
        self.reached: dict[float, float] = {}
        self.ended = ""  #: how it ended, in words; empty while there is something to measure
        self.contained = False  #: whether it ended with the best inside

    @property
    def trials(self) -> list[Trial]:
        """What has been measured, by value; `reached` is nan where it diverged, which is the worst."""
        return [Trial(value, self.reached[value]) for value in self.values if value in self.reached]

    def tell(self, value: float, reached: float) -> None:
        """What came of a value: nan if it diverged."""
        self.reached[value] = reached

    @property
    def best(self) -> Trial | None:
        """The best trial. Of equal ones one inside the grid, of these the smallest; None when all have diverged."""
        return next(iter(sorted(self._equals(), key=lambda trial: (self._is_edge(trial), trial.value))), None)

    def _equals(self) -> list[Trial]:
        finite = [trial for trial in self.trials if trial.finite]
        top = max((self.score(trial) for trial in finite), default=math.nan)
        return [trial for trial in finite if self.score(trial) == top]

    def score(self, trial: Trial) -> float:
        """The higher the better."""
        return trial.reached if self.up else -trial.reached

    def _is_edge(self, trial: Trial) -> bool:
        return trial.value in (self.values[0], self.values[-1])

    def wanted(self) -> list[float]:
        """The values to measure next; none when the grid has ended.

        While the best lies at an edge (or equal ones at both) the next point there joins the grid.
        """
        if missing := [value for value in self.values if value not in self.reached]:
            return missing
        if self.best is None:
            self.ended = "every value has diverged"
            return []
        if not self._is_edge(self.best):
            self.ended, self.contained = "the best lies inside the grid", True
            return []
        edges = [trial.value for trial in self._equals()]
        points = [self.spacing.beyond(edge, up) for edge, up in ((self.values[0], False), (self.values[-1], True))
                  if edge in edges]  # fmt: skip
        new = [point for point in points if point is not None][: self.spacing.max_values - len(self.values)]
        if not new:
            full = len(self.values) >= self.spacing.max_values
            why = f"max_values = {self.spacing.max_values} is reached" if full else "there is no room beyond it"
            self.ended = f"the best lies at an edge still, and {why}"
        self.values = sorted([*self.values, *new])
        return new


def _rounded(value: float) -> float:
    """Six significant digits, as the value stands in an override; whole numbers as they are."""
    return value if isinstance(value, int) else float(f"{value:.6g}")
