"""Sweeps by a launcher that Hydra knows (`-m hydra/launcher=submitit_slurm`): submitted, waited for, nothing frozen.

Each job composes its overrides anew when it starts, from the files as they are then, and is `python -m runner` on them.
`scripts/submit.py` and the plain `-m` go without this.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks  # a launcher cannot be set up without them
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runner.attempt import CODES
from runner.build import build
from runner.compose import CONF, compose, groups, parse
from runner.errors import Misuse, nearest
from runner.hydra_groups import search_path
from runner.packages import python_path
from runner.pool import environment
from runner.submission import FOLDER

LAUNCHER = "hydra/launcher"
INTERRUPTED, REFUSED = CODES["interrupted"], CODES["refused"]
_BUILT_IN = "basic"
_PLUGIN = "hydra_plugins.hydra_submitit_launcher"
_QUIET = ("hydra/job_logging=none", "hydra/hydra_logging=none")  # else a job leaves an empty log file behind


def launch(jobs: Sequence[Sequence[str]], options: Sequence[str]) -> int:
    """Hand the jobs (the overrides of each) to the launcher that `options` (overrides of Hydra's own) name.

    Returns the largest of the jobs' exit codes when all have ended; 1 when the launcher could not make them. Misuse for
    an unknown launcher or option, and before anything begins for a mistake in any job.
    """
    name = launcher_of(options)
    from runner.experiment import validate  # loads torch

    configs = [compose(job) for job in jobs]
    for config in configs:
        validate(config)
    print(f"{len(jobs)} job(s) by {LAUNCHER}={name}", flush=True)
    with prepared(options, configs[0]["runs"]) as (context, settings):
        codes = hand_over(make_launcher(name, context, job, settings), name, jobs)
    if len(codes) == len(jobs):
        for overrides, code in zip(jobs, codes, strict=True):
            print(f"  {' '.join(overrides)}: exit code {code}")
    return max(codes)


def launcher_of(options: Sequence[str], allowed: Sequence[str] = (LAUNCHER, "hydra.launcher.")) -> str:
    """The launcher that overrides of Hydra's own choose; Misuse for one that is not `allowed` or not installed.

    An allowed name that ends in a dot stands for the settings below it.
    """
    chosen = {override.key_or_group: override.value() for override in parse(options)}
    for name in chosen:
        if name not in allowed and not name.startswith(tuple(each for each in allowed if each.endswith("."))):
            words = [f"{each}*" if each.endswith(".") else each for each in allowed]
            raise Misuse(f"{name}: of Hydra's own settings only {', '.join(words[:-1])} and {words[-1]} count here.")
    name = str(chosen.get(LAUNCHER, _BUILT_IN))
    if name.startswith("submitit") and not _installed():
        raise Misuse(f"{LAUNCHER}={name} needs a plugin of Hydra: pip install hydra-submitit-launcher submitit")
    return name


def hand_over(launcher: Launcher, name: str, jobs: Sequence[Sequence[str]], first: int = 0) -> list[int]:
    """Have a launcher execute jobs, the first of which is number `first`; their exit codes, or one of them all."""
    try:
        returned = launcher.launch([_without_repeated_choices(job) for job in jobs], initial_job_idx=first)
    except _Interruption:
        return [INTERRUPTED]
    except Misuse:
        raise
    except Exception as error:  # whatever a plugin or its scheduler met
        return [_failed(f"{LAUNCHER}={name}", error)]
    return [_code(each) for each in returned]


def _installed() -> bool:
    try:
        return all(importlib.util.find_spec(package) for package in (_PLUGIN, "submitit"))
    except ModuleNotFoundError:  # not even the namespace of plugins
        return False


def _code(returned: JobReturn) -> int:
    try:
        return int(returned.return_value)
    except Exception as error:  # what the job raised
        return _failed(" ".join(returned.overrides or ()), error)


def _failed(what: str, error: Exception) -> int:
    lines = str(error).splitlines() or [type(error).__name__]
    text = " ... ".join(dict.fromkeys((lines[0].strip(), lines[-1].strip())))  # between them there may be a traceback
    print(f"regrow: {what} has failed: {text}", file=sys.stderr)
    return 1


@contextmanager
def prepared(options: Sequence[str], runs: str) -> Iterator[tuple[HydraContext, DictConfig]]:
    """What Hydra gives to its plugins when they are set up: its context and the configuration with its own part.

    `options`: the overrides of that part. Within it processes that a launcher starts find the packages. Misuse for an
    unknown option, or a launcher that there is not.
    """
    chosen = {override.key_or_group: override.value() for override in parse(options)}
    name, folder = str(chosen.get(LAUNCHER, _BUILT_IN)), "hydra.launcher.submitit_folder"
    if name.startswith("submitit") and folder not in chosen:
        # Beside the frozen submissions, where nobody looks for runs.
        options = [*options, f"{folder}='{os.path.join(runs, FOLDER, 'submitit', '%j')}'"]
    GlobalHydra.instance().clear()
    with (
        initialize_config_dir(str(CONF), version_base="1.3", job_name="regrow"),
        environment(PYTHONPATH=python_path()),  # a job may begin anywhere
    ):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        known = hydra.config_loader.get_group_options(LAUNCHER)
        if name not in known:
            raise Misuse(f"there is no {LAUNCHER} {name!r}.{nearest(name, known)}")
        try:
            config = hydra_compose("config", [*_QUIET, *search_path(), *options], return_hydra_config=True)
        except (HydraException, OmegaConfBaseException) as error:
            raise Misuse(f"{' '.join(options)}: {str(error).splitlines()[0]}") from None
        yield HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(config)), config


def make_launcher(name: str, context: HydraContext, task: TaskFunction, config: DictConfig) -> Launcher:
    """The launcher of Hydra's configuration, set up. Hydra itself makes only those of its own and of hydra_plugins."""
    section: Any = OmegaConf.to_container(config.hydra.launcher)
    try:
        if not section["_target_"].startswith("runner."):
            return Plugins.instance().instantiate_launcher(context, task, config)
        launcher: Launcher = build(section, "hydra.launcher")
        launcher.setup(hydra_context=context, task_function=task, config=config)
        return launcher
    except (HydraException, OmegaConfBaseException) as error:
        raise Misuse(f"{LAUNCHER}={name}: {str(error).splitlines()[0]}") from None


def _without_repeated_choices(overrides: Sequence[str]) -> list[str]:
    """The overrides, of two choices for one group only the last: Hydra refuses both, `compose` takes the last."""
    keys = [override.key_or_group for override in parse(overrides)]
    return [
        text
        for number, (text, key) in enumerate(zip(overrides, keys, strict=True))
        if key not in groups() or key not in keys[number + 1 :]
    ]


def job(config: object) -> int:
    """What a launcher executes: the overrides of this job, as on the command line; the exit code."""
    from runner.__main__ import main

    code = main([str(override) for override in HydraConfig.get().overrides.task])
    if code == INTERRUPTED and HydraConfig.get().runtime.choices.get(LAUNCHER) == _BUILT_IN:
        raise _Interruption  # the next job would begin in this same process, which has been asked to stop
    return code


class _Interruption(BaseException):
    """Of a job in this process: Hydra lets nothing else through."""


class Here(Launcher):
    """Executes jobs one after the other in this process, as the plain `-m` does, and composes nothing by Hydra."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """There is nothing to set up."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """The exit code of each job. None begins after one that was interrupted or refused: they have its code."""
        from runner.__main__ import main

        codes: list[int] = []
        for overrides in job_overrides:
            ended = bool(codes) and codes[-1] in (INTERRUPTED, REFUSED)
            codes.append(codes[-1] if ended else main(list(overrides)))
        return [
            JobReturn(overrides, status=JobStatus.COMPLETED, _return_value=code)
            for overrides, code in zip(job_overrides, codes, strict=True)
        ]
