"""Is a recorded number true? Its checkpoint evaluated once more, or the whole run repeated, compared bit for bit."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from runner import checkpoint
from runner.compare import Difference, differences
from runner.compose import compose
from runner.epilogue import PARTS, epilogue
from runner.errors import Misuse
from runner.execute import execute
from runner.experiment import make
from runner.identity import NEUTRAL, SCIENCE, Config, parent_config, run_dir
from runner.measuring import measuring
from runner.records import RunDirectory, read_metrics
from runner.trainer import Progress, Trainer

#: The fields of a summary that tell what came out.
RESULT = (
    "status",
    "reason",
    "epochs",
    "steps",
    "final",
    "best",
    "dense",
    "sparse",
    "layers",
    "chain",
    *PARTS,
    "records",
    "series",
    "parent",
)


def here(config: Mapping[str, Any], data: str | None = None, device: str | None = None) -> Config:
    """A stored configuration made to run on this machine: its science, precision, threads and seed as they are.

    `data`: the data root; REGROW_DATA comes next, then the stored one. Nobody but the run directory hears of the run.
    Machine settings that are no more are left out.
    Misuse when the stored configuration lacks a section.
    """
    for section in (*SCIENCE, "seed", "trainer"):
        if section not in config and section not in NEUTRAL:
            raise Misuse(f"the stored configuration has no section {section!r}, so the run cannot be built from it.")
    now = compose()
    root = data or os.environ.get("REGROW_DATA") or (config.get("data") or now["data"])["root"]
    trainer = {name: value for name, value in config["trainer"].items() if name in now["trainer"]}
    trainer |= {} if device is None else {"device": device}
    return {**now, **config, "logger": now["logger"], "data": {"root": root}, "trainer": trainer}


def evaluate(path: Path, config: Config, steps: int) -> dict[str, Any]:
    """The test metrics and sparsities of a run directory's last checkpoint, which must be the one after `steps` steps.

    With them, as PART:NAME, what `runner.epilogue` finds; the parent of a stage is looked for below the same runs root.
    Nothing is written. The model is built from `config`, whose targets are checked like any configuration's.
    """
    trainer = finished(path, config, steps)
    with measuring(trainer.model, trainer.world) as own:
        found: dict[str, Any] = {f"test/{name}": value for name, value in trainer.evaluate().items()}
    found |= own
    found |= {f"{kind}/sparsity": 1 - kept / total for kind, (kept, total) in trainer.densities().items()}
    above = parent_config(config)
    parent = None if above is None else run_dir(path.absolute().parents[4], above)
    for part, metrics in epilogue(trainer, config, parent).items():
        found |= {f"{part}:{name}": value for name, value in metrics.items() if not isinstance(value, str)}
    return found


def finished(path: Path, config: Config, steps: int) -> Trainer:
    """The trainer of a run directory with model, method and task as its last checkpoint, after `steps` steps, has them.

    Misuse when that checkpoint is not there or is another one's.
    """
    experiment = make(config)
    directory = RunDirectory(path)
    state = checkpoint.load(directory.checkpoints, experiment.device)
    if state is None:
        raise Misuse(f"{directory.checkpoints} has no readable checkpoint (any more); repeat the run with rerun.")
    if state["key"] != experiment.key:
        raise Misuse(f"{directory.checkpoints} belongs to run {state['key']}, not to {experiment.key}.")
    if state["position"]["step"] != steps:
        raise Misuse(
            f"the last good checkpoint in {directory.checkpoints} is of step {state['position']['step']}, not of the "
            f"last one, {steps}; repeat the run with rerun."
        )
    trainer = Trainer(experiment, directory)
    trainer.model.load_state_dict(state["model"])
    experiment.method.load_state_dict(state["method"])
    experiment.task.load_state_dict(state["task"])
    return trainer


def rerun(config: Config, overrides: list[str], root: Path, progress: Progress | None = None) -> Path:
    """Repeat a run (and the parents of a stage) from its configuration below `root`; the new run directory.

    Misuse when a finished run lies there already: it would be compared instead of a new one.
    """
    config = {**config, "runs": str(root)}
    path = run_dir(root, config)
    if RunDirectory(path).summary() is not None:
        raise Misuse(f"{path} holds an earlier repetition; remove it, or give another folder with --out.")
    execute(config, overrides, progress)
    return path


def results(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Summary and metrics of a finished run directory."""
    lines, problems = read_metrics(path / "metrics.jsonl")
    if problems:
        raise Misuse(f"{problems[0]}.")
    return RunDirectory(path).summary() or {}, lines


def first_difference(
    recorded: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]
) -> tuple[int, Difference] | None:
    """The first epoch and field in which two runs' metrics are not equal bit for bit, wall-clock fields aside."""
    nothing: Mapping[str, Any] = {}
    for position, (old, new) in enumerate(zip_longest(recorded, now, fillvalue=nothing), start=1):
        for difference in differences(timeless(old), timeless(_as_then(new, old))):
            return old.get("epoch", new.get("epoch", position)), difference
    return None


def summary_differences(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """The fields in which two summaries tell another result, wall-clock fields aside."""
    parts = [part for part in RESULT if part not in ("chain", *PARTS) or part in recorded]
    told = {part: timeless(recorded.get(part)) for part in parts}
    again = {part: timeless(_as_then(now.get(part), told[part])) for part in parts}
    return list(differences(told, again))


def _as_then(now: Any, recorded: Any) -> Any:
    """Metrics without their FLOPs, where the recorded run is from before these were counted."""
    if not isinstance(now, Mapping) or not isinstance(recorded, Mapping):
        return now
    return {name: value for name, value in now.items() if name in recorded or not name.startswith("flops")}


def timeless(value: Any) -> Any:
    """Metrics, however nested, without those that depend on the clock."""
    if not isinstance(value, Mapping):
        return value
    return {name: timeless(item) for name, item in value.items() if not name.startswith("time/")}
