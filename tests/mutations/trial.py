"""Trials of planted faults: python trial.py TREE < trials.json > outcomes.json, with TREE a copy of the project.

Each trial changes one file of the copy, runs tests there in a fork of this process, and puts the file back. Torch,
pytest and the like are imported once, before the forks; the project is imported in the forks alone.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import hydra
import hypothesis
import numpy
import omegaconf
import pytest
import torch
import yaml

IMPORTED_ONCE = (hydra, hypothesis, numpy, omegaconf, torch, yaml)
SECONDS = 60


class Recorder:
    """Which tests ran, and which of them failed."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            self.ran.append(report.nodeid)
            if report.failed:
                self.failed.append(report.nodeid)


def trial(tree: Path, tests: list[str], seconds: float) -> dict[str, Any]:
    """Run tests of the copy in a fork; {"ran": [...], "failed": [...], "code": pytest's exit code}.

    `seconds` of processor time, for a fault may loop for ever; 0: no limit.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        with open(reader) as file:
            answer = file.read()
        os.waitpid(child, 0)
        return json.loads(answer) if answer else {"ran": [], "failed": [], "code": "killed"}
    signal.setitimer(signal.ITIMER_PROF, seconds)
    os.close(reader)
    os.chdir(tree)
    sys.path.insert(0, str(tree))
    with open(tree / "trial.log", "w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        recorder = Recorder()
        # What differs is not shown: on a CI server pytest compares long lists in full, for minutes.
        options = ["-q", "--assert=plain", "--tb=no", "-p", "no:cacheprovider"]
        code = int(pytest.main([*options, *(f"tests/{test}" for test in tests)], [recorder]))
        import methods

        if not str(methods.__file__).startswith(str(tree)):
            code = -1
        with open(writer, "w") as file:
            json.dump({"ran": recorder.ran, "failed": recorder.failed, "code": code}, file)
    os._exit(0)


def warm_up() -> None:
    """The first optimizer step imports a good part of torch: once, before the forks."""
    weight = torch.nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)
    torch.optim.SGD([weight], lr=0.1).step()


def write(path: Path, text: str, time: int) -> None:
    """Compiled files go by size and time, and two faults of one size may be planted within the same second."""
    path.write_text(text)
    os.utime(path, (time, time))


def main() -> None:
    """Read the trials, make them one after another, write their outcomes."""
    tree = Path(sys.argv[1]).resolve()
    warm_up()
    outcomes = {}
    for number, (name, (file, old, new, tests)) in enumerate(json.load(sys.stdin).items()):
        path = tree / file
        text = path.read_text()
        write(path, text.replace(old, new), 2 * number)
        try:
            outcomes[name] = trial(tree, tests, 0 if old == new else SECONDS)  # without a fault: all tests at once
        finally:
            write(path, text, 2 * number + 1)
    json.dump(outcomes, sys.stdout)


if __name__ == "__main__":
    main()
