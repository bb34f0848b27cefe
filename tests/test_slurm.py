"""Submissions to a real SLURM: two nodes on this machine, with everything that a cluster does to jobs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runner import launcher
from runner.records import RunDirectory
from runner.submission import FOLDER, TASKS, Task, facts, load
from tests.two_nodes import TwoNodes, environment, slurm, wait_for

__all__ = ["slurm"]

pytestmark = pytest.mark.slurm
ROOT = Path(__file__).resolve().parents[1]
GATES = ROOT / "tests" / "gates"
#: Four epochs of the digits; saved after every step; a node each, so that one node's end is one run's.
SITE = ("--cluster", "slurm", "cluster.cpus_per_task=2", "cluster.mem=1G", "trainer.checkpoint_seconds=0")
CELLS = [f"demo/digits/{row}/{column}" for row in ("static", "gmp", "set", "dsr") for column in ("s80", "s90")]
SMALL = ("--profile", "tenth", "--seeds", "0")


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
        """Submit; the runs in their order, those of the parents' array first."""
        before = self.submissions()
        said = self.python("scripts/submit.py", *SITE, *arguments)
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
        return self.python("scripts/submit.py", *SITE, *arguments, "--dry-run").splitlines()[0]

    def table(self, runs: Path) -> list[dict[str, Any]]:
        """The demo's table from a runs root, without where its runs lie and when they ran."""
        text = self.python(
            "scripts/make_tables.py", "demo/digits", "--profile", "tenth", "--format", "json", "--runs", str(runs)
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

    def hold(self, epoch: int) -> None:
        """Before it comes there."""
        key, seed = self.task.identity
        (self.site.gates / f"{key}-seed{seed}-{epoch}").touch()

    def let_go(self, epoch: int | None = None) -> None:
        key, seed = self.task.identity
        for gate in self.site.gates.glob(f"{key}-seed{seed}-{epoch or '*'}"):
            gate.unlink()

    @property
    def epochs(self) -> list[int]:
        """The epochs of which it has recorded metrics."""
        path = self.task.path / "metrics.jsonl"
        return [json.loads(line)["epoch"] for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def summary(self) -> dict[str, Any]:
        """{} while there is none."""
        return RunDirectory(self.task.path).summary() or {}

    @property
    def status(self) -> str | None:
        return self.summary.get("status")

    @property
    def state(self) -> str:
        return self.site.slurm.state(self.id)

    @property
    def facts(self) -> dict[str, str]:
        return self.site.slurm.jobs()[self.id]

    def log(self, task: int | None = None) -> str:
        """What the array task has said; that of one task of a pack."""
        (path,) = self.site.runs.glob(f"{FOLDER}/*/{self.id}{'' if task is None else f'.{task}'}.log")
        return path.read_text()

    @property
    def processes(self) -> list[int]:
        """Those that hold its run directory."""
        lock = (self.task.path / "lock").resolve()
        return [each for each in self.site.slurm.processes() if lock in _open_files(each)]

    @property
    def ranks(self) -> dict[str, list[int]]:
        """Node -> the processes on it that execute this task."""
        found: dict[str, list[int]] = {}
        for process in self.site.slurm.processes():
            facts = environment(process)
            if "SLURM_STEP_NUM_TASKS" in facts and (facts["SLURM_ARRAY_JOB_ID"], facts["SLURM_ARRAY_TASK_ID"]) == (
                self.array,
                str(self.index),
            ):
                found.setdefault(facts["SLURMD_NODENAME"], []).append(process)
        return found

    def reach(self, epoch: int) -> None:
        self.site.wait_for(lambda: self.epochs[-1:] == [epoch], f"{self} at epoch {epoch}")

    def reach_status(self, status: str) -> None:
        self.site.wait_for(lambda: self.status == status, f"{self} {status}")

    def reach_state(self, *states: str, seconds: float = 90.0) -> None:
        self.site.wait_for(lambda: self.state in states, f"{self} {' or '.join(states)}", seconds)


@pytest.fixture
def site(slurm: TwoNodes, tmp_path: Path) -> Iterator[Site]:
    yield Site(slurm, tmp_path)
    if "SLURM_KEEP" not in os.environ:
        slurm.run("scancel", "--user=root")


def _open_files(process: int) -> list[Path]:
    with suppress(OSError):
        return [Path(os.readlink(link)) for link in Path(f"/proc/{process}/fd").iterdir()]
    return []


def hold(site: Site, *arguments: str, **gates: str) -> None:
    """Place gates before anything is submitted: run3="2" holds the fourth run after epoch 2, "2 deaf" for good."""
    listing = site.python("scripts/submit.py", *SITE, *arguments, "--dry-run", "--list")
    paths = [Path(line.split()[0]) for line in listing.splitlines() if re.search(r"/seed\d+  ", line)]
    for name, gate in gates.items():
        path, (epoch, *word) = paths[int(name.removeprefix("run"))], gate.split()
        (site.gates / f"{path.parent.name}-{path.name}-{epoch}").write_text("".join(word))


def test_an_array_that_suffers_everything_ends_in_the_table_computed_here(site: Site) -> None:
    """8 cells, 2 at a time; the process that has submitted them is gone from the beginning."""
    hold(site, *CELLS, *SMALL, run0="2 deaf", run1="1", run2="1", run3="2")
    jobs = site.submit(*CELLS, *SMALL, "cluster.max_parallel=2", "cluster.time=10", "cluster.save_s=45")
    killed, requeued, cancelled, lost, *others = jobs
    requeued.reach(1)
    killed.reach(2)  # told any sooner, it would have nothing to lose, and queue itself again
    site.slurm.run("scontrol", "update", f"jobid={killed.id}", "timelimit=1")
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


def test_a_run_that_is_told_of_its_time_limit_saves_and_queues_itself_again(site: Site) -> None:
    """SLURM counts in minutes, and speaks up to a minute before it should: this takes between a second and a minute."""
    hold(site, CELLS[4], *SMALL, run0="2")
    (job,) = site.submit(CELLS[4], *SMALL, "cluster.time=10", "cluster.save_s=55")
    job.reach(2)
    site.slurm.run("scontrol", "update", f"jobid={job.id}", "timelimit=1")
    site.wait_for(lambda: job.facts["Restarts"] == "1", f"{job} queued again")
    site.slurm.run("scontrol", "update", f"jobid={job.id}", "timelimit=10")
    assert "  interrupted: saved; it resumes when it is run again" in job.log()
    assert (job.status, job.epochs) == (None, [1, 2])
    job.let_go()
    job.reach_state("COMPLETED")
    assert job.status == "completed" and job.epochs == [1, 2, 3, 4]


def test_a_preempted_run_saves_and_resumes_when_the_urgent_one_is_done(site: Site) -> None:
    hold(site, CELLS[5], *SMALL, run0="2")
    (job,) = site.submit(CELLS[5], *SMALL)
    job.reach(2)
    urgent = site.slurm.run(
        "sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--exclusive", "--wrap=true", "--output=/dev/null"
    )
    site.wait_for(lambda: site.slurm.state(urgent.strip()) == "COMPLETED", "the urgent job")
    assert "DUE TO PREEMPTION" in job.log() and "  interrupted: saved" in job.log()
    job.let_go()
    job.reach_state("COMPLETED")
    assert job.facts["Restarts"] == "1" and job.status == "completed" and job.epochs == [1, 2, 3, 4]


STAGES = [f"dsr/lenet_mnist/compressed/{column}" for column in ("s80", "s90", "s95", "s98")]
NOISE = ("dataset=synthetic", "dataset.shape=[1,4,4]", "dataset.train_size=36", "dataset.test_size=12")


def test_packs_of_stages(site: Site) -> None:
    """A parent is cancelled: its children say why they are blocked. Then a pack is queued again, and a run killed."""
    arguments = (*STAGES, *SMALL, *NOISE, "model.hidden=[200,100]", "cluster.pack=2")
    hold(site, *arguments, run0="1", run1="1", run2="1", run3="1 deaf")
    parent, *children = first = site.submit(*arguments)
    assert [job.id for job in first] == [f"{parent.array}_0", *(f"{children[0].array}_{n}" for n in (1, 1, 2, 2))]
    parent.reach(1)
    assert "4 run(s): 4 queued, 0 to do." in site.missing(*arguments)
    site.slurm.run("scancel", parent.id)
    for job in children:
        job.reach_state("FAILED")
        assert job.status == "blocked" and "cancelled, or lost with its node" in job.summary["reason"]
    assert [job.status for job in first] == [None] + ["blocked"] * 4

    parent.let_go()
    parent, queued_again, beside, killed, last = site.submit(*arguments)
    for job in (queued_again, beside, killed, last):
        job.reach(1) if job is not last else job.reach_status("completed")
    site.slurm.run("scontrol", "requeue", queued_again.id)
    (process,) = killed.processes
    os.kill(process, signal.SIGKILL)
    killed.reach_state("FAILED")
    assert "died of SIGKILL" in killed.log() and killed.facts["ExitCode"] == "1:0" and killed.status is None
    queued_again.let_go()
    queued_again.reach_state("COMPLETED")
    assert queued_again.facts["Restarts"] == "1"
    assert [job.status for job in (parent, queued_again, beside, last)] == ["completed"] * 4

    killed.let_go()
    (rest,) = site.submit(*arguments)
    rest.reach_state("COMPLETED")
    assert rest.task == replace(killed.task, after=()) and rest.status == "completed"
    for job in (queued_again, beside, killed, last):
        assert job.epochs == list(range(1, job.task.config["schedule"]["epochs"] + 1)) and len(job.epochs) > 1
        assert job.summary["parent"]["key"] == parent.task.identity[0]


def test_a_run_that_is_submitted_twice_is_run_once(site: Site, tmp_path: Path) -> None:
    """The second submission cannot see the first: squeue does not answer. Its run waits for whoever has begun."""
    hold(site, CELLS[6], *SMALL, run0="2")
    (first,) = site.submit(CELLS[6], *SMALL)
    away = tmp_path / "away" / "squeue"
    away.parent.mkdir()
    away.write_text("#!/bin/bash\nexit 1\n")
    away.chmod(0o755)
    path = site.environment["PATH"]
    site.environment["PATH"] = f"{away.parent}:{path}"
    first_state = first.state
    (second,) = site.submit(CELLS[6], *SMALL)
    site.environment["PATH"] = path
    first.reach(2)
    assert first_state in ("PENDING", "RUNNING")
    site.wait_for(lambda: "waiting for it" in second.log(), f"{second} waiting")
    assert first.task == second.task
    first.let_go()
    for job in (first, second):
        job.reach_state("COMPLETED")
    assert first.epochs == [1, 2, 3, 4] and "epoch" not in second.log()


def test_two_ranks_on_two_nodes_are_told_queued_again_and_lost(site: Site) -> None:
    """One run by srun: what the batch script is told reaches both ranks, and one's death is told by the other."""
    hold(site, CELLS[0], *SMALL, run0="1")
    (job,) = site.submit(CELLS[0], *SMALL, "cluster.nodes=2")
    job.reach(1)
    assert len(job.ranks) == 2 and job.facts["NumNodes"] == "2"
    job.hold(2)
    site.slurm.run("scancel", "--batch", "--signal=USR1", job.id)
    site.wait_for(lambda: job.facts["Restarts"] == "1", f"{job} queued again")
    assert "  interrupted: saved" in job.log() and job.epochs == [1]

    job.let_go(1)
    job.reach(2)
    for process in job.ranks["n1"]:
        os.kill(process, signal.SIGKILL)
    job.reach_state("FAILED")
    assert job.status == "failed" and "another rank was lost (" in job.summary["reason"]
    assert "  failed: another rank was lost (" in job.log()
    assert "1 to do (1 failed before)" in site.missing(CELLS[0], *SMALL, "cluster.nodes=2")

    job.let_go()
    (job,) = site.submit(CELLS[0], *SMALL, "cluster.nodes=2")
    job.reach_state("COMPLETED")
    assert job.status == "completed" and job.epochs == [1, 2, 3, 4] and "(2 ranks)" in job.log()
    assert json.loads((job.task.path / "environment.json").read_text())["ranks"] == 2
    assert_equals_one_process(site, job)


def test_two_ranks_on_one_node_are_cancelled(site: Site) -> None:
    """Both hear of it and save, but neither brings the job back."""
    arguments = (CELLS[1], *SMALL, "trainer.devices=2", "cluster.cpus_per_task=1")
    hold(site, *arguments, run0="2")
    (job,) = site.submit(*arguments)
    job.reach(2)
    assert [len(processes) for processes in job.ranks.values()] == [2]
    site.slurm.run("scancel", job.id)
    job.reach_state("CANCELLED")
    site.wait_for(lambda: not job.ranks, "the end of both ranks")
    assert job.facts["Restarts"] == "0" and "  interrupted: saved" in job.log()
    job.let_go()
    (job,) = site.submit(*arguments)
    job.reach_state("COMPLETED")
    assert job.epochs == [1, 2, 3, 4] and "(2 ranks)" in job.log()
    assert_equals_one_process(site, job)


def assert_equals_one_process(site: Site, job: Job) -> None:
    """As far as sums in another order allow."""
    here = site.runs.parent / "here"
    science = [given for given in job.task.overrides if not given.startswith(("cluster", "trainer"))]
    site.python("-m", "runner", *science, f"runs={here}")
    alone = (RunDirectory(here / job.task.path.relative_to(site.runs)).summary() or {})["final"]
    for name, value in alone.items():
        if not name.startswith("time/"):
            assert job.summary["final"][name] == pytest.approx(value, rel=1e-4, abs=1e-9), name


@pytest.mark.skipif(not launcher._installed(), reason="hydra-submitit-launcher is not installed")
def test_submitits_launcher_waits_for_its_jobs(site: Site) -> None:
    """A sweep of two, of which one diverges; the launcher returns when the results are there, and says how they are."""
    options = ("timeout_min=5", "cpus_per_task=1", "mem_gb=1")
    sweep = ("-m", "runner", "-m", "experiment=demo/digits", "profile=tenth", "method=set", "schedule.lr=0.05,1e30")
    before = set(site.slurm.jobs())
    said = site.python(*sweep, "hydra/launcher=submitit_slurm", *(f"hydra.launcher.{each}" for each in options), code=3)
    told = re.findall(r"schedule\.lr=(\S+): exit code (\d+)", said)
    codes = {float(rate): code for rate, code in told}
    assert codes == {0.05: "0", 1e30: "3"}
    jobs = set(site.slurm.jobs()) - before
    assert len(jobs) == 2
    for job in jobs:  # a result is there a moment before SLURM knows that its job has ended
        site.wait_for(lambda job=job: site.slurm.state(job) == "COMPLETED", f"{job} completed")
    statuses = [json.loads(path.read_text())["status"] for path in site.runs.rglob("summary.json")]
    assert sorted(statuses) == ["completed", "diverged"]
    assert "  epoch " not in site.python(*sweep, code=3)  # the plain sweep finds the same runs
    assert site.submissions() == set()


@pytest.mark.skipif(not launcher._installed(), reason="hydra-submitit-launcher is not installed")
def test_a_job_of_submitits_that_is_queued_again_resumes(site: Site) -> None:
    """What it saved is resumed by SLURM; the launcher was told 75 meanwhile."""
    hold(site, CELLS[4], *SMALL, run0="2")
    options = ("timeout_min=5", "cpus_per_task=1", "mem_gb=1")
    sweep = ["-m", "runner", "-m", f"cell={CELLS[4]}", "seed=0", "profile=tenth", "trainer.checkpoint_seconds=0"]
    sweep += ["hydra/launcher=submitit_slurm", *(f"hydra.launcher.{each}" for each in options)]
    before = set(site.slurm.jobs())
    with subprocess.Popen([sys.executable, *sweep], cwd=ROOT, env=site.environment) as launching:
        (metrics,) = site.wait_for(lambda: list(site.runs.rglob("metrics.jsonl")), "the run's metrics")
        site.wait_for(lambda: len(metrics.read_text().splitlines()) == 2, "epoch 2")
        (job,) = set(site.slurm.jobs()) - before
        site.slurm.run("scontrol", "requeue", job)
        assert launching.wait(120) == 75
    for gate in site.gates.iterdir():
        gate.unlink()
    site.wait_for(lambda: site.slurm.state(job) == "COMPLETED", f"{job} completed")
    assert [json.loads(line)["epoch"] for line in metrics.read_text().splitlines()] == [1, 2, 3, 4]
    assert json.loads(metrics.with_name("summary.json").read_text())["status"] == "completed"
