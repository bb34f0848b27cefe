"""The execution of one task of a frozen submission, and how it ended. No torch until it begins.

`python -m runner.attempt TASKS_FILE INDEX` is what SLURM's array tasks do.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner import blocked
from runner.errors import Misuse
from runner.identity import Config, parent_config, run_dir
from runner.queue import is_queued
from runner.records import Held, RunDirectory, is_held
from runner.signals import STOP
from runner.submission import Task, children, facts, load, moved
from runner.world import join

POLL_S = 5.0  # seconds between looks at a run directory that another process holds
# How a task can end, and the exit code that says so.
CODES = {"completed": 0, "failed": 1, "blocked": 1, "refused": 2, "diverged": 3, "interrupted": 75, "held": 75}


@dataclass(frozen=True)
class Outcome:
    """How the execution of a task ended: a status of `CODES`, why, and the last epoch's metrics if there are any.

    refused: the configuration or the machine does not allow it (no data, say); blocked: its parent has no weights for
    it; held: another process is running it, or its parent.
    """

    status: str
    reason: str | None = None
    final: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def metric(self) -> str:
        """The test metric in words; loss only where there is nothing else."""
        names = [name for name in self.final if name.startswith("test/")]
        name = next((name for name in names if name != "test/loss"), "test/loss")
        return f"{name} {float(self.final[name]):.4g}" if name in self.final else ""


class Stop:
    """Remembers a request to stop (SIGTERM, SIGINT, SIGUSR1) that arrives while no training loop listens for it."""

    def __init__(self) -> None:
        self.asked = False
        for kind in STOP:
            signal.signal(kind, self._ask)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _ask(self, number: int, frame: object) -> None:
        self.asked = True


def attempt(
    task: Task,
    progress: Callable[[dict[str, Any]], None] | None = None,
    weights: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Execute a task (skipping what is complete, resuming what was interrupted). Nothing a run does wrong is raised.

    `weights`: stages start from it, so that it is repeated if it is complete but has no checkpoint any more. `stop`:
    asked after every step whether to save and stop. Of several ranks all call this, and all get the same outcome unless
    one of them is lost.
    """
    from runner.execute import ParentFailed, execute, reason
    from runner.trainer import Interrupted

    began, world = time.monotonic(), join()
    try:
        if holder := world.lead(lambda: _held(task.config)):
            return Outcome("held", holder)
        world.lead(lambda: blocked.clear(task.path))
        summary = execute(task.config, list(task.overrides), progress, weights, stop)
    except Interrupted:
        return Outcome("interrupted", "saved; it resumes when it is run again", seconds=time.monotonic() - began)
    except ParentFailed as error:
        return Outcome("blocked", str(error))
    except Held as error:  # another process has taken the directory since the look at it
        return Outcome("held", str(error))
    except Misuse as error:
        return Outcome("refused", str(error))
    except Exception as error:
        return Outcome("failed", reason(error, world), seconds=time.monotonic() - began)
    return Outcome(summary["status"], summary["reason"], summary["final"], time.monotonic() - began)


def _held(config: Config) -> str | None:
    """A sentence when another process runs this configuration or one it starts from."""
    stage: Config | None = config
    while stage is not None:
        if is_held(path := run_dir(stage["runs"], stage)):
            return f"another process is running {path}"
        stage = parent_config(stage)
    return None


def hindrance(folder: Path, tasks: Sequence[Task], index: int) -> Outcome | None:
    """What keeps a task of a SLURM submission from starting from its parents; None when nothing does.

    The arrays of stages begin when their parents' have ended, however that was. A parent is never run in its child's
    place: many children would fight for it, each in a job made for something else. held: somebody is running it, which
    is waited for; interrupted: SLURM will run it (again), so this task goes back into the queue, rather than wait for
    it on a node that it may need; blocked: nobody will, or it has diverged.
    """
    task = tasks[index]
    if not facts(folder).get("jobs"):  # executed by hand: a parent is run first, as for any run
        return None
    try:
        status = (RunDirectory(task.path).summary() or {}).get("status")
        if status == "completed" and (blocked.has_weights(task.path) or not children(tasks, index)):
            return None  # nothing is left to do, so the parent may have gone
        if status == "diverged":
            return None
        for parent in task.after:
            if not blocked.has_weights(tasks[parent].path):
                return _without_weights(tasks[parent])
    except Misuse as error:
        return Outcome("blocked", str(error))
    return None


_ENDS = {"failed": "has failed", "diverged": "has diverged", "blocked": "was blocked", "completed": "has no checkpoint"}


def _without_weights(parent: Task) -> Outcome:
    summary = RunDirectory(parent.path).summary() or {}
    status, why = summary.get("status"), summary.get("reason")
    if status != "diverged":
        if is_held(parent.path):
            return Outcome("held", f"another process is running {parent.path}")
        if (waiting := is_queued(parent)) is not False:
            known = "is queued" if waiting else "may be queued (squeue does not answer)"
            return Outcome("interrupted", f"its parent {parent.path} {known}; this run is queued again, too")
    end = _ENDS.get(str(status), "has not ended and is not queued any more: cancelled, or lost with its node")
    return Outcome("blocked", f"its parent {parent.path} {end}" + (f" ({why})" if why else ""))


def main(arguments: Sequence[str]) -> int:
    """Execute one task; its exit code: 0 done, 1 failed or blocked, 2 misuse, 3 diverged, 75 interrupted and saved.

    srun starts this once per rank, and reports the largest of their codes: rank 0's is the one that counts, the others
    return 0 unless they have failed.
    """
    try:
        if len(arguments) != 2 or not arguments[1].isdecimal():
            raise Misuse("python -m runner.attempt takes a tasks file and the number of a task in it.")
        file, index = Path(arguments[0]), int(arguments[1])
        tasks = load(file)
        if index >= len(tasks):
            raise Misuse(f"{file} has the tasks 0 to {len(tasks) - 1}, no task {index}.")
        stop, world = Stop(), join()
    except Misuse as misuse:
        print(f"regrow: {misuse}", file=sys.stderr)
        return CODES["refused"]
    task = tasks[index]
    say: Callable[[str], None] = _say if world.first else lambda line: None
    say(f"{task.name}: {task.path}" + (f" ({world.size} ranks)" if world.size > 1 else ""))
    if sentence := world.lead(lambda: moved(file.parent)):
        say(sentence)

    def asked() -> bool:
        return stop.asked

    def progress(line: dict[str, Any]) -> None:
        shown = ", ".join(f"{name} {value:.4g}" for name, value in line.items() if name.startswith(("train/", "test/")))
        say(f"  epoch {line['epoch']:>3}: {shown}, {line['time/epoch_s']:.2f} s")

    def turn() -> Outcome:
        if obstacle := world.lead(lambda: hindrance(file.parent, tasks, index)):
            return obstacle
        import runner.execute  # noqa: F401 (slow: a signal that arrives meanwhile is seen before the run begins)

        if world.lead(asked):
            return Outcome("interrupted")
        return attempt(task, progress, bool(children(tasks, index)), asked)

    outcome = turn()
    if outcome.status == "held":
        say(f"  {outcome.reason}; waiting for it")
    while outcome.status == "held" and not world.lead(asked):
        time.sleep(POLL_S)
        outcome = turn()
    if not world.first:
        return CODES["failed" if outcome.status == "failed" else "completed"]
    if outcome.status == "blocked" and (problem := blocked.record(task, outcome.reason or "")):
        say(f"  {problem}")
    say(f"  {outcome.status}" + (f": {outcome.reason}" if outcome.reason else "") + f" {outcome.metric}".rstrip())
    return CODES[outcome.status]


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    # When rank 0 has said 75, srun tells the others to end, and would report one that dies of that on its way out.
    for kind in STOP:
        signal.signal(kind, signal.SIG_IGN)
    sys.exit(code)
