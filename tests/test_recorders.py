"""Recorders: their numbers by hand, equal after any resumption, and a run that is no other for being recorded."""

import io
import json
import logging
import signal
import subprocess
import sys
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from methods.base import Method
from methods.masks import digest
from runner import checkpoint
from runner.compose import compose
from runner.errors import Misuse
from runner.execute import execute
from runner.experiment import make, validate
from runner.identity import key, run_dir
from runner.recorders import RECORDERS, MaskDynamics, Recorders
from runner.records import RunDirectory, read_metrics
from runner.trainer import Trainer
from tests.killing import outcome, run_and_die
from tests.test_contract import METHODS, OURS
from tests.test_contract import overrides as busy
from tests.test_trainer import TINY, run

BOTH = "trainer.records=[mask_dynamics,layers]"


class Scripted(Method):
    """Its masks are what the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.now: dict[str, Tensor] = {}
        self.weights = {"a.weight": nn.Parameter(torch.ones(2, 2)), "b.weight": nn.Parameter(torch.ones(2))}

    def show(self, a: str, b: str) -> None:
        bits = [torch.tensor([bit == "1" for bit in text]) for text in (a, b)]
        self.now = {"a.weight": bits[0].view(2, 2), "b.weight": bits[1]}

    def masks(self) -> dict[str, Tensor]:
        return self.now


def watched(*masks: tuple[str, str]) -> tuple[MaskDynamics, list[dict[str, float]]]:
    """The recorder after these masks: before the first step, then at the end of each epoch; and what it said."""
    method = Scripted()
    method.show(*masks[0])
    recorder = MaskDynamics(method)
    recorder.begin()
    lines = []
    for epoch, each in enumerate(masks[1:], start=1):
        method.show(*each)
        lines.append(recorder.observe(epoch))
    return recorder, lines


def test_mask_dynamics_by_hand() -> None:
    recorder, lines = watched(("1100", "11"), ("1010", "11"), ("1010", "11"), ("1010", "01"), ("1000", "11"))
    assert lines == [
        {"mask/iou": 3 / 5, "mask/flips": 2 / 6},  # a: one kept of three, b: two of two
        {"mask/iou": 1.0, "mask/flips": 0.0},
        {"mask/iou": 3 / 4, "mask/flips": 1 / 6},
        {"mask/iou": 2 / 4, "mask/flips": 2 / 6},
    ]
    # Last changes: a's second element in epoch 1, its third and b's first in epoch 4; the other three never.
    assert recorder.series() == {"mask/still_changing": [2 / 6, 2 / 6, 2 / 6, 0.0]}


def test_changes_between_phases_by_hand() -> None:
    method = Scripted()
    recorder = RECORDERS["phases"](method)
    dense, first, second, moved = ("1111", "11"), ("1100", "01"), ("1010", "10"), ("0000", "11")
    found = {}
    recorder.begin()
    for epoch, masks in enumerate([dense, first, first, dense, second, moved, dense, dense, moved], start=1):
        method.show(*masks)
        if line := recorder.observe(epoch):
            found[epoch] = line
        if epoch in (3, 4, 5):  # resumed within a sparse phase, a dense one, and right after a change
            again = RECORDERS["phases"](method)
            again.load_state_dict(recorder.state_dict())
            recorder = again
    # a: two of four differ, b: both; then a's first and third and b's second from the mask at 5, whatever came within.
    assert found == {5: {"mask/phase_change": 4 / 6}, 9: {"mask/phase_change": 3 / 6}}


def test_an_element_counts_up_to_its_last_change_only() -> None:
    recorder, _ = watched(("0000", "11"), ("1000", "11"), ("1100", "11"), ("0110", "11"), ("0110", "11"))
    # Last changes: a's first in epoch 3 (and 1), its second in 2, its third in 3.
    assert recorder.series() == {"mask/still_changing": [3 / 6, 2 / 6, 0.0, 0.0]}


def test_masks_without_any_kept_weight_are_equal() -> None:
    assert watched(("0000", "00"), ("0000", "00"))[1] == [{"mask/iou": 1.0, "mask/flips": 0.0}]


def test_mask_dynamics_keep_two_bytes_an_element_and_outlast_int16() -> None:
    recorder, _ = watched(("1100", "11"))
    assert {last.element_size() for last in recorder.last.values()} == {2}
    method = recorder.method
    assert isinstance(method, Scripted)
    for epoch, a in ((32_765, "0101"), (32_766, "1010"), (32_767, "0101"), (40_000, "0101"), (40_001, "1101")):
        method.show(a, "11")
        recorder.observe(epoch)
    series = recorder.series()["mask/still_changing"]
    # a's first element changes last in epoch 40001, its others in 32767, b's never.
    assert len(series) == 40_001
    assert [series[epoch - 1] for epoch in (1, 32_766, 32_767, 40_000, 40_001)] == [4 / 6, 4 / 6, 1 / 6, 1 / 6, 0.0]


def test_recorders_go_on_from_a_saved_state() -> None:
    script = [("1100", "11"), ("1010", "11"), ("1010", "01"), ("1000", "11")]
    whole, lines = watched(*script)
    first, _ = watched(*script[:3])
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    method = Scripted()
    method.show(*script[3])
    second = MaskDynamics(method)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    assert second.observe(3) == lines[2]
    assert second.series() == whole.series()


def test_masks_of_other_weights_than_at_the_start_are_an_error() -> None:
    recorder, _ = watched(("1100", "11"))
    assert isinstance(recorder.method, Scripted)
    recorder.method.now.popitem()
    with pytest.raises(ValueError, match=r"began with masks of \['a.weight', 'b.weight'\] and now has those of"):
        recorder.observe(1)


def test_layers_by_hand() -> None:
    method = Scripted()
    method.show("1100", "11")
    method.now.popitem()  # b is dense
    method.weights["a.weight"].data.copy_(torch.tensor([[0.5, 0.0], [0.0, 0.0]]))
    method.weights["b.weight"].data.copy_(torch.tensor([0.0, 1.0]))
    assert Recorders(["layers"], method).observe(1) == {
        "layers:a": 0.75, "mask_layers:a": 0.5, "layers:b": 0.5, "mask_layers:b": 0.0,
    }  # fmt: skip


def test_every_recorder_gives_what_it_declares(tmp_path: Path) -> None:
    for name, recorder in RECORDERS.items():
        method = {
            "distance": ["method=dpf", "method.end_epoch=1"],
            "phases": ["method=acdc", "method.phase_epochs=[1,1,1,1]", "schedule.epochs=4"],
            "thresholds": ["method=s_lats"],
            "gradient_to_decay": ["method=str", "schedule.l2=1e-3"],
        }.get(name, ["method=set", "method.count=40"])
        _, path = run(tmp_path / name, *method, f"trainer.records=[{name}]")
        _, plain = run(tmp_path / "plain", *method)
        summary = json.loads((path / "summary.json").read_text())
        given = {metric for line in lines(path) for metric in line} | {*summary["series"]}
        given -= {*lines(plain)[0]}
        assert all(any(fnmatchcase(metric, pattern) for pattern in recorder.metrics) for metric in given)
        assert all(any(fnmatchcase(metric, pattern) for metric in given) for pattern in recorder.metrics)


def lines(path: Path) -> list[dict[str, Any]]:
    return read_metrics(path / "metrics.jsonl")[0]


@pytest.mark.parametrize("method", ["set", "dsr", "deepr", "gmp"])
def test_a_real_run_against_its_masks_kept_whole(tmp_path: Path, method: str) -> None:
    given = [*busy(method, "lenet"), "schedule.epochs=5", "method.stop=1.0" if method in ("set", "dsr") else "seed=3"]
    seen: list[Tensor] = []

    def flat() -> Tensor:
        return torch.cat([mask.flatten() for mask in trainer.e.method.masks().values()])

    trainer = Trainer(make(compose([*given, BOTH])), RunDirectory(tmp_path), lambda line: seen.append(flat()))
    begin = trainer.recorders.begin

    def begin_and_look() -> None:
        seen.append(flat())
        begin()

    trainer.recorders.begin = begin_and_look  # type: ignore[method-assign]
    history = trainer.fit()
    changed = [a != b for a, b in pairwise(seen)]
    assert len(changed) == 5 and any(each.any() for each in changed)
    for line, (before, now) in zip(history, pairwise(seen), strict=True):
        assert line["mask/iou"] == int((before & now).sum()) / int((before | now).sum())
        assert line["mask/flips"] == pytest.approx((before != now).double().mean().item(), abs=1e-15)
        for name, weight in trainer.e.method.effective().items():
            assert line is not history[-1] or line[f"layers:{name.removesuffix('.weight')}"] == pytest.approx(
                (weight == 0).double().mean().item(), abs=1e-15
            )
    still = trainer.recorders.summary()["series"]["mask/still_changing"]
    later = [torch.stack([*changed[epoch:], torch.zeros_like(changed[0])]).any(0) for epoch in range(1, 6)]
    assert still == pytest.approx([each.double().mean().item() for each in later], abs=1e-15)


# Where a parent would learn nothing from noise in its eight steps.
LEARNS = {"acdc_dense": ("digits", ["dataset.train_subset=null"])}
# Of so many stages that they take long.
CHAINS = ("imp", "lottery", "lottery_flops", "lottery_rewound")
MASKLESS = {"dense", "quantised", "gpo", "sparsevd", "acdc_dense"}


@pytest.mark.parametrize("method", [pytest.param(m, marks=[pytest.mark.slow] if m in CHAINS else []) for m in METHODS])
def test_a_recorded_run_is_the_same_run(tmp_path: Path, method: str) -> None:
    """Same key, same numbers, same weights and random numbers to the last bit."""
    model, more_data = LEARNS.get(method, ("lenet", []))
    given = [*busy(method, model), *more_data, f"runs={tmp_path / 'plain'}"]
    recorded = [*given[:-1], BOTH, f"runs={tmp_path / 'recorded'}"]
    assert key(compose(given)) == key(compose(recorded))
    paths = []
    for overrides in (given, recorded):
        config = compose(overrides)
        execute(config, overrides)
        paths.append(run_dir(config["runs"], config))
    plain, more = (lines(path) for path in paths)
    assert [{name: line[name] for name in plain[0] if not name.startswith("time/")} for line in more] == [
        {name: value for name, value in line.items() if not name.startswith("time/")} for line in plain
    ]
    assert any(name.startswith("layers:") for name in more[0]) and not any("layers" in name for name in plain[0])
    states = [checkpoint.read(path / "checkpoints" / checkpoint.LAST) for path in paths]
    for part in ("model", "rng"):
        assert digest(states[0][part]) == digest(states[1][part])
    summaries = [json.loads((path / "summary.json").read_text()) for path in paths]
    assert set(summaries[1]) - set(summaries[0]) == {"records", "series"}
    assert summaries[1]["records"] == ["mask_dynamics", "layers"]
    assert summaries[0]["layers"] == summaries[1]["layers"]
    assert ("mask/iou" in more[0]) == bool(summaries[1]["series"])
    assert method not in OURS or bool(summaries[1]["series"]) == (method not in MASKLESS)


@pytest.mark.parametrize(
    "where, at",
    [
        ("before a step", 7),
        ("before a step", 13),
        ("after a line of metrics", 2),
        ("before the last one is in place", 6),
        ("within a mask update", 4),
    ],
)
def test_a_killed_run_records_what_an_uninterrupted_one_does(tmp_path: Path, where: str, at: int) -> None:
    given = [*TINY, "method=set", "method.count=40", "method.period=3", BOTH]
    execute(compose([*given, f"runs={tmp_path / 'whole'}"]), given)
    whole = run_dir(tmp_path / "whole", compose(given))
    killed = [*given, f"runs={tmp_path / 'killed'}", "trainer.checkpoint_seconds=0"]
    config = compose(killed)
    assert run_and_die(config, where, at) == -signal.SIGKILL
    execute(config, killed)
    resumed = run_dir(tmp_path / "killed", config)
    assert outcome(resumed) == outcome(whole)
    series = [json.loads((path / "summary.json").read_text())["series"] for path in (resumed, whole)]
    assert series[0] == series[1] and len(series[0]["mask/still_changing"]) == 4


@pytest.mark.parametrize("began, resumed", [("[layers]", "[]"), ("[]", "[layers,mask_dynamics]")])
def test_a_run_goes_on_recording_what_it_began_with(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, began: str, resumed: str
) -> None:
    given = [*TINY, "method=static", f"runs={tmp_path}", "trainer.checkpoint_seconds=0"]
    config = compose([*given, f"trainer.records={began}"])
    assert run_and_die(config, "before a step", 7) == -signal.SIGKILL
    with caplog.at_level(logging.WARNING):
        summary = execute(compose([*given, f"trainer.records={resumed}"]), given)
    assert "goes on recording what it began with: " + ("layers" if began == "[layers]" else "nothing") in caplog.text
    recorded = [any(name.startswith("layers:") for name in line) for line in lines(run_dir(tmp_path, config))]
    assert recorded == [began == "[layers]"] * 4
    assert summary.get("records") == (["layers"] if began == "[layers]" else None)


def test_a_method_without_masks_says_once_that_there_is_nothing(tmp_path: Path) -> None:
    summary, path = run(tmp_path, "method=dense", "trainer.records=[mask_dynamics]")
    assert summary["records"] == ["mask_dynamics"] and summary["series"] == {}
    every_runs = {"mask/sparsity", "mask/parameters"}
    assert {name for name in lines(path)[-1] if name.startswith("mask/")} == every_runs
    assert (path / "log.txt").read_text().count("mask_dynamics has nothing to record: Method has no masks") == 1


def test_an_unknown_record_gets_the_nearest_name() -> None:
    with pytest.raises(
        Misuse, match=r"trainer\.records: there is no record 'mask_dynamic'. Did you mean 'mask_dynamics'"
    ):
        validate(compose([*TINY, "trainer.records=[mask_dynamic]"]))
    with pytest.raises(Misuse, match=r"trainer.records = 'layers' should be a list"):
        validate(compose([*TINY, "trainer.records=layers"]))


def test_what_there_is_to_record_is_known_without_torch() -> None:
    code = "import sys; from runner.recorders import RECORDERS; print(*RECORDERS, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [*RECORDERS, "False"]
