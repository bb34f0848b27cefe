"""Comparing times: variants in turn in one process, round by round, so that what else the machine does hits all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def interleaved(variants: dict[str, Callable[[], None]], baseline: str, rounds: int) -> dict[str, dict[str, float]]:
    """Median, least and greatest ratio of each variant's time to the baseline's of the same round."""
    times = in_turn({name: _clocked(run) for name, run in variants.items()}, rounds)
    ratios = {n: [t / b for t, b in zip(each, times[baseline], strict=True)] for n, each in times.items()}
    return {
        name: {"ratio": statistics.median(each), "least": min(each), "greatest": max(each), "rounds": len(each)}
        for name, each in ratios.items()
    }


def in_turn(variants: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each variant returns, its own seconds, round by round."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, timed in variants.items():
            times[name].append(timed())
    return times


def _clocked(run: Callable[[], None]) -> Callable[[], float]:
    def timed() -> float:
        began = time.perf_counter()
        run()
        return time.perf_counter() - began

    return timed
