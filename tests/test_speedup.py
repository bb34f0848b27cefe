"""runs.py compact: a finished run without its zero filters, its sizes, its outputs and its time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from methods.compaction import filters
from models.account import account
from runner import speedup
from runner.compose import compose
from runner.execute import execute
from runner.identity import key, run_dir
from runner.repeat import finished, here
from runner.timing import interleaved
from scripts import runs as command

DIGITS = (
    "dataset=digits",
    "dataset.train_subset=100",
    "schedule.batch_size=20",
    "schedule.lr=0.1",
    "schedule.epochs=2",
)
MADE = {
    "structured": ("model=resnet20", "model.depth=8", "model.width=4", "method=sfp", "method.sparsity=0.5"),
    "unstructured": ("model.hidden=[20,10]", "method=static"),
}


def overrides(name: str) -> list[str]:
    return [*DIGITS, *MADE[name]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    for name in MADE:
        given = [*overrides(name), f"runs={root}"]
        execute(compose(given), given)
    return root


@pytest.fixture
def call(root: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(name: str, *arguments: str | Path) -> tuple[int, str, str]:
        given = [key(compose(overrides(name))), "--rounds", "2", "--batch", "10", "--runs", root, *arguments]
        code = command.main(["compact", *map(str, given)])
        return code, *capsys.readouterr()

    return run


def test_the_record_is_that_of_the_two_networks(root: Path, call: Callable[..., Any]) -> None:
    code, out, err = call("structured")
    path = run_dir(root, compose(overrides("structured")))
    assert (code, err) == (0, f"The record is {path / 'compact.json'}.\n")
    found = json.loads((path / "compact.json").read_text())
    config = compose([*overrides("structured"), f"runs={root}"])
    trainer = finished(path, here(config), 10)
    dense, images = trainer.model.eval(), next(iter(trainer.e.data.test_batches(10)))[0]
    small = trainer.e.method.finalize(dense, compact=True, example=images)
    before, after = (account(model, (1, 8, 8)) for model in (dense, small))
    assert found["parameters"] == {"dense": before.parameters, "compact": after.parameters}
    assert found["macs"] == {"dense": before.macs, "compact": after.macs}
    assert after.macs < 0.8 * before.macs
    counts = [tuple(map(sum, zip(*filters(model).values(), strict=True))) for model in (dense, small)]
    assert found["filters"] == dict(zip(("all", "zero", "left", "zero_left"), [*counts[0], *counts[1]], strict=True))
    assert found["filters"]["zero"] == 47  # half of 3 * 4 + 3 * 8 + 3 * 16 filters and of the 10 outputs
    assert found["outputs"]["images"] == 360 and found["outputs"]["other_predictions"] == 0
    assert 0 <= found["outputs"]["difference"] < 1e-5 and found["outputs"]["equal"] is True
    assert (found["key"], found["seed"], found["precision"]) == (path.parent.name, 0, "fp32")
    assert found["config"] == {group: config[group] for group in ("dataset", "model", "method")}
    times = found["speedup"]
    assert 0 < times["least"] <= times["median"] <= times["greatest"]
    assert {"batch": 10, "rounds": 2, "in_shape": [1, 8, 8]}.items() <= found["timing"].items()
    assert {"torch", "numpy"} <= set(found["environment"]["packages"]) and found["environment"]["threads"] == 1
    assert f"parameters    {before.parameters:,}" in out and "0 other prediction(s)" in out
    assert "Inference of 10 images in fp32" in out and "of 2 rounds" in out


def test_outputs_that_differ_are_an_error_but_recorded(
    call: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speedup, "ROUNDING", 0.0)
    file = tmp_path / "deep" / "record.json"
    code, _, err = call("structured", "--out", file)
    assert code == 1 and err == f"The record is {file}.\nThe outputs differ by more than rounding.\n"
    assert json.loads(file.read_text())["outputs"]["equal"] is False


def test_a_run_without_whole_filters_is_refused(call: Callable[..., Any]) -> None:
    code, out, err = call("unstructured")
    assert (code, out) == (2, "")
    assert (
        "cannot be compacted: Static leaves no whole filters out (the mask of fc1.weight drops single weights)" in err
    )
    assert err.count("\n") == 1


@pytest.mark.parametrize("option", ["--batch", "--rounds", "--threads"])
def test_counts_begin_at_one(option: str, call: Callable[..., Any]) -> None:
    assert call("structured", option, "0") == (2, "", f"{option} 0 should be 1 or above.\n")


def test_ratios_are_those_of_the_same_round(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0, 1, 1, 3, 3, 5, 5, 15, 15, 18, 18, 30])  # a: 1, 2, 3; b: 2, 10, 12
    monkeypatch.setattr("runner.timing.time.perf_counter", lambda: next(clock))
    found = interleaved({"a": lambda: None, "b": lambda: None}, "a", 3)
    assert found["b"] == {"ratio": 4, "least": 2, "greatest": 5, "rounds": 3}
    assert found["a"]["ratio"] == 1
