"""Frozen submissions: every configuration is fixed when submitted, and executed from that file, never composed anew.

`python -m runner.submission TASKS_FILE INDEX` executes one task, as SLURM's array tasks do. No torch until then.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO

from runner.build import check_arguments
from runner.environment import ROOT, git_state
from runner.errors import Misuse, nearest
from runner.identity import Config, key, parent_config, run_dir
from runner.records import Held, is_held, write_atomic, write_json

SCHEMA = 1
FOLDER, TASKS, FACTS, LOCK, SCRIPT = "submissions", "tasks.jsonl", "submission.json", "lock", "array.sh"
SAVE_S = 90  # seconds before its time limit at which a SLURM task is told to save
POLL_S = 5.0  # seconds between looks at a run directory that another process holds
# How a task can end, and the exit code that says so.
CODES = {"completed": 0, "failed": 1, "blocked": 1, "refused": 2, "diverged": 3, "interrupted": 75, "held": 75}


@dataclass(frozen=True)
class Task:
    """One run of a submission. `after`: the indices of the tasks, earlier in the list, that must be completed first."""

    config: Config
    overrides: tuple[str, ...]
    after: tuple[int, ...] = ()

    @property
    def identity(self) -> tuple[str, int]:
        return key(self.config), self.config["seed"]

    @property
    def path(self) -> Path:
        """The run directory."""
        return run_dir(self.config["runs"], self.config)

    @property
    def name(self) -> str:
        """dataset/model/method key seed."""
        groups = "/".join(str(self.config[group]["name"]) for group in ("dataset", "model", "method"))
        return f"{groups} {key(self.config)} seed{self.config['seed']}"


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
        return f"{name} {self.final[name]:.4g}" if name in self.final else ""


class Stop:
    """Remembers a request to stop (SIGTERM, SIGINT, SIGUSR1) that arrives while no training loop listens for it."""

    def __init__(self) -> None:
        self.asked = False
        for kind in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(kind, self._ask)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _ask(self, number: int, frame: object) -> None:
        self.asked = True

    def relay(self) -> None:
        """To be called from within the training loop, which has handlers of its own by then."""
        if self.asked:
            signal.raise_signal(signal.SIGTERM)


def attempt(task: Task, progress: Callable[[dict[str, Any]], None] | None = None, weights: bool = False) -> Outcome:
    """Execute a task (skipping what is complete, resuming what was interrupted). Nothing a run does wrong is raised.

    `weights`: stages start from it, so that it is repeated if it is complete but has no checkpoint any more.
    """
    from runner.execute import ParentFailed, execute
    from runner.trainer import Interrupted

    began = time.monotonic()
    try:
        if holder := _held(task.config):
            return Outcome("held", holder)
        summary = execute(task.config, list(task.overrides), progress, weights)
    except Interrupted:
        return Outcome("interrupted", "saved; it resumes when it is run again", seconds=time.monotonic() - began)
    except ParentFailed as error:
        return Outcome("blocked", str(error))
    except Held as error:  # another process has taken the directory since the look at it
        return Outcome("held", str(error))
    except Misuse as error:
        return Outcome("refused", str(error))
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        return Outcome("failed", reason, seconds=time.monotonic() - began)
    return Outcome(summary["status"], summary["reason"], summary["final"], time.monotonic() - began)


def _held(config: Config) -> str | None:
    """A sentence when another process runs this configuration or one it starts from."""
    stage: Config | None = config
    while stage is not None:
        if is_held(path := run_dir(stage["runs"], stage)):
            return f"another process is running {path}"
        stage = parent_config(stage)
    return None


# The files


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
    created = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(folder / FACTS, {"schema": SCHEMA, "created": created, "git": git_state(), "tasks": len(tasks), **facts})
    write_atomic(folder / TASKS, "".join(f"{line}\n" for line in lines))
    return folder / TASKS


def load(file: str | Path) -> list[Task]:
    """The tasks of a file that `freeze` wrote; Misuse names the line that is not whole or contradicts itself.

    What a task's configuration may name is checked where it is executed, as for any other configuration.
    """
    try:
        lines = Path(file).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Misuse(f"{file} cannot be read as a submission's tasks ({error}); submit again.") from None
    tasks: list[Task] = []
    for number, line in enumerate(lines):
        where = f"{file} line {number + 1}"
        try:
            entry = json.loads(line)
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
        content = json.loads((folder / FACTS).read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def moved(folder: Path) -> str | None:
    """A sentence when the code is at another commit than when the submission was frozen."""
    then, now = (facts(folder).get("git") or {}).get("commit"), git_state()["commit"]
    if then is None or now is None or then == now:
        return None
    return f"The code has moved from commit {then[:12]} to {now[:12]} since this was submitted; the new code runs."


# What is under way


def hold(folder: Path) -> TextIO:
    """Mark a submission as under way while the returned file is open here or in a process that inherited it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = open(folder / LOCK, "a+")  # noqa: SIM115 (whoever runs the tasks keeps it open)
    fcntl.flock(lock, fcntl.LOCK_EX)  # others look at it for a moment only
    return lock


def queued(root: str | Path) -> set[tuple[str, int]]:
    """(key, seed) of all runs in submissions under way: those of living pools, and those that SLURM still lists."""
    found: set[tuple[str, int]] = set()
    listed: set[tuple[str, int]] | None = None
    for folder in sorted(Path(root, FOLDER).glob("*")):
        alive = is_held(folder)
        jobs = facts(folder).get("jobs") or []
        if not alive and not jobs:
            continue
        with contextlib.suppress(Misuse):
            tasks = load(folder / TASKS)
            if alive:
                found |= {task.identity for task in tasks}
            else:
                listed = _slurm_queue() if listed is None else listed
                found |= {tasks[i].identity for job in jobs for i in job["tasks"] if (str(job["id"]), i) in listed}
    return found


def _slurm_queue() -> set[tuple[str, int]]:
    """(array job, task index) of this user's jobs that wait or run; empty where there is no SLURM."""
    if shutil.which("squeue") is None:
        return set()
    command = ["squeue", "--noheader", "--array", f"--user={getpass.getuser()}", "--format=%F %K"]
    try:
        listing = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        print(f"squeue does not answer ({error}); what waits in its queue is not known.", file=sys.stderr)
        return set()
    return {(job, int(index)) for job, index in re.findall(r"^\s*(\d+) (\d+)\s*$", listing, re.MULTILINE)}


# SLURM


@dataclass(frozen=True, kw_only=True)
class Local:
    """conf/cluster/local.yaml: a pool on this machine."""

    workers: Annotated[int, "1 <= x"] | Literal["auto"] = "auto"


@dataclass(frozen=True, kw_only=True)
class Slurm:
    """conf/cluster/slurm.yaml, or a site's own copy of it."""

    time: str | int
    cpus_per_task: Annotated[int, "1 <= x"]
    max_parallel: Annotated[int, "1 <= x"]
    gpus_per_task: Annotated[int, "0 <= x"] = 0
    partition: str | None = None
    account: str | None = None
    mem: str | int | None = None
    setup: list[str] = field(default_factory=list)


KINDS: dict[str, type] = {"local": Local, "slurm": Slurm}


def cluster(section: dict[str, Any]) -> Local | Slurm:
    """A configuration's cluster section, checked."""
    kind = str(section.get("kind"))
    if kind not in KINDS:
        raise Misuse(f"cluster.kind = {kind!r} is not known.{nearest(kind, KINDS)}")
    options = {name: value for name, value in section.items() if name not in ("name", "kind")}
    check_arguments(options, KINDS[kind], "cluster")
    for name in ("time", "partition", "account", "mem"):
        if re.search(r"\s|^$", str(options.get(name))):
            raise Misuse(f"cluster.{name} = {options[name]!r} should be one word.")
    made: Local | Slurm = KINDS[kind](**options)
    return made


def array_script(folder: Path, site: Slurm, cwd: str | Path) -> str:
    """The batch script of every task: it executes task $SLURM_ARRAY_TASK_ID and has interrupted ones queued again.

    `wait` returns early whenever a trap has run: hence the loop, and the last `wait` for the true exit code.
    """
    options = {
        "job-name": "regrow",
        "output": shlex.quote(str(folder / "%A_%a.log")),
        "open-mode": "append",
        "ntasks": 1,
        "cpus-per-task": site.cpus_per_task,
        "gpus-per-task": site.gpus_per_task or None,
        "mem": site.mem,
        "time": site.time,
        "partition": site.partition,
        "account": site.account,
        "signal": f"B:USR1@{SAVE_S}",
    }
    lines = [f"#SBATCH --{name}={value}" for name, value in options.items() if value is not None]
    return "\n".join(
        [
            "#!/bin/bash",
            *lines,
            "#SBATCH --requeue",
            "",
            f"cd {shlex.quote(str(cwd))} || exit 1",
            'export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}" # srun >= 22.05 ignores SLURM_CPUS_PER_TASK',
            f"export PYTHONPATH={shlex.quote(str(ROOT))}${{PYTHONPATH:+:$PYTHONPATH}}",
            *site.setup,
            "",
            "# USR1: the time is nearly over; save, and queue again. TERM: cancelled or preempted; save only.",
            "run= asked=",
            """forward() { asked=$1; [ -z "$run" ] || kill -"$1" "$run" 2>/dev/null; }""",
            "trap 'forward USR1' USR1",
            "trap 'forward TERM' TERM",
            f"{shlex.quote(sys.executable)} -m runner.submission {shlex.quote(str(folder / TASKS))}"
            ' "$SLURM_ARRAY_TASK_ID" &',
            "run=$!",
            '[ -z "$asked" ] || kill -"$asked" "$run"',
            'while kill -0 "$run" 2>/dev/null; do wait "$run"; done',
            'wait "$run"',
            "code=$?",
            f"case $code-$asked in # {CODES['interrupted']}: saved; {128 + signal.SIGUSR1}: nothing had begun",
            f"    {CODES['interrupted']}-TERM) ;;",
            f"    {CODES['interrupted']}-* | {128 + signal.SIGUSR1}-*)",
            '        scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}" ;;',
            "esac",
            'exit "$code"',
            "",
        ]
    )


def children(tasks: Sequence[Task], index: int) -> list[int]:
    """The tasks that start from task `index`."""
    return [child for child, task in enumerate(tasks) if index in task.after]


def levels(tasks: Sequence[Task]) -> list[list[int]]:
    """Task indices by how many generations of parents come before them: one array each."""
    depth: list[int] = []
    for task in tasks:
        depth.append(1 + max((depth[index] for index in task.after), default=-1))
    return [[index for index, at in enumerate(depth) if at == level] for level in range(max(depth) + 1)]


def array_command(folder: Path, indices: Sequence[int], site: Slurm, parent: str | None) -> list[str]:
    """The command that submits these tasks as one array, after array `parent` if there is one.

    afterok waits for the whole parent array and needs its exit codes to be true; aftercorr would pair equal indices.
    """
    after = [] if parent is None else [f"--dependency=afterok:{parent}", "--kill-on-invalid-dep=yes"]
    array = f"--array={ranges(indices)}%{site.max_parallel}"
    return ["sbatch", "--parsable", *after, array, str(folder / SCRIPT)]


def submit_arrays(folder: Path, tasks: Sequence[Task], site: Slurm, say: Callable[[str], None]) -> None:
    """Submit a frozen submission, parents' array first, and note the job ids in submission.json. Returns at once."""
    jobs: list[dict[str, Any]] = []
    for indices in levels(tasks):
        command = array_command(folder, indices, site, jobs[-1]["id"] if jobs else None)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        identity = re.match(r"\d+", done.stdout)
        if done.returncode != 0 or identity is None:
            before = f" Array {jobs[-1]['id']} is submitted; submit the rest when it is done." if jobs else ""
            problem = " ".join((done.stderr or done.stdout).split()) or f"exit code {done.returncode}"
            raise Misuse(f"sbatch refuses {folder / SCRIPT}: {problem}.{before}")
        jobs.append({"id": identity[0], "tasks": list(indices)})
        write_json(folder / FACTS, {**facts(folder), "jobs": jobs})
        say(f"Job {identity[0]}: {len(indices)} run(s)" + (f", after job {jobs[-2]['id']}." if jobs[1:] else "."))


def ranges(indices: Iterable[int]) -> str:
    """[0, 1, 2, 5] as "0-2,5"."""
    parts: list[list[int]] = []
    for index in sorted(indices):
        if parts and parts[-1][1] == index - 1:
            parts[-1][1] = index
        else:
            parts.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


# One task


def main(arguments: Sequence[str]) -> int:
    """Execute one task; its exit code (0 done, 1 failed, 2 misuse, 3 diverged, 75 interrupted and saved)."""
    try:
        if len(arguments) != 2 or not arguments[1].isdecimal():
            raise Misuse("python -m runner.submission takes a tasks file and the number of a task in it.")
        file, index = Path(arguments[0]), int(arguments[1])
        tasks = load(file)
        if index >= len(tasks):
            raise Misuse(f"{file} has the tasks 0 to {len(tasks) - 1}, no task {index}.")
    except Misuse as misuse:
        print(f"regrow: {misuse}", file=sys.stderr)
        return CODES["refused"]
    task, stop = tasks[index], Stop()
    _say(f"{task.name}: {task.path}")
    if sentence := moved(file.parent):
        _say(sentence)

    def progress(line: dict[str, Any]) -> None:
        shown = ", ".join(f"{name} {value:.4g}" for name, value in line.items() if name.startswith(("train/", "test/")))
        _say(f"  epoch {line['epoch']:>3}: {shown}, {line['time/epoch_s']:.2f} s")
        stop.relay()

    import runner.execute  # noqa: F401 (slow: a signal that arrives meanwhile is seen before the run begins)

    weights = bool(children(tasks, index))
    outcome = Outcome("interrupted") if stop.asked else attempt(task, progress, weights)
    if outcome.status == "held":
        _say(f"  {outcome.reason}; waiting for it")
    while outcome.status == "held" and not stop.asked:
        time.sleep(POLL_S)
        outcome = attempt(task, progress, weights)
    _say(f"  {outcome.status}" + (f": {outcome.reason}" if outcome.reason else "") + f" {outcome.metric}".rstrip())
    return CODES[outcome.status]


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
