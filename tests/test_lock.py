"""Who holds a run directory: live and dead processes, dead and suspended machines, clocks that differ, two at once."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runner import lock
from runner.compose import compose
from runner.disk import Unwritable
from runner.errors import Misuse
from runner.execute import execute
from runner.identity import run_dir
from runner.leftovers import leftovers
from runner.lock import STALE_S, Held, Holder, beating, is_held, take
from runner.records import RunDirectory, read_metrics
from runner.submission import hold

AWAY = Holder("0123456789abcdef", "another boot", "node7", 77, "2026-01-01T00:00:00+00:00", "55_3")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "PATIENCE_S", 0.0)


def left_by(holder: Holder, folder: Path, silent_s: float) -> Path:
    """The lock file of a holder whose last heartbeat is so many seconds old by the file system's clock."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "lock"
    path.write_text(json.dumps(dataclasses.asdict(holder)))
    beat = path.stat().st_mtime - silent_s
    os.utime(path, (beat, beat))
    return path


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """A context in which this process is one on another machine."""

    def context() -> Any:
        patch = pytest.MonkeyPatch.context()
        entered = patch.__enter__()
        entered.setattr(lock, "machine", lambda: "another boot")
        return patch

    return context


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


# On one machine


def test_a_held_directory_names_its_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "41")
    monkeypatch.setenv("SLURM_JOB_ID", "43")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    with take(tmp_path) as held:
        assert is_held(tmp_path)
        with pytest.raises(Held) as refused:
            take(tmp_path)
        assert f"another process is running {tmp_path} (process {os.getpid()} on " in str(refused.value)
        assert "SLURM job 41_2, since 20" in str(refused.value)
        held.check()
    assert not is_held(tmp_path)
    assert names(tmp_path) == ["lock"] and (tmp_path / "lock").stat().st_size == 0
    assert not is_held(tmp_path / "nowhere") and not is_held(tmp_path / "lock")


def test_the_lock_of_a_killed_process_is_taken_at_once(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        take(tmp_path)
        os.write(writer, b"held")
        signal.pause()
    os.read(reader, 4)
    assert is_held(tmp_path)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert f'"pid": {child}' in (tmp_path / "lock").read_text()
    assert not is_held(tmp_path)
    with take(tmp_path) as held:
        assert held.holder.pid == os.getpid()


def test_a_suspended_process_of_this_machine_keeps_its_lock_however_long_it_is_silent(tmp_path: Path) -> None:
    with take(tmp_path):
        os.utime(tmp_path / "lock", (1, 1))
        assert is_held(tmp_path)
        with pytest.raises(Held):
            take(tmp_path)


def test_a_lock_is_waited_for_as_long_as_somebody_only_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "PATIENCE_S", 60.0)
    (tmp_path / "lock").touch()
    look = (tmp_path / "lock").open()
    fcntl.flock(look, fcntl.LOCK_SH)
    monkeypatch.setattr(time, "sleep", lambda seconds: look.close())
    with take(tmp_path):
        assert is_held(tmp_path)


def test_the_heartbeat_goes_on_while_the_lock_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_S", 0.01)

    def wait_for_a_beat() -> None:
        os.utime(tmp_path / "lock", (1, 1))
        while (tmp_path / "lock").stat().st_mtime == 1:
            time.sleep(0.01)

    with take(tmp_path):
        wait_for_a_beat()
    assert not any(thread.name == "heartbeat" for thread in threading.enumerate())
    with hold(tmp_path / "submission"), beating(tmp_path):  # as a pool does that inherited it
        wait_for_a_beat()
    with beating(tmp_path / "submission" / "none"):
        pass
    assert not any(thread.name == "heartbeat" for thread in threading.enumerate())


# Between machines


@pytest.mark.parametrize("kept", [False, True], ids=["its lock is gone", "the server keeps its lock"])
def test_a_machine_that_is_heard_of_keeps_its_lock(tmp_path: Path, kept: bool) -> None:
    path = left_by(AWAY, tmp_path, STALE_S - 60)
    with path.open() as server:
        if kept:
            fcntl.flock(server, fcntl.LOCK_EX)
        assert is_held(tmp_path)
        with pytest.raises(Held) as refused:
            take(tmp_path)
    assert "(process 77 on node7, SLURM job 55_3, since 2026-01-01T00:00:00+00:00)" in str(refused.value)
    assert "if that machine has died, this is free 5 minutes after its last heartbeat" in str(refused.value)
    assert json.loads(path.read_text())["token"] == AWAY.token and names(tmp_path) == ["lock"]


@pytest.mark.parametrize("kept", [False, True], ids=["its lock is gone", "the server keeps its lock"])
def test_a_silent_machine_is_taken_over_with_a_warning(
    tmp_path: Path, kept: bool, caplog: pytest.LogCaptureFixture
) -> None:
    path = left_by(AWAY, tmp_path, STALE_S + 60)
    with path.open() as server:
        if kept:
            fcntl.flock(server, fcntl.LOCK_EX)
        assert not is_held(tmp_path)
        with take(tmp_path) as held:
            assert is_held(tmp_path)
            held.check()
            with pytest.raises(Held, match=f"process {os.getpid()} on"):
                take(tmp_path)
    assert f"{tmp_path} taken over from process 77 on node7, SLURM job 55_3" in caplog.text
    assert "no heartbeat for 6 minutes" in caplog.text
    assert names(tmp_path) == ["lock"] and not is_held(tmp_path)


def test_no_machines_own_clock_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The holder's heartbeat and the probe are stamped by one clock, the file system's, a year behind ours."""
    stamp, year = os.utime, 365 * 86400

    def behind(target: Any, times: Any = None) -> None:
        stamp(target, times or (time.time() - year,) * 2)

    monkeypatch.setattr(os, "utime", behind)
    left_by(AWAY, tmp_path, year + STALE_S - 60)
    assert is_held(tmp_path)
    left_by(AWAY, tmp_path, year + STALE_S + 60)
    assert not is_held(tmp_path)


def test_a_heartbeat_from_the_future_counts_from_when_it_was_first_seen(tmp_path: Path) -> None:
    path = left_by(AWAY, tmp_path, -86400)
    assert is_held(tmp_path)
    assert path.stat().st_mtime <= time.time() + 1  # not for a day
    left_by(AWAY, tmp_path, -86400)
    with pytest.raises(Held):
        take(tmp_path)
    first_seen = path.stat().st_mtime
    assert first_seen <= time.time() + 1
    os.utime(path, (first_seen - STALE_S - 1,) * 2)  # and so much later
    assert not is_held(tmp_path)
    take(tmp_path).release()


def test_whoever_was_taken_over_writes_nothing_more(tmp_path: Path, away: Callable[[], Any]) -> None:
    directory = RunDirectory(tmp_path)
    context = away()
    suspended = directory.held()
    suspended.__enter__()
    directory.append_metrics({"epoch": 1})
    context.__exit__(None, None, None)
    os.utime(tmp_path / "lock", (1, 1))
    other = RunDirectory(tmp_path)
    with other.held():
        other.append_metrics({"epoch": 2})
        writes: list[Callable[[], Any]] = [
            lambda: directory.append_metrics({"epoch": 3}),
            lambda: directory.cut_metrics(1),
            lambda: directory.finish({"status": "failed"}),
            lambda: directory.finish_if_possible({"status": "failed"}),
            lambda: directory.begin({}, [], {}),
            directory.check_hold,
        ]
        for write in writes:
            with pytest.raises(Held, match=r"was taken over by process .* it has written nothing since, and stops"):
                write()
        suspended.__exit__(None, None, None)
        other.check_hold()  # its leaving touched nothing of the new holder's
        assert is_held(tmp_path)
    assert read_metrics(directory.metrics_path)[0] == [{"epoch": 1}, {"epoch": 2}]
    assert names(tmp_path) == ["lock", "metrics.jsonl"]


def test_a_run_that_was_taken_over_stops_before_its_next_checkpoint(
    tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from runner.trainer import Trainer

    config = compose([*tiny, f"runs={tmp_path}", "trainer.checkpoint_seconds=0"])
    path, step = run_dir(tmp_path, config), Trainer.step

    def wakes_up_taken_over(self: Any, *arguments: Any) -> None:
        step(self, *arguments)
        if self.ctx.step == 2:
            (path / "lock").unlink()
            left_by(AWAY, path, 0)

    monkeypatch.setattr(Trainer, "step", wakes_up_taken_over)
    with pytest.raises(Held, match="taken over by process 77 on node7, SLURM job 55_3"):
        execute(config, [])
    from runner import checkpoint

    state = checkpoint.load(path / "checkpoints")
    assert state is not None and state["position"]["step"] == 2
    assert names(path) == ["checkpoints", "config.yaml", "environment.json", "lock", "log.txt", "metrics.jsonl",
                           "overrides.json"]  # fmt: skip
    assert json.loads((path / "lock").read_text())["token"] == AWAY.token


def test_a_lock_file_that_was_deleted_stops_its_holder(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    with directory.held():
        (tmp_path / "lock").unlink()
        with pytest.raises(Held, match="has lost its lock file"):
            directory.append_metrics({"epoch": 1})


def test_one_of_many_takes_a_dead_machines_lock_over(tmp_path: Path) -> None:
    """Sixteen processes at once, none of which any flock keeps from the file: the dead machine's server has it."""
    path = left_by(AWAY, tmp_path, STALE_S + 60)
    reader, writer = os.pipe()
    start_reader, start_writer = os.pipe()
    children = []
    with path.open() as server:
        fcntl.flock(server, fcntl.LOCK_EX)
        for _ in range(16):
            if (child := os.fork()) == 0:
                try:
                    os.close(start_writer)
                    logging.disable()
                    os.read(start_reader, 1)  # until the parent closes it
                    take(tmp_path)
                    os.write(writer, b"1")
                    signal.pause()
                finally:
                    os._exit(0)
            children.append(child)
        os.close(start_writer)
        assert os.read(reader, 1) == b"1"
        losers = 0
        while losers < 15:
            done, _ = os.waitpid(-1, 0)
            children.remove(done)
            losers += 1
    (winner,) = children
    assert is_held(tmp_path) and json.loads(path.read_text())["pid"] == winner
    assert names(tmp_path) == ["lock"]
    os.kill(winner, signal.SIGKILL)
    os.waitpid(winner, 0)
    for descriptor in (reader, writer, start_reader):
        os.close(descriptor)


def test_a_takeover_that_was_cut_off_is_taken_up(tmp_path: Path) -> None:
    left_by(AWAY, tmp_path, STALE_S + 60)
    claim = tmp_path / f".lock.{AWAY.token}"
    claim.touch()
    with pytest.raises(TimeoutError), pytest.MonkeyPatch.context() as patch:

        def enough(seconds: float) -> None:
            raise TimeoutError

        patch.setattr(time, "sleep", enough)
        take(tmp_path)  # somebody else is at it just now
    os.utime(claim, (1, 1))
    with take(tmp_path):
        assert names(tmp_path) == ["lock"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"token": 1}', json.dumps({**AWAY.__dict__, "token": "../../x"})])
def test_a_lock_file_that_names_nobody_is_free_unless_it_is_locked(tmp_path: Path, content: str) -> None:
    (tmp_path / "lock").write_text(content)
    os.utime(tmp_path / "lock", (1, 1))
    assert not is_held(tmp_path)
    with take(tmp_path):
        assert is_held(tmp_path)


def test_a_directory_that_cannot_be_written_is_looked_at_by_our_own_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> int:
        if arguments[1] & os.O_CREAT:
            raise OSError(errno.EROFS, "Read-only file system")
        return opening(*arguments)

    opening = os.open
    left_by(AWAY, tmp_path, STALE_S + 60)
    monkeypatch.setattr(os, "open", refuse)
    assert not is_held(tmp_path)
    left_by(AWAY, tmp_path, 0)
    assert is_held(tmp_path)


# What cannot be locked


@pytest.fixture
def root_without_rights() -> Iterator[Path]:
    """A folder that this process may look into and not write to, though it be root's."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        yield Path(folder)
        os.seteuid(user)


def test_a_runs_root_that_cannot_be_written_is_misuse_before_anything_starts(
    root_without_rights: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from runner import execute as execution

    monkeypatch.setattr(execution, "make", lambda config: pytest.fail("the run has started"))
    given = [*tiny, f"runs={root_without_rights}/runs"]
    with pytest.raises(Misuse) as refused:
        execute(compose(given), given)
    assert "cannot be written (Permission denied); give a runs root that can, with runs=DIR or REGROW_RUNS" in str(
        refused.value
    )
    assert not (root_without_rights / "runs").exists()


def test_a_file_in_the_place_of_the_runs_root_is_misuse(tmp_path: Path, tiny: list[str]) -> None:
    (tmp_path / "runs").write_text("mine")
    with pytest.raises(Misuse, match="cannot be written"):
        execute(compose([*tiny, f"runs={tmp_path}/runs"]), [])
    assert (tmp_path / "runs").read_text() == "mine"


def test_a_file_system_without_locks_is_misuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(Misuse, match=r"cannot be locked \(No locks available\): mount its file system with locks"):
        take(tmp_path)


def test_a_full_disk_gives_no_lock_by_halves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(Unwritable, match=r"lock could not be written .No space left on device.: it needs "):
            take(tmp_path)
    assert not is_held(tmp_path)
    take(tmp_path).release()


def test_a_directory_with_a_dead_processs_lock_only_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "seed0"
    left_by(dataclasses.replace(AWAY, machine=lock.machine()), path, 100)
    (path / f".lock.{AWAY.token}").touch()
    (leftover,) = leftovers(path, None)
    assert leftover.path == path and leftover.why == "nothing was run in it"
