"""A frozen submission as SLURM arrays: the batch script, one array per generation of stages, the commands."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.attempt import CODES
from runner.cluster import Slurm
from runner.errors import Misuse
from runner.pack import packs
from runner.packages import VARIABLE, packages, roots
from runner.records import write_json
from runner.submission import FACTS, TASKS, Task, facts, levels

SCRIPT = "array.sh"
# SLURM's tasks of the step are the ranks; one that fails ends them all, which have time to record that.
_SRUN = "srun --kill-on-bad-exit=1 "
# Where SLURM itself reaches the node of rank 0, which is this one: a node's name need not be a host's.
_ADDRESS = (
    'export MASTER_ADDR="$(scontrol --oneliner show node "$SLURMD_NODENAME"'
    " | sed -n 's/.* NodeAddr=\\([^ ]*\\).*/\\1/p')\""
)
MAX_INDEX = 1000  # of an array's tasks: SLURM's MaxArraySize is 1001 where a site says nothing else


def array_script(folder: Path, site: Slurm, cwd: str | Path, devices: int = 1) -> str:
    """The batch script of every array task: it executes its run or pack, and has what was interrupted queued again.

    Its argument is the number that is number 0 of its array. A run of several processes (`devices` on each of the
    site's nodes) is one step of srun's. `wait` returns early whenever a trap has run: hence the loop, and the last
    `wait` for the true exit code.
    """
    several = devices * site.nodes > 1
    options = {
        "job-name": "regrow",
        "output": shlex.quote(str(folder / "%A_%a.log")),
        "open-mode": "append",
        **({"nodes": site.nodes, "ntasks-per-node": devices} if several else {"ntasks": 1}),
        "cpus-per-task": site.cpus_per_task,
        "gpus-per-task": site.gpus_per_task or None,
        "mem": site.mem,
        "time": site.time,
        "partition": site.partition,
        "account": site.account,
        "signal": f"B:USR1@{site.save_s}",
    }
    lines = [f"#SBATCH --{name}={value}" for name, value in options.items() if value is not None]
    python, tasks = shlex.quote(sys.executable), shlex.quote(str(folder / TASKS))
    number = '"$((SLURM_ARRAY_TASK_ID + ${1:-0}))"'
    if site.pack > 1:
        command = f"{python} -m runner.pack {tasks} {number} {site.pack}"
    else:
        command = f"{_SRUN if several else ''}{python} -m runner.attempt {tasks} {number}"
    return "\n".join(
        [
            "#!/bin/bash",
            *lines,
            "#SBATCH --requeue",
            "",
            f"cd {shlex.quote(str(cwd))} || exit 1",
            'export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}" # srun >= 22.05 ignores SLURM_CPUS_PER_TASK',
            f"export PYTHONPATH={shlex.quote(os.pathsep.join(roots()))}${{PYTHONPATH:+:$PYTHONPATH}}",
            *([f"export {VARIABLE}={','.join(allowed)}"] if (allowed := [each.name for each in packages()]) else []),
            *([_ADDRESS] if several else []),
            *site.setup,
            "",
            "# USR1: the time is nearly over; save, and queue again. TERM: cancelled or preempted; save only.",
            "run= asked=",
            """forward() { asked=$1; [ -z "$run" ] || kill -"$1" "$run" 2>/dev/null; }""",
            "trap 'forward USR1' USR1",
            "trap 'forward TERM' TERM",
            f"{command} &",
            "run=$!",
            '[ -z "$asked" ] || kill -"$asked" "$run"',
            'while kill -0 "$run" 2>/dev/null; do wait "$run"; done',
            'wait "$run"',
            "code=$?",
            f"case $code-$asked in # {CODES['interrupted']}: saved; {128 + signal.SIGUSR1}: nothing had begun",
            f"    {CODES['interrupted']}-TERM) ;;",
            f"    {CODES['interrupted']}-* | {128 + signal.SIGUSR1}-*)",
            "        # Processes may hear of a cancellation before this script does: that job must not come back.",
            '        [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" = COMPLETING ] ||',
            '            scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}" ;;',
            "esac",
            'exit "$code"',
            "",
        ]
    )


def devices(tasks: Sequence[Task], site: Slurm) -> int:
    """The processes of each run on each of its nodes (`trainer.devices`), the same for all. Misuse otherwise."""
    found = {int(task.config["trainer"]["devices"]) for task in tasks}
    if len(found) > 1:
        named = ", ".join(map(str, sorted(found)))
        raise Misuse(f"trainer.devices differs between these runs ({named}); submit them apart, or override it.")
    (count,) = found
    if site.pack > 1 and count * site.nodes > 1:
        raise Misuse(f"cluster.pack = {site.pack} is for runs of one process, not of {count * site.nodes}; leave it 1.")
    return count


@dataclass(frozen=True)
class Array:
    """Packs of one level as one array; its indices are the packs' numbers less `offset`. `parallel`: so many at a time.

    `packs`: number -> the indices of its tasks; packs of one task where `cluster.pack` is 1.
    """

    level: int
    packs: Mapping[int, tuple[int, ...]]
    parallel: int

    @property
    def offset(self) -> int:
        """Of an array within SLURM's indices none."""
        return min(self.packs) if max(self.packs) > MAX_INDEX else 0

    @property
    def tasks(self) -> dict[int, tuple[int, ...]]:
        """The array's own indices -> the indices of their tasks."""
        return {number - self.offset: pack for number, pack in self.packs.items()}

    def command(self, folder: Path, after: Sequence[str]) -> list[str]:
        """The command that submits it, to begin when the arrays `after` have ended.

        afterany, for a task whose parent has failed must begin to say that it is blocked; after afterok it would wait
        for ever or vanish, and with it the children of those that have completed. aftercorr would pair equal indices.
        """
        dependency = [f"--dependency=afterany:{':'.join(after)}"] if after else []
        array = f"--array={ranges(self.tasks)}%{self.parallel}"
        script = [str(folder / SCRIPT), *([str(self.offset)] if self.offset else [])]
        return ["sbatch", "--parsable", *dependency, array, *script]


def arrays(tasks: Sequence[Task], site: Slurm) -> list[Array]:
    """One array per level, or several where SLURM's indices do not reach; these share the site's `max_parallel`."""
    every = packs(tasks, site.pack)
    found = []
    for level, indices in enumerate(levels(tasks)):
        chunks: list[list[int]] = []
        for number in (number for number, pack in enumerate(every) if pack[0] in set(indices)):
            if chunks and number - (chunks[-1][0] if number > MAX_INDEX else 0) <= MAX_INDEX:
                chunks[-1].append(number)
            else:
                chunks.append([number])
        share = max(1, site.max_parallel // len(chunks))
        found += [Array(level, {number: every[number] for number in chunk}, share) for chunk in chunks]
    return found


def submit_arrays(folder: Path, tasks: Sequence[Task], site: Slurm, say: Callable[[str], None]) -> None:
    """Submit a frozen submission, parents' arrays first, and note the job ids in submission.json. Returns at once."""
    jobs: list[dict[str, Any]] = []
    for array in arrays(tasks, site):
        after = [job["id"] for job in jobs if job["level"] == array.level - 1]
        done = subprocess.run(array.command(folder, after), capture_output=True, text=True, check=False)
        identity = re.match(r"\d+", done.stdout)
        if done.returncode != 0 or identity is None:
            before = " and ".join(job["id"] for job in jobs)
            before = f" Job(s) {before} are submitted; submit the rest when they are done." if jobs else ""
            problem = " ".join((done.stderr or done.stdout).split()) or f"exit code {done.returncode}"
            raise Misuse(f"sbatch refuses {folder / SCRIPT}: {problem}.{before}")
        jobs.append({"id": identity[0], "level": array.level, "tasks": array.tasks})
        write_json(folder / FACTS, {**facts(folder), "jobs": jobs})
        runs = f"{sum(map(len, array.tasks.values()))} run(s)"
        packed = f" in {len(array.tasks)} pack(s)" if site.pack > 1 else ""
        say(f"Job {identity[0]}: {runs}{packed}" + (f", after job {', '.join(after)}." if after else "."))


def ranges(indices: Iterable[int]) -> str:
    """[0, 1, 2, 5] as "0-2,5"."""
    parts: list[list[int]] = []
    for index in sorted(indices):
        if parts and parts[-1][1] == index - 1:
            parts[-1][1] = index
        else:
            parts.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)
