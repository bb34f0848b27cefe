"""Execution of one resolved configuration: parents first, skip what is complete, resume what was interrupted."""

from __future__ import annotations

import logging
import math
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from runner import checkpoint
from runner.environment import describe
from runner.errors import Misuse
from runner.experiment import Experiment, make, validate
from runner.identity import Config, key, parent_config, run_dir
from runner.loggers import Logger, make_logger
from runner.records import RunDirectory
from runner.trainer import Interrupted, Progress, Trainer

log = logging.getLogger("regrow")
REQUEUE = 75  # EX_TEMPFAIL: interrupted and saved, run me again


class ParentFailed(Misuse):
    """A stage's parent failed or diverged."""


def execute(
    config: Config, overrides: list[str], progress: Progress | None = None, weights: bool = False
) -> dict[str, Any]:
    """Run a configuration to its end and return its summary; a completed or diverged run is not repeated.

    With `weights`, a completed run whose checkpoint is gone is repeated: a stage needs it. Misuse for bad input,
    `ParentFailed` when a parent has no weights to start from, `Interrupted` after a signal. Any other exception is
    recorded as status `failed` and raised again.
    """
    validate(config)
    directory = RunDirectory(run_dir(config["runs"], config))
    if summary := _finished(directory, weights):
        return summary
    parent = _parent(config, progress)
    with directory.held(), _log_to(directory.path / "log.txt"), _signals() as stop, ExitStack() as ending:
        # Another process may have finished it while this one waited for the parent.
        if summary := _finished(directory, weights):
            return summary
        began = datetime.now(UTC).isoformat(timespec="seconds")
        frame = {"key": key(config), "seed": config["seed"], "started": began, "parent": parent[0] if parent else None}
        logger: Logger | None = None
        try:
            experiment = make(config)
            directory.begin(config, overrides, describe(str(experiment.device), experiment.settings.threads))
            logger = make_logger(config, directory.path)
            ending.callback(logger.close)
            trainer = Trainer(experiment, directory, _both(logger.epoch, progress), stop)
            if parent:
                _start_from(trainer, config["start"]["take"], parent[1])
            history = trainer.fit()
        except Interrupted:
            raise
        except Misuse:
            directory.discard_unbegun()
            raise
        except Exception as error:
            log.error("%s", traceback.format_exc())
            reason = f"{type(error).__name__}: {error}"
            failed = {**frame, "status": "failed", "reason": reason, "ended": _now()}
            directory.finish(failed)
            if logger is not None:
                logger.finish(failed)
            raise
        summary = {**frame, **_summarise(trainer, history), "ended": _now(), "wall_s": _wall(history)}
        directory.finish(summary)
        logger.finish(summary)
        return summary


def _finished(directory: RunDirectory, weights: bool) -> dict[str, Any] | None:
    """The summary of a run that is not to be repeated."""
    summary = directory.summary()
    if summary is None or summary["status"] not in ("completed", "diverged"):
        return None
    if weights and summary["status"] == "completed" and checkpoint.load(directory.checkpoints) is None:
        return None
    return summary


def _both(first: Progress, second: Progress | None) -> Progress:
    def tell(line: dict[str, Any]) -> None:
        first(line)
        if second is not None:
            second(line)

    return tell


def _parent(config: Config, progress: Progress | None) -> tuple[dict[str, Any], Path] | None:
    """Run the parent of a stage; its identity and its directory."""
    parent = parent_config(config)
    if parent is None:
        return None
    path = run_dir(config["runs"], parent)
    summary = execute(parent, config["start"]["overrides"], progress, weights=True)
    if summary["status"] != "completed":
        raise ParentFailed(f"the parent run {path} has {summary['status']}; a stage needs its weights.")
    return {"key": key(parent), "seed": parent["seed"]}, path


def _start_from(trainer: Trainer, take: str, parent: Path) -> None:
    """Take from the parent its weights, its mask, or both; weights not taken are the initial ones.

    take: weights | mask (new training within it) | weights_and_mask (fine-tuning) | init (nothing of its training).
    The initial weights are those of the parent, which the shared seed gives anew, unless start.initialization says so.
    """
    state = checkpoint.load(parent / "checkpoints", trainer.e.device)
    if state is None:
        raise ParentFailed(f"the parent run {parent} is complete but has no readable checkpoint; delete it to redo it.")
    if "weights" in take:
        trainer.model.load_state_dict(state["model"])
    if "mask" in take:
        names = trainer.e.method.effective()
        trainer.adopted = state["method"].get("masks", {}), {name: state["model"][name] for name in names}


def _summarise(trainer: Trainer, history: list[dict[str, Any]]) -> dict[str, Any]:
    final = history[-1]
    metric = f"test/{trainer.e.task.metric}"
    sign = 1 if trainer.e.task.directions[trainer.e.task.metric] == "up" else -1
    at_target = [line for line in history if line["mask/sparsity"] >= final["mask/sparsity"] - 1e-12]
    best = max(at_target, key=lambda line: sign * line[metric] if math.isfinite(line[metric]) else -math.inf)
    status, reason = verdict(final, trainer.e)
    return {
        "status": status,
        "reason": reason,
        "epochs": final["epoch"],
        "steps": final["step"],
        "final": final,
        "best": best,
        "layers": trainer.layers(),
        **trainer.recorders.summary(),
    }


def verdict(final: dict[str, Any], experiment: Experiment) -> tuple[str, str | None]:
    """completed, or diverged and why: a loss that is not finite, or no better than chance at the end."""
    loss, chance = final["train/loss"], experiment.task.chance_loss
    if not math.isfinite(loss):
        return "diverged", f"the training loss of epoch {final['epoch']} is {loss}"
    if loss >= chance:
        return "diverged", f"the final training loss {loss:.4f} is no better than chance ({chance:.4f})"
    return "completed", None


def _wall(history: list[dict[str, Any]]) -> float:
    """Seconds spent on the epochs, whatever processes they were spent in."""
    return sum(line["time/epoch_s"] for line in history)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    level = log.level
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        handler.close()


@contextmanager
def _signals() -> Iterator[Callable[[], bool]]:
    """SIGTERM, SIGUSR1 and SIGINT: finish the step, save, stop. Yields the question whether one came."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    kinds = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = {kind: signal.signal(kind, lambda number, frame: received.append(number)) for kind in kinds}
    try:
        yield lambda: bool(received)
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
