"""Sweeps by one of Hydra's launchers (`-m hydra/launcher=submitit_slurm`): submitted, waited for, nothing frozen.

Each job composes its overrides anew when it starts, from the files as they are then, and is `python -m runner` on them.
`scripts/submit.py` and the plain `-m` go without this.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks  # a launcher cannot be set up without them
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.types import HydraContext
from omegaconf.errors import OmegaConfBaseException

from runner.compose import CONF, compose, groups, parse
from runner.environment import ROOT
from runner.errors import Misuse, nearest
from runner.pool import environment
from runner.submission import FOLDER

LAUNCHER = "hydra/launcher"
_BUILT_IN = "basic"
_PLUGIN = "hydra_plugins.hydra_submitit_launcher"
_QUIET = ("hydra/job_logging=none", "hydra/hydra_logging=none")  # else a job leaves an empty log file behind


def launch(jobs: Sequence[Sequence[str]], options: Sequence[str]) -> int:
    """Hand the jobs (the overrides of each) to the launcher that `options` (overrides of Hydra's own) name.

    Returns the largest of the jobs' exit codes when all have ended; 1 when the launcher could not make them. Misuse for
    an unknown launcher or option, and before anything begins for a mistake in any job.
    """
    chosen = {override.key_or_group: override.value() for override in parse(options)}
    for name in chosen:
        if name != LAUNCHER and not name.startswith("hydra.launcher."):
            raise Misuse(f"{name}: of Hydra's own settings only {LAUNCHER} and hydra.launcher.* count here.")
    name = str(chosen.get(LAUNCHER, _BUILT_IN))
    if name.startswith("submitit") and not _installed():
        raise Misuse(f"{LAUNCHER}={name} needs a plugin of Hydra: pip install hydra-submitit-launcher submitit")
    from runner.experiment import validate  # loads torch

    configs = [compose(job) for job in jobs]
    for config in configs:
        validate(config)
    folder = "hydra.launcher.submitit_folder"
    if name.startswith("submitit") and folder not in chosen:
        # Beside the frozen submissions, where nobody looks for runs.
        options = [*options, f"{folder}='{os.path.join(configs[0]['runs'], FOLDER, 'submitit', '%j')}'"]
    print(f"{len(jobs)} job(s) by {LAUNCHER}={name}", flush=True)
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with _initialised(), environment(PYTHONPATH=path):  # a job may begin anywhere
        launcher = _launcher(name, options)
        try:
            returned = launcher.launch([_without_repeated_choices(job) for job in jobs], initial_job_idx=0)
        except Exception as error:  # whatever a plugin or its scheduler met
            return _failed(f"{LAUNCHER}={name}", error)
    codes = [_code(each) for each in returned]
    for each, code in zip(returned, codes, strict=True):
        print(f"  {' '.join(each.overrides or ())}: exit code {code}")
    return max(codes)


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


def _initialised() -> AbstractContextManager[None]:
    GlobalHydra.instance().clear()
    return initialize_config_dir(str(CONF), version_base="1.3", job_name="regrow")


def _launcher(name: str, options: Sequence[str]) -> Any:
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    known = hydra.config_loader.get_group_options(LAUNCHER)
    if name not in known:
        raise Misuse(f"there is no {LAUNCHER} {name!r}.{nearest(name, known)}")
    try:
        config = hydra_compose("config", [*_QUIET, *options], return_hydra_config=True)
        context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(config))
        return Plugins.instance().instantiate_launcher(context, job, config)
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

    return main([str(override) for override in HydraConfig.get().overrides.task])
