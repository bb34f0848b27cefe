"""The search for a knob's value: bracket the target, then narrow the bracket, every measurement kept. No torch here."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from methods.knob import Knob

#: Two logits so far apart are on no line: one of the runs has pruned (nearly) all, or nothing.
_FAR = 7.0


@dataclass(frozen=True)
class Trial:
    """A knob's value and what the metric came to there; `reached` is nan when the run gave none (it diverged)."""

    value: float
    reached: float

    @property
    def finite(self) -> bool:
        """Whether the run gave a value."""
        return math.isfinite(self.reached)


@dataclass
class Search:
    """The trials so far on the way to `target`, and how the search ended, in words."""

    knob: Knob
    target: float
    tolerance: float
    trials: list[Trial] = field(default_factory=list)
    ended: str = ""

    @property
    def best(self) -> Trial | None:
        """The trial nearest to the target, one within the tolerance before any other.

        How near a share is its logit says: a network without a weight left is near to no target.
        """
        finite = [trial for trial in self.trials if trial.finite]
        return min(finite, key=lambda trial: (not self.hits(trial), abs(self.off(trial))), default=None)

    @property
    def hit(self) -> bool:
        return any(map(self.hits, self.trials))

    def hits(self, trial: Trial) -> bool:
        """Whether it is within the tolerance."""
        return abs(trial.reached - self.target) <= self.tolerance

    def off(self, trial: Trial) -> float:
        """How far the trial lies above the target, of a share between 0 and 1 in its logit; infinite if it diverged."""
        if not trial.finite:
            return math.inf if self.knob.increasing else -math.inf
        if 0 < self.target < 1:
            return _even(trial.reached) - _even(self.target)
        return trial.reached - self.target

    @property
    def ends(self) -> tuple[Trial | None, Trial | None]:
        """The trials between which the target lies: the nearest one below it and the nearest one above it."""
        sense = 1 if self.knob.increasing else -1
        places = [(self.off(trial), sense * _position(trial.value, self.knob), trial) for trial in self.trials]
        below = max((place for place in places if place[0] <= 0), key=lambda place: place[:2], default=None)
        above = min((place for place in places if place[0] > 0), key=lambda place: place[:2], default=None)
        return below and below[2], above and above[2]

    @property
    def placed(self) -> str:
        """Where the target lies among the trials, in words."""
        below, above = self.ends
        told = [f"{end.value:g} ({end.reached:.4f})" for end in (below, above) if end is not None]
        if len(told) == 2:
            return f"the target lies between {told[0]} and {told[1]}"
        return (
            f"all of them lie {'below' if below else 'above'} the target" if self.best else "none of them has a value"
        )


class _Enough(Exception):
    """The target is hit, or the budget spent."""


def search(measure: Callable[[float], float], knob: Knob, target: float, tolerance: float, budget: int) -> Search:
    """Looks for the knob's value at which `measure` gives `target`, with at most `budget` measurements.

    From the guess it steps outwards until the target is bracketed, then narrows by Brent's method (scipy), both in
    the knob's own scale and, for shares between 0 and 1, in the logit of the metric, in which a sparsity near 1 moves
    evenly. A run without a value counts as one that went too far. A measured value within `tolerance` ends it.
    """
    from scipy.optimize import brentq

    found = Search(knob, target, tolerance)

    def off(position: float) -> float:
        value = _value(position, knob)
        known = [trial for trial in found.trials if trial.value == value]
        if not known:
            if len(found.trials) >= budget:
                found.ended = f"the budget of {budget} run(s) is spent"
                raise _Enough
            found.trials.append(Trial(value, measure(value)))
        if found.hit:
            found.ended = f"within {tolerance:g} of the target"
            raise _Enough
        return found.off((known or found.trials[-1:])[0])

    try:
        low, high = _bracket(off, found)
        brentq(lambda position: max(-40.0, min(40.0, off(position))), low, high, xtol=1e-6, maxiter=10 * budget)
        found.ended = "the metric jumps across the target: no value of the knob gives it"
    except _Enough:
        pass
    return found


def _bracket(off: Callable[[float], float], found: Search) -> tuple[float, float]:
    """Two positions with the target between them."""
    knob = found.knob
    ends = _position(knob.low, knob), _position(knob.high, knob)
    step = math.log(4.0) if knob.scale == "log" else (ends[1] - ends[0]) / 8
    position = _position(knob.guess, knob)
    here = off(position)
    direction = 1 if (here < 0) == knob.increasing else -1
    while True:
        beyond = min(max(position + direction * step, ends[0]), ends[1])
        if beyond == position:
            found.ended = f"the target lies beyond the end of the knob's range, {_value(position, knob):g}"
            raise _Enough
        there = off(beyond)
        if (there < 0) != (here < 0):
            return position, beyond
        position, here, step = beyond, there, 1.5 * step


def _position(value: float, knob: Knob) -> float:
    if knob.scale == "linear":
        return value
    return math.log(value) if value > 0 else -math.log(-value)


def _value(position: float, knob: Knob) -> float:
    """Six significant digits, as the value will stand in an override; beyond the knob's ends that of the end."""
    value = position = min(max(position, _position(knob.low, knob)), _position(knob.high, knob))
    if knob.scale == "log":
        value = math.exp(position) if knob.low > 0 else -math.exp(-position)
    return float(f"{min(max(value, knob.low), knob.high):.6g}")


def _even(share: float) -> float:
    """The logit, kept finite at 0 and 1."""
    inside = min(max(share, 1e-6), 1 - 1e-6)
    return math.log(inside / (1 - inside))


def confirm(measure: Callable[[float], float], found: Search, budget: int) -> Search:
    """Long runs from the best value of the search on, `budget` at most, until one is within the tolerance."""
    assert found.best is not None
    long = Search(found.knob, found.target, found.tolerance)
    value = found.best.value
    while not long.ended:
        long.trials.append(Trial(value, measure(value)))
        if long.hit:
            long.ended = f"within {found.tolerance:g} of the target"
        elif len(long.trials) == budget:
            long.ended = f"the {budget} run(s) at full length are spent"
        elif (value := refined(found, long)) in [trial.value for trial in long.trials]:
            long.ended = "the next value to be tried has been tried"
    return long


def refined(found: Search, long: Search) -> float:
    """The next value to confirm, after the long runs so far; one of theirs where there is no other.

    Between two of them with the target between: where the line through them meets it, kept off their ends; half-way
    where one of them has pruned all, or diverged. After the first one: where the search met the target, moved by as
    much as that run lies off on the search's own curve, which is linear between its trials. After more on one side of
    the target: further on along the line through the last two, four times their distance at most.
    """
    knob, sense = found.knob, 1 if found.knob.increasing else -1
    points = [(long.off(trial), _position(trial.value, knob)) for trial in long.trials]
    below, above = long.ends
    if below and above:
        (y0, x0), (y1, x1) = ((long.off(end), _position(end.value, knob)) for end in (below, above))
        no_line = y1 - y0 > _FAR
        return _value(x0 + (x1 - x0) * (0.5 if no_line else min(max(y0 / (y0 - y1), 0.1), 0.9)), knob)
    towards = sense if below else -sense
    points.sort(key=lambda point: -towards * point[1])  # the one that went furthest first
    y, x = points[0]
    trials = sorted((found.off(trial), _position(trial.value, knob)) for trial in found.trials if trial.finite)
    if len(points) > 1:
        step = abs(x - points[1][1])
        slope = (y - points[1][0]) / (x - points[1][1]) if math.isfinite(y - points[1][0]) else 0.0
        length = min(-y / slope * towards, 4 * step) if slope * sense > 0 else 2 * step
    elif len(trials) > 1 and math.isfinite(y):
        return _value(x + _line(trials, 0.0) - _line(trials, y), knob)
    else:
        length = math.log(1.25) if knob.scale == "log" else (knob.high - knob.low) / 64
    return _value(x + towards * length, knob)


def _line(points: list[tuple[float, float]], x: float) -> float:
    """The piecewise linear curve through `points` (sorted, at least two) at `x`, its end pieces continued."""
    after = next((index for index, point in enumerate(points) if point[0] >= x), len(points) - 1)
    (x0, y0), (x1, y1) = points[max(after, 1) - 1], points[max(after, 1)]
    return y0 if x1 == x0 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)
