"""Execution of one resolved configuration: parents first, skip what is complete, resume what was interrupted."""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from runner import checkpoint, disk, failure
from runner.chain import chain
from runner.device import return_memory
from runner.environment import describe
from runner.epilogue import epilogue
from runner.errors import Misuse, RanksFailed
from runner.experiment import Experiment, make, validate
from runner.identity import Config, key, parent_config, run_dir
from runner.loggers import Logger, make_logger
from runner.records import RunDirectory
from runner.secrecy import redacted
from runner.signals import heard
from runner.trainer import Interrupted, Progress, Trainer
from runner.world import World, join

log = logging.getLogger("regrow")
REQUEUE = 75  # EX_TEMPFAIL: interrupted and saved, run me again


class ParentFailed(Misuse):
    """A stage's parent failed or diverged."""


def execute(
    config: Config,
    overrides: list[str],
    progress: Progress | None = None,
    weights: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Run a configuration to its end and return its summary; a completed or diverged run is not repeated.

    With `weights`, a completed run whose checkpoint is gone is repeated: a stage needs it. `stop` is asked after every
    step, beside the signals, whether to save and stop. Under torchrun or srun every rank calls this with the same
    arguments; all get the same summary, and rank 0 alone tells `progress` every epoch's line, and its method `step`,
    if it has one, every step. Elsewhere it starts the ranks that `trainer.devices` asks for. Misuse for bad input,
    `ParentFailed` when a parent has no weights to start from,
    `Interrupted` after a signal. Any other exception is recorded as status `failed` and raised again.
    """
    settings, schedule, _ = validate(config)
    world = join()
    if world.size == 1 and settings.devices > 1:
        return _launch(config, overrides, progress, weights, stop)
    if world.size > 1 and settings.devices not in (1, world.local_size):
        raise Misuse(
            f"trainer.devices = {settings.devices}, but {world.local_size} rank(s) were started on this node; "
            f"leave trainer.devices out where torchrun or srun starts the ranks."
        )
    if world.size > schedule.batch_size:
        raise Misuse(f"{world.size} ranks cannot share batches of schedule.batch_size = {schedule.batch_size}.")
    try:
        return _execute(config, overrides, progress, weights, stop, world)
    finally:
        return_memory()


def _execute(
    config: Config,
    overrides: list[str],
    progress: Progress | None,
    weights: bool,
    stop: Callable[[], bool],
    world: World,
) -> dict[str, Any]:
    directory = _directory(config)
    if summary := world.lead(lambda: _finished(directory, weights)):
        return summary
    parent = _parent(config, progress, stop, world)
    first = _first(config, progress, stop, world)
    with heard() as signalled, ExitStack() as ending:
        world.lead(lambda: _hold(directory, ending))
        # Another process may have finished it while this one waited for the parent.
        if summary := world.lead(lambda: _finished(directory, weights)):
            return summary
        frame = _frame(config)
        logger: Logger | None = None

        def begin() -> None:
            nonlocal logger
            environment = describe(str(experiment.device), experiment.settings.threads, config)
            directory.begin(config, overrides, environment | ({"ranks": world.size} if world.size > 1 else {}))
            logger = make_logger(config, directory.path)
            ending.callback(logger.close)

        def tell(line: dict[str, Any]) -> None:
            assert logger is not None
            logger.epoch(line)
            if progress is not None:
                progress(line)

        def conclude() -> dict[str, Any]:
            assert logger is not None
            above = None if parent is None else RunDirectory(parent).summary()
            told = {**_summarise(trainer, history), **looks, "chain": chain(history[-1], above)}
            summary = {**frame, **told, "ended": _now(), "wall_s": _wall(history)}
            directory.finish(summary)
            logger.finish(summary)
            return summary

        try:
            experiment = world.together(lambda: make(config))
            world.lead(begin)
            trainer = Trainer(experiment, directory, tell, lambda: signalled() or stop(), world)
            trainer.tick = getattr(progress, "step", None)
            if parent is not None:
                _start_from(trainer, config["start"], parent, first)
            history = trainer.fit()
            completed = verdict(history[-1], experiment)[0] == "completed"
            looks = epilogue(trainer, config, parent) if completed else {}
        except Interrupted:
            raise
        except Misuse:
            if world.first:
                directory.discard_unbegun()
            raise
        except Exception as error:
            log.error("%s", traceback.format_exc())
            if world.first:
                failed = {**frame, "status": "failed", "reason": reason(error, world), "ended": _now()}
                directory.finish_if_possible(failed)
                if logger is not None:
                    logger.finish(failed)
            raise
        return world.lead(conclude)


def _launch(
    config: Config, overrides: list[str], progress: Progress | None, weights: bool, stop: Callable[[], bool]
) -> dict[str, Any]:
    """Have the run executed by ranks of its own, and its failure recorded if they could not."""
    from runner.ranks import launch

    if summary := _finished(_directory(config), weights):
        return summary
    began = _now()
    try:
        with heard() as signalled:
            return launch(config, overrides, progress, weights, lambda: signalled() or stop())
    except RanksFailed as error:
        _record_loss(config, began, error)
        raise


def _record_loss(config: Config, began: str, error: RanksFailed) -> None:
    """Say in the run directory why its ranks have ended: a killed one could not."""
    unfinished, stage = config, parent_config(config)
    while stage is not None:  # the oldest ancestor without an end is the one that they were at
        if _finished(_directory(stage), weights=True) is None:
            unfinished = stage
        stage = parent_config(stage)
    directory = _directory(unfinished)
    if not (directory.path / "config.yaml").exists():
        return  # it has not begun
    with directory.held(), _log_to(directory.path / "log.txt"):
        log.error("%s", error.details or error)
        failed = {"status": "failed", "reason": redacted(str(error)), "ended": _now()}
        directory.finish_if_possible({**_frame(unfinished), "started": began, **failed})


def _directory(config: Config) -> RunDirectory:
    return RunDirectory(run_dir(config["runs"], config))


def _hold(directory: RunDirectory, ending: ExitStack) -> None:
    ending.enter_context(directory.held())
    ending.enter_context(_log_to(directory.path / "log.txt"))


def _frame(config: Config) -> dict[str, Any]:
    """What every summary begins with."""
    parent = parent_config(config)
    identity = None if parent is None else {"key": key(parent), "seed": parent["seed"]}
    return {"key": key(config), "seed": config["seed"], "started": _now(), "parent": identity}


def reason(error: Exception, world: World) -> str:
    """Why a run has failed, in a sentence for its summary."""
    if world.lost(error):
        return f"another rank was lost ({str(error).splitlines()[0]}); what is recorded stays; run again to resume"
    return failure.reason(error)


def _finished(directory: RunDirectory, weights: bool) -> dict[str, Any] | None:
    """The summary of a run that is not to be repeated."""
    summary = directory.summary()
    if summary is None or summary["status"] not in ("completed", "diverged"):
        return None
    if weights and summary["status"] == "completed" and checkpoint.load(directory.checkpoints) is None:
        return None
    return summary


def _parent(config: Config, progress: Progress | None, stop: Callable[[], bool], world: World) -> Path | None:
    """Run the parent of a stage; its directory."""
    parent = parent_config(config)
    if parent is None:
        return None
    path = run_dir(config["runs"], parent)
    summary = _execute(parent, config["start"]["overrides"], progress, True, stop, world)
    if summary["status"] != "completed":
        raise ParentFailed(f"the parent run {path} has {summary['status']}; a stage needs its weights.")
    return path


def _first(config: Config, progress: Progress | None, stop: Callable[[], bool], world: World) -> Path | None:
    """Run the first of the runs that a stage builds on, if it rewinds to that one's weights; its directory."""
    if not config.get("start") or config["start"].get("initialization") != "rewound":
        return None
    while parent_config(parent := parent_config(config) or config):
        config = parent
    return _parent(config, progress, stop, world)


def _start_from(trainer: Trainer, start: dict[str, Any], parent: Path, first: Path | None) -> None:
    """Take from the parent its weights, its mask, or both; weights not taken are the initial ones.

    checkpoint: last, or a name under which the parent's method has its best weights kept.
    take: weights | mask (new training within it) | weights_and_mask (fine-tuning) | init (nothing of its training).
    The initial weights are those of the parent, which the shared seed gives anew, unless start.initialization says
    otherwise: random ones, or "rewound", those at the end of the chain's first run (Frankle et al. 2020: the weights of
    an early epoch). `first`: that run's directory.
    """
    state = _weights_of(parent, trainer.world)
    if first is not None:
        trainer.model.load_state_dict(_weights_of(first, trainer.world)["model"])
    take, name = start["take"], start["checkpoint"]
    if name != "last":
        if name not in state.get("kept", {}):
            has = ", ".join(["last", *state.get("kept", {})])
            raise ParentFailed(
                f"the parent run {parent} kept no checkpoint {name!r}, only {has}; set start.checkpoint."
            )
        state = state["kept"][name]
    if "weights" in take:
        trainer.model.load_state_dict(state["model"])
    if "mask" in take:
        names = trainer.e.method.effective()
        trainer.adopted = state["method"].get("masks", {}), {name: state["model"][name] for name in names}


def _weights_of(parent: Path, world: World) -> dict[str, Any]:
    state: dict[str, Any] | None = world.lead(lambda: checkpoint.load(parent / "checkpoints"))
    if state is None:
        raise ParentFailed(f"the parent run {parent} is complete but has no readable checkpoint; delete it to redo it.")
    return state


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
        **trainer.kept.summary(),
        "layers": trainer.layers(),
        **trainer.recorders.summary(),
    }


def verdict(final: dict[str, Any], experiment: Experiment) -> tuple[str, str | None]:
    """completed, or diverged and why: a loss that is not finite, or no better than chance at a training's end."""
    loss, chance = final["train/loss"], experiment.task.chance_loss
    if not math.isfinite(loss):
        return "diverged", f"the training loss of epoch {final['epoch']} is {loss}"
    if loss >= chance and experiment.schedule.whole:
        return "diverged", f"the final training loss {loss:.4f} is no better than chance ({chance:.4f})"
    return "completed", None


def _wall(history: list[dict[str, Any]]) -> float:
    """Seconds spent on the epochs, whatever processes they were spent in."""
    return sum(line["time/epoch_s"] for line in history)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    handler = disk.Log(path)
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
