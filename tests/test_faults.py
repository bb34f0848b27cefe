"""What goes wrong around a run: what the user sees, that nothing recorded is lost, how the same command goes on."""

from __future__ import annotations

import errno
import itertools
import json
import os
import resource
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data import image_files
from data.unreadable import Unreadable
from runner import checkpoint, disk
from runner.__main__ import main
from runner.attempt import CODES, attempt
from runner.compose import compose
from runner.disk import Unwritable, amount, append, staged, write_atomic
from runner.execute import execute
from runner.failure import foreseen, reason
from runner.identity import run_dir
from runner.records import RunDirectory, read_metrics
from runner.submission import Task
from runner.trainer import Trainer
from tests.killing import outcome

Call = Callable[..., tuple[int, str]]


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Call:
    """python -m runner: (exit code, everything that the user sees)."""

    def run(given: list[str]) -> tuple[int, str]:
        capfd.readouterr()
        code = main(given)
        return code, "".join(capfd.readouterr())

    return run


def directory(given: list[str]) -> Path:
    config = compose(given)
    return run_dir(config["runs"], config)


def last_line(said: str) -> str:
    return said.splitlines()[-1].strip()


def status(path: Path) -> str | None:
    return (RunDirectory(path).summary() or {}).get("status")


def breaking(monkeypatch: pytest.MonkeyPatch, at: int, error: Exception) -> None:
    """Let step `at` of every run of this process raise an error, once."""
    whole, left = Trainer.step, [error]

    def step(self: Trainer, *arguments: Any) -> None:
        if self.ctx.step == at and left:
            raise left.pop()
        whole(self, *arguments)

    monkeypatch.setattr(Trainer, "step", step)


# A disk that refuses


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "regrow-test", str(folder)]
    if shutil.which("mount") is None:
        pytest.skip("there is no mount command here")
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, leaving: int) -> Path:
    """Fill a file system but for so many pages of 4096 bytes."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4096)
        except OSError as error:
            assert error.errno == errno.ENOSPC
        file.truncate(max(0, file.tell() // 4096 - leaving) * 4096)
    return filler


def test_a_run_on_a_full_disk_fails_with_one_sentence_and_the_same_command_completes_it(
    small_disk: Path, tmp_path: Path, tiny: list[str], call: Call
) -> None:
    """Whatever the disk has room for, from nothing to everything: the disk fills up at every write of a run in turn."""
    whole = [*tiny, "method=set", "method.count=20", "method.period=2", f"runs={tmp_path / 'whole'}"]
    often = "trainer.checkpoint_seconds=0"
    end, _ = call([*whole, often])
    assert end in (0, 3)
    refused, statuses = set(), set()
    for leaving in range(64):
        runs = small_disk / "runs"
        shutil.rmtree(runs, ignore_errors=True)
        filler = fill(small_disk, leaving)
        given = [*whole[:-1], often, f"runs={runs}"]
        path = directory(given)
        code, said = call(given)
        if code == end:
            break
        assert code == 1 if "failed" in said else code == 2
        assert "Traceback" not in said
        sentence = last_line(said)
        assert "No space left on device" in sentence
        if "failed" in sentence:
            assert "what was recorded stays; make room" in sentence and "the same command resumes" in sentence
            name = sentence.split(" could not be written")[0].split("/")[-1]
            refused.add(name)
            statuses.add(status(path))
            assert f" {path}/" in sentence
        recorded, problems = read_metrics(path / "metrics.jsonl")
        assert problems == []
        last = checkpoint.load(path / "checkpoints") if (path / "checkpoints").exists() else None
        filler.unlink()
        resumed, said = call(given)
        assert resumed == end, said
        now, _ = read_metrics(path / "metrics.jsonl")
        if last is not None:  # nothing that a checkpoint knows of was computed again
            kept = last["position"]["epoch"] - 1
            assert now[:kept] == recorded[:kept]
        assert outcome(path) == outcome(directory(whole))
    assert code == end and leaving > 5
    assert {"lock", "config.yaml", "environment.json", "last.pt"} <= refused
    assert {"failed", None} <= statuses


def test_a_partial_line_of_metrics_is_rolled_back(tmp_path: Path) -> None:
    """A limit on the size of files cuts a write short, as a full disk does."""
    path = tmp_path / "metrics.jsonl"
    append(path, b'{"epoch": 1}\n')
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
    try:
        with pytest.raises(Unwritable, match=r"metrics.jsonl could not be written \(File too large\)"):
            append(path, b'{"epoch": 2}\n')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b'{"epoch": 1}\n'
    append(path, b'{"epoch": 2}\n')
    assert read_metrics(path) == ([{"epoch": 1}, {"epoch": 2}], [])


@pytest.mark.parametrize(
    ("number", "mend"),
    [
        (errno.ENOSPC, "are free; what was recorded stays; make room (python scripts/runs.py gc says what can go)"),
        (errno.EDQUOT, "are free; what was recorded stays; make room (python scripts/runs.py gc says what can go)"),
        (errno.EROFS, "(Read-only file system); what was recorded stays; put that right"),
        (errno.EIO, "(Input/output error); what was recorded stays; put that right"),
    ],
)
def test_what_a_disk_refuses_is_said_with_its_mend(
    tmp_path: Path, tiny: list[str], call: Call, monkeypatch: pytest.MonkeyPatch, number: int, mend: str
) -> None:
    given = [*tiny, f"runs={tmp_path}", "trainer.checkpoint_seconds=0"]
    path = directory(given)
    syncs, sync = 0, os.fsync

    def refuse(descriptor: int) -> None:
        nonlocal syncs
        if os.readlink(f"/proc/self/fd/{descriptor}").split("/")[-1].startswith(".last.pt"):
            syncs += 1
            if syncs == 6:
                raise OSError(number, os.strerror(number))
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        code, said = call(given)
    assert code == 1
    sentence = last_line(said)
    assert sentence.startswith(f"failed: {path}/checkpoints/last.pt could not be written (")
    assert mend in sentence and sentence.endswith("and the same command resumes.")
    assert status(path) == "failed" and (RunDirectory(path).summary() or {})["reason"] in sentence
    log = (path / "log.txt").read_text()
    assert "Traceback" in log and "last.pt could not be written" in log
    assert sorted(file.name for file in (path / "checkpoints").iterdir()) == ["last.pt", "previous.pt"]
    state = checkpoint.load(path / "checkpoints")
    assert state is not None and state["position"]["step"] == 4
    assert call(given)[0] == 0 and status(path) == "completed"


@pytest.mark.parametrize("file", ["summary.json", "metrics.jsonl"])
def test_a_record_that_cannot_be_written_is_made_good_by_the_same_command(
    tmp_path: Path, tiny: list[str], call: Call, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    """The first write of an epoch's line; the summary of a run that has trained to its end, and that of its failure."""
    whole, given = ([*tiny, f"runs={tmp_path / name}", "trainer.checkpoint_seconds=0"] for name in ("whole", "run"))
    assert call(whole)[0] == 0
    path, sync = directory(given), os.fsync

    def refuse(descriptor: int) -> None:
        if file in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        code, said = call(given)
    assert code == 1
    assert last_line(said).startswith(
        f"failed: {path}/{file} could not be written (No space left on device): it needs "
    )
    assert status(path) == (None if file == "summary.json" else "failed")
    lines, problems = read_metrics(path / "metrics.jsonl")
    assert (len(lines), problems) == (2 if file == "summary.json" else 0, [])
    code, said = call(given)
    assert code == 0 and said.count("  epoch ") == (0 if file == "summary.json" else 2)
    assert outcome(path) == outcome(directory(whole))


def test_need_and_free_space_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(0, 0, 1234))
    error = OSError(errno.ENOSPC, "No space left on device")
    text = disk.refusal(tmp_path / "x", 45_600_000, error)
    assert text.startswith(
        f"{tmp_path}/x could not be written (No space left on device): it needs 46 MB, and 1.2 kB are"
    )
    assert [amount(size) for size in (0, 999, 1000, 12_345, 3 << 40)] == [
        "0 bytes",
        "999 bytes",
        "1.0 kB",
        "12 kB",
        "3.3 TB",
    ]


def test_a_checkpoint_that_cannot_be_written_leaves_both_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        checkpoint.save({"step": step}, tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(Unwritable):
            checkpoint.save({"step": 3}, tmp_path)
    assert [checkpoint.read(tmp_path / name)["step"] for name in ("last.pt", "previous.pt")] == [2, 1]
    assert sorted(os.listdir(tmp_path)) == ["last.pt", "previous.pt"]


def test_a_file_system_without_links_keeps_the_checkpoint_before_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    for step in (1, 2, 3):
        checkpoint.save({"step": step}, tmp_path)
        assert checkpoint.load(tmp_path) == {"step": step}
    assert checkpoint.read(tmp_path / "previous.pt") == {"step": 2}
    monkeypatch.setattr(os, "link", lambda *arguments: full())

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(Unwritable):
        checkpoint.save({"step": 4}, tmp_path)
    assert checkpoint.load(tmp_path) == {"step": 3}


def test_what_is_done_while_a_file_is_staged_comes_before_it_is_in_place(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")
    with staged(path, b"new"):
        assert path.read_text() == "old"
        (temporary,) = set(tmp_path.iterdir()) - {path}
        assert temporary.read_text() == "new"
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["file"]


def test_a_log_that_cannot_be_written_ends_no_run(
    tmp_path: Path, tiny: list[str], call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [*tiny, "model.hidden=[20,11]", f"runs={tmp_path}"]
    path = directory(given)
    path.mkdir(parents=True)
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    (path / "log.txt").symlink_to("/dev/full")
    breaking(monkeypatch, 5, RuntimeError("the card fell off"))
    with pytest.raises(RuntimeError, match="the card fell off"):
        call(given)  # whose traceback the log does not take
    assert status(path) == "failed"
    code, said = call(given)
    assert code == 0 and "Logging error" not in said


# Memory


def allocating() -> Exception:
    """The CPU allocator's own words."""
    try:
        torch.empty(1 << 55)
    except RuntimeError as error:
        return error
    raise AssertionError


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore"), allocating(), MemoryError()],
    ids=["cuda", "cpu", "python"],
)
def test_a_lack_of_memory_says_what_helps(
    tmp_path: Path, tiny: list[str], call: Call, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    given = [*tiny, f"runs={tmp_path}"]
    breaking(monkeypatch, 5, error)
    code, said = call(given)
    assert code == 1
    sentence = last_line(said)
    assert sentence.startswith("failed: out of memory (")
    for mend in ("schedule.accumulate=2", "schedule.batch_size", "trainer.devices=N", "trainer.eval_batch_size"):
        assert mend in sentence
    path = directory(given)
    assert status(path) == "failed"
    assert [line["epoch"] for line in read_metrics(path / "metrics.jsonl")[0]] == [1]
    assert call(given)[0] == 0


def test_errors_that_nobody_foresaw_keep_their_type_and_their_traceback(
    tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [*tiny, f"runs={tmp_path}"]
    breaking(monkeypatch, 2, RuntimeError("the card fell off"))
    with pytest.raises(RuntimeError):
        main(given)
    assert (RunDirectory(directory(given)).summary() or {})["reason"] == "RuntimeError: the card fell off"
    for error in (ValueError("memory"), OSError(errno.ENOSPC, "No space"), FileNotFoundError(2, "absent", "x")):
        assert foreseen(error) is None and reason(error).startswith(f"{type(error).__name__}: ")


def test_a_full_disk_that_was_not_caught_while_writing_is_told_from_its_file(tmp_path: Path) -> None:
    error = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "log.txt"))
    assert str(foreseen(error)).startswith(
        f"{tmp_path}/log.txt could not be written (No space left on device): it needs"
    )


def test_a_task_of_a_submission_says_the_same(tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    given = [*tiny, f"runs={tmp_path}"]
    breaking(monkeypatch, 5, torch.OutOfMemoryError("CUDA out of memory."))
    ended = attempt(Task(compose(given), tuple(given)))
    assert (ended.status, CODES[ended.status]) == ("failed", 1)
    assert ended.reason == (RunDirectory(directory(given)).summary() or {})["reason"]
    assert str(ended.reason).startswith("out of memory (CUDA out of memory.): ")


# Numbers


def test_a_nan_ends_the_run_as_diverged_and_a_kill_changes_nothing(
    tmp_path: Path, tiny: list[str], call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The NaN comes in the second of four epochs; the run is broken off between that and its summary."""
    whole = Trainer.step

    def poisoned(self: Trainer, *arguments: Any) -> None:
        whole(self, *arguments)
        if self.ctx.step == 5:
            next(iter(self.model.parameters())).data.fill_(float("nan"))

    monkeypatch.setattr(Trainer, "step", poisoned)
    given = [*tiny, "schedule.epochs=4"]
    straight, broken = ([*given, f"runs={tmp_path / name}"] for name in ("straight", "broken"))
    code, said = call(straight)
    assert code == 3
    assert "diverged:" in said and "(the training loss of epoch 2 is nan)" in said
    lines = [line for line in said.splitlines(keepends=True) if not line.startswith("  epoch")]
    assert call(straight) == (3, "".join(lines))  # a result: not repeated
    again = attempt(Task(compose(straight), tuple(straight)))  # nor is it by a submission
    assert (again.status, again.metric) == ("diverged", "test/accuracy 8.333")
    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "finish", lambda self, summary: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            main(broken)
    path = directory(broken)
    assert status(path) is None
    assert call(broken)[0] == 3
    assert outcome(path) == outcome(directory(straight))
    assert [line["epoch"] for line in read_metrics(path / "metrics.jsonl")[0]] == [1, 2]


# Readers


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    """Overrides of a run that reads 12 images from their files."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 4), ("val", 2)):
        for label in range(3):
            folder = tmp_path / "data" / "imagenet" / part / f"n0000000{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(256, size=(24, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.JPEG")
    sizes = ["num_classes=3", "train_size=12", "test_size=6", "side=16", "resize=20"]
    return ["dataset=imagenet", *(f"dataset.{size}" for size in sizes), f"data.root={tmp_path / 'data'}",
            "model.hidden=[8]", "schedule.batch_size=4", "schedule.epochs=2", f"runs={tmp_path / 'runs'}"]  # fmt: skip


@pytest.mark.parametrize("damage", ["half", "empty", "text", "gone"])
def test_a_damaged_image_is_named(tmp_path: Path, pictures: list[str], call: Call, damage: str) -> None:
    file = tmp_path / "data" / "imagenet" / "train" / "n00000001" / "2.JPEG"
    whole = file.read_bytes()
    code, said = call([*pictures, "schedule.epochs=1", "seed=1"])  # and so may be the file list's cache
    assert code in (0, 3)
    content = {"half": whole[: len(whole) // 2], "empty": b"", "text": b"no image at all" * 9}.get(damage)
    step = Trainer.step

    def later(self: Trainer, *arguments: Any) -> None:
        step(self, *arguments)
        if self.ctx.step == 2 and file.exists() and file.read_bytes() == whole:
            file.unlink() if content is None else file.write_bytes(content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", later)
        code, said = call(pictures)
    assert code == 1
    assert last_line(said).startswith(f"failed: {file} is not a whole image (")
    path = directory(pictures)
    assert status(path) == "failed" and str(file) in (RunDirectory(path).summary() or {})["reason"]
    assert [line["epoch"] for line in read_metrics(path / "metrics.jsonl")[0]] == [1]
    file.write_bytes(whole)
    assert call(pictures)[0] in (0, 3)
    assert [line["epoch"] for line in read_metrics(path / "metrics.jsonl")[0]] == [1, 2]


def test_readers_that_were_killed_end_the_run_instead_of_hanging_it(
    pictures: list[str], call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_files, "_PATIENCE_S", 0.05)
    step = Trainer.step

    class Fatal:
        """Work that a reader takes and dies of."""

        def run(self) -> None:
            raise SystemExit

    def killing(self: Trainer, *arguments: Any) -> None:
        if self.ctx.step == 2:
            data: Any = self.e.data
            readers = [thread for thread in threading.enumerate() if thread.name.startswith(data.name)]
            assert readers
            data.threads._max_workers = len(readers)  # no other is started in their place
            for _ in readers:
                data.threads._work_queue.put(Fatal())
            for reader in readers:
                reader.join()
            data.expected.clear()
        step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", killing)
        code, said = call(pictures)
    assert code == 1
    assert "failed: the threads that read images have died before " in last_line(said)
    assert status(directory(pictures)) == "failed"
    assert call(pictures)[0] in (0, 3)


def test_a_slow_reader_is_waited_for(pictures: list[str], call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "_PATIENCE_S", 0.001)
    load = image_files._load

    def slow(path: str, transform: Any) -> torch.Tensor:
        time.sleep(0.02)
        return load(path, transform)

    monkeypatch.setattr(image_files, "_load", slow)
    assert call(pictures)[0] in (0, 3)


def test_an_unreadable_sample_is_a_value_error() -> None:
    assert issubclass(Unreadable, ValueError) and foreseen(Unreadable("x is torn")) == "x is torn."


# Clocks


def test_a_clock_that_was_set_back_changes_no_result(
    tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that ended before it started, says its summary: durations come from clocks that nobody sets."""
    from results.collect import collect
    from runner import execute as execution
    from scripts import runs as command

    given = [*tiny, f"runs={tmp_path}"]
    years = itertools.count(2020, -1)
    monkeypatch.setattr(execution, "_now", lambda: f"{next(years)}-01-01T00:00:00+00:00")
    monkeypatch.setattr(time, "time", lambda: 0.0)
    summary = execute(compose(given), given)
    path = directory(given)
    assert summary["ended"] < summary["started"]
    assert 0 < summary["wall_s"] < 600 and summary["wall_s"] == sum(
        line["time/epoch_s"] for line in read_metrics(path / "metrics.jsonl")[0]
    )
    monkeypatch.undo()
    collection = collect([tmp_path])
    (record,) = collection.runs.values()
    assert record.status == "completed" and not collection.problems
    for arguments in (["list"], ["show", str(path)], ["check"]):
        assert command.main([*arguments, "--runs", str(tmp_path)]) in (0, 1)
    assert json.loads((path / "summary.json").read_text())["status"] == "completed"
