"""How far a run or a set of runs is: a bar on a terminal, plain lines elsewhere. No torch here."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar

_PARTS = 10  # how many times plain output says how far it is


class _Barred:
    """Has a bar, on a terminal, while it is a context."""

    bar: Bar | None

    def __enter__(self) -> Self:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()


class Progress(_Barred):
    """The progress of runs of `epochs[i]` epochs each; the estimate of the time left counts epochs, not runs.

    Use it as a context. A stream that has gone (a closed terminal or pipe) silences it and stops nothing.
    """

    def __init__(
        self, epochs: Sequence[int], stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.epochs = list(epochs)
        self.stream: TextIO | None = stream or sys.stdout
        self.clock = clock
        self.reached = [0] * len(self.epochs)
        self.settled: set[int] = set()
        self.trained = 0  # epochs that passed before our eyes: a resumed run brings others along
        self.began: float | None = None
        self.told = 0
        self.bar = None
        if self.stream.isatty():
            columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"))
            self.bar = Bar(*columns, console=Console(file=self.stream))
            self.bar.add_task(self.describe(), total=max(1, sum(self.epochs)))

    def epoch(self, index: int, epoch: int, seconds: float) -> None:
        """Run `index` has finished this epoch (the first is 1), which took so many seconds."""
        if self.began is None:
            self.began = self.clock() - seconds
        self.trained += 1
        self.reached[index] = min(epoch, self.epochs[index])
        self._moved()

    def settle(self, index: int, line: str) -> None:
        """Run `index` has come to its end, whatever that is; `line` says which."""
        self.settled.add(index)
        self.reached[index] = self.epochs[index]
        width = len(str(len(self.epochs)))
        self.say(f"[{len(self.settled):>{width}}/{len(self.epochs)}] {line}")
        self._moved()

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        if self.stream is None:
            return
        try:
            if self.bar is not None:
                self.bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
            else:
                print(line, file=self.stream, flush=True)
        except OSError:
            self.stream = None

    @property
    def share(self) -> float:
        """Epochs done as a share of all."""
        return sum(self.reached) / max(1, sum(self.epochs))

    def left(self) -> float | None:
        """Estimated seconds to the end at the speed so far; None before the first epoch."""
        if self.began is None:
            return None
        speed = self.trained / max(1e-9, self.clock() - self.began)
        return (sum(self.epochs) - sum(self.reached)) / speed

    def describe(self) -> str:
        """Runs done, epochs done, time left."""
        text = f"{len(self.settled)}/{len(self.epochs)} runs, {sum(self.reached)}/{sum(self.epochs)} epochs"
        left = self.left()
        return text if left is None else f"{text}, {duration(left)} left"

    def _moved(self) -> None:
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=sum(self.reached), description=self.describe())
        elif (part := int(self.share * _PARTS + 1e-9)) > self.told and len(self.settled) < len(self.epochs):
            self.told = part
            self.say(f"{self.share:.0%}: {self.describe()}")


class Live(_Barred):
    """One run as it trains: on a terminal a bar with the newest numbers and the time left, elsewhere a line an epoch.

    Use it as a context, and as what `execute` tells: it is called with every epoch's line of metrics, of which `told`
    makes words, and `step` follows every step. The parents of a stage are shown as they train.
    """

    def __init__(
        self,
        told: Callable[[Mapping[str, Any]], str],
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.told = told
        self.stream = stream or sys.stdout
        self.clock = clock
        self.words = ""
        self.began = (0.0, 0)  # when the run's first step here had ended, and how many there were
        self.done, self.shown = math.inf, -math.inf
        self.bar = None
        if self.stream.isatty():
            columns = (BarColumn(20), TextColumn("{task.description}", markup=False))
            self.bar = Bar(*columns, console=Console(file=self.stream), transient=True)
            self.bar.add_task("", total=None)

    def __call__(self, line: Mapping[str, Any]) -> None:
        """An epoch has ended."""
        self.words = self.told(line)
        if self.bar is None:
            seconds = f"{line['time/epoch_s']:.2f} s"
            print(f"  epoch {line['epoch']:>3}  {self.words}  {seconds}", file=self.stream, flush=True)

    def step(self, done: int, per_epoch: int, total: int) -> None:
        """`done` of `total` steps have been taken."""
        if self.bar is None:
            return
        now = self.clock()
        if done < self.done:  # another run, or the first
            self.began, self.words, self.shown = (now, done), "", -math.inf
        self.done = done
        if now - self.shown < _REFRESH_S and done < total:
            return
        self.shown = now
        epoch = f"epoch {min(1 + done // per_epoch, total // per_epoch)}/{total // per_epoch}"
        taken = done - self.began[1]
        left = f"{duration((now - self.began[0]) / taken * (total - done))} left" if taken else ""
        words = "  ".join(word for word in (epoch, left, self.words) if word)
        self.bar.update(self.bar.task_ids[0], completed=done, total=total, description=words)


_REFRESH_S = 0.1


def duration(seconds: float) -> str:
    """Seconds in words: 1.2 s, 3 min 05 s, 2 h 10 min, 12 d 7 h."""
    if seconds < 10 or not math.isfinite(seconds):
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 72 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
