"""What planned runs will cost: the formulas by hand, the basis that is chosen and said, and real records."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from results import cost
from results.architecture import request
from results.collect import LOGGED
from results.cost import Costs, Measured, measured, quantity
from results.record import read_directory
from runner.compose import compose
from runner.identity import key, run_dir
from runner.records import RunDirectory

DIGITS = ["experiment=demo/digits", "method=set", "schedule.epochs=10"]
#: 2 x (64 x 300 + 300 x 100 + 100 x 10) operations of one inference, three times in training.
DIGITS_FLOPS = 3 * 2 * 50200


def one(overrides: list[str], **more: Any) -> Measured:
    """A measurement of a run with these overrides: 1 ms a sample, half a second of evaluation an epoch, on cpu."""
    config = compose(overrides)
    asked = request(config)
    assert asked is not None
    made = Measured(
        name=f"{config['dataset']['name']}/{config['model']['name']}",
        method=config["method"]["name"],
        device="cpu",
        precision="fp32",
        threads=1,
        request=asked["file"],
        sample_s=1e-3,
        epoch_s=0.5,
        flops=cost.training_flops(config),
    )
    return replace(made, **more)


def estimate(known: list[Measured], *overrides: str, device: str = "cpu") -> cost.Estimate:
    config = compose([*DIGITS, *overrides])
    return Costs(known, device).of(config, key(config))


def test_recorded_throughput_of_the_same_runs_comes_first() -> None:
    found = estimate([one(DIGITS), one([*DIGITS[:1], "method=dense"], sample_s=9.0)])
    assert found.seconds == pytest.approx(10 * (1437 * 1e-3 + 0.5))
    assert found.flops == DIGITS_FLOPS * 1437 * 10
    assert found.basis == "recorded throughput on cpu"


def test_the_median_of_equal_runs_counts() -> None:
    known = [one(DIGITS, sample_s=sample_s, epoch_s=0.0) for sample_s in (1e-3, 2e-3, 99.0)]
    assert estimate(known).seconds == pytest.approx(10 * 1437 * 2e-3)


def test_a_subset_takes_its_share() -> None:
    found = estimate([one(DIGITS)], "dataset.train_subset=100")
    assert found.seconds == pytest.approx(10 * (100 * 1e-3 + 0.5))
    assert found.flops == DIGITS_FLOPS * 100 * 10
    assert estimate([one(DIGITS)], "dataset.train_subset=9999").seconds == estimate([one(DIGITS)]).seconds


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"method": "dense"}, "recorded throughput on cpu with dense"),
        ({"precision": "bf16"}, "recorded throughput on cpu in bf16"),
        ({"threads": 4}, "recorded throughput on cpu with another number of threads"),
        ({"method": "dense", "threads": 4}, "recorded throughput on cpu with dense with another number of threads"),
    ],
)
def test_other_runs_of_the_same_model_come_next_and_it_is_said(more: dict[str, Any], words: str) -> None:
    found = estimate([one(DIGITS, **more)])
    assert found.seconds == pytest.approx(10 * (1437 * 1e-3 + 0.5))
    assert found.basis == words
    assert estimate([one(DIGITS, **more), one(DIGITS, epoch_s=0.0)]).basis == "recorded throughput on cpu"


def test_without_the_same_model_the_flops_per_second_of_the_nearest_count() -> None:
    lenet = one(["experiment=dsr/lenet_mnist", "method=dense"])
    wide = one(["experiment=dsr/wrn_cifar10", "method=dense"], sample_s=1.0)
    assert lenet.flops is not None and wide.flops is not None and lenet.flops < wide.flops
    found = estimate([lenet, wide])
    assert found.flops is not None
    assert found.seconds == pytest.approx(found.flops / (lenet.flops / 1e-3))
    assert found.basis.startswith("FLOPs, at the 1.6 GFLOP/s of mnist/lenet_300_100 on cpu in fp32")


def test_another_architecture_of_the_same_name_is_another_model() -> None:
    narrow = one([*DIGITS, "model.hidden=[9]"])
    assert narrow.flops is None  # no record of it: nothing to estimate others from
    found = estimate([narrow])
    assert (found.seconds, found.basis) == (None, "no throughput recorded yet")


def test_another_kind_of_device_says_nothing() -> None:
    found = estimate([one(DIGITS)], device="gpu")
    assert (found.seconds, found.flops) == (None, DIGITS_FLOPS * 1437 * 10)
    assert found.basis == "no throughput recorded yet"
    assert estimate([one(DIGITS, device="gpu")], device="gpu").basis == "recorded throughput on gpu"
    assert [cost.device_kind(name) for name in ("cpu", "cuda", "cuda:0 NVIDIA H200")] == ["cpu", "gpu", "gpu"]


def test_what_is_not_known_is_said() -> None:
    config = compose(["experiment=demo/digits", "model.hidden=[7]"])
    found = Costs([], "cpu").of(config, "k")
    assert (found.seconds, found.flops) == (None, None) and "python -m models.account --tables" in found.basis
    unknown = {**config, "dataset": {"name": "unheard_of"}}
    assert Costs([], "cpu").of(unknown, "u").basis == "the size of the dataset unheard_of is not known"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 FLOPs"), (999, "1 kFLOPs"), (50200, "50 kFLOPs"), (3.14e18, "3.1 EFLOPs"), (2e25, "20000 ZFLOPs")],
)
def test_quantities_have_two_digits_and_a_prefix(value: float, text: str) -> None:
    assert quantity(value, "FLOPs") == text


# What is measured


def write_run(root: Path, overrides: list[str], status: str = "completed", **more: Any) -> Path:
    """A finished run of 4 epochs at 500 samples a second, 3 seconds each."""
    config = compose(overrides)
    directory = RunDirectory(run_dir(root, config))
    directory.begin(config, overrides, {"device": "cpu", "threads": 2})
    final = {"epoch": 4, "time/samples_per_s": 500.0} | more
    summary = {"key": key(config), "seed": config["seed"], "epochs": 4, "final": final, "wall_s": 12.0}
    directory.finish({"status": status, **summary})
    return directory.path


def test_completed_runs_and_packed_records_are_measured(tmp_path: Path) -> None:
    write_run(tmp_path, [*DIGITS, "seed=1"])
    write_run(tmp_path, [*DIGITS, "seed=2"])  # of equal keys one is enough
    write_run(tmp_path, [*DIGITS, "method.sparsity=0.5"], status="failed")
    write_run(tmp_path, [*DIGITS, "method.sparsity=0.6"], **{"time/samples_per_s": "nan"})
    (write_run(tmp_path, [*DIGITS, "method.sparsity=0.7"]) / "summary.json").write_text("{")
    write_run(tmp_path / "rerun", [*DIGITS, "seed=1"])
    (found,) = measured([tmp_path])
    assert found.sample_s == 1 / 500
    assert found.epoch_s == pytest.approx(3 - 1437 / 500)
    assert (found.name, found.method, found.device, found.threads) == ("digits/lenet_300_100", "set", "cpu", 2)
    assert found.flops == DIGITS_FLOPS
    assert measured([tmp_path / "nowhere"]) == []


def test_of_many_runs_a_few_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(cost.KEYS + 3):
        write_run(tmp_path, [*DIGITS, f"schedule.lr=0.{number + 1}"])
    read: list[Path] = []

    def counting(path: Path) -> Any:
        read.append(path)
        return read_directory(path)

    monkeypatch.setattr(cost, "read_directory", counting)
    assert len(measured([tmp_path])) == len(read) == cost.KEYS


def test_the_logged_runs_estimate_themselves() -> None:
    """Their own recorded times are met within the spread that such times have."""
    path = next(LOGGED.glob("mnist/lenet_300_100/dense/*/seed0.json"))
    record = json.loads(path.read_text())
    config = compose(record["overrides"])
    found = Costs(measured([LOGGED]), "cpu").of(config, key(config))
    assert found.basis == "recorded throughput on cpu"
    assert found.seconds == pytest.approx(record["summary"]["wall_s"], rel=0.8)
