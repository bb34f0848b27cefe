"""Every distinct configuration behind a cell of a table or figure builds, and takes a step on synthetic data."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch

from results import document
from results.address import figures, load, select
from results.plan import PlannedRun, plan
from runner.compose import compose
from runner.experiment import make, validate
from runner.records import RunDirectory
from runner.trainer import Trainer
from tests import streams

# Small inputs that every model of the dataset takes; the sizes of its images are another test's matter.
SHAPES = {
    "mnist": [1, 28, 28],
    "digits": [1, 8, 8],
    "cifar10": [3, 32, 32],
    "cifar10_jpeg": [3, 32, 32],
    "cifar100": [3, 32, 32],
    "imagenet": [3, 64, 64],
}


PARTS = 40


@functools.cache
def distinct() -> list[PlannedRun]:
    """One run of every key that can be composed today."""
    tables = [selection.table for selection in select()]
    tables += [load(path) for path in figures().values() if "table" not in document.load(path)]
    runs = plan(slot for table in tables for slot in table.slots())
    return list({run.key: run for run in reversed(runs)}.values())


def small_text(config: dict[str, Any], root: Path) -> dict[str, Any]:
    """The same experiment on a miniature text, with a model of the same parts and fewer of them."""
    if not (root / "wikitext-2").exists():
        streams.write(root)
    tiny = compose(streams.overrides(root))
    model = {**tiny["model"], "name": config["model"]["name"]}
    dataset = {**tiny["dataset"], "rows": 2}
    schedule = {**config["schedule"], "batch_size": 2, "warmup_epochs": 0}  # a learning rate above 0 at the first step
    return {**config, "data": tiny["data"], "model": model, "dataset": dataset, "start": None, "schedule": schedule}


def small(config: dict[str, Any], root: Path) -> dict[str, Any]:
    """The same experiment on four noise images of the dataset's kind, without its parent's weights."""
    config = {**config, "precision": "fp32"}  # in fp16 a ResNet-50's gradients on two samples overflow for many steps
    dataset = config["dataset"]
    if "train_tokens" in dataset:  # a text: the model as it is would take minutes
        return small_text(config, root)
    if dataset["name"] == "imdb":
        noise = compose(["dataset=synthetic_texts", "dataset.train_size=4", "dataset.test_size=2"])["dataset"]
        return {**config, "dataset": noise, "start": None, "schedule": {**config["schedule"], "batch_size": 2}}
    noise = compose(["dataset=synthetic", "dataset.train_size=4", "dataset.test_size=2"])["dataset"]
    classes = {"mnist": 10, "digits": 10, "cifar10": 10, "cifar10_jpeg": 10, "cifar100": 100}.get(
        dataset["name"], dataset.get("num_classes")
    )
    noise |= {"shape": SHAPES[dataset["name"]], "num_classes": classes}
    return {**config, "dataset": noise, "start": None, "schedule": {**config["schedule"], "batch_size": 2}}


def ones(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: torch.ones_like(w, dtype=torch.bool) for name, w in trainer.e.method.effective().items()}


def test_there_are_configurations_to_build() -> None:
    assert len(distinct()) >= 50


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS // 2))
def test_every_config_builds_and_takes_a_step(part: int, tmp_path: Path) -> None:
    """The other half is tests/test_other_configs.py's: two files for two workers, in parts, so that neither is last."""
    check(distinct()[part::PARTS], tmp_path)


def check(runs: list[PlannedRun], tmp_path: Path) -> None:
    """Each validates as it stands, and in miniature takes a step that changes weights and leaves its masks alone."""
    for number, run in enumerate(runs):
        validate(run.config)  # as it stands in the table
        directory = RunDirectory(tmp_path / str(number))
        trainer = Trainer(make(small(run.config, tmp_path)), directory)
        before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
        if "mask" in ((run.config["start"] or {}).get("take") or ""):  # a parent that kept all it began with
            trainer.e.method.adopt(ones(trainer), trainer.e.method.effective())
        trainer.e.method.begin(trainer.ctx)
        trainer.e.method.on_epoch(trainer.ctx)
        trainer.model.train()
        for _ in range(8):  # a warm-up begins without a learning rate
            trainer.step(trainer.e.data.order(0, 1)[:2])
            trainer.ctx.step += 1
            moved = [name for name, weight in trainer.model.named_parameters() if not torch.equal(weight, before[name])]
            if moved:
                break
        assert moved, f"{run.cells[0]}: a step changes nothing"
        assert all(weight.isfinite().all() for weight in trainer.model.parameters()), run.cells[0]
        effective = trainer.e.method.effective()
        masks = trainer.e.method.masks()
        assert all(not effective[name][~mask].any() for name, mask in masks.items()), f"{run.cells[0]}: the mask leaks"
