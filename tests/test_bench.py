"""The bench: what it says of its figures, and that what it times is what it names. No verdict hangs on a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runner.bench.commands import starts, tables
from runner.bench.figures import Figure, shown, spread
from runner.bench.precision import KINDS as PRECISIONS
from runner.bench.precision import precisions
from runner.bench.side import batched, side_by_side
from runner.bench.steps import CASES, KINDS, PEER, SELDOM, Case, Stepper, methods, overheads, updates
from scripts import bench

SMALL = Case("lenet_300_100", "[1,4,4]", batch=6, epoch=10, small=2)


def test_a_figure_is_the_median_of_its_rounds_with_their_range() -> None:
    figure = spread("a", "b", [3.0, 1.0, 2.0], "x", target=1.5)
    assert (figure.value, figure.least, figure.greatest, figure.missed) == (2.0, 1.0, 3.0, True)
    assert spread("a", "b", [4.0, 1.0], "x").value == 2.5


@pytest.mark.parametrize(
    ("value", "target", "at_most", "missed"),
    [(1.0, 1.0, True, False), (1.1, 1.0, True, True), (1.1, 1.0, False, False), (0.9, 1.0, False, True)],
)
def test_targets_are_bounds(value: float, target: float, at_most: bool, missed: bool) -> None:
    assert Figure("a", "b", value, "x", target=target, at_most=at_most).missed is missed
    assert not Figure("a", "b", value, "x").missed


def test_what_misses_its_target_is_named_at_the_end() -> None:
    text = shown([Figure("a", "fine", 1.0, "x", target=2.0), Figure("a", "slow", 3.0, "x", target=2.0)])
    assert text.endswith("1 of 2 targets are reached. Missed:\n  a: slow\n")
    assert (
        shown([Figure("a", "fine", 12345.6, "images/s")])
        == "a\n  fine  12,346 images/s\n\n0 of 0 targets are reached.\n"
    )


def test_methods_are_those_that_train_from_scratch() -> None:
    found = methods()
    assert found[0] == "dense" and set(KINDS) <= set(found)
    assert not {"oneshot", "lottery", "dpf_finetuned", "retrain_mask"} & set(found)


@pytest.mark.parametrize(
    ("method", "period", "updates"),
    [("static", 10.0, 0), ("set", 100.0, 2), ("dpf", 16.0, 2), ("topkast", 1.0, 8), ("gmp", 10.0, 2)],
)
def test_updates_are_spread_over_the_methods_own_period(method: str, period: float, updates: int) -> None:
    """Here they come every four steps, or with every epoch of four."""
    stepper = Stepper(SMALL, method, batch=2, steps=8, period=4)
    assert stepper.period == period
    first, second = stepper.round(), stepper.round()
    assert sum(changed for _, _, changed in second) == updates
    assert stepper.trainer.ctx.step == 16 and all(cpu >= 0 and wall > 0 for cpu, wall, _ in first)
    usual, update = (1.0, 2.0, False), (9.0, 10.0, True)
    assert stepper.amortised([usual, update, usual], 0) == 1 + 8 / period
    assert stepper.amortised([usual, usual], 1) == 2 and stepper.amortised([update], 1) == 10


def test_every_chosen_method_has_its_ratio_and_target() -> None:
    found = overheads(SMALL, ["static", "dpf", "sparsevd"], rounds=2, steps=8)
    assert [(figure.name, figure.target) for figure in found] == [("static", 1.15), ("dpf", 1.25), ("sparsevd", None)]
    assert all(figure.least <= figure.value <= figure.greatest for figure in found if figure.least and figure.greatest)


def test_updates_are_those_of_methods_that_make_any() -> None:
    found = updates(SMALL, ["static", "rigl", "set"], rounds=1)
    assert [(figure.name, figure.target) for figure in found] == [("rigl", 0.6), ("set", 1.0)]


def test_the_record_holds_what_was_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CASES, "lenet_300_100", SMALL)
    path = tmp_path / "bench" / "record.json"
    given = ["steps", "--model", "lenet_300_100", "--method", "set", "--rounds", "1", "--out", str(path)]
    assert bench.main(given) == 0
    said = capsys.readouterr()
    assert "step of lenet_300_100, batch 6" in said.out and "  set  " in said.out and str(path) in said.err
    record = json.loads(path.read_text())
    (figure,) = record["figures"]
    assert (figure["name"], figure["target"], record["rounds"]) == ("set", 1.15, 1)
    assert record["environment"]["threads"] == 1 and "processor" in record["environment"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["step"], "There is no section 'step'. Did you mean 'steps'?"),
        (["steps", "--model", "resnet2"], "There are no steps of 'resnet2' to time. Did you mean 'resnet20'?"),
        (["steps", "--method", "oneshot"], "'oneshot' is no method that trains from scratch."),
        (["--rounds", "0"], "--rounds 0 should be 1 or above."),
    ],
)
def test_misuse_is_one_sentence(given: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(given) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_commands_are_timed_on_runs_that_they_read() -> None:
    """What is timed asserts that it found the runs and cells; a command that fails is an error, not a time."""
    read = tables(1, runs=30)
    assert [figure.name.split(", ")[-1] for figure in read] == ["first", "again"] * 2
    assert read[0].name.startswith("30 runs")
    assert len(starts(1)) == 2


@pytest.mark.slow
def test_every_precision_is_beside_fp32_and_the_dense_gain() -> None:
    found = precisions(SMALL, ["set", "topkast"], rounds=1)
    assert [figure.name for figure in found] == ["dense", "set", "topkast"] * len(PRECISIONS)
    assert found[0].target is None and found[1].target == found[2].target == pytest.approx(1.03 * found[0].value)
    assert found[4].target == pytest.approx(1.03 * found[3].value)


@pytest.mark.slow
def test_small_runs_are_timed_side_by_side() -> None:
    figure = side_by_side(SMALL, rounds=2, steps=5)
    assert figure.value > 0 and not figure.at_most


def test_a_batch_of_networks_trains_as_they_do_one_by_one() -> None:
    """But for the order of sums: a wrong gradient would be apart by what a step moves, 1e-3."""
    figure = batched(3, rounds=1, steps=4)
    assert figure.target == 2.0 and not figure.at_most
    (apart,) = (
        float(word) for word in figure.note.split() if word.startswith(("0", "1", "2", "3", "4", "5")) and "e" in word
    )
    assert 0 <= apart < 1e-5


def test_a_name_may_bring_overrides() -> None:
    names = ["topkast", *SELDOM, PEER]
    often, seldom, peer = found = overheads(SMALL, names, rounds=1, steps=8)
    assert [figure.name for figure in found] == names
    assert often.target == seldom.target is not None and peer.target is None and "elsewhere" in peer.note
