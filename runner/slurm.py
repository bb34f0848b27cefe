"""A frozen submission as SLURM arrays: the batch script, one array per generation of stages, the commands."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.attempt import CODES
from runner.cluster import Slurm
from runner.environment import ROOT
from runner.errors import Misuse
from runner.records import write_json
from runner.submission import FACTS, TASKS, Task, facts, levels

SCRIPT = "array.sh"
MAX_INDEX = 1000  # of an array's tasks: SLURM's MaxArraySize is 1001 where a site says nothing else


def array_script(folder: Path, site: Slurm, cwd: str | Path) -> str:
    """The batch script of every task: it executes its task and has interrupted ones queued again.

    Its argument is the number of the task that is number 0 of its array. `wait` returns early whenever a trap has run:
    hence the loop, and the last `wait` for the true exit code.
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
        "signal": f"B:USR1@{site.save_s}",
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
            f"{shlex.quote(sys.executable)} -m runner.attempt {shlex.quote(str(folder / TASKS))}"
            ' "$((SLURM_ARRAY_TASK_ID + ${1:-0}))" &',
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


@dataclass(frozen=True)
class Array:
    """Tasks of one level as one array; its indices are the tasks' less `offset`. `parallel`: so many at a time."""

    level: int
    tasks: tuple[int, ...]
    parallel: int

    @property
    def offset(self) -> int:
        """Of an array within SLURM's indices none."""
        return self.tasks[0] if self.tasks[-1] > MAX_INDEX else 0

    def command(self, folder: Path, after: Sequence[str]) -> list[str]:
        """The command that submits it, to begin when the arrays `after` have ended.

        afterany, for a task whose parent has failed must begin to say that it is blocked; after afterok it would wait
        for ever or vanish, and with it the children of those that have completed. aftercorr would pair equal indices.
        """
        dependency = [f"--dependency=afterany:{':'.join(after)}"] if after else []
        array = f"--array={ranges(index - self.offset for index in self.tasks)}%{self.parallel}"
        script = [str(folder / SCRIPT), *([str(self.offset)] if self.offset else [])]
        return ["sbatch", "--parsable", *dependency, array, *script]


def arrays(tasks: Sequence[Task], site: Slurm) -> list[Array]:
    """One array per level, or several where SLURM's indices do not reach; these share the site's `max_parallel`."""
    found = []
    for level, indices in enumerate(levels(tasks)):
        chunks: list[list[int]] = []
        for index in indices:
            if chunks and index - (chunks[-1][0] if index > MAX_INDEX else 0) <= MAX_INDEX:
                chunks[-1].append(index)
            else:
                chunks.append([index])
        share = max(1, site.max_parallel // len(chunks))
        found += [Array(level, tuple(chunk), share) for chunk in chunks]
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
        jobs.append({"id": identity[0], "level": array.level, "offset": array.offset, "tasks": list(array.tasks)})
        write_json(folder / FACTS, {**facts(folder), "jobs": jobs})
        say(f"Job {identity[0]}: {len(array.tasks)} run(s)" + (f", after job {', '.join(after)}." if after else "."))


def ranges(indices: Iterable[int]) -> str:
    """[0, 1, 2, 5] as "0-2,5"."""
    parts: list[list[int]] = []
    for index in sorted(indices):
        if parts and parts[-1][1] == index - 1:
            parts[-1][1] = index
        else:
            parts.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)
