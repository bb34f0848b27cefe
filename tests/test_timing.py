"""Clocks of named operations: what they count, that the device is waited for, and what a resumed run goes on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runner.compose import compose
from runner.experiment import make
from runner.records import RunDirectory
from runner.timing import Clocks
from runner.trainer import Interrupted, Trainer
from tests.conftest import TINY


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens, in order; the clock is 1, 4, 9 ... whenever it is looked at."""
    events: list[str] = []

    def look() -> float:
        events.append("clock")
        return float(events.count("clock") ** 2)

    monkeypatch.setattr("runner.timing.time.perf_counter", look)
    return events


def test_the_mean_of_an_operation_and_the_device_is_waited_for(seen: list[str]) -> None:
    clocks = Clocks(lambda: seen.append("wait"))
    assert clocks.line() == {}
    with clocks.timed("redraw"):
        seen.append("work")
    assert seen == ["wait", "clock", "work", "wait", "clock"]
    assert clocks.line() == {"time/redraw_ms": 3000.0, "time/redraw_count": 1}
    with clocks.timed("redraw"):
        pass
    with clocks.timed("update"):
        pass
    times = {"time/redraw_ms": (3 + 7) / 2 * 1000, "time/redraw_count": 2, "time/update_ms": 11000.0}
    assert clocks.line() == {**times, "time/update_count": 1}


def test_an_operation_that_fails_is_not_counted(seen: list[str]) -> None:
    clocks = Clocks(lambda: None)
    with pytest.raises(ValueError, match="broken"), clocks.timed("redraw"):
        raise ValueError("broken")
    assert clocks.line() == {}


def test_a_resumed_run_goes_on_with_the_mean(seen: list[str]) -> None:
    clocks = Clocks(lambda: None)
    clocks.resume({"epoch": 3, "time/epoch_s": 2.0, "time/redraw_ms": 1000.0, "time/redraw_count": 4})
    with clocks.timed("redraw"):  # 3 seconds
        pass
    assert clocks.line() == {"time/redraw_ms": 7000 / 5, "time/redraw_count": 5}


GIVEN = [*TINY, "method=iterand", "method.period=4", "method.rate=0.5", "schedule.epochs=3"]


def counts(trainer: Trainer) -> list[Any]:
    return [line.get("time/redraw_count") for line in trainer.history]


def test_the_trainer_times_every_redrawing(tmp_path: Path) -> None:
    t = Trainer(make(compose(GIVEN)), RunDirectory(tmp_path / "whole"))
    t.fit()
    steps = t.ctx.steps_per_epoch
    assert steps == 4  # so that there is one in every epoch
    assert counts(t) == [1, 2, 3] and all(line["time/redraw_ms"] > 0 for line in t.history)
    later = Trainer(make(compose([*GIVEN, "method.period=7"])), RunDirectory(tmp_path / "later"))
    later.fit()
    assert counts(later) == [None, 1, 1]  # nothing is said before the first


def test_an_interrupted_run_counts_on(tmp_path: Path) -> None:
    t = Trainer(make(compose(GIVEN)), RunDirectory(tmp_path))
    t.stop = lambda: t.ctx.step == 10
    with pytest.raises(Interrupted):
        t.fit()
    t = Trainer(make(compose(GIVEN)), RunDirectory(tmp_path))
    t.fit()
    assert counts(t) == [1, 2, 3]


def test_a_method_that_times_nothing_says_nothing(tmp_path: Path) -> None:
    t = Trainer(make(compose([*TINY, "method=edge_popup"])), RunDirectory(tmp_path))
    t.fit()
    assert not [name for line in t.history for name in line if name.endswith(("_ms", "_count"))]
