"""Stages whose parent has no weights for them: what tells so, and the record they leave. No torch here.

A blocked run never began. Its run directory says so (summary.json: status blocked, reason) until it is run after all.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from runner.environment import describe
from runner.errors import Misuse
from runner.identity import key, parent_config
from runner.records import RunDirectory
from runner.submission import Task

_FINISHED = ("completed", "diverged")


def has_weights(path: Path) -> bool:
    """Whether a stage can start from this run directory: completed, with a checkpoint. Misuse: unreadable summary."""
    completed = (RunDirectory(path).summary() or {}).get("status") == "completed"
    return completed and any((path / "checkpoints").glob("*.pt"))


def record(task: Task, reason: str) -> str | None:
    """Leave the trace of a blocked run, unless it has completed or diverged after all.

    A sentence when that is not possible: another process is running it, or the disk is full.
    """
    directory = RunDirectory(task.path)
    try:
        with directory.held():
            if (directory.summary() or {}).get("status") not in _FINISHED:
                _write(directory, task, reason)
    except (OSError, Misuse) as error:
        return f"that {task.name} is blocked could not be recorded ({error})"
    return None


def _write(directory: RunDirectory, task: Task, reason: str) -> None:
    config, parent = task.config, parent_config(task.config)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    directory.begin(config, list(task.overrides), describe("none", int(config["trainer"]["threads"]), config))
    directory.finish(
        {
            "key": key(config),
            "seed": config["seed"],
            "started": now,
            "parent": None if parent is None else {"key": key(parent), "seed": parent["seed"]},
            "status": "blocked",
            "reason": reason,
            "ended": now,
        }
    )


def clear(path: Path) -> None:
    """Remove the trace, since the run begins now: broken off, it would otherwise still count as blocked."""
    directory = RunDirectory(path)
    if _is_blocked(directory):
        with directory.held():
            if _is_blocked(directory):  # another process may have run it meanwhile
                directory.summary_path.unlink()


def _is_blocked(directory: RunDirectory) -> bool:
    return (directory.summary() or {}).get("status") == "blocked"
