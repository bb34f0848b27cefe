"""Submit what is missing of the addressed cells: `python scripts/submit.py demo/digits`. No torch for dry runs."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from results import figure
from results.collect import LOGGED, write_atomically
from results.command import Arguments, checked_profile, remembered, say
from results.cost import Costs, measured
from results.missing import Missing
from results.plan import Compose, PlannedRun, plan
from results.render import plan as text
from results.wanted import wanted
from runner.cluster import Local, Slurm, cluster, device_kind, parallel
from runner.compose import compose, names, parse
from runner.environment import CODE, extensions, git_state
from runner.errors import Misuse
from runner.identity import SCIENCE, Config
from runner.queue import queued
from runner.slurm import SCRIPT, array_script, arrays, devices, submit_arrays
from runner.submission import TASKS, Task, freeze, hold, new_folder

#: Sections whose overrides every run shares; others may name options that only some methods have.
MACHINE = ("cluster", "runs", "trainer")


@remembered()
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
        help="PAPER, PAPER/TABLE, .../ROW or .../COLUMN, or patterns such as dsr/lenet_mnist/*/s90; and "
        "overrides of every run, such as trainer.device=cpu, cluster.workers=4, cluster.time=01:00:00",
    )
    parser.add_argument("--profile", metavar="P", help="the cells at reduced cost: " + ", ".join(names("profile")))
    parser.add_argument("--seeds", metavar="0,1,2", help="these seeds instead of the table's")
    parser.add_argument("--cluster", metavar="C", help="where: " + ", ".join(names("cluster")) + " (default: local)")
    parser.add_argument("--dry-run", action="store_true", help="print the plan (and SLURM's script); write nothing")
    parser.add_argument("--list", action="store_true", help="with --dry-run: also every run and its overrides")
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

    profile, once = checked_profile(options.profile), _once()
    cells = wanted(addresses, profile)
    slots = cells.changed(overrides, seeds)
    runs = recording(plan(slots, once), figure.records(slots, once, profile))
    missing = Missing(runs, queued(site["runs"]), LOGGED)
    tasks = missing.tasks[:limit]
    costs = Costs(measured([root, LOGGED]), device_kind(site["trainer"]["device"], place))
    if cells.read:
        print(f"{len(cells.read)} cell(s) are read from the configurations: they have nothing to run.")
    if slots:
        print(*text.heading(len(slots), missing), sep="\n")
    for line in text.impossible(cells.needing, cells.uncalibrated, cells.unprinted):
        print(f"Not planned: {line}")
    if len(tasks) < len(missing.tasks):
        print(f"Of these the first {len(tasks)}.")
    say(missing.sentences)
    if _science(overrides) and {run.key for run in runs} != {run.key for run in plan(cells.slots, once)}:
        print("Note: these overrides make other runs than those of the cells; tables will not show them.")
    if options.dry_run:
        _show(tasks, missing, costs, site, place, options.list)
    if tasks:
        trainer = site["trainer"]
        at_a_time = parallel(place, costs.device, int(trainer["threads"]), int(trainer["devices"]))
        print(text.total(tasks, costs, at_a_time))
        _warn_of_changes()
    else:
        print("Nothing to do.")
    return _start(tasks, site, place, options.wait) if tasks and not options.dry_run else 0


def _once() -> Compose:
    """`compose` for a plan, which asks for the same overrides several times."""
    known: dict[tuple[str, ...], Config] = {}

    def composed(overrides: Sequence[str]) -> Config:
        if tuple(overrides) not in known:
            known[tuple(overrides)] = compose(overrides)
        return known[tuple(overrides)]

    return composed


def recording(runs: Sequence[PlannedRun], records: Mapping[str, Sequence[str]]) -> list[PlannedRun]:
    """The runs, those of the keys in `records` recording that too: what figures draw must be there when they end."""
    return [_recording(run, records[run.key]) if run.key in records else run for run in runs]


def _recording(run: PlannedRun, records: Sequence[str]) -> PlannedRun:
    trainer = run.config["trainer"]
    names = list(dict.fromkeys((*trainer["records"], *records)))
    config = {**run.config, "trainer": {**trainer, "records": names}}
    return replace(run, config=config, overrides=(*run.overrides, f"trainer.records=[{','.join(names)}]"))


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


def _science(overrides: Sequence[str]) -> bool:
    """Whether any of them may change a key."""
    return any(given.key_or_group.split(".")[0] in (*SCIENCE, "experiment") for given in parse(overrides))


def _warn_of_changes() -> None:
    trees = {", ".join(CODE): git_state(), **extensions()}
    say(
        f"WARNING: there are uncommitted changes in {folders}: the records of these runs will name commit "
        f"{state['commit'][:12]} and say that they ran something else. Commit first if they should count."
        for folders, state in trees.items()
        if state["dirty"]
    )


def _show(
    tasks: Sequence[Task], missing: Missing, costs: Costs, site: Config, place: Local | Slurm, every: bool
) -> None:
    """What a dry run prints: the plan, every single run if asked for, and for SLURM the script and the commands."""
    for line in text.plan(missing, tasks, costs):
        print(line)
    for task in tasks if every else ():
        print(f"{task.path}  {shlex.join(task.overrides)}")
    if tasks and isinstance(place, Slurm):
        folder = new_folder(site["runs"])
        if place.pack > 1:
            print(f"{place.pack} runs side by side in each array task.")
        print(f"\n# {folder / SCRIPT}\n{array_script(folder, place, Path.cwd(), devices(tasks, place))}")
        for number, array in enumerate(every_array := arrays(tasks, place)):
            after = [f"$job{n}" for n, other in enumerate(every_array) if other.level == array.level - 1]
            print(f"job{number}=$({_quoted_command(array.command(folder, after))})")


def _quoted_command(words: Sequence[str]) -> str:
    """For a shell, which is to fill in $job0."""
    return " ".join(word if "$" in word else shlex.quote(word) for word in words)


def _start(tasks: Sequence[Task], site: Config, place: Local | Slurm, wait: bool) -> int:
    from runner import local
    from runner.experiment import validate

    for task in {task.identity[0]: task for task in tasks}.values():
        try:
            validate(task.config)
        except Misuse as misuse:
            raise Misuse(f"{task.name}: {misuse}") from None
    folder = new_folder(site["runs"])
    facts = {"cluster": site["cluster"], "cwd": os.getcwd(), "command": sys.argv}
    if isinstance(place, Slurm):
        script = array_script(folder, place, Path.cwd(), devices(tasks, place))
        with _freeze(folder, tasks, facts):  # until SLURM knows of its jobs, the lock says that they are under way
            write_atomically(folder / SCRIPT, script)
            submit_arrays(folder, tasks, place, print)
        print(f"Logs and the frozen configurations are in {folder}.")
        return 0
    size, cuda = local.capacity(tasks, place)
    with _freeze(folder, tasks, facts) as lock:
        file = folder / TASKS
        if wait:
            return local.execute_all(file, size, cuda)
        process, log = local.start(file, size, cuda, lock)
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
