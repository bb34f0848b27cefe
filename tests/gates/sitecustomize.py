"""Runs that wait at the end of an epoch while a test holds them there: for tests that interfere with SLURM's jobs.

With this folder in PYTHONPATH and REGROW_GATES naming a folder, a run of KEY and SEED waits after its EPOCH while the
file KEY-seedSEED-EPOCH is there. One with the word "deaf" in it holds even a run that has been told to stop.
"""

import importlib.abc
import importlib.machinery
import os
import sys
import time
from pathlib import Path


class Finder(importlib.abc.MetaPathFinder):
    """Patches runner.trainer when it is imported."""

    def find_spec(self, name, path, target=None):
        if name != "runner.trainer":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            gate(module.Trainer)

        spec.loader.exec_module = exec_module
        return spec


def gate(trainer_class):
    """Let `train_epoch` end where there is no file against it."""
    train_epoch = trainer_class.train_epoch

    def gated(trainer):
        train_epoch(trainer)
        run = trainer.directory.path
        file = Path(os.environ["REGROW_GATES"], f"{run.parent.name}-{run.name}-{trainer.ctx.epoch}")
        while file.exists() and (not trainer.stop() or "deaf" in file.read_text()):
            time.sleep(0.05)

    trainer_class.train_epoch = gated


if "REGROW_GATES" in os.environ:
    sys.meta_path.insert(0, Finder())
