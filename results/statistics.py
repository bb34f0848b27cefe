"""What a handful of seeds can say: mean, sample standard deviation, intervals, and whether one beats another."""

from __future__ import annotations

import bisect
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TypeVar

#: Two-sided confidence of intervals, and the family-wise error rate of comparisons.
CONFIDENCE = 0.95
ALPHA = 0.05

Name = TypeVar("Name")


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


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Student's 95 % confidence interval of the mean; None of fewer than two values or where one is not finite."""
    middle, deviation = mean(values), sample_std(values)
    if middle is None or deviation is None or not math.isfinite(deviation):
        return None
    from scipy.special import stdtrit  # a tenth of scipy.stats' import time

    reach = float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2)) * deviation / math.sqrt(len(values))
    return middle - reach, middle + reach


def interpolated(x: float, xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """The piecewise linear curve through the points (xs, ys), in any order, at `x`; None beyond its ends.

    Points of one x count as their mean; nan and inf among them come through where they are used.
    """
    points: dict[float, list[float]] = {}
    for one, y in sorted(zip(xs, ys, strict=True)):
        points.setdefault(one, []).append(y)
    places = list(points)
    if not places or not places[0] <= x <= places[-1]:
        return None
    means = [sum(values) / len(values) for values in points.values()]
    after = bisect.bisect_left(places, x)
    if places[after] == x:
        return means[after]
    low, high = places[after - 1], places[after]
    return means[after - 1] + (means[after] - means[after - 1]) * (x - low) / (high - low)


def welch(one: Sequence[float], other: Sequence[float]) -> float | None:
    """The two-sided p-value of Welch's t-test of equal means, variances unequal (Welch 1947).

    None where either has fewer than two values or one that is not finite. Without any spread the means are compared
    as they are: p = 0 when they differ, 1 when they are equal.
    """
    if min(len(one), len(other)) < 2 or not all(map(math.isfinite, (*one, *other))):
        return None
    difference = statistics.fmean(one) - statistics.fmean(other)
    a, b = statistics.variance(one) / len(one), statistics.variance(other) / len(other)
    if a + b == 0:
        return 1.0 if difference == 0 else 0.0
    from scipy.special import stdtr

    freedom = (a + b) ** 2 / (a**2 / (len(one) - 1) + b**2 / (len(other) - 1))
    return 2 * float(stdtr(freedom, -abs(difference) / math.sqrt(a + b)))


def holm(p_values: Mapping[Name, float], alpha: float = ALPHA) -> set[Name]:
    """Those whose null hypothesis is rejected at family-wise error rate `alpha` (Holm 1979, step-down)."""
    rejected: set[Name] = set()
    for rank, name in enumerate(sorted(p_values, key=lambda each: p_values[each])):
        if p_values[name] > alpha / (len(p_values) - rank):
            break
        rejected.add(name)
    return rejected


def clopper_pearson(successes: int, trials: int) -> tuple[float, float]:
    """The exact 95 % confidence interval of a probability, of independent trials (Clopper & Pearson 1934)."""
    from scipy.special import betaincinv

    tail = (1 - CONFIDENCE) / 2
    low = float(betaincinv(successes, trials - successes + 1, tail)) if successes else 0.0
    high = float(betaincinv(successes + 1, trials - successes, 1 - tail)) if successes < trials else 1.0
    return low, high
