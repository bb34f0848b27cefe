"""The search for a knob's value: bracket the target, then narrow the bracket, every measurement kept. No torch here."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from methods.knob import Knob


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
        """The trial nearest to the target."""
        finite = [trial for trial in self.trials if trial.finite]
        return min(finite, key=lambda trial: abs(trial.reached - self.target), default=None)

    @property
    def hit(self) -> bool:
        return self.best is not None and abs(self.best.reached - self.target) <= self.tolerance


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
        reached = (known or found.trials[-1:])[0].reached
        if not math.isfinite(reached):
            return math.inf if knob.increasing else -math.inf
        return _even(reached) - _even(target) if 0 < target < 1 else reached - target

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
    """Six significant digits, as the value will stand in an override."""
    value = position
    if knob.scale == "log":
        value = math.exp(position) if knob.low > 0 else -math.exp(-position)
    return float(f"{min(max(value, knob.low), knob.high):.6g}")


def _even(share: float) -> float:
    """The logit, kept finite at 0 and 1."""
    inside = min(max(share, 1e-6), 1 - 1e-6)
    return math.log(inside / (1 - inside))


def refined(found: Search, confirmed: list[Trial]) -> float:
    """The next value to confirm: where the search met the target, moved by as much as the last confirmed run lay off.

    A long run reaches at some value what the short ones reach at another; the distance of the two on the knob's scale
    is taken to be the same at the target. The search's curve is linear between its trials, in the logit of a share.
    From two confirmed runs on, the line through the two nearest to the target is followed instead.
    """
    knob, last = found.knob, confirmed[-1]
    even = _even if 0 < found.target < 1 else float
    trials = sorted((even(trial.reached), _position(trial.value, knob)) for trial in found.trials if trial.finite)
    if len(trials) < 2:
        return last.value
    near = sorted((trial for trial in confirmed if trial.finite), key=lambda trial: abs(trial.reached - found.target))
    if len(near) > 1:
        line = sorted((even(trial.reached), _position(trial.value, knob)) for trial in near[:2])
        return _value(_line(line, even(found.target)), knob)
    met, passed = _line(trials, even(found.target)), _line(trials, even(last.reached))
    return _value(_position(last.value, knob) + met - passed, knob)


def _line(points: list[tuple[float, float]], x: float) -> float:
    """The piecewise linear curve through `points` (sorted, at least two) at `x`, its end pieces continued."""
    after = next((index for index, point in enumerate(points) if point[0] >= x), len(points) - 1)
    (x0, y0), (x1, y1) = points[max(after, 1) - 1], points[max(after, 1)]
    return y0 if x1 == x0 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)
