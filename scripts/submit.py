"""Submit what is missing of the addressed cells: `python scripts/submit.py demo/digits`. No torch for dry runs."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

from results.address import select
from results.collect import LOGGED, write_atomically
from results.command import Arguments, checked_profile, say
from results.plan import PlannedRun, composed, plan
from results.record import Unusable, read_packed
from results.table import Slot
from runner.compose import compose, names, parse
from runner.errors import Misuse
from runner.identity import Config, key, parent_config, run_dir
from runner.records import RunDirectory, is_held
from runner.submission import (
    SCRIPT,
    TASKS,
    Local,
    Slurm,
    Task,
    array_command,
    array_script,
    cluster,
    freeze,
    hold,
    levels,
    new_folder,
    queued,
    submit_arrays,
)

#: How a planned run can stand. Those of the first two lines are left alone; the others are to do.
DONE = ("complete", "diverged")
LEFT = ("running", "queued", "blocked")
TO_DO = ("missing", "interrupted", "failed")


class Blocked(Exception):
    """A run cannot be made: its parent has no weights; the text says why."""


# A summary's status -> how the run stands; any other is to do again.
_FINISHED = {"completed": "complete", "diverged": "diverged"}
#: Sections whose overrides every run shares; others may name options that only some methods have.
MACHINE = ("cluster", "runs")


@dataclass
class Missing:
    """The tasks to submit, parents before their children, and how every planned run stands.

    `queued`: the (key, seed) of submissions under way; `logged`: the folder of packed records.
    """

    queued: set[tuple[str, int]]
    logged: Path
    tasks: list[Task] = field(default_factory=list)
    standings: Counter[str] = field(default_factory=Counter)
    sentences: list[str] = field(default_factory=list)
    _at: dict[tuple[str, int], int] = field(default_factory=dict)

    def add(self, run: PlannedRun) -> None:
        """Take a planned run in, with the parents that it lacks, if it is to do."""
        config = compose(run.overrides)
        standing = self._standing(config)
        if standing in TO_DO:
            try:
                self._task(config, run.overrides)
            except Blocked as obstacle:
                standing = "blocked"
                self._note(f"{run_dir(config['runs'], config)} is blocked: {obstacle}.")
        self.standings[standing] += 1

    def _task(self, config: Config, overrides: Sequence[str]) -> int:
        """The index of the run's task, made if need be, after its parents'. Blocked when a parent has no weights."""
        identity = key(config), config["seed"]
        if identity not in self._at:
            after = self._parent(config)
            self.tasks.append(Task(config, tuple(overrides), after))
            self._at[identity] = len(self.tasks) - 1
        return self._at[identity]

    def _parent(self, config: Config) -> tuple[int, ...]:
        parent = parent_config(config)
        if parent is None:
            return ()
        path = run_dir(parent["runs"], parent)
        standing = self._standing(parent)
        if standing in ("diverged", "blocked"):
            raise Blocked(f"its parent {path} " + ("has diverged" if standing == "diverged" else "is not readable"))
        here = (RunDirectory(path).summary() or {}).get("status") == "completed"
        if standing == "complete" and here and any((path / "checkpoints").glob("*.pt")):
            return ()
        # Also one that another process is running, or one that is complete without a checkpoint: weights are needed.
        return (self._task(parent, config["start"].get("overrides", ())),)

    def _standing(self, config: Config) -> str:
        path = run_dir(config["runs"], config)
        identity = key(config), config["seed"]
        try:
            summary = RunDirectory(path).summary() or {}
        except (Misuse, OSError) as error:
            self._note(str(error))
            return "blocked"
        if summary.get("status") in _FINISHED:
            return _FINISHED[summary["status"]]
        if is_held(path):
            return "running"
        if identity in self.queued:
            return "queued"
        if logged := self._logged(config):
            return logged
        return "failed" if summary else "interrupted" if (path / "checkpoints").is_dir() else "missing"

    def _logged(self, config: Config) -> str | None:
        """How the run's packed record ended, if there is one."""
        folder = run_dir(self.logged, config)
        path = folder.with_name(f"{folder.name}.json")
        if not path.exists():
            return None
        try:
            status = read_packed(path)[0].status
        except Unusable as error:
            self._note(f"{path}: {error}.")
            return None
        return _FINISHED.get(status)

    def _note(self, sentence: str) -> None:
        if sentence not in self.sentences:
            self.sentences.append(sentence)


def main(arguments: Sequence[str] | None = None) -> int:
    """Plan, say what will be done, and do it. Returns 0, 2 for a mistake; with --wait what the runs come to (1, 75)."""
    try:
        return _submit(_parser().parse_intermixed_args(arguments))
    except Misuse as misuse:
        say([str(misuse)])
        return 2


def _parser() -> Arguments:
    parser = Arguments(
        "submit.py",
        description="Submit the runs that the addressed cells still lack, parents of stages first. The same command "
        "later submits what is missing then; interrupted runs resume.",
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="ADDRESS | KEY=VALUE",
        help="PAPER, PAPER/TABLE, .../ROW or .../COLUMN; and overrides of every run, such as trainer.device=cpu, "
        "cluster.workers=4, cluster.time=01:00:00",
    )
    parser.add_argument("--profile", metavar="P", help="the cells at reduced cost: " + ", ".join(names("profile")))
    parser.add_argument("--seeds", metavar="0,1,2", help="these seeds instead of the table's")
    parser.add_argument("--cluster", metavar="C", help="where: " + ", ".join(names("cluster")) + " (default: local)")
    parser.add_argument("--dry-run", action="store_true", help="print the runs (and SLURM's script); write nothing")
    parser.add_argument("--limit", metavar="N", help="at most N runs, parents included")
    parser.add_argument("--runs", metavar="DIR", help="the runs root (default: runs, or REGROW_RUNS)")
    parser.add_argument("--wait", action="store_true", help="local: stay, show the progress, return how it ended")
    return parser


def _submit(options: Any) -> int:
    addresses = [word for word in options.words if "=" not in word]
    if not addresses:
        raise Misuse("say what to submit: an address such as demo/digits or demo/digits/set/s90.")
    limit, seeds = _limit(options.limit), _seeds(options.seeds)
    overrides = _overrides(options)
    site = compose(
        [given.input_line or "" for given in parse(overrides) if given.key_or_group.split(".")[0] in MACHINE]
    )
    place = cluster(site["cluster"])
    root = Path(site["runs"])
    if root.exists() and not root.is_dir():
        raise Misuse(f"{root} is a file; the runs root is a folder.")
    if options.wait and isinstance(place, Slurm):
        raise Misuse("--wait is for local runs; leave it out, and follow SLURM's queue with squeue.")
    if isinstance(place, Slurm) and not options.dry_run and shutil.which("sbatch") is None:
        raise Misuse("there is no sbatch on this machine; see the script with --dry-run, or use --cluster local.")

    slots = _slots(addresses, checked_profile(options.profile))
    changed = [replace(slot, overrides=(*slot.overrides, *overrides)) for slot in slots]
    if seeds is not None:
        changed = [replace(slot, settings=replace(slot.settings, seeds=seeds)) for slot in changed]
    runs = plan(changed)
    missing = Missing(queued(site["runs"]), LOGGED)
    for run in runs:
        missing.add(run)
    tasks = missing.tasks[:limit]
    if slots:
        _tell(slots, runs, missing, len(tasks))
    if changed and any(key(composed(a)) != key(composed(b)) for a, b in zip(slots, changed, strict=True) if overrides):
        print("Note: these overrides make other runs than those of the cells; tables will not show them.")
    if options.dry_run:
        _show(tasks, site, place)
        return 0
    if not tasks:
        print("Nothing to do.")
        return 0
    return _start(tasks, site, place, options.wait)


def _limit(text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise Misuse(f"--limit {text} should be a whole number, 1 or above.")
    return int(text)


def _seeds(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts) or len(set(map(int, parts))) != len(parts):
        raise Misuse(f"--seeds {text} should be different whole numbers, 0 or above, with commas between them: 0,1,2.")
    return tuple(map(int, parts))


def _overrides(options: Any) -> list[str]:
    """Those of every run: the cluster, the user's, the runs root."""
    given = [word for word in options.words if "=" in word]
    for override in parse(given):
        if override.key_or_group in ("seed", "profile"):
            name = {"seed": "seeds"}.get(override.key_or_group, override.key_or_group)
            raise Misuse(f"{override.input_line}: use --{name} here.")
    chosen = [] if options.cluster is None else [f"cluster={options.cluster}"]
    if options.cluster is not None and options.cluster not in names("cluster"):
        compose(["cluster=" + _quoted(options.cluster)])  # raises the sentence with the nearest name
    root = [] if options.runs is None else ["runs=" + _quoted(options.runs)]
    return [*chosen, *given, *root]


def _quoted(text: str) -> str:
    """A text as a value in Hydra's grammar, quoted unless it cannot be anything but a text."""
    if re.fullmatch(r"[\w.-]*/[\w./-]*", text):
        return text
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _slots(addresses: Sequence[str], profile: str | None) -> list[Slot]:
    """The addressed cells that need runs; says which tables need none."""
    slots = []
    for selection in select(addresses):
        if selection.table.kind == "runs":
            slots += selection.slots(profile)
        else:
            print(f"{selection.table.address} is read from the configurations: it has nothing to run.")
    return slots


def _tell(slots: Sequence[Slot], runs: Sequence[PlannedRun], missing: Missing, tasks: int) -> None:
    count = missing.standings
    planned = sum(count[name] for name in TO_DO)
    parts = [f"{count[name]} {name}" for name in (*DONE, *LEFT) if count[name]] + [f"{planned} to do"]
    again = [f"{count[name]} {name} before" for name in ("interrupted", "failed") if count[name]]
    print(
        f"{len(slots)} cell(s), {len(runs)} run(s): {', '.join(parts)}" + (f" ({', '.join(again)})" * bool(again)) + "."
    )
    if extra := len(missing.tasks) - planned:
        print(f"{extra} run(s) more are parents of these, of which the weights are needed.")
    if tasks < len(missing.tasks):
        print(f"Of these the first {tasks}.")
    if unknown := sum(not slot.calibrated for slot in slots):
        print(f"{unknown} cell(s) have a knob that is not known yet (???), and so no runs.")
    say(missing.sentences)


def _show(tasks: Sequence[Task], site: Config, place: Local | Slurm) -> None:
    """What a dry run prints: the runs, and for SLURM the script and the commands."""
    for task in tasks:
        print(f"{task.path}  {shlex.join(task.overrides)}")
    if tasks and isinstance(place, Slurm):
        folder = new_folder(site["runs"])
        print(f"\n# {folder / SCRIPT}\n{array_script(folder, place, Path.cwd())}")
        for level, indices in enumerate(levels(tasks)):
            command = array_command(folder, indices, place, f"$job{level - 1}" if level else None)
            print(f"job{level}=$({' '.join([*command[:-1], shlex.quote(command[-1])])})")


def _start(tasks: Sequence[Task], site: Config, place: Local | Slurm, wait: bool) -> int:
    from runner import pool
    from runner.experiment import validate

    for task in tasks:
        try:
            validate(task.config)
        except Misuse as misuse:
            raise Misuse(f"{task.name}: {misuse}") from None
    folder = new_folder(site["runs"])
    facts = {"cluster": site["cluster"], "cwd": os.getcwd(), "command": sys.argv}
    if isinstance(place, Slurm):
        _freeze(folder, tasks, facts).close()
        write_atomically(folder / SCRIPT, array_script(folder, place, Path.cwd()))
        submit_arrays(folder, tasks, place, print)
        print(f"Logs and the frozen configurations are in {folder}.")
        return 0
    size, devices = pool.capacity(tasks, place)
    with _freeze(folder, tasks, facts) as lock:
        file = folder / TASKS
        if wait:
            return pool.execute_all(file, size, devices)
        process, log = pool.start(file, size, devices, lock)
    print(f"{len(tasks)} run(s) have begun on {size} worker(s), process {process}; progress: {log}")
    print(f"`kill {process}` saves what is running and stops; the same command goes on from there.")
    return 0


def _freeze(folder: Path, tasks: Sequence[Task], facts: Config) -> TextIO:
    """Write the submission; the returned lock marks it as under way while it is open."""
    try:
        lock = hold(folder)
        freeze(folder, tasks, facts)
    except OSError as error:
        raise Misuse(f"{folder} cannot be written: {error.strerror}; make room, or name another --runs DIR.") from None
    return lock


if __name__ == "__main__":
    if "--dry-run" in sys.argv:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends a listing quietly, but never real runs
    sys.exit(main())
