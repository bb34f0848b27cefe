"""The worker pool: order, death, signals, a held directory; and how it tells of its progress."""

import io
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from runner import local, pool, submission
from runner.attempt import Outcome, Stop
from runner.cluster import Local
from runner.compose import compose
from runner.errors import Misuse
from runner.local import capacity, conclusion, execute_all
from runner.pool import Pool
from runner.progress import Live, Progress, duration
from runner.records import RunDirectory
from runner.submission import Task


def play(connection: Connection, log: str) -> None:
    """A worker without torch: each attempt at a task plays the next act of its script."""
    stop = Stop()
    connection.send(("ready",))
    while True:
        try:
            index, task, _ = connection.recv()
        except EOFError:
            return
        runs = Path(task.config["runs"])
        attempts = runs / f"attempts{index}"
        with open(attempts, "a") as file:
            file.write("x")
        script = task.config["method"]["script"]
        act = script[min(attempts.stat().st_size, len(script)) - 1]
        with open(runs / "order", "a") as file:
            file.write(f"{index} {act}\n")
        if act == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if act == "fail":
            connection.send(("done", index, Outcome("failed", "unforeseen")))
            return
        if act in ("save", "cling"):
            connection.send(("epoch", index, 1, 0.0))
            while act == "cling" or not stop.asked:
                time.sleep(0.01)
            connection.send(("done", index, Outcome("interrupted")))
            return
        reason = " ".join(os.environ.get(name, "-") for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"))
        connection.send(("done", index, Outcome(act, reason)))


@pytest.fixture
def cast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[Task]]]:
    """(script, parents) pairs -> tasks for workers that `play`; at the end no process is left."""
    monkeypatch.setattr(pool, "work", play)
    monkeypatch.setattr(pool, "_NUDGE_S", 0.05)
    monkeypatch.setattr(pool, "_POLL_S", 0.05)

    def tasks(*parts: tuple[Sequence[str], Sequence[int]], threads: int = 1) -> list[Task]:
        made = []
        for seed, (script, after) in enumerate(parts):
            config: dict[str, Any] = {name: {"name": name} for name in ("model", "dataset")}
            config |= {"method": {"name": "played", "script": list(script)}, "schedule": {"epochs": 2}}
            config |= {
                "seed": seed,
                "runs": str(tmp_path),
                "trainer": {"threads": threads, "device": "auto", "devices": 1},
            }
            made.append(Task(config, (f"seed={seed}",), tuple(after)))
        return made

    yield tasks
    assert multiprocessing.active_children() == []


class Loud(Progress):
    """Keeps what is said; `hook` is called with every line and every epoch."""

    def __init__(self, tasks: Sequence[Task], hook: Callable[[str], None] = lambda line: None) -> None:
        self.text = io.StringIO()
        super().__init__([2] * len(tasks), self.text)
        self.hook = hook

    def say(self, line: str) -> None:
        super().say(line)
        self.hook(line)

    def epoch(self, index: int, epoch: int, seconds: float) -> None:
        super().epoch(index, epoch, seconds)
        self.hook("epoch")


def run(tasks: Sequence[Task], tmp_path: Path, size: int = 1, **options: Any) -> tuple[list[str], str]:
    """The statuses in the tasks' order, and what was said."""
    progress = Loud(tasks)
    outcomes = Pool(tasks, size, progress, tmp_path / "log", **options).run()
    return [outcomes[index].status for index in range(len(tasks))], progress.text.getvalue()


def test_children_wait_for_their_parents_and_are_blocked_by_those_without_weights(
    cast: Callable[..., list[Task]], tmp_path: Path
) -> None:
    tasks = cast(
        (["completed"], []),
        (["diverged"], []),
        (["completed"], [1]),
        (["completed"], [2]),
        (["completed"], [0]),
        (["completed"], [4]),
    )
    statuses, said = run(tasks, tmp_path, size=2)
    assert statuses == ["completed", "diverged", "blocked", "blocked", "completed", "completed"]
    order = [int(line.split()[0]) for line in (tmp_path / "order").read_text().splitlines()]
    assert sorted(order) == [0, 1, 4, 5]
    assert order.index(0) < order.index(4) < order.index(5)
    assert f"{tasks[2].name}  blocked (its parent {tasks[1].name} has diverged)" in said
    assert f"{tasks[3].name}  blocked (its parent {tasks[2].name} has been blocked)" in said
    traces = [RunDirectory(task.path).summary() or {} for task in tasks]
    assert [trace.get("status") for trace in traces] == [None, None, "blocked", "blocked", None, None]
    assert traces[3]["reason"] == f"its parent {tasks[2].name} has been blocked"


def test_a_task_whose_worker_dies_is_begun_once_more(cast: Callable[..., list[Task]], tmp_path: Path) -> None:
    tasks = cast((["die", "completed"], []), (["die", "die", "completed"], []), (["completed"], [1]))
    statuses, said = run(tasks, tmp_path)
    assert statuses == ["completed", "failed", "blocked"]
    assert f"{tasks[0].name} was interrupted: its worker died of SIGKILL; a new worker resumes it." in said
    order = (tmp_path / "order").read_text().splitlines()
    assert order == ["0 die", "0 completed", "1 die", "1 die"]


def test_a_held_parent_is_waited_for_and_other_held_runs_are_left_alone(
    cast: Callable[..., list[Task]], tmp_path: Path
) -> None:
    tasks = cast((["held"], []), (["held", "held", "held", "completed"], []), (["completed"], [1]))
    statuses, said = run(tasks, tmp_path)
    assert statuses == ["held", "completed", "completed"]
    assert said.count("its children wait for that") == 1


def test_a_signal_saves_and_stops(cast: Callable[..., list[Task]], tmp_path: Path) -> None:
    tasks = cast((["completed"], []), (["save"], []), (["completed"], []))
    progress = Loud(tasks, lambda line: os.kill(os.getpid(), signal.SIGTERM) if line == "epoch" else None)
    played = Pool(tasks, 1, progress, tmp_path / "log")
    before = signal.getsignal(signal.SIGTERM)
    assert {index: outcome.status for index, outcome in played.run().items()} == {0: "completed"}
    assert played.interrupted
    assert signal.getsignal(signal.SIGTERM) is before
    assert conclusion(tasks, played.outcomes, 1.0)[0] == "3 run(s) in 1.0 s: 1 completed, 2 to do."


def test_a_second_signal_kills(cast: Callable[..., list[Task]], tmp_path: Path) -> None:
    tasks = cast((["cling"], []))

    def hook(line: str) -> None:
        if line == "epoch" or line.startswith("Stopping"):
            os.kill(os.getpid(), signal.SIGINT)

    played = Pool(tasks, 1, Loud(tasks, hook), tmp_path / "log")
    assert played.run() == {}
    assert played.interrupted


def test_workers_that_die_at_their_start_end_it_with_one_sentence(tmp_path: Path) -> None:
    config = compose(["runs=" + str(tmp_path)])
    doomed = Pool([Task(config, ())], 1, Loud([Task(config, ())]), tmp_path / "no such folder" / "log")
    with pytest.raises(Misuse, match=r"ended with exit code 1 while starting; see .*no such folder"):
        doomed.run()


def test_workers_get_their_threads_and_devices(cast: Callable[..., list[Task]], tmp_path: Path) -> None:
    tasks = cast(*[(["completed"], [])] * 6, threads=3)
    outside = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")}
    played = Pool(tasks, 2, Loud(tasks), tmp_path / "log", devices=["4", "7"])
    assert {outcome.reason for outcome in played.run().values()} <= {"3 4", "3 7"}
    assert {name: os.environ.get(name) for name in outside} == outside


def test_capacity(cast: Callable[..., list[Task]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(local, "_devices", lambda: ["0", "1"])
    tasks = cast(*[(["completed"], [])] * 20)
    assert capacity(tasks, Local()) == (2, ["0", "1"])
    assert capacity(tasks, Local(workers=5)) == (5, ["0", "1"])
    monkeypatch.setattr(local, "_devices", list)
    assert capacity(tasks, Local()) == (8, [])
    assert capacity(tasks[:3], Local()) == (3, [])
    assert capacity(cast(*[(["completed"], [])] * 20, threads=3), Local()) == (2, [])
    assert capacity(cast(*[(["completed"], [])] * 20, threads=99), Local()) == (1, [])


def test_a_worker_whose_runs_have_several_ranks_gets_as_many_devices(
    cast: Callable[..., list[Task]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(local, "_devices", lambda: ["0", "1", "2", "5", "7"])
    tasks = cast(*[(["completed"], [])] * 20)
    for task in tasks:
        task.config["trainer"]["devices"] = 2
    assert capacity(tasks, Local()) == (2, ["0,1", "2,5"])  # the fifth is not enough for one
    monkeypatch.setattr(local, "_devices", lambda: ["0"])
    assert capacity(tasks, Local()) == (1, ["0"])  # where the run itself says what is wrong
    monkeypatch.setattr(local, "_devices", list)
    assert capacity(tasks, Local()) == (4, [])


@pytest.mark.parametrize(("visible", "count", "names"), [("", 2, ["0", "1"]), ("3,5", 2, ["3", "5"]), ("", 0, [])])
def test_devices_are_those_that_are_visible(
    visible: str, count: int, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    assert local._devices() == names


@pytest.mark.parametrize(
    ("scripts", "code"),
    [(["completed", "diverged", "held"], 0), (["completed", "refused"], 1), (["fail", "completed"], 1), (["save"], 75)],
)
def test_exit_codes_and_last_words(
    scripts: list[str],
    code: int,
    cast: Callable[..., list[Task]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tasks = cast(*[([script], []) for script in scripts])
    file = submission.freeze(tmp_path / "submission", tasks, {})

    def epoch(self: Progress, *content: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Progress, "epoch", epoch)
    assert execute_all(file, 1) == code
    said = capsys.readouterr().out
    assert f"{len(tasks)} run(s) in " in said
    for task, script in zip(tasks, scripts, strict=True):
        status = {"fail": "failed"}.get(script, script)
        assert (f"\n{status}: {task.name}: " in said) == (script not in ("completed", "save"))
    assert ("The same command goes on from there." in said) == (code == 75)


# With real workers


def test_a_killed_run_ends_as_if_it_had_not_been_killed(tiny: list[str], tmp_path: Path) -> None:
    """One worker dies in its run, one retires after an unforeseen error; the third does the rest."""
    from runner.execute import execute

    overrides = [*tiny, "schedule.epochs=40", "trainer.checkpoint_seconds=0"]
    reference = execute(compose([*overrides, f"runs={tmp_path}/reference"]), [])
    task = Task(compose([*overrides, f"runs={tmp_path}/runs"]), tuple(overrides))
    broken = Task({**task.config, "seed": 1}, tuple(overrides))
    broken.path.mkdir(parents=True)
    (broken.path / "config.yaml").mkdir()  # in the way
    absent = Task(compose(["dataset=mnist", f"data.root={tmp_path}/nowhere", f"runs={tmp_path}/runs"]), ())
    held = Task({**task.config, "seed": 2}, tuple(overrides))
    tasks = [broken, task, absent, held]
    progress = Killing(tasks, victim=1)
    with RunDirectory(held.path).held():
        outcomes = Pool(tasks, 1, progress, tmp_path / "log").run()
    assert [outcomes[index].status for index in range(4)] == ["failed", "completed", "refused", "held"]
    assert f"{task.name} was interrupted: its worker died of SIGKILL" in progress.text.getvalue()
    assert f"{tmp_path}/nowhere" in str(outcomes[2].reason)
    assert "config.yaml" in str(outcomes[0].reason)
    lines = [json.loads(line) for line in (task.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, 41))
    for name, value in reference["final"].items():
        assert name.startswith("time/") or outcomes[1].final[name] == value
    assert "(log: " in "".join(conclusion(tasks, outcomes, 1.0))


class Killing(Loud):
    """Kills the worker at its second epoch of task `victim`."""

    def __init__(self, tasks: Sequence[Task], victim: int) -> None:
        super().__init__(tasks)
        self.victim = victim
        self.killed: int | None = None

    def epoch(self, index: int, epoch: int, seconds: float) -> None:
        super().epoch(index, epoch, seconds)
        if index == self.victim and epoch == 2 and self.killed is None:
            (worker,) = multiprocessing.active_children()
            assert worker.pid is not None
            self.killed = worker.pid
            os.kill(worker.pid, signal.SIGKILL)


# Progress


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_plain_progress_tells_every_run_and_every_tenth() -> None:
    clock, stream = Clock(), io.StringIO()
    with Progress([10, 10], stream, clock) as progress:
        for epoch in range(1, 11):
            clock.now += 2
            progress.epoch(0, epoch, 2.0)
        progress.settle(0, "a completed")
        progress.settle(1, "b blocked")
    assert stream.getvalue().splitlines() == [
        "10%: 0/2 runs, 2/20 epochs, 36 s left",
        "20%: 0/2 runs, 4/20 epochs, 32 s left",
        "30%: 0/2 runs, 6/20 epochs, 28 s left",
        "40%: 0/2 runs, 8/20 epochs, 24 s left",
        "50%: 0/2 runs, 10/20 epochs, 20 s left",
        "[1/2] a completed",
        "[2/2] b blocked",
    ]


def test_epochs_of_before_do_not_count_as_speed() -> None:
    clock = Clock()
    progress = Progress([100], io.StringIO(), clock)
    assert progress.left() is None
    clock.now += 3
    progress.epoch(0, 91, 3.0)  # resumed after epoch 90
    assert progress.left() == pytest.approx(27)
    assert progress.share == pytest.approx(0.91)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "150")
    stream = Terminal()
    with Progress([4, 4], stream) as progress:
        progress.epoch(0, 1, 0.1)
        progress.settle(0, "[bold]one[/bold] completed")
    text = stream.getvalue()
    assert "[1/2] [bold]one[/bold] completed" in text  # no markup
    assert "50%" in text and "1/2 runs, 4/8 epochs" in text


def test_a_run_on_a_terminal_is_one_line_that_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest numbers, the epoch and the time left by the speed of the steps that were taken here."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "150")
    stream, clock = Terminal(), Clock()
    with Live(lambda line: f"test/accuracy {line['accuracy']} [red]", stream, clock) as live:
        for done in range(101, 116):  # resumed after ten epochs of ten steps
            live.step(done, 10, 200)
            clock.now += 2
            if done == 110:
                live({"epoch": 11, "accuracy": 12.5, "time/epoch_s": 20.0})
            if done == 102:
                live.bar and live.bar.refresh()
    text = stream.getvalue()
    assert "epoch 11/20  3 min 16 s left" in text  # 98 steps of 2 s
    assert "epoch 12/20  2 min 50 s left  test/accuracy 12.5 [red]" in text  # no markup
    assert text.count("\n") <= 2  # and then it is gone
    parent, child = io.StringIO(), Live(str, Terminal(), clock)
    child.step(50, 10, 100)
    child.step(1, 5, 20)  # a stage after its parent
    assert child.bar is not None and child.bar.tasks[0].description == "epoch 1/4"
    assert child.bar.tasks[0].completed == 1 and child.bar.tasks[0].total == 20
    with Live(lambda line: "loss 1", parent, clock) as plain:
        plain.step(1, 1, 2)
        plain({"epoch": 1, "time/epoch_s": 0.5})
    assert parent.getvalue() == "  epoch   1  loss 1  0.50 s\n"


def test_a_stream_that_has_gone_stops_nothing() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", buffering=1) as stream:
        progress = Progress([1, 1], stream)
        progress.settle(0, "a")
        progress.settle(1, "b")
        assert progress.stream is None
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7800, "2 h 10 min"),
        (6e5, "6 d 22 h"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
