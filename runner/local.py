"""A frozen submission on this machine: how many workers it gets, its pool here or left running, its last words.

`python -m runner.local TASKS_FILE WORKERS [DEVICE[,DEVICE...] ...]` is what a local submission leaves running.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

from runner.attempt import CODES, Outcome
from runner.cluster import Local, cores
from runner.errors import Misuse
from runner.lock import beating
from runner.packages import python_path
from runner.pool import Pool
from runner.progress import Progress, duration
from runner.submission import Task, load, moved

WORKERS_LOG, POOL_LOG = "workers.log", "pool.log"


def capacity(tasks: Sequence[Task], local: Local) -> tuple[int, list[str]]:
    """How many workers this machine gets, and the CUDA devices they share.

    `pack` workers per device, or where there is none one per CPU core (per `trainer.threads` of them). A worker whose
    runs have several ranks (`trainer.devices`) gets as many devices, with commas between them. Imports torch where a
    task may use a GPU.
    """
    trainers = [task.config["trainer"] for task in tasks]
    devices = _devices() if any(trainer["device"] != "cpu" for trainer in trainers) else []
    ranks = max(int(trainer["devices"]) for trainer in trainers)
    devices = [",".join(devices[at : at + ranks]) for at in range(0, len(devices), ranks)]
    if len(devices) > 1 and devices[-1].count(",") < ranks - 1:
        devices.pop()  # the rest is too few
    threads = ranks * max(int(trainer["threads"]) for trainer in trainers)
    size = (len(devices) * local.pack or max(1, cores() // threads)) if local.workers == "auto" else local.workers
    return min(size, len(tasks)), devices


def _devices() -> list[str]:
    """The CUDA devices that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count()
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return visible[:count] if visible else [str(index) for index in range(count)]


def execute_all(file: Path, size: int, devices: Sequence[str] = ()) -> int:
    """Execute a frozen submission here and now, with progress and a last sentence.

    Returns 0 (every run completed or diverged, which is a result, or is another process's), 1 (some failed or are
    blocked) or 75 (a signal; what was running is saved).
    """
    tasks = load(file)
    began = time.monotonic()
    with Progress([int(task.config["schedule"]["epochs"]) for task in tasks]) as progress:
        if sentence := moved(file.parent):
            progress.say(sentence)
        pool = Pool(tasks, size, progress, file.parent / WORKERS_LOG, devices)
        with beating(file.parent):
            pool.run()
    for line in conclusion(tasks, pool.outcomes, time.monotonic() - began):
        progress.say(line)
    if pool.interrupted:
        progress.say("Interrupted; what was running is saved. The same command goes on from there.")
        return CODES["interrupted"]
    bad = {"failed", "refused", "blocked"}
    return 1 if any(outcome.status in bad for outcome in pool.outcomes.values()) else 0


def conclusion(tasks: Sequence[Task], outcomes: Mapping[int, Outcome], seconds: float) -> list[str]:
    """A sentence of counts, and one for every run that has not completed, with its log if it has one."""
    count = Counter(outcome.status for outcome in outcomes.values())
    left = len(tasks) - len(outcomes)
    parts = [f"{count[status]} {status}" for status in CODES if count[status]] + ([f"{left} to do"] if left else [])
    lines = [f"{len(tasks)} run(s) in {duration(seconds)}: {', '.join(parts)}."]
    for index, outcome in sorted(outcomes.items()):
        if outcome.status != "completed":
            log = tasks[index].path / "log.txt"
            where = f" (log: {log})" if outcome.status in ("failed", "diverged") and log.exists() else ""
            lines.append(f"{outcome.status}: {tasks[index].name}: {outcome.reason}{where}")
    return lines


def start(file: Path, size: int, devices: Sequence[str], lock: TextIO) -> tuple[int, Path]:
    """Leave a pool running in a session of its own; its process id and its log. It inherits the submission's lock."""
    log = file.parent / POOL_LOG
    with open(log, "a") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "runner.local", str(file), str(size), *devices],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=(lock.fileno(),),
            env={**os.environ, "PYTHONPATH": python_path()},
        )
    return process.pid, log


def main(arguments: Sequence[str]) -> int:
    """Execute all tasks of a file; returns what `execute_all` returns, or 2."""
    try:
        if len(arguments) < 2 or not arguments[1].isdecimal() or int(arguments[1]) < 1:
            raise Misuse("python -m runner.local takes a tasks file, a number of workers, and names of CUDA devices.")
        return execute_all(Path(arguments[0]), int(arguments[1]), arguments[2:])
    except Misuse as misuse:
        print(f"regrow: {misuse}", file=sys.stderr)
        return CODES["refused"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
