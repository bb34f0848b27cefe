"""Keys: what changes them, what does not."""

import copy
from typing import Any

import pytest

from runner.compose import compose
from runner.identity import NEUTRAL, key, parent_config, run_dir, science


def test_a_key_is_stable_across_processes_and_versions() -> None:
    """A literal: raised revisions and new science options change it knowingly, nothing else may."""
    assert key({"model": {"name": "m", "width": 2.0}, "seed": 1, "precision": "fp32"}) == "f4379403d293"


@pytest.mark.parametrize(
    "machine", ["seed=5", "trainer.threads=2", "runs=/elsewhere", "data.root=/x", "logger=wandb", "cluster=slurm"]
)
def test_seed_and_machine_are_no_part_of_the_key(machine: str) -> None:
    assert key(compose([machine])) == key(compose([]))


@pytest.mark.parametrize(
    "science_override",
    [
        "model.hidden=[300,101]", "schedule.epochs=41", "schedule.batch_size=99", "precision=bf16", "method=static",
        "dataset.digest=null", "dataset.test_every=6", "schedule.optimizer.fused=false", "schedule.accumulate=2",
        "model.revision=2", "method.revision=2", "profile=short", 'start={parent: ["seed=0"]}',
    ],
)  # fmt: skip
def test_every_science_option_is_part_of_the_key(science_override: str) -> None:
    assert key(compose([science_override])) != key(compose([]))


def test_whole_floats_and_integers_are_the_same_number() -> None:
    assert key(compose(["schedule.lr=1"])) == key(compose(["schedule.lr=1.0"]))


@pytest.mark.parametrize("method", ["dense", "gmp", "compressed"])
def test_neutral_values_are_left_out_so_that_old_records_keep_their_keys(method: str) -> None:
    config = compose([f"method={method}"])
    old: dict[str, Any] = copy.deepcopy(config)
    for path, neutral in NEUTRAL.items():
        group, _, name = path.partition(".")
        if name:
            (old.get(group) or {}).pop(name, None)
        elif old[group] == neutral:
            old.pop(group)
    assert key(old) == key(config)


def test_a_childs_key_contains_its_parents() -> None:
    child = ["method=compressed", "model.hidden=[30,20]"]
    first, second = compose(child), compose([*child, 'start.parent=["method=dense","schedule.epochs=39"]'])
    assert key(first) != key(second)
    parent = parent_config(first)
    assert parent is not None
    assert key(parent) == key(compose(["model.hidden=[30,20]", "method=dense"]))


def test_the_parent_runs_on_the_childs_machine_with_its_seed() -> None:
    parent = parent_config(compose(["method=compressed", "seed=7", "trainer.threads=2", "runs=/r"]))
    assert parent is not None
    assert (parent["seed"], parent["trainer"]["threads"], parent["runs"]) == (7, 2, "/r")
    assert parent["start"] is None
    assert parent_config(parent) is None


def test_science_of_an_embedded_parent_is_its_own_science() -> None:
    config = compose(["method=compressed"])
    assert science(config)["start"]["parent"] == science(compose(["method=dense"]))


def test_the_run_directory_is_readable_by_eye() -> None:
    config = compose(["method=set", "seed=2"])
    assert str(run_dir("runs", config)) == f"runs/digits/lenet_300_100/set/{key(config)}/seed2"
