"""Runs that kill themselves with SIGKILL at a chosen place, and what is left of a run when it is over."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from methods.masks import Masks, digest
from runner import checkpoint
from runner.execute import execute
from runner.records import RunDirectory, read_metrics, spell
from runner.repeat import RESULT, timeless
from runner.trainer import Trainer

Outcome = tuple[list[dict[str, Any]], str, dict[str, Any]]


def flat(value: Any, name: str = "") -> dict[str, torch.Tensor]:
    """Everything in nested dictionaries and lists as tensors, by the path to it."""
    if isinstance(value, torch.Tensor):
        return {name: value}
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        return {path: item for key, part in value.items() for path, item in flat(part, f"{name}/{key}").items()}
    return {name: torch.tensor(list(repr(value).encode()))}


def outcome(path: Path) -> Outcome:
    """A finished run: its metrics, a digest of its last checkpoint, what its summary tells. Clocks left out.

    The checkpoint has weights, masks, the optimizer's, the method's, the task's and the recorders' state, every
    generator's, the sums and the position.
    """
    lines, problems = read_metrics(path / "metrics.jsonl")
    assert not problems
    state = checkpoint.read(path / "checkpoints" / checkpoint.LAST)
    summary = RunDirectory(path).summary() or {}
    told = {part: timeless(summary.get(part)) for part in (*RESULT, "key", "seed")}
    # Clocks stand in the lines of weights that are kept.
    numbers = {name: part for name, part in flat(state).items() if "/time/" not in name}
    return spell([timeless(line) for line in lines]), digest(numbers), spell(told)  # a nan equals a nan


def die(*ignored: Any) -> None:
    """End this process as the kernel ends one: nothing is cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)


def _around(visit: Callable[[], None], owner: Any, name: str, before: bool, only: str = "") -> None:
    """Call `visit` before or after each call of a function, if `only` is in one of its arguments."""
    whole = getattr(owner, name)

    def wrapped(*arguments: Any, **options: Any) -> Any:
        counts = only in " ".join(map(_spelt, arguments))
        if before and counts:
            visit()
        found = whole(*arguments, **options)
        if counts and not before:
            visit()
        return found

    setattr(owner, name, wrapped)


def _spelt(argument: Any) -> str:
    """A path as it is, an open file as the path that it was opened by."""
    if isinstance(argument, str | Path):
        return str(argument)
    file = Path(f"/proc/self/fd/{argument}")
    return str(file.readlink()) if type(argument) is int and file.is_symlink() else ""


#: Where a run can die: what is called there, before or after the call, and what its arguments must name.
PLACES: dict[str, tuple[Any, str, bool, str]] = {
    "before a step": (Trainer, "step", True, ""),
    "after a step": (Trainer, "step", False, ""),
    "within a mask update": (Masks, "set", False, ""),
    "before the checkpoint is on the disk": (os, "fsync", True, "/.last.pt."),
    "after the checkpoint is on the disk": (os, "fsync", False, "/.last.pt."),
    "after the last checkpoint is linked": (os, "link", False, "/last.pt"),
    "after the one before is in place": (os, "replace", False, "/previous.pt"),
    "before the last one is in place": (os, "replace", True, "/last.pt"),
    "after the last one is in place": (os, "replace", False, "/last.pt"),
    "before a line of metrics": (RunDirectory, "append_metrics", True, ""),
    "within a line of metrics": (os, "fsync", True, "/metrics.jsonl"),
    "after a line of metrics": (RunDirectory, "append_metrics", False, ""),
    "while metrics are cut": (os, "replace", True, "/metrics.jsonl"),
    "after metrics are cut": (os, "replace", False, "/metrics.jsonl"),
    "before the configuration is there": (os, "replace", True, "/config.yaml"),
    "after the environment is there": (os, "replace", False, "/environment.json"),
    "while the lock is signed": (os, "ftruncate", True, "/lock"),
    "before the summary is there": (os, "replace", True, "/summary.json"),
    "after the summary is there": (os, "replace", False, "/summary.json"),
}


def die_in(place: str, at: int) -> None:
    """Arrange that this process kills itself at the `at`-th visit of a place."""
    visits = 0

    def visit() -> None:
        nonlocal visits
        visits += 1
        if visits == at:
            die()

    owner, name, before, only = PLACES[place]
    _around(visit, owner, name, before, only)


def forked(act: Callable[[], Any]) -> int:
    """Do something in a forked process, whose number is returned; it exits with 0, or with 1 and a traceback."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            act()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def end_of(child: int) -> int:
    """Wait for a forked process; its exit status: -9 if it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run_and_die(config: dict[str, Any], place: str, at: int) -> int:
    """Execute in a forked process that SIGKILLs itself; its exit status: -9, or 0 if the run ended before."""

    def act() -> None:
        die_in(place, at)
        execute(config, [])

    return end_of(forked(act))
