"""Times: of operations that a method names, and of variants in turn, so that what else the machine does hits all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Clocks:
    """How long operations take on average over a run, by their names: time/NAME_ms, and how many: time/NAME_count.

    `wait` waits until the device has done what it was told, before an operation begins and after it: what is timed is
    the operation alone, and all of it. So only what happens seldom should be timed.
    """

    def __init__(self, wait: Callable[[], None]) -> None:
        self.wait = wait
        self.spent: dict[str, tuple[float, int]] = {}  # seconds, and how often

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Within it the operation `name` happens once; one that fails is not counted."""
        self.wait()
        began = time.perf_counter()
        yield
        self.wait()
        seconds, count = self.spent.get(name, (0.0, 0))
        self.spent[name] = seconds + time.perf_counter() - began, count + 1

    def line(self) -> dict[str, float]:
        """What joins an epoch's line of metrics: nothing of an operation that has not happened yet."""
        told: dict[str, float] = {}
        for name, (seconds, count) in self.spent.items():
            told |= {f"time/{name}_ms": 1000 * seconds / count, f"time/{name}_count": count}
        return told

    def resume(self, line: Mapping[str, Any]) -> None:
        """Go on from a line's averages; what was timed in the first part of a broken-off epoch is lost."""
        for metric, count in line.items():
            if metric.startswith("time/") and metric.endswith("_count"):
                name = metric.removeprefix("time/").removesuffix("_count")
                self.spent[name] = line[f"time/{name}_ms"] * count / 1000, count


def interleaved(variants: dict[str, Callable[[], None]], baseline: str, rounds: int) -> dict[str, dict[str, float]]:
    """Median, least and greatest ratio of each variant's (wall) time to the baseline's of the same round."""
    times = in_turn({name: clocked(run) for name, run in variants.items()}, rounds)
    ratios = {n: [t / b for (_, t), (_, b) in zip(each, times[baseline], strict=True)] for n, each in times.items()}
    return {
        name: {"ratio": statistics.median(each), "least": min(each), "greatest": max(each), "rounds": len(each)}
        for name, each in ratios.items()
    }


def in_turn(variants: Mapping[K, Callable[[], T]], rounds: int) -> dict[K, list[T]]:
    """What each variant returns, such as its own seconds, round by round."""
    times: dict[K, list[T]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, timed in variants.items():
            times[name].append(timed())
    return times


def clocked(run: Callable[[], object]) -> Callable[[], tuple[float, float]]:
    """`run`, timed: seconds of processor time and of the wall clock."""

    def timed() -> tuple[float, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        return time.process_time() - cpu, time.perf_counter() - wall

    return timed
