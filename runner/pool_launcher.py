"""A launcher of Hydra's for this machine's pool of worker processes: `-m hydra/launcher=pool cluster.workers=4`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from results.missing import Missing
from results.plan import PlannedRun
from runner.attempt import CODES
from runner.cluster import Local, cluster
from runner.compose import compose
from runner.errors import Misuse
from runner.identity import key, parent_config
from runner.local import WORKERS_LOG, capacity, conclusion
from runner.lock import beating
from runner.pool import Pool
from runner.progress import Progress
from runner.queue import queued
from runner.submission import freeze, hold, new_folder

# How a run that the pool is not given stands (results.missing): the exit code that says so.
_LEFT = {"complete": 0, "diverged": 3, "running": 75, "queued": 75, "blocked": 1}


class PoolLauncher(Launcher):
    """Executes jobs on the pool that `submit.py --cluster local --wait` uses, as a frozen submission: each run once."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Nothing is to be set up: workers compose nothing."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """What each job came to: its exit code. Misuse when the jobs are not this machine's."""
        jobs = [(tuple(overrides), compose(overrides)) for overrides in job_overrides]
        first = jobs[0][1]
        place = cluster(first["cluster"])
        if not isinstance(place, Local):
            raise Misuse(f"hydra/launcher=pool is this machine's; cluster={first['cluster']['name']} is not.")
        runs = []
        for overrides, config in jobs:
            parent = parent_config(config)
            above = None if parent is None else key(parent)
            runs.append(PlannedRun(key(config), config["seed"], overrides, above, (), config))
        missing = Missing(runs, queued(first["runs"]), None)
        for sentence in missing.sentences:
            print(sentence)
        codes = {run: _LEFT.get(standing, CODES["interrupted"]) for run, standing in missing.standings.items()}
        if tasks := missing.tasks:
            folder = new_folder(first["runs"])
            began = time.monotonic()
            try:
                lock = hold(folder)
                facts = {"cluster": first["cluster"], "cwd": os.getcwd(), "command": sys.argv}
                file = freeze(folder, tasks, facts)
            except OSError as error:
                raise Misuse(
                    f"{folder} cannot be written: {error.strerror}; make room, or name another runs=DIR."
                ) from None
            size, devices = capacity(tasks, place)
            with lock, Progress([int(task.config["schedule"]["epochs"]) for task in tasks]) as progress:
                pool = Pool(tasks, size, progress, file.parent / WORKERS_LOG, devices)
                with beating(folder):
                    pool.run()
                for line in conclusion(tasks, pool.outcomes, time.monotonic() - began):
                    progress.say(line)
            codes |= {tasks[index].identity: CODES[outcome.status] for index, outcome in pool.outcomes.items()}
        return [
            JobReturn(overrides, status=JobStatus.COMPLETED, _return_value=codes[run.key, run.seed])
            for (overrides, _), run in zip(jobs, runs, strict=True)
        ]
