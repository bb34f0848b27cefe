"""Masks that are fixed before the first step: one-shot, fine-tuning, retraining, lottery tickets; soft filters; SM."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from methods.allocation import kept_of
from methods.fixed import Fixed
from methods.lottery import Lottery
from methods.schedules import lottery_parent
from methods.sfp import SFP
from methods.sparse_momentum import SparseMomentum
from runner import checkpoint
from runner.compose import compose
from runner.errors import Misuse
from runner.execute import execute
from runner.experiment import make, validate
from runner.identity import parent_config, run_dir

SHAPES = [(6, 4), (6, 8), (4, 3)]
SMALL = ["model.hidden=[20,10]", "dataset.train_subset=300", "schedule.epochs=2"]


def last(path: Path) -> dict[str, Any]:
    return checkpoint.read(path / "checkpoints" / checkpoint.LAST)


def chain(tmp_path: Path, *given: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The configuration, run, and the last checkpoints of its run and of all that it builds on, the oldest first."""
    overrides = [*given, f"runs={tmp_path}"]
    config = compose(overrides)
    execute(config, overrides)
    states = []
    stage: Any = config
    while stage is not None:
        states.insert(0, last(run_dir(tmp_path, stage)))
        stage = parent_config(stage)
    return config, states


def test_one_shot_keeps_the_largest_weights_of_the_trained_parent(tmp_path: Path) -> None:
    _, (dense, child) = chain(tmp_path, *SMALL, "method=oneshot", "method.sparsity=0.8")
    weights = torch.cat([dense["model"][name].flatten().abs() for name in child["method"]["masks"]])
    kept = torch.cat([mask.flatten() for mask in child["method"]["masks"].values()])
    assert int(kept.sum()) == kept_of(kept.numel(), 0.8)
    assert float(weights[kept].min()) >= float(weights[~kept].max())


@pytest.mark.parametrize(("method", "parent"), [("dpf_finetuned", "dpf"), ("incremental_finetuned", "incremental")])
def test_fine_tuning_has_its_parents_weights_and_mask(method: str, parent: str, tmp_path: Path) -> None:
    more = ["method.sparsity=0.8", "schedule.lr=0", "schedule.epochs=40"]
    config, (first, second) = chain(
        tmp_path, "model.hidden=[20,10]", "dataset.train_subset=100", f"method={method}", *more
    )
    assert config["start"]["parent"]["method"]["name"] == parent
    assert config["start"]["parent"]["method"]["sparsity"] == 0.8
    for name, mask in first["method"]["masks"].items():
        assert torch.equal(second["method"]["masks"][name], mask)
        assert torch.equal(second["model"][name], first["model"][name])  # nothing was learnt at lr 0
        assert int(second["model"][name][~mask].count_nonzero()) == 0


def test_retraining_a_mask_begins_from_the_initial_weights_or_from_others(tmp_path: Path) -> None:
    more = ["model.hidden=[20,10]", "dataset.train_subset=100", "method=retrain_mask", "schedule.lr=0"]
    started = {}
    for initialization in ("original", "random"):
        config, (parent, child) = chain(tmp_path, *more, f"start.initialization={initialization}")
        started[initialization] = child["model"]
        plain = make(compose(more[:2])).model.state_dict()
        for name, mask in parent["method"]["masks"].items():
            same = torch.equal(child["model"][name], torch.where(mask, plain[name], 0.0))
            assert same == (initialization == "original")
            assert torch.equal(child["model"][name] != 0, mask & (child["model"][name] != 0))
        assert config["start"]["initialization"] == initialization
    again, _ = chain(tmp_path, *more, "start.initialization=random")
    assert torch.equal(last(run_dir(tmp_path, again))["model"]["fc1.weight"], started["random"]["fc1.weight"])


# Lottery tickets


@pytest.mark.parametrize("sparsity", [0.1, 0.2, 0.3, 0.36, 0.5, 0.9, 0.99])
def test_the_rounds_go_down_to_a_dense_run(sparsity: float) -> None:
    levels = [sparsity]
    while (found := lottery_parent(levels[-1], 0.2)) != ["method=dense"]:
        assert found[0] == "method=lottery" and found[2] == "method.rate=0.2"
        levels.append(float(found[1].removeprefix("method.sparsity=")))
    rounds = math.ceil(math.log(1 - sparsity) / math.log(0.8) - 1e-9)
    assert levels[1:] == pytest.approx([1 - 0.8**n for n in range(rounds - 1, 0, -1)])


def test_every_round_prunes_what_it_trained_and_starts_anew(tmp_path: Path) -> None:
    _, (dense, first, second) = chain(tmp_path, *SMALL, "method=lottery", "method.sparsity=0.36")
    plain = make(compose(SMALL)).model.state_dict()
    before: dict[str, torch.Tensor] = {name: torch.ones_like(mask) for name, mask in first["method"]["masks"].items()}
    for parent, child, sparsity in ((dense, first, 0.2), (first, second, 0.36)):
        masks = child["method"]["masks"]
        kept = torch.cat([mask.flatten() for mask in masks.values()])
        trained = torch.cat([torch.where(before[n], parent["model"][n].abs(), -1.0).flatten() for n in masks])
        assert int(kept.sum()) == kept_of(kept.numel(), sparsity)
        assert float(trained[kept].min()) >= float(trained[~kept].max())
        assert all(bool((before[name] | ~masks[name]).all()) for name in masks)
        before = masks
    # A round that learns nothing shows where it began.
    _, states = chain(tmp_path, *SMALL, "method=lottery", "method.sparsity=0.2", "schedule.lr=0")
    for name, mask in states[-1]["method"]["masks"].items():
        assert torch.equal(states[-1]["model"][name], torch.where(mask, plain[name], 0.0))


def test_equal_rounds_prune_what_they_trained(tmp_path: Path) -> None:
    """Two rounds to 64 % left: 80 % and 80 % of those."""
    given = [*SMALL, "method=imp", "method.sparsity=0.36", "method.rounds=2"]
    config, (dense, first, second) = chain(tmp_path, *given)
    assert config["start"]["parent"]["method"] | {"sparsity": 0} == config["method"] | {"rounds": 1, "sparsity": 0}
    assert config["start"]["parent"]["start"]["parent"]["method"]["name"] == "dense"
    for parent, child, sparsity in ((dense, first, 0.2), (first, second, 0.36)):
        kept = torch.cat([mask.flatten() for mask in child["method"]["masks"].values()])
        trained = torch.cat([parent["model"][name].abs().flatten() for name in child["method"]["masks"]])
        assert int(kept.sum()) == kept_of(kept.numel(), sparsity)
        assert float(trained[kept].min()) >= float(trained[~kept].max())
    # Every round begins with the initial weights: one that learns nothing shows them.
    plain = make(compose(SMALL)).model.state_dict()
    _, states = chain(tmp_path, *given, "schedule.lr=0")
    for name, mask in states[-1]["method"]["masks"].items():
        assert torch.equal(states[-1]["model"][name], torch.where(mask, plain[name], 0.0))


def test_rounds_rewind_to_the_weights_of_an_early_epoch(tmp_path: Path) -> None:
    """The first epochs are those of the whole training; every round begins with what they ended with, masked."""
    given = [*SMALL[:2], "method=lottery_rewound", "method.rewind_epochs=2"]
    config, (early, dense, first, second) = chain(tmp_path, *given, "method.sparsity=0.36")
    stages: list[Any] = [config]
    while (parent := parent_config(stages[0])) is not None:
        stages.insert(0, parent)
    assert [stage["schedule"]["epochs"] for stage in stages] == [2, 38, 38, 38]
    assert [stage["method"].get("sparsity") for stage in stages] == [None, 0, pytest.approx(0.2), 0.36]
    whole = make(compose([*SMALL[:2]])).schedule.learning_rate()
    for stage, begins in zip(stages, (0, 2, 2, 2), strict=True):
        rates = make(stage).schedule.learning_rate()
        for position in (0, 0.5, 1.99, stage["schedule"]["epochs"] - 0.01):
            assert rates.at(position) == whole.at(begins + position)
    for parent, child, sparsity in ((early, dense, 0.0), (dense, first, 0.2), (first, second, 0.36)):
        kept = torch.cat([mask.flatten() for mask in child["method"]["masks"].values()])
        trained = torch.cat([parent["model"][name].abs().flatten() for name in child["method"]["masks"]])
        assert int(kept.sum()) == kept_of(kept.numel(), sparsity)
        assert not bool((~kept).any()) or float(trained[kept].min()) >= float(trained[~kept].max())
    # Rounds that learn nothing show where they began.
    for sparsity in (0.2, 0.36):
        _, states = chain(tmp_path, *given, f"method.sparsity={sparsity}", "schedule.lr=0")
        for name, weight in states[-1]["model"].items():
            mask = states[-1]["method"]["masks"].get(name, torch.tensor(True))
            assert torch.equal(weight, torch.where(mask, early["model"][name], torch.zeros_like(weight))), name
            assert not torch.equal(early["model"][name], dense["model"][name]), name


def test_a_round_whose_first_run_is_gone_redoes_it(tmp_path: Path) -> None:
    """The weights to rewind to are those of the chain's first run, not of the direct parent alone."""
    given = [*SMALL[:2], "method=lottery_rewound", "method.rewind_epochs=1", "method.sparsity=0.2"]
    config, (early, _, _) = chain(tmp_path, *given)
    first = parent_config(parent_config(config) or {}) or {}
    shutil.rmtree(run_dir(tmp_path, first))
    _, (again, _, child) = chain(tmp_path, *given, "schedule.lr=0")
    for name, mask in child["method"]["masks"].items():
        assert torch.equal(again["model"][name], early["model"][name])
        assert torch.equal(child["model"][name], torch.where(mask, early["model"][name], 0.0))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["method.rewind_epochs=0"], "rewind_epochs = 0 rewinds to the initial weights; that is method=lottery"),
        (["schedule.from_epoch=40"], "should lie in this order within the 40 epochs"),
        (["schedule.until_epoch=1"], "should lie in this order within the 40 epochs"),
        (["schedule.until_epoch=41"], "should lie in this order within the 40 epochs"),
        (["schedule.until_epoch=soon"], "schedule.until_epoch = 'soon' should be a number"),
        (["schedule.from_epoch=-1"], "schedule.from_epoch = -1 should be in the range"),
        (["start.take=weights"], "take the mask"),
        (["start.initialization=rewind"], "should be one of original, random, rewound"),
    ],
)
def test_what_cannot_be_rewound_to_is_refused(given: list[str], says: str) -> None:
    with pytest.raises(Misuse, match=says):
        validate(compose(["method=lottery_rewound", *given]))


def test_parts_of_a_schedule_under_a_profile_are_whole_epochs() -> None:
    """300 epochs stand for 20 here, the first 10 for 1 (0.67), the rounds for the other 19."""
    given = ["experiment=dpf/cifar10", "method=lottery_rewound", "method.rewind_epochs=10", "profile=short"]
    stage: Any = compose(given)
    lengths = []
    while stage is not None:
        schedule = stage["schedule"]
        lengths.insert(0, (schedule["from_epoch"], schedule["until_epoch"], schedule["epochs"], schedule["lr_epochs"]))
        stage = parent_config(stage)
    assert lengths == [(0, 1, 1, 20), *[(1, 20, 19, 20)] * 12]


def test_a_ticket_without_a_parent_is_refused(bench: Any, gaussian: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="a lottery ticket needs a parent run's weights"):
        bench(Lottery(sparsity=0.5), gaussian(SHAPES, 0))


def test_a_ticket_is_never_denser_than_its_parent(bench: Any, gaussian: Callable[..., Any]) -> None:
    weights = gaussian(SHAPES, 0)
    parent = bench(Fixed(sparsity=0.5), weights)
    child = bench(Lottery(sparsity=0.4), weights, begin=False)
    with pytest.raises(ValueError, match=r"sparsity 0\.4 keeps more"):
        child.method.adopt(parent.method.masks(), dict(zip(child.method.weights, weights, strict=True)))


# Soft filter pruning


def test_soft_filters_by_hand(bench: Any) -> None:
    one = torch.tensor([[3.0, 4.0], [1.0, 1.0], [0.0, 2.5], [0.5, 0.0]])
    b = bench(SFP(sparsity=0.5), [one], lr=1.0, steps_per_epoch=2, epochs=2)
    nothing, towards = torch.zeros_like(one), torch.tensor([[0.0, 0.0], [-9.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    b.step([nothing])
    assert b.values() == [one.flatten().tolist()] and b.counts() == [8]  # within an epoch nothing is enforced
    b.step([nothing])
    assert b.values() == [[3.0, 4.0, 0.0, 0.0, 0.0, 2.5, 0.0, 0.0]] and b.counts() == [4]
    b.step([towards])  # the zeroed filters learn again
    assert b.values() == [[3.0, 4.0, 9.0, 0.0, 0.0, 2.5, 0.0, 0.0]] and b.counts() == [8]
    b.step([nothing])  # and the second has overtaken the third
    assert b.values() == [[3.0, 4.0, 9.0, 0.0, 0.0, 0.0, 0.0, 0.0]]


def test_soft_filters_ramp(bench: Any, gaussian: Callable[..., Any]) -> None:
    b = bench(SFP(sparsity=0.5, end_epoch=2), gaussian([(16, 4), (8, 16)], 0), steps_per_epoch=1, epochs=3)
    counts = []
    for _ in range(3):
        b.step([torch.zeros_like(w) for w in b.weights])
        counts.append(b.counts())
    assert counts == [[9 * 4, 5 * 16], [8 * 4, 4 * 16], [8 * 4, 4 * 16]]  # 0.4375 of 16: 7; of 8: 3.5, half up stay


# Sparse momentum


def test_sparse_momentum_by_hand(bench: Any) -> None:
    """One cycle with all numbers given: prune half of each layer, share out by mean momentum, grow by momentum."""
    weights = [torch.zeros(2, 4), torch.zeros(2, 3)]
    b = bench(SparseMomentum(sparsity=0.0, prune_rate=1.0), weights, momentum=0.9)
    method = b.method
    method.mask.set(0, torch.tensor([1, 1, 1, 1, 0, 0, 0, 0], dtype=torch.bool))
    method.mask.set(1, torch.tensor([1, 1, 0, 0, 0, 0], dtype=torch.bool))
    b.weights[0].data.view(-1).copy_(torch.tensor([4.0, -1.0, 3.0, 0.5, 0.0, 0.0, 0.0, 0.0]))
    b.weights[1].data.view(-1).copy_(torch.tensor([-2.0, 0.1, 0.0, 0.0, 0.0, 0.0]))
    momenta = [torch.tensor([1.0, 9.0, 1.0, 0.0, 0.1, 0.2, 0.3, 0.4]), torch.tensor([2.0, 0.0, 0.5, 0.7, 0.6, 0.0])]
    method.move(0.5, [m.double() for m in momenta])  # a rate of 1/2: layers lose 2 and 1
    # Survivors 0 and 2 (mean momentum 1), and 0 (mean 2): of three weights one grows in the first layer, two below.
    assert b.kept()[0] == [True, True, True, False, False, False, False, False]  # 1 was pruned and comes back
    assert b.kept()[1] == [True, False, False, True, True, False]
    assert b.values()[0] == [4.0, 0.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert b.values()[1] == [-2.0, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_sparse_momentum_moves_at_the_ends_of_epochs_but_the_last(bench: Any, gaussian: Callable[..., Any]) -> None:
    b = bench(SparseMomentum(sparsity=0.5), gaussian(SHAPES, 0), momentum=0.9, steps_per_epoch=4, epochs=3)
    moved: list[tuple[int, float]] = []
    b.method.move = lambda progress, momenta: moved.append((b.ctx.step, progress))
    for seed in range(12):
        b.step(gaussian(SHAPES, seed))
    assert moved == [(3, pytest.approx(1 / 3)), (7, pytest.approx(2 / 3))]


def test_sparse_momentum_sees_the_momentum_of_empty_positions(bench: Any, gaussian: Callable[..., Any]) -> None:
    b = bench(SparseMomentum(sparsity=0.5), gaussian(SHAPES, 0), momentum=0.9, steps_per_epoch=4, epochs=3)
    total = sum(b.counts())
    for seed in range(12):
        grads = gaussian(SHAPES, seed)
        b.step(grads)
        assert sum(b.counts()) == total
    for weight in b.weights:
        assert bool((b.optimizer.state[weight]["momentum_buffer"] != 0).all())


def test_sparse_momentum_without_momentum_is_refused(bench: Any, gaussian: Callable[..., Any]) -> None:
    b = bench(SparseMomentum(sparsity=0.5), gaussian(SHAPES, 0), steps_per_epoch=1)
    with pytest.raises(ValueError, match="needs an optimizer with momentum"):
        b.step(gaussian(SHAPES, 1))
