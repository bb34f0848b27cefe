"""What is under way: the runs of submissions whose pool lives or which SLURM still lists. No torch here."""

from __future__ import annotations

import contextlib
import getpass
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.errors import Misuse
from runner.records import is_held
from runner.submission import FOLDER, TASKS, Task, facts, load


def queued(root: str | Path) -> set[tuple[str, int]]:
    """(key, seed) of all runs in submissions under way: those of living pools, and those that SLURM still lists."""
    return _queued(Path(root))[0]


def is_queued(task: Task) -> bool | None:
    """Whether a submission under way holds this run; None when squeue does not answer and no pool holds it."""
    found, answered = _queued(Path(task.config["runs"]))
    return True if task.identity in found else None if not answered else False


def _queued(root: Path) -> tuple[set[tuple[str, int]], bool]:
    """What `queued` returns, and whether squeue has answered if it had to be asked."""
    found: set[tuple[str, int]] = set()
    listing: set[tuple[str, int]] | None = None
    answered = True
    for folder in sorted((root / FOLDER).glob("*")):
        alive, jobs = is_held(folder), facts(folder).get("jobs") or []
        if jobs and not alive and listing is None:
            listing = listed()
            listing, answered = listing or set(), listing is not None
        waiting = [
            task
            for job in jobs
            for index, pack in _packs(job).items()
            if (str(job["id"]), index) in (listing or ())
            for task in pack
        ]
        if alive or waiting:
            with contextlib.suppress(Misuse):
                tasks = load(folder / TASKS)
                found |= {task.identity for task in (tasks if alive else [tasks[index] for index in waiting])}
    return found, answered


def _packs(job: Mapping[str, Any]) -> dict[int, list[int]]:
    """The tasks of each index of a job's array; submissions made before there were packs list one an index."""
    tasks = job["tasks"]
    if isinstance(tasks, list):
        return {task - job["offset"]: [task] for task in tasks}
    return {int(index): pack for index, pack in tasks.items()}


def listed() -> set[tuple[str, int]] | None:
    """(array job, task index) of this user's jobs that wait or run; None, and a sentence, when squeue does not answer.

    Empty where there is no SLURM.
    """
    if shutil.which("squeue") is None:
        return set()
    command = ["squeue", "--noheader", "--array", f"--user={getpass.getuser()}", "--format=%F %K"]
    try:
        listing = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        print(f"squeue does not answer ({error}); what waits in its queue is not known.", file=sys.stderr)
        return None
    return {(job, int(index)) for job, index in re.findall(r"^\s*(\d+) (\d+)\s*$", listing, re.MULTILINE)}
