"""The record of a bench: its figures and what they were measured on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from runner.bench.figures import Figure
from runner.cluster import cores
from runner.environment import describe
from runner.records import write_json
from runner.speedup import machine

SCHEMA = 1


def record(figures: Sequence[Figure], path: Path, rounds: int) -> None:
    """Write the figures as JSON, with versions, commit, processor and the load of the machine at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    environment = {**describe("cpu", 1), **machine(), "cores": cores(), "niceness": os.nice(0)}
    write_json(
        path,
        {
            "schema": SCHEMA,
            "rounds": rounds,
            "load": round(os.getloadavg()[0], 2),
            "figures": [figure.as_json() for figure in figures],
            "environment": environment,
        },
    )
