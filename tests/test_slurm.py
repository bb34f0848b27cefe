"""Submissions to a real SLURM: two nodes on this machine, with everything that a cluster does to jobs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from runner.submission import FOLDER, TASKS, Task, facts, load
from tests.two_nodes import TwoNodes, slurm, wait_for

__all__ = ["slurm"]

pytestmark = pytest.mark.slurm
ROOT = Path(__file__).resolve().parents[1]
GATES = ROOT / "tests" / "gates"
#: Four epochs of the digits; saved after every step; a node each, so that one node's end is one run's.
SITE = ("--cluster", "slurm", "cluster.cpus_per_task=2", "cluster.mem=1G", "trainer.checkpoint_seconds=0")
CELLS = [f"demo/digits/{row}/{column}" for row in ("static", "gmp", "set", "dsr") for column in ("s80", "s90")]
SMALL = ("--profile", "short", "--seeds", "0")


class Site:
    """A runs root on the cluster, and gates at which runs wait (tests/gates)."""

    def __init__(self, slurm: TwoNodes, folder: Path) -> None:
        self.slurm = slurm
        self.runs = folder / "runs"
        self.gates = folder / "gates"
        self.gates.mkdir()
        path = os.pathsep.join((str(GATES), str(ROOT)))
        self.environment = {**slurm.environment, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        self.environment |= {"REGROW_RUNS": str(self.runs), "REGROW_GATES": str(self.gates)}

    def python(self, *arguments: str, code: int = 0) -> str:
        """A command of ours; what it prints."""
        command = [sys.executable, *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}\n{self.said()}"
        return done.stdout

    def submit(self, *arguments: str) -> list[Job]:
        """Submit; the runs in their order."""
        before = self.submissions()
        said = self.python("scripts/submit.py", *arguments, *SITE)
        (folder,) = self.submissions() - before
        assert f"Logs and the frozen configurations are in {folder}." in said
        return self.jobs(folder)

    def submissions(self) -> set[Path]:
        return set((self.runs / FOLDER).glob("2*"))

    def jobs(self, folder: Path) -> list[Job]:
        tasks = load(folder / TASKS)
        found = []
        for job in facts(folder)["jobs"]:
            for index, pack in job["tasks"].items():
                found += [Job(self, tasks[task], job["id"], int(index)) for task in pack]
        return found

    def missing(self, *arguments: str) -> str:
        """The first line of a dry run: how the runs stand."""
        return self.python("scripts/submit.py", *arguments, *SITE, "--dry-run").splitlines()[0]

    def table(self, runs: Path) -> list[dict[str, Any]]:
        """The demo's table from a runs root, without where its runs lie and when they ran."""
        text = self.python(
            "scripts/make_tables.py", "demo/digits", "--profile", "short", "--format", "json", "--runs", str(runs)
        )
        return json.loads(re.sub(re.escape(str(runs)), "RUNS", text))

    def said(self) -> str:
        """The logs of all array tasks."""
        parts = []
        for path in sorted(self.runs.glob(f"{FOLDER}/*/*.log")):
            parts += [f"--- {path.name}", *path.read_text(errors="replace").splitlines()[-20:]]
        return "\n".join([*parts, self.slurm.log()])

    def wait_for(self, look: Any, what: str, seconds: float = 90.0) -> Any:
        return wait_for(look, what, seconds, self.said)


class Job:
    """A run of a submission as a task of an array."""

    def __init__(self, site: Site, task: Task, array: str, index: int) -> None:
        self.site, self.task, self.array, self.index = site, task, array, index
        self.id = f"{array}_{index}"

    def __repr__(self) -> str:
        return f"{self.id} ({self.task.name})"

    def gate(self, epoch: int) -> Path:
        return self.site.gates / f"{self.task.identity[0]}-seed{self.task.identity[1]}-{epoch}"

    def hold(self, epoch: int, deaf: bool = False) -> None:
        """To be called before it comes there."""
        self.gate(epoch).write_text("deaf" if deaf else "")

    def let_go(self) -> None:
        for epoch in range(9):
            self.gate(epoch).unlink(missing_ok=True)

    @property
    def epochs(self) -> list[int]:
        """The epochs of which it has recorded metrics."""
        path = self.task.path / "metrics.jsonl"
        return [json.loads(line)["epoch"] for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def status(self) -> str | None:
        path = self.task.path / "summary.json"
        return json.loads(path.read_text())["status"] if path.exists() else None

    @property
    def state(self) -> str:
        return self.site.slurm.state(self.id)

    @property
    def facts(self) -> dict[str, str]:
        return self.site.slurm.jobs()[self.id]

    def log(self) -> str:
        (path,) = self.site.runs.glob(f"{FOLDER}/*/{self.id}.log")
        return path.read_text()

    def reach(self, epoch: int) -> None:
        self.site.wait_for(lambda: self.epochs[-1:] == [epoch], f"{self} at epoch {epoch}")

    def reach_state(self, *states: str, seconds: float = 90.0) -> None:
        self.site.wait_for(lambda: self.state in states, f"{self} {' or '.join(states)}", seconds)


@pytest.fixture
def site(slurm: TwoNodes, tmp_path: Path) -> Iterator[Site]:
    yield Site(slurm, tmp_path)
    if "SLURM_KEEP" not in os.environ:
        slurm.run("scancel", "--user=root")


def held(site: Site, cells: Sequence[str], **gates: tuple[int, bool]) -> None:
    """Place gates before anything runs: cells' last two words joined by _ -> (epoch, deaf)."""
    listing = site.python("scripts/submit.py", *cells, *SMALL, *SITE, "--dry-run", "--list")
    paths = [Path(line.split()[0]) for line in listing.splitlines() if re.search(r"/seed\d+  ", line)]
    assert len(paths) == len(cells)
    for cell, path in zip(cells, paths, strict=True):
        name = "_".join(cell.split("/")[-2:])
        if name in gates:
            epoch, deaf = gates[name]
            (site.gates / f"{path.parent.name}-{path.name}-{epoch}").write_text("deaf" if deaf else "")


def test_an_array_that_suffers_everything_ends_in_the_table_computed_here(site: Site) -> None:
    """8 cells, 2 at a time; the process that has submitted them is gone from the beginning."""
    held(site, CELLS, static_s80=(2, True), static_s90=(1, False), gmp_s80=(1, False), gmp_s90=(2, False))
    jobs = site.submit(*CELLS, *SMALL, "cluster.max_parallel=2", "cluster.time=10", "cluster.save_s=45")
    killed, requeued, cancelled, lost, *others = jobs
    site.slurm.run("scontrol", "update", f"jobid={killed.id}", "timelimit=1")

    requeued.reach(1)
    assert "8 run(s): 2 running, 6 queued, 0 to do." in site.missing(*CELLS, *SMALL)
    site.slurm.run("scontrol", "requeue", requeued.id)
    site.wait_for(lambda: requeued.state == "PENDING", f"{requeued} pending")
    requeued.let_go()

    cancelled.reach(1)
    site.slurm.run("scancel", cancelled.id)
    cancelled.reach_state("CANCELLED")

    lost.reach(2)
    node = lost.facts["NodeList"]
    assert node != killed.facts["NodeList"]
    site.slurm.crash(node)
    site.slurm.run("scontrol", "update", f"nodename={node}", "state=down", "reason=lost")
    lost.reach_state("PENDING")
    lost.let_go()
    site.slurm.boot(node)
    site.slurm.run("scontrol", "update", f"nodename={node}", "state=resume")

    killed.reach_state("TIMEOUT", seconds=180)
    killed.let_go()
    for job in (requeued, lost, *others):
        job.reach_state("COMPLETED", seconds=180)
        assert job.facts["ExitCode"] == "0:0" and job.status == "completed" and job.epochs == [1, 2, 3, 4]
    assert [job.facts["Restarts"] for job in jobs] == ["0", "1", "0", "1", "0", "0", "0", "0"]
    assert killed.epochs == [1, 2] and cancelled.epochs == [1]
    assert killed.status is None and cancelled.status is None

    # The table says what is lacking, and the same command submits that and no more.
    assert "8 run(s): 6 complete, 2 to do (2 interrupted before)." in site.missing(*CELLS, *SMALL)
    cells = {(cell["row"], cell["column"]): cell["measured"]["status"] for cell in site.table(site.runs)}
    assert cells["static", "s80"] == cells["gmp", "s80"] == "missing" and cells["dsr", "s80"] == "partial"
    cancelled.let_go()
    again = site.submit(*CELLS, *SMALL)
    assert [job.task.path for job in again] == [killed.task.path, cancelled.task.path]
    for job in again:
        job.reach_state("COMPLETED")
        assert job.epochs == [1, 2, 3, 4]
    assert "8 run(s): 8 complete, 0 to do." in site.missing(*CELLS, *SMALL)

    here = site.runs.parent / "here"
    site.python(
        "scripts/submit.py", *CELLS, *SMALL, "--runs", str(here), "--wait", "cluster.workers=2", "trainer.device=cpu"
    )
    assert site.table(site.runs) == site.table(here)
