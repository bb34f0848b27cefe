"""What a plan still lacks: how each of its runs stands, and the tasks that make the rest, parents before children."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from results.plan import PlannedRun
from results.record import Unusable, read_packed
from runner import blocked
from runner.errors import Misuse
from runner.identity import Config, key, parent_config, run_dir
from runner.records import RunDirectory, is_held
from runner.submission import Task

#: How a planned run can stand. Those of the first two lines are left alone; the others are to do. blocked: its parent
#: has diverged, or a record that is not readable is in the way; one that was blocked before is missing, and tried anew.
DONE = ("complete", "diverged")
LEFT = ("running", "queued", "blocked")
TO_DO = ("missing", "interrupted", "failed")

# A summary's status -> how the run stands; any other is to do again.
_FINISHED = {"completed": "complete", "diverged": "diverged"}

Identity = tuple[str, int]


class Blocked(Exception):
    """A run cannot be made: its parent has no weights; the text says why."""


@dataclass
class Missing:
    """What planned `runs` lack: `tasks` to submit, `standings` of all runs, `sentences` the user must know.

    `queued`: the (key, seed) of submissions under way; `logged`: the folder of packed records, which need no run.
    """

    runs: Sequence[PlannedRun]
    queued: set[Identity]
    logged: Path | None
    tasks: list[Task] = field(default_factory=list)
    standings: dict[Identity, str] = field(default_factory=dict)
    sentences: list[str] = field(default_factory=list)
    _planned: dict[Identity, PlannedRun] = field(default_factory=dict)
    _at: dict[Identity, int] = field(default_factory=dict)
    _keys: dict[str, str] = field(default_factory=dict)  # child's key -> its parent's
    _folders: dict[tuple[str, str], Path] = field(default_factory=dict)  # (root, key) -> where the seeds lie

    def __post_init__(self) -> None:
        self._planned = {(run.key, run.seed): run for run in self.runs}
        for identity, run in self._planned.items():
            standing = self._standing(run.config, identity)
            if standing in TO_DO:
                try:
                    self._task(run.config, identity, run.overrides)
                except Blocked as obstacle:
                    standing = "blocked"
                    self._note(f"{self._path(run.config, identity)} is blocked: {obstacle}.")
            self.standings[identity] = standing

    def cells(self, identity: Identity) -> tuple[str, ...]:
        """The cells that read a run; none of a parent that only its children need."""
        return self._planned[identity].cells if identity in self._planned else ()

    @property
    def count(self) -> Counter[str]:
        """How many planned runs stand how."""
        return Counter(self.standings.values())

    def _task(self, config: Config, identity: Identity, overrides: Sequence[str]) -> int:
        """The index of the run's task, made if need be, after its parents'. Blocked when a parent has no weights."""
        if identity not in self._at:
            after = self._parent(config, identity)
            self.tasks.append(Task(config, tuple(overrides), after))
            self._at[identity] = len(self.tasks) - 1
        return self._at[identity]

    def _parent(self, config: Config, child: Identity) -> tuple[int, ...]:
        parent = parent_config(config)
        if parent is None:
            return ()
        if child[0] not in self._keys:
            self._keys[child[0]] = key(parent)
        identity = self._keys[child[0]], parent["seed"]
        path = self._path(parent, identity)
        standing = self._standing(parent, identity)
        if standing in ("diverged", "blocked"):
            raise Blocked(f"its parent {path} " + ("has diverged" if standing == "diverged" else "is not readable"))
        if standing == "complete" and blocked.has_weights(path):
            return ()
        # Also one that another process is running, or one that is complete without a checkpoint: weights are needed.
        if own := self._planned.get(identity):  # it may have to record more than its child knows of
            return (self._task(own.config, identity, own.overrides),)
        return (self._task(parent, identity, config["start"].get("overrides", ())),)

    def _standing(self, config: Config, identity: Identity) -> str:
        path = self._path(config, identity)
        try:
            summary = RunDirectory(path).summary() or {}
        except (Misuse, OSError) as error:
            self._note(str(error))
            return "blocked"
        status = summary.get("status")
        if status in _FINISHED:
            return _FINISHED[status]
        if is_held(path):
            return "running"
        if identity in self.queued:
            return "queued"
        if logged := self._logged(config, identity):
            return logged
        if status == "blocked":
            return "missing"
        return "failed" if summary else "interrupted" if (path / "checkpoints").is_dir() else "missing"

    def _logged(self, config: Config, identity: Identity) -> str | None:
        """How the run's packed record ended, if there is one."""
        if self.logged is None:
            return None
        path = self._path({**config, "runs": str(self.logged)}, identity).with_suffix(".json")
        if not path.exists():
            return None
        try:
            status = read_packed(path)[0].status
        except Unusable as error:
            self._note(f"{path}: {error}.")
            return None
        return _FINISHED.get(status)

    def _path(self, config: Config, identity: Identity) -> Path:
        """`run_dir`, which would hash the configuration once more for every seed."""
        place = str(config["runs"]), identity[0]
        if place not in self._folders:
            self._folders[place] = run_dir(place[0], config).parent
        return self._folders[place] / f"seed{identity[1]}"

    def _note(self, sentence: str) -> None:
        if sentence not in self.sentences:
            self.sentences.append(sentence)
