"""The ledger: every rule by hand, integrals over epochs and stages, budgets, resumption, and the papers' own ratios."""

from __future__ import annotations

import json
import logging
import math
from itertools import count as counting
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from methods.acdc import ACDC, ACDCDense
from methods.base import Method
from methods.dpf import DPF, StructuredDPF
from methods.dsr import DSR
from methods.edge_popup import EdgePopup
from methods.fixed import Fixed
from methods.gmp import GMP
from methods.granet import GraNet
from methods.iterand import IteRand
from methods.lottery import Lottery
from methods.optg import OptG
from methods.passes import DENSE, Passes, count, mixed, within
from methods.probmask import ProbMask
from methods.quantised import Quantised
from methods.rigl import RigL
from methods.sfp import SFP
from methods.snip import SNIP
from methods.sparse_momentum import SparseMomentum
from methods.sparsevd import SparseVD
from methods.static import Static
from methods.stds import STDS
from methods.str import STR
from methods.topkast import TopKAST
from models.account import account
from models.report import build, section
from results.address import select
from results.collect import Collection, collect
from results.fill import fill
from runner.chain import chain
from runner.compose import compose, names
from runner.errors import Misuse
from runner.execute import execute
from runner.experiment import make
from runner.identity import parent_config, run_dir
from runner.ledger import Ledger
from runner.records import RunDirectory, read_metrics
from runner.repeat import first_difference, summary_differences
from runner.trainer import Interrupted, Trainer
from tests.conftest import TINY

# LeNet-20-10 on 16 inputs: its multiply-accumulates are its weights; 20 + 10 + 10 biases, each one addition.
WEIGHTS = {"fc1": 16 * 20, "fc2": 20 * 10, "fc3": 10 * 10}
F = 2 * (320 + 200 + 100) + 40


def small() -> nn.Module:
    """A convolution of 2 filters on 1x4x4 (9 MACs for each of 2 x 2 x 2 outputs), then 3 sums of 8."""
    return nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))


def layers(kept: tuple[int, int], nonzero: tuple[int, int] | None = None) -> dict[str, dict[str, int]]:
    """Counts of `small`'s two weights as the trainer makes them."""
    found = zip(("0.weight", "3.weight"), kept, nonzero or kept, (18, 24), strict=True)
    return {name: {"kept": k, "nonzero": n, "total": total} for name, k, n, total in found}


def flops(conv: float, linear: float) -> float:
    """Of `small` with so many weights: a weight of the convolution works at 2 x 2 places, 2 per MAC, 3 biases."""
    return 2 * (4 * conv + linear) + 3


LEDGER = Ledger.of(small(), (1, 4, 4))
WHOLE = flops(18, 24)


# One step


def test_a_dense_step_costs_three_times_inference() -> None:
    assert LEDGER.dense is not None and LEDGER.dense.flops("acdc") == WHOLE == 2 * (72 + 24) + 3
    assert LEDGER.training(DENSE) == 3 * WHOLE
    assert LEDGER.training(within(count(layers((9, 6)), "kept"))) == 3 * flops(9, 6)
    assert LEDGER.training(Passes({"0.weight": 9}, {}, {"3.weight": 0})) == flops(9, 24) + WHOLE + flops(18, 0)
    assert LEDGER.training(Passes(factor=2)) == 6 * WHOLE


def test_the_rules_of_the_papers_are_one_line_each() -> None:
    """AC/DC (C.2), RigL (appendix H) and Top-KAST, from the same three products."""
    counts = layers((9, 6), nonzero=(9, 5))
    kept, nonzero, total = (count(counts, of) for of in ("kept", "nonzero", "total"))  # type: ignore[arg-type]
    f = flops(9, 6)
    assert LEDGER.training(within(nonzero)) == 3 * flops(9, 5)  # 3 F_C
    # One of two filters is dead, which only the convolution's own weights tell.
    dead = count(layers((18, 24), nonzero=(9, 24)), "nonzero")
    assert LEDGER.training(Passes(dead, dead)) == 2 * flops(9, 24) + WHOLE  # 2 F_D + F
    rigl = Passes(kept, kept, mixed(kept, total, 1 / 101))
    assert LEDGER.training(rigl) == pytest.approx((3 * f * 100 + 2 * f + WHOLE) / 101, rel=1e-12)
    backward = count(layers((12, 10)), "kept")
    assert LEDGER.training(Passes(kept, kept, backward)) == 2 * f + flops(12, 10)  # (2 f_A + f_B) / 3 of 3 F


SPARSE = {"sparsity": 0.5}
REWIRED: dict[str, Any] = {**SPARSE, "count": 1, "period": 1}
RULES: dict[str, tuple[Method, float]] = {
    "dense": (Method(), 3 * WHOLE),
    "quantised": (Quantised(bits=4), 3 * WHOLE),
    "static": (Static(**SPARSE), 3 * flops(9, 6)),
    "dsr": (DSR(**REWIRED, threshold=0.1), 3 * flops(9, 6)),
    "snip": (SNIP(**SPARSE), 3 * flops(9, 6)),
    "oneshot": (Fixed(**SPARSE), 3 * flops(9, 6)),
    "lottery": (Lottery(**SPARSE), 3 * flops(9, 6)),
    "gmp": (GMP(**SPARSE, iterations=1, every_epochs=1), 3 * flops(9, 6)),
    "dpf": (DPF(**SPARSE, end_epoch=1), 2 * flops(9, 6) + WHOLE),
    "dpf_structured": (StructuredDPF(**SPARSE, end_epoch=1), 2 * flops(9, 6) + WHOLE),
    "sm": (SparseMomentum(**SPARSE), 2 * flops(9, 6) + WHOLE),
    "sfp": (SFP(**SPARSE), 3 * WHOLE),
    "rigl": (RigL(**SPARSE, drop_fraction=0.3, period=4), (4 * 3 * flops(9, 6) + 2 * flops(9, 6) + WHOLE) / 5),
    "granet": (GraNet(**SPARSE, iterations=1, every_epochs=1), 3 * flops(9, 6)),  # in an epoch without an exchange
    "optg": (OptG(**SPARSE), 2 * flops(9, 6) + WHOLE),
    "probmask": (ProbMask(**SPARSE, end_epoch=1), 3 * WHOLE),
    "sparsevd": (SparseVD(kl_weight=1e-3), 6 * WHOLE),
    "edge_popup": (EdgePopup(pruned=0.5), 2 * flops(9, 6) + WHOLE),
    "iterand": (IteRand(pruned=0.5, period=1, rate=0.1), 2 * flops(9, 6) + WHOLE),
    # What these compute with has zeros of its own.
    "acdc_dense": (ACDCDense(**SPARSE, epochs=100), 2 * flops(7, 4) + WHOLE),
    "str": (STR(s_init=-3.0), 3 * flops(7, 4)),
    "stds": (STDS(final_threshold=0.5), 2 * flops(7, 4) + WHOLE),
}


@pytest.mark.parametrize("name", RULES)
def test_every_method_has_its_own_rule(name: str) -> None:
    """Kept weights count, zeros among them too: what has just grown is computed with."""
    method, expected = RULES[name]
    assert LEDGER.training(method.passes(layers((9, 6), nonzero=(7, 4)))) == pytest.approx(expected, rel=1e-12)


def test_phases_of_acdc_have_rules_of_their_own() -> None:
    """3 F_C when sparse, 2 F_D + F when dense, where a dense phase may have dead weights."""
    method = ACDC(**SPARSE)
    method.setup(small())
    counts = layers((9, 6), nonzero=(7, 4))
    assert LEDGER.training(method.passes(counts)) == 2 * flops(7, 4) + WHOLE
    method.compress()
    assert LEDGER.training(method.passes(counts)) == 3 * flops(7, 4)


def test_topkast_has_a_gradient_of_its_larger_set() -> None:
    """A: half of 18 and of 24 weights; B: two thirds."""
    method = TopKAST(sparsity=0.5, backward_sparsity=1 / 3, exploration=0.0)
    method.setup(small())
    for dense in method.dense:
        dense.normal_(generator=torch.Generator().manual_seed(0))
    method.refresh(SimpleNamespace(total_steps=4), 0)  # type: ignore[arg-type]
    assert LEDGER.training(method.passes(layers((9, 12)))) == 2 * flops(9, 12) + flops(12, 16)


# An epoch's line


def test_inference_is_of_the_weights_that_are_not_zero() -> None:
    line = LEDGER.line(Static(sparsity=0.5), layers((9, 6), nonzero=(7, 4)), 10, [])
    assert line["flops/inference"] == flops(7, 4) and line["flops/inference_ratio"] == flops(7, 4) / WHOLE
    assert line["flops.dpf/inference"] == 4 * 7 + 4 + 8  # MACs, and a ReLU after each of 8 outputs
    assert line["flops/training"] == 10 * 3 * flops(9, 6)
    assert line["flops/training_ratio"] == flops(9, 6) / WHOLE
    after = LEDGER.line(Static(sparsity=0.5), layers((3, 6)), 10, [line])
    assert after["flops/training"] == 30 * (flops(9, 6) + flops(3, 6))
    assert after["flops/training_ratio"] == (flops(9, 6) + flops(3, 6)) / 2 / WHOLE


def test_what_an_older_version_began_has_no_sum() -> None:
    line = LEDGER.line(Method(), layers((18, 24)), 10, [{"epoch": 1}])
    assert line["flops/inference_ratio"] == 1 and "flops/training" not in line and "flops/training_ratio" not in line


def test_weights_that_multiply_nothing_cost_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """An embedding is looked up; what a method made up is said, once."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.fc = nn.Embedding(5, 4), nn.Linear(4, 2, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x)

    ledger = Ledger.of(Tokens(), (4,))
    ledger.training(within({"embedding.weight": 3, "fc.weight": 2}))
    assert caplog.text == ""
    for _ in range(2):
        assert ledger.training(within({"made_up": 3, "fc.weight": 2})) == 3 * 2 * 2
    assert caplog.text.count("made_up is no weight of the model as it was built") == 1


def test_a_model_that_cannot_be_counted_trains_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no shapes without data\nmore")

    monkeypatch.setattr("runner.ledger.account", broken)
    with caplog.at_level(logging.WARNING):
        summary = run(tmp_path, "schedule.epochs=1")[0]
    assert "no FLOPs are recorded: Sequential cannot be counted (no shapes without data)" in caplog.text
    assert not any(name.startswith("flops") for name in summary["final"]) and "flops/training" not in summary["chain"]
    with pytest.raises(Misuse, match=r"schedule\.budget = flops: the model's FLOPs cannot be counted"):
        run(tmp_path, "schedule.budget=flops")


@pytest.mark.parametrize("name", [name for name in names("model") if name not in ("timm", "torchvision")])
def test_every_model_is_counted(name: str) -> None:
    shapes = {"lenet": (1, 28, 28), "lstm": (12, 7), "bilstm": (12, 7), "transformer": (5,)}
    in_shape = shapes.get(name.split("_")[0], (3, 32, 32))
    with torch.device("meta"):
        model = build(section(name), in_shape, 267_735 if name.startswith("transformer") else 10)
    found = Ledger.of(model, in_shape).dense
    assert found is not None and found.macs > 0 and found.parameters == sum(p.numel() for p in model.parameters())


def test_counting_leaves_a_model_and_random_numbers_alone() -> None:
    torch.manual_seed(0)
    model = build(section("wrn_28_2", ["model.depth=10", "model.width=1", "model.dropout=0.3"]), (3, 8, 8), 10)
    generator, before = torch.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    assert Ledger.of(model, (3, 8, 8)).dense == account(model, (3, 8, 8))
    assert torch.equal(torch.get_rng_state(), generator)
    assert model.training and all(torch.equal(value, before[k]) for k, value in model.state_dict().items())


# Runs


def run(tmp_path: Path, *overrides: str) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]:
    """Summary, lines and configuration."""
    given = [*TINY, *overrides, f"runs={tmp_path}"]
    config = compose(given)
    summary = execute(config, given)
    return summary, read_metrics(run_dir(tmp_path, config) / "metrics.jsonl")[0], config


@pytest.mark.parametrize(("drop_last", "samples"), [("false", 36), ("true", 30)])
def test_an_epoch_is_charged_at_its_end_for_all_of_its_samples(drop_last: str, samples: int, tmp_path: Path) -> None:
    """GMP prunes to 0.525 and 0.6 of every layer within epochs 1 and 2; epoch 3 changes nothing."""
    gmp = ["method=gmp", "method.sparsity=0.6", "method.iterations=2", "method.every_epochs=0.75"]
    more = ["schedule.epochs=3", f"schedule.drop_last={drop_last}", "trainer.records=[layers]"]
    _, lines, _ = run(tmp_path, *gmp, *more)
    total = 0.0
    for epoch, line in enumerate(lines, start=1):
        kept = sum(round((1 - line[f"mask_layers:{name}"]) * size) for name, size in WEIGHTS.items())
        assert kept == (295 if epoch == 1 else 248)  # 0.525 = 0.6 - 0.6 (1 - 1 / 2)^3, then 0.6
        total += samples * 3 * (2 * kept + 40)
        assert line["flops/training"] == total
        assert line["flops/training_ratio"] == pytest.approx(total / (epoch * samples * 3 * F), rel=1e-14)
        nonzero = sum(round((1 - line[f"layers:{name}"]) * size) for name, size in WEIGHTS.items())
        assert line["flops/inference"] == 2 * nonzero + 40


LEARNS = ["schedule.lr=0.1", "schedule.batch_size=6"]
OF_PARENT = "'schedule.epochs=6','schedule.lr=0.1','schedule.batch_size=6'"


def test_a_chain_adds_up_its_stages(tmp_path: Path) -> None:
    """A dense run of 6 epochs, a ticket of 0.2 after it, and one of 0.36 after that."""
    first = f"'method=lottery','method.sparsity=0.2',{OF_PARENT},\"start.parent=['method=dense',{OF_PARENT}]\""
    given = ["method=lottery", "method.sparsity=0.36", f"start.parent=[{first}]", "schedule.epochs=3", *LEARNS]
    summary, _, config = run(tmp_path, *given)
    dense = 6 * 36 * 3 * F
    rounds = [6 * 36 * 3 * (2 * 496 + 40), 3 * 36 * 3 * (2 * 397 + 40)]
    told = summary["chain"]
    assert (told["stages"], told["flops/dense"], told["flops/training"]) == (3, dense, dense + sum(rounds))
    assert told["flops/training_ratio"] == (dense + sum(rounds)) / dense
    assert summary["final"]["flops/training"] == rounds[1]
    parent = parent_config(config)
    assert parent is not None
    above = RunDirectory(run_dir(tmp_path, parent)).summary()
    assert above is not None and above["chain"]["flops/training"] == dense + rounds[0]
    seconds = [above["chain"]["time/training_s"], summary["final"]["time/training_s"]]
    assert told["time/training_s"] == sum(seconds)
    (record,) = [r for r in collect([tmp_path]).runs.values() if r.key == summary["key"]]
    assert record.value("chain:flops/training_ratio") == told["flops/training_ratio"]
    assert record.value("epoch2:flops/training") == rounds[1] / 3 * 2


def test_a_chain_after_an_older_run_has_no_sum() -> None:
    final = {"flops/training": 5.0, "flops/training_ratio": 0.5, "time/training_s": 1.0}
    assert chain(final, {"final": {}}) == {}
    assert chain(final, {"chain": {"stages": 1, "time/training_s": 2.0}}) == {"stages": 2, "time/training_s": 3.0}
    assert chain({}, None) == {"stages": 1}


def test_an_interrupted_run_has_the_sums_of_one_that_was_not(tmp_path: Path) -> None:
    config = compose([*TINY, "method=gmp", "method.iterations=2", "method.every_epochs=0.75", "schedule.epochs=3"])
    whole = Trainer(make(config), RunDirectory(tmp_path / "whole")).fit()
    for stop in (2, 4, 9, None):
        t = Trainer(make(config), RunDirectory(tmp_path / "parts"))
        t.stop = lambda t=t, stop=stop: t.ctx.step == stop  # type: ignore[misc]
        if stop is None:
            t.fit()
        else:
            with pytest.raises(Interrupted):
                t.fit()
    told = [[{k: v for k, v in line.items() if k.startswith("flops")} for line in h] for h in (whole, t.history)]
    assert told[0] == told[1] and len(told[0]) == 3 and len(told[0][0]) == 5


def test_time_of_training_is_that_of_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that ticks once whenever it is looked at: an epoch's steps take 1, with its evaluation 2."""
    ticks = counting()
    monkeypatch.setattr("runner.trainer.time", SimpleNamespace(perf_counter=lambda: next(ticks), monotonic=lambda: 0.0))
    config = compose([*TINY, "schedule.epochs=3"])
    t = Trainer(make(config), RunDirectory(tmp_path))
    t.stop = lambda: t.ctx.step == 10
    with pytest.raises(Interrupted):
        t.fit()
    assert [(line["time/epoch_s"], line["time/training_s"]) for line in t.history] == [(2, 1), (2, 2)]
    t = Trainer(make(config), RunDirectory(tmp_path))
    t.fit()  # 16 of the 36 samples of epoch 3 are left
    assert t.history[-1]["time/training_s"] == 2 + 36 / 16
    t.history = [{"time/epoch_s": 3.0}, {"time/epoch_s": 4.0}]  # of an older version
    assert t.seconds == 7


def test_a_repetition_of_an_older_run_is_not_blamed_for_its_flops() -> None:
    old, now = {"epoch": 1, "a": 1.0}, {"epoch": 1, "a": 1.0, "flops/training": 3.0, "flops.dpf/inference": 1.0}
    assert first_difference([old], [now]) is None
    assert first_difference([{**now, "flops/training": 2.0}], [now]) == (1, ("flops/training", 2.0, 3.0))
    recorded = {"status": "completed", "final": old, "best": old}
    again = {"status": "completed", "final": now, "best": now, "chain": {"stages": 1}}
    assert summary_differences(recorded, again) == []
    assert summary_differences({**again, "chain": {"stages": 2}}, again) == [("chain.stages", 2, 1)]


# Budgets of FLOPs


def budgeted(tmp_path: Path, method: str) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]:
    short = ["schedule.epochs=4", "schedule.decay=step", "schedule.milestones=[2,3]", *LEARNS]
    if method == "lottery_flops":
        start = f"start.parent=['method=dense',{OF_PARENT}]"
    else:
        start = f"start.parent=['method=dpf','method.sparsity=0.2','method.end_epoch=4',{OF_PARENT}]"
    return run(tmp_path, f"method={method}", "method.sparsity=0.2", *short, start)


@pytest.mark.parametrize("method", ["lottery_flops", "retrain_mask_flops"])
def test_a_budget_of_flops_is_spent_to_the_epoch(method: str, tmp_path: Path) -> None:
    """496 of 620 weights stay: an epoch costs 1032 / 1280 of a dense one, so 4 of these pay for 4.96, that is 5."""
    summary, lines, config = budgeted(tmp_path, method)
    assert config["schedule"]["epochs"] == 4 and summary["epochs"] == len(lines) == 5
    spent, budget, epoch = lines[-1]["flops/training"], 4 * 36 * 3 * F, 36 * 3 * 1032
    assert spent == 5 * epoch and abs(spent - budget) <= epoch / 2
    # Milestones 2 and 3 of 4 lie at 2.5 and 3.75 of 5, six steps each: within epoch 3, and within epoch 4.
    assert [line["lr"] for line in lines] == pytest.approx([0.1, 0.1, 0.01, 0.001, 0.001])
    assert summary["chain"]["stages"] == 2


def test_a_budget_survives_an_interruption(tmp_path: Path) -> None:
    config = compose([*TINY, "method=static", "method.sparsity=0.5", "schedule.budget=flops", "schedule.decay=cosine"])
    whole = Trainer(make(config), RunDirectory(tmp_path / "whole"))
    whole.fit()
    assert len(whole.history) == whole.e.schedule.epochs == 4  # 2 x 1280 / 660 = 3.9
    assert whole.ctx.total_steps == 16
    for stop in (3, 8, 13, None):
        t = Trainer(make(config), RunDirectory(tmp_path / "parts"))
        t.stop = lambda t=t, stop=stop: t.ctx.step == stop  # type: ignore[misc]
        if stop is None:
            t.fit()
        else:
            with pytest.raises(Interrupted):
                t.fit()
    assert t.ctx.total_steps == 16
    assert [line["lr"] for line in t.history] == [line["lr"] for line in whole.history]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(t.model.state_dict()[name], value)


def test_a_budget_is_another_run_and_no_budget_the_same() -> None:
    from runner.identity import key

    plain = compose(["method=static"])
    assert key(plain) == key(compose(["method=static", "schedule.budget=epochs"]))
    assert key(plain) != key(compose(["method=static", "schedule.budget=flops"]))
    del plain["schedule"]["budget"]  # a record from before there was a choice
    assert key(plain) == key(compose(["method=static"]))


# What follows from architecture alone


def test_rigls_counter_by_hand() -> None:
    """n multiplications, n - 1 additions, a bias and a ReLU: 2 n + 1 for each output, of a sparse layer likewise."""
    found = account(small(), (1, 4, 4))
    assert found.flops("rigl") == 8 * (2 * 9 + 1) + 3 * (2 * 8 + 1)
    assert found.flops("rigl", {"0.weight": 6}) == 8 * (2 * 3 + 1) + 3 * (2 * 8 + 1)


def test_the_printed_ratios_follow_from_the_architecture() -> None:
    """All of RigL's and Top-KAST's, to the printed digit, but those that are printed rounded up."""
    (selection,) = select(["acdc/architecture"])
    cells = fill(selection, Collection({})).cells
    there = {place: cell for place, cell in cells.items() if cell.status not in ("needs", "absent")}
    assert len(there) == 62
    differ = {f"{row}/{column}": cell.text for (row, column), cell in there.items() if cell.status == "differs"}
    forwards = {"1x_s80_b50", "1x_s80_b0", "1x_s80_b60", "2x_s80_b0", "2x_s80_b60"}
    assert differ == {
        "rigl_s80/inference": "0.22×",
        "rigl_erk_s80/inference": "0.41×",
        **{f"topkast_{name}/inference": "0.22×" for name in forwards},
        "topkast_5x_s95_b0/training": "1.93×",
        "mobilenet_rigl_erk_s75/training": "0.52×",
        "mobilenet_rigl_erk_s90/training": "0.28×",
    }
    assert all(cell.status in ("ok", "differs") for cell in there.values())


def mobilenet() -> nn.Module:
    """Howard et al. 2017, table 1."""
    blocks = [(32, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2),
              *[(512, 512, 1)] * 5, (512, 1024, 2), (1024, 1024, 1)]  # fmt: skip
    parts: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, 1, bias=False)]
    for inner, outer, stride in blocks:
        parts += [
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
            nn.Conv2d(inner, outer, 1, bias=False),
        ]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1024, 1000))


# What RigL's official notebook prints (rigl/imagenet_resnet/colabs/MobileNet_Counting.ipynb), in MFLOPs: Keras pads
# strided convolutions otherwise, which is worth 1 MFLOP. With the depthwise layers outside of ERK's budget, or not.
NOTEBOOK = {(0.75, False): 599.144, (0.9, False): 334.134, (0.95, False): 205.281, (0.0, True): 1141.544}


def test_rigls_mobilenet() -> None:
    from methods.counts import allocate

    with torch.device("meta"):
        found = account(mobilenet(), (3, 224, 224))
    assert f"{found.flops('acdc') / 1e9:.1f}" == "1.1"
    assert f"{3 * found.flops('acdc') * 1_281_167 * 100 / 1e18:.2f}" == "0.44"

    def erk(sparsity: float, depthwise: bool) -> float:
        """FLOPs by RigL's counter; the depthwise layers belong to the budget, or are dense beside it."""
        pruned = [layer for layer in found.layers if depthwise or layer.groups == 1]
        kept = allocate("erk", [layer.shape for layer in pruned], sparsity)
        return found.flops("rigl", {layer.name: n for layer, n in zip(pruned, kept, strict=True)})

    for (sparsity, depthwise), printed in NOTEBOOK.items():
        assert erk(sparsity, depthwise) / 1e6 == pytest.approx(printed + 1, abs=0.1)
    whole = found.flops("rigl")
    # Table 3: inference with all layers in the budget, of which ERK leaves the depthwise ones dense by itself.
    assert [f"{erk(s, True) / whole:.2f}" for s in (0.75, 0.9)] == ["0.52", "0.27"]
    # Training at 75 %: only a budget without them gives the printed 0.53.
    assert [f"{(302 * erk(0.75, within_it) / whole + 1) / 303:.2f}" for within_it in (True, False)] == ["0.52", "0.53"]


def test_allocated_shares_are_those_of_the_methods_masks(tmp_path: Path) -> None:
    """What tables read without a run is what a run has."""
    from results.architecture import facts

    for more in (["method.allocation=erk"], ["method.allocation=uniform", "method.keep_dense=[fc1]"],
                 ["method.keep_dense=['type:Linear']"]):  # fmt: skip
        config = compose(["experiment=demo/digits", "method=static", "method.sparsity=0.7", *more])
        share = facts(config)["allocated"]
        if "type" in more[0]:
            assert share["acdc"] == 1
            continue
        method = Static(**{k: v for k, v in config["method"].items() if k not in ("name", "revision", "_target_")})
        model = build(config["model"], (1, 8, 8), 10)
        whole = account(model, (1, 8, 8))
        method.setup(model)
        kept = dict(zip(method.weights, method.counts, strict=True))
        assert share["acdc"] == whole.flops("acdc", kept) / whole.flops("acdc")
    assert "allocated" not in facts(compose(["experiment=demo/digits", "method=dense"]))
    with pytest.raises(Misuse, match="pattern 'fc9' matches none"):
        facts(compose(["experiment=demo/digits", "method=static", "method.keep_dense=[fc9]"]))


def test_a_budget_is_estimated_at_the_density() -> None:
    from results.cost import lengthened

    assert lengthened(compose(["method=static", "method.sparsity=0.9"])) == 1
    assert lengthened(compose(["method=static", "method.sparsity=0.9", "schedule.budget=flops"])) == pytest.approx(10)
    assert lengthened({"schedule": {}, "method": {}}) == 1


def test_metrics_of_the_ledger_are_plain_numbers(tmp_path: Path) -> None:
    _, lines, _ = run(tmp_path)
    names_ = [name for name in lines[-1] if name.startswith("flops")]
    assert names_ == ["flops/inference", "flops/inference_ratio", "flops.dpf/inference", "flops/training",
                      "flops/training_ratio"]  # fmt: skip
    assert all(type(lines[-1][name]) is float and math.isfinite(lines[-1][name]) for name in names_)
    assert json.loads(json.dumps(lines)) == lines
