"""Several tasks of a frozen submission side by side in one of SLURM's array tasks, sharing its device. No torch here.

`python -m runner.pack TASKS_FILE NUMBER SIZE` executes the tasks of pack NUMBER, each in a process of its own with its
own log; small runs leave most of a big GPU idle. What one of them does, the others do not notice.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from runner.attempt import CODES
from runner.errors import Misuse
from runner.signals import STOP
from runner.submission import Task, levels, load

_WORST = (CODES["interrupted"], CODES["failed"], CODES["refused"], CODES["diverged"], CODES["completed"])


def packs(tasks: Sequence[Task], size: int) -> list[tuple[int, ...]]:
    """The indices of the tasks by packs of at most `size`, in the order of their first; one generation in each."""
    chunks = [tuple(level[at : at + size]) for level in levels(tasks) for at in range(0, len(level), size)]
    return sorted(chunks)


class Pack:
    """The running tasks of a pack: index -> its process. Signals that arrive here are passed on to all of them."""

    def __init__(self) -> None:
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.asked: int | None = None
        for kind in STOP:
            signal.signal(kind, self._ask)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _ask(self, number: int, frame: object) -> None:
        self.asked = number
        for process in self.processes.values():
            process.send_signal(number)  # which leaves one that has ended alone

    def run(self, commands: Mapping[int, tuple[list[str], Path]]) -> dict[int, int]:
        """Execute the commands, each appending what it says to its file; their exit codes when all have ended.

        After a signal nothing more begins; what has not begun, or not yet listened, counts as interrupted.
        """
        for index, (command, log) in commands.items():
            if self.asked is None:
                with open(log, "ab") as output:
                    self.processes[index] = subprocess.Popen(
                        command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
                    )
        if self.asked is not None:  # it may have come between a process's beginning and its entry here
            self._ask(self.asked, None)
        codes = {index: process.wait() for index, process in self.processes.items()}
        return {index: self._code(codes.get(index)) for index in commands}

    def _code(self, code: int | None) -> int:
        if code is None or (self.asked is not None and -code in STOP):
            return CODES["interrupted"]
        return code


def worst(codes: Sequence[int]) -> int:
    """One exit code for all: interrupted (it is to be queued again) before failed, refused, diverged, completed."""
    known = [code if code in _WORST else CODES["failed"] for code in codes]
    return min(known, key=_WORST.index)


def main(arguments: Sequence[str]) -> int:
    """Execute the tasks of a pack; the worst of their exit codes, as `runner.attempt` knows them."""
    try:
        if len(arguments) != 3 or not all(text.isdecimal() for text in arguments[1:]) or int(arguments[2]) < 1:
            raise Misuse("python -m runner.pack takes a tasks file, the number of a pack in it and a pack's size.")
        file, number = Path(arguments[0]), int(arguments[1])
        tasks = load(file)
        every = packs(tasks, int(arguments[2]))
        if number >= len(every):
            raise Misuse(f"{file} has the packs 0 to {len(every) - 1}, no pack {number}.")
    except Misuse as misuse:
        print(f"regrow: {misuse}", file=sys.stderr)
        return CODES["refused"]
    commands = {}
    for index in every[number]:
        log = file.parent / log_name(number, index)
        commands[index] = ([sys.executable, "-m", "runner.attempt", str(file), str(index)], log)
        print(f"{tasks[index].name}: {log}", flush=True)
    codes = Pack().run(commands)
    for index, code in codes.items():
        print(f"{tasks[index].name}: {_end(code)}", flush=True)
    return worst(list(codes.values()))


def log_name(number: int, index: int) -> str:
    """The log of task `index`, beside that of its array task: <array>_<array's index>.<task>.log."""
    array, own = os.environ.get("SLURM_ARRAY_JOB_ID", "pack"), os.environ.get("SLURM_ARRAY_TASK_ID", str(number))
    return f"{array}_{own}.{index}.log"


def _end(code: int) -> str:
    if code < 0:
        return f"died of {signal.Signals(-code).name}; the next submission resumes it"
    return f"exit code {code}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
