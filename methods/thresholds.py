"""Threshold schedules of soft threshold pruning (Chen et al. 2023): d(t) = g(t/T) D. Pure Python: no torch.

t counts finished optimizer steps, T all of the run's, those of a warm-up included. Theorem 1: growing from d(t) to
d(t+1) under the learning rate eta(t) is a step of ISTA with an L1 penalty of (d(t+1) - d(t)) / eta(t).
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal

from methods.schedules import learning_rate

Rate = Callable[[float], float]
"""The learning rate at a (fractional) number of finished steps, in [0, T)."""

Simple = Literal["sine", "linear", "log2"]
Scheduler = Literal["sine", "linear", "log2", "lats", "s_lats", "pgh"]
Basis = Literal["cosine", "run"]

#: Gauss's quadrature on [0, 1]: nodes and weights.
_NODES = ((0.5 - math.sqrt(0.15), 5 / 18), (0.5, 8 / 18), (0.5 + math.sqrt(0.15), 5 / 18))


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """The threshold of a run of `epochs` epochs of `steps_per_epoch` steps, from 0 to `final`.

    `scheduler`: sine, linear, log2 (appendix C.3); lats (corollary 1), s_lats (equation 13), pgh (equation 15).
    `basis`, of the last three: "cosine" is the paper's closed form, for a cosine from the first to the last epoch
    whatever the run's learning rate is (equation 12, for a rate that changes between epochs; 14; 16). "run" takes the
    run's own learning rate `rate` in its place, warm-up and all: lats adds it up step by step, s_lats and pgh
    integrate it.
    `beta`: pgh's penalty decays as beta^(t/T); 1 is s_lats, 0 has the final threshold from the first step on.
    `stop_slope`: pgh's threshold stays where it is once g' falls below this for good (section 5.3.2); 0: never.
    """

    final: float
    scheduler: Scheduler
    epochs: int
    steps_per_epoch: int
    basis: Basis = "cosine"
    beta: float = 1.0
    stop_slope: float = 0.0
    rate: Rate | None = None

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    def at(self, step: int) -> float:
        """d after `step` finished steps."""
        return self.final * self.share(step)

    def penalty(self, step: int, rate: float) -> float:
        """The L1 penalty that step `step` implies under the learning rate `rate` (theorem 1)."""
        return (self.at(step + 1) - self.at(step)) / rate

    def trace(self) -> list[tuple[float, float]]:
        """(t/T, d) after every step, and at the beginning."""
        return [(step / self.steps, self.at(step)) for step in range(self.steps + 1)]

    def penalties(self) -> list[tuple[float, float]]:
        """(t/T, L1 penalty) of every step, in units of the constant one that would end at the same threshold.

        The latter (LATS's, with the learning rate `rate`) is d(T) / sum of the rates. Steps without a rate have none.
        """
        if self.rate is None:
            raise ValueError("a penalty needs the run's learning rate")
        rates = [self.rate(step) for step in range(self.steps)]
        constant = self.at(self.steps) / math.fsum(rates)
        return [(step / self.steps, self.penalty(step, rate) / constant) for step, rate in enumerate(rates) if rate]

    def share(self, step: int) -> float:
        """g(t/T), from 0 to 1."""
        if self.scheduler not in ("lats", "s_lats", "pgh"):
            return SIMPLE[self.scheduler](step / self.steps)
        if self.scheduler == "pgh" and self.beta == 0:
            return float(step > 0)
        if self.basis == "run":
            return self._sums[min(step, self._stop)] / self._sums[-1]
        if self.scheduler == "lats":
            return lats(step, self.epochs, self.steps_per_epoch)
        beta = self.beta if self.scheduler == "pgh" else 1.0
        return pgh(min(step / self.steps, self._halt), beta)

    @cached_property
    def _halt(self) -> float:
        """Where a closed form's growth ends, as a share of the run."""
        return stop(self.beta, self.stop_slope) if self.scheduler == "pgh" else 1.0

    @cached_property
    def _sums(self) -> array[float]:
        """0, and the learning rate added up (lats) or integrated (the others, with pgh's weight) to each step's end."""
        rate, last = self.rate, self.steps
        if rate is None:
            raise ValueError("a threshold that follows the run's learning rate must be told of it")
        if self.scheduler == "lats":
            return array("d", accumulate((rate(t) for t in range(last)), initial=0.0))
        decay = math.log(self.beta) / last if self.scheduler == "pgh" else 0.0
        parts = (sum(w * rate(t + n) * math.exp(decay * (t + n)) for n, w in _NODES) for t in range(last))
        return array("d", accumulate(parts, initial=0.0))

    @cached_property
    def _stop(self) -> int:
        """The number of steps after which g' stays below `stop_slope`."""
        sums, slope = self._sums, self.stop_slope * self._sums[-1] / self.steps
        last = self.steps
        while slope and last and sums[last] - sums[last - 1] < slope:
            last -= 1
        return last


def sine(x: float) -> float:
    """STDS's own scheduler (appendix B): (1 + sin(pi (x - 1/2))) / 2."""
    return 0.5 * (1 - math.cos(math.pi * x))


def linear(x: float) -> float:
    """Appendix C.3."""
    return x


def log2(x: float) -> float:
    """Appendix C.3: log2(x + 1)."""
    return math.log2(x + 1)


SIMPLE: dict[str, Callable[[float], float]] = {"sine": sine, "linear": linear, "log2": log2}


def lats(step: int, epochs: int, steps_per_epoch: int) -> float:
    """Equation 12 over its last value: the sum of a cosine learning rate that changes between epochs, n full ones of B
    steps and b steps of the next."""
    n, b = divmod(step, steps_per_epoch)
    whole = steps_per_epoch / 4 * (2 * n + 1 + math.sin((2 * n - 1) / (2 * epochs) * math.pi) / _half_wave(epochs))
    begun = b / 2 * (1 + math.cos(n * math.pi / epochs))
    return (whole + begun) / (steps_per_epoch * (epochs + 1) / 2)


def _half_wave(epochs: int) -> float:
    return math.sin(math.pi / (2 * epochs))


def s_lats(x: float) -> float:
    """Equation 14 over its last value: sin(pi x) / pi + x."""
    return math.sin(math.pi * x) / math.pi + x


def pgh(x: float, beta: float) -> float:
    """Equation 16, for 0 < beta <= 1; at beta = 1 it is s_lats."""
    return _pgh_integral(x, beta) / _pgh_integral(1.0, beta)


def _pgh_integral(x: float, beta: float) -> float:
    """The integral of (1 + cos(pi y)) beta^y from 0 to x, without loss of digits near beta = 1."""
    rate = math.log(beta)
    angle, decayed = math.pi * x, math.exp(rate * x)
    constant = x if rate == 0 else math.expm1(rate * x) / rate
    cosine = decayed * (rate * math.cos(angle) + math.pi * math.sin(angle)) - rate
    return constant + cosine / (rate**2 + math.pi**2)


def pgh_slope(x: float, beta: float) -> float:
    """g' of equation 15."""
    return (1 + math.cos(math.pi * x)) * beta**x / _pgh_integral(1.0, beta)


def stop(beta: float, slope: float) -> float:
    """t/T at which the slope of the PGH scheduler falls below `slope` (section 5.3.2); 1 where slope is 0.

    At beta = 0 all growth happens in the first step: 0. ValueError when the slope is never as large as that.
    """
    if slope == 0:
        return 1.0
    if beta == 0:
        return 0.0
    if pgh_slope(0.0, beta) < slope:
        raise ValueError(f"stop_slope = {slope:g} is never reached: g' is {pgh_slope(0.0, beta):.3g} at most")
    return _root(lambda x: slope - pgh_slope(x, beta), 0.0, 1.0)


def penalty_peak(mapping: Literal["sigmoid", "exp"]) -> float:
    """The s < 0 up to which -s g'(s), the penalty that weight decay of s implies (equation 26), increases with s.

    Of the sigmoid it is the root of e^-x (x + 1) - x + 1 = 0 (appendix C.1).
    """
    if mapping == "exp":
        return -1.0
    return _root(lambda x: math.exp(-x) * (x + 1) - x + 1, -10.0, 0.0)


def _root(rising: Callable[[float], float], low: float, high: float) -> float:
    """Where a function that is below 0 at `low` and above at `high` crosses it, by bisection."""
    while (middle := 0.5 * (low + high)) not in (low, high):
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return high


def of(method: Mapping[str, Any], schedule: Mapping[str, Any], steps_per_epoch: int = 100) -> Threshold:
    """The threshold of a composed configuration's sections, in epochs of so many steps.

    ValueError when the method has no threshold that follows a schedule.
    """
    if method.get("scheduler") is None or method.get("final_threshold") is None:
        raise ValueError(f"{method.get('name')} has no threshold schedule")
    run = learning_rate(schedule)
    return Threshold(
        final=method["final_threshold"],
        scheduler=method["scheduler"],
        epochs=schedule["epochs"],
        steps_per_epoch=steps_per_epoch,
        basis=method.get("learning_rate", "cosine"),
        beta=method.get("beta", 1.0),
        stop_slope=method.get("stop_slope", 0.0),
        rate=lambda step: run.at(step / steps_per_epoch),
    )


def facts(method: Mapping[str, Any]) -> dict[str, float]:
    """What follows from a method's options without training, by name: `stop` of PGH, `penalty_peak` of STR."""
    found = {}
    if method.get("scheduler") == "pgh":
        found["stop"] = stop(method["beta"], method["stop_slope"])
    if "threshold" in method:
        found["penalty_peak"] = penalty_peak(method["threshold"])
    return found
