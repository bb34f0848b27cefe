"""Frozen submissions: the tasks' configurations, fixed when submitted and never composed anew. No torch here.

<runs>/submissions/<time>-<digits>/ holds tasks.jsonl, submission.json (commit, command, SLURM's jobs) and a lock.
"""

from __future__ import annotations

import fcntl
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

from runner import untrusted
from runner.environment import git_state
from runner.errors import Misuse
from runner.identity import Config, key, run_dir
from runner.lock import sign
from runner.records import write_atomic, write_json

SCHEMA = 1
FOLDER, TASKS, FACTS, LOCK = "submissions", "tasks.jsonl", "submission.json", "lock"


@dataclass(frozen=True)
class Task:
    """One run of a submission. `after`: the indices of the tasks, earlier in the list, that must be completed first."""

    config: Config
    overrides: tuple[str, ...]
    after: tuple[int, ...] = ()

    @cached_property
    def identity(self) -> tuple[str, int]:
        """(key, seed)."""
        return key(self.config), self.config["seed"]

    @property
    def path(self) -> Path:
        """The run directory."""
        return run_dir(self.config["runs"], self.config)

    @property
    def name(self) -> str:
        """dataset/model/method key seed."""
        groups = "/".join(str(self.config[group]["name"]) for group in ("dataset", "model", "method"))
        return f"{groups} {self.identity[0]} seed{self.identity[1]}"


def children(tasks: Sequence[Task], index: int) -> list[int]:
    """The tasks that start from task `index`."""
    return [child for child, task in enumerate(tasks) if index in task.after]


def levels(tasks: Sequence[Task]) -> list[list[int]]:
    """Task indices by how many generations of parents come before them: one array each."""
    depth: list[int] = []
    for task in tasks:
        depth.append(1 + max((depth[index] for index in task.after), default=-1))
    return [[index for index, at in enumerate(depth) if at == level] for level in range(max(depth, default=-1) + 1)]


def new_folder(root: str | Path) -> Path:
    """Where a submission of now would lie: <root>/submissions/<time>-<four hexadecimal digits>. Nothing is made."""
    return Path(root, FOLDER, f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(2)}").absolute()


def freeze(folder: Path, tasks: Sequence[Task], facts: dict[str, Any]) -> Path:
    """Write tasks.jsonl (one JSON a line: key, seed, config, overrides, after) and submission.json; the tasks' file."""
    lines = [
        json.dumps(
            {
                "key": task.identity[0],
                "seed": task.identity[1],
                "after": task.after,
                "overrides": task.overrides,
                "config": task.config,
            }
        )
        for task in tasks
    ]
    if (size := sum(map(len, lines))) > untrusted.LARGEST:
        raise Misuse(
            f"{len(tasks):,} tasks make a file of {size:,} bytes, and {untrusted.LARGEST:,} are read; submit parts."
        )
    created = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(folder / FACTS, {"schema": SCHEMA, "created": created, "git": git_state(), "tasks": len(tasks), **facts})
    write_atomic(folder / TASKS, "".join(f"{line}\n" for line in lines))
    return folder / TASKS


def load(file: str | Path) -> list[Task]:
    """The tasks of a file that `freeze` wrote; Misuse names the line that is not whole or contradicts itself.

    What a task's configuration may name is checked where it is executed, as for any other configuration.
    """
    try:
        lines = untrusted.content(Path(file)).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Misuse(f"{file} cannot be read as a submission's tasks ({error}); submit again.") from None
    tasks: list[Task] = []
    for number, line in enumerate(lines):
        where = f"{file} line {number + 1}"
        try:
            entry = untrusted.parse_json(line)
            task = Task(entry["config"], tuple(map(str, entry["overrides"])), tuple(entry["after"]))
            stated, found = (entry["key"], entry["seed"]), task.identity
            parents_first = all(type(index) is int and 0 <= index < number for index in task.after)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Misuse(f"{where} is not a whole task ({type(error).__name__}: {error}); submit again.") from None
        if stated != found:
            raise Misuse(f"{where} is said to be run {stated} but its configuration is run {found}; submit again.")
        if not parents_first:
            raise Misuse(f"{where} comes after the tasks {list(task.after)}, which are not earlier ones; submit again.")
        tasks.append(task)
    if not tasks:
        raise Misuse(f"{file} holds no tasks; submit again.")
    return tasks


def facts(folder: Path) -> dict[str, Any]:
    """The content of submission.json; {} when it is not there or not readable."""
    try:
        content = untrusted.parse_json(untrusted.content(folder / FACTS).decode())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def moved(folder: Path) -> str | None:
    """A sentence when the code is at another commit than when the submission was frozen."""
    then, now = (facts(folder).get("git") or {}).get("commit"), git_state()["commit"]
    if then is None or now is None or then == now:
        return None
    return f"The code has moved from commit {then[:12]} to {now[:12]} since this was submitted; the new code runs."


def hold(folder: Path) -> TextIO:
    """Mark a submission as under way while the returned file is open here or in a process that inherited it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = open(folder / LOCK, "a+")  # noqa: SIM115 (whoever runs the tasks keeps it open)
    fcntl.flock(lock, fcntl.LOCK_EX)  # others look at it for a moment only
    sign(folder, lock.fileno())
    return lock
