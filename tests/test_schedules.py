"""Schedules: epoch ranges, learning rates, the cubic ramp, and stretching them all, by hand-computed examples."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from methods.schedules import (
    EpochRanges,
    LearningRate,
    cubic,
    imp_parent,
    is_epoch_field,
    is_epoch_ranges,
    rewound_parent,
    step_of,
    stretch,
    whole_epochs,
)

TABLE_4 = "1:25 -> 0.1, 26:50 -> 0.02, 51:75 -> 0.04, 76:100 -> 0.008"


def test_epoch_ranges_are_one_based_and_inclusive() -> None:
    ranges = EpochRanges.parse(TABLE_4)
    assert ranges.pairs == (((1, 25), 0.1), ((26, 50), 0.02), ((51, 75), 0.04), ((76, 100), 0.008))
    assert ranges.last_epoch == 100
    assert [ranges.at(epoch) for epoch in (1, 25, 26, 50, 51, 75, 76, 100)] == [
        *[0.1, 0.1, 0.02, 0.02, 0.04, 0.04, 0.008, 0.008]
    ]
    with pytest.raises(IndexError, match="epoch 101 lies after the last range, which ends at 100"):
        ranges.at(101)


def test_a_number_holds_in_every_epoch() -> None:
    for number in (3, 3.0):
        assert EpochRanges.parse(number).at(1) == EpochRanges.parse(number).at(10**6) == 3.0


def test_epoch_ranges_read_spaces_and_exponents_and_write_themselves() -> None:
    ranges = EpochRanges.parse(" 1:2->1e-15 ,3:3 ->  +2.5E3, 4:9 -> -.5")
    assert ranges.pairs == (((1, 2), 1e-15), ((3, 3), 2500.0), ((4, 9), -0.5))
    assert str(ranges) == "1:2 -> 1e-15, 3:3 -> 2500, 4:9 -> -0.5"
    assert EpochRanges.parse(str(ranges)) == ranges


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2:5 -> 1", "'2:5' should begin at epoch 1"),
        ("0:5 -> 1", "'0:5' should begin at epoch 1"),
        ("1:5 -> 1, 7:9 -> 2", "'7:9' should begin at epoch 6"),
        ("1:5 -> 1, 5:9 -> 2", "'5:9' should begin at epoch 6"),
        ("1:5 -> 1, 6:5 -> 2", "'6:5' should begin at epoch 6 and not end before it"),
        ("1-5 -> 1", "'1-5 -> 1' is not an epoch range"),
        ("1:5 -> ", "'1:5 ->' is not an epoch range"),
        ("1:5 -> fast", "'1:5 -> fast' is not an epoch range"),
        ("1:5 -> 1e", "'1:5 -> 1e' is not an epoch range"),
        ("1:5 -> nan", "is not an epoch range"),
        ("1:5 -> 1,", "'' is not an epoch range"),
        ("", "'' is not an epoch range"),
        ("0.1", "'0.1' is not an epoch range"),
    ],
)
def test_malformed_epoch_ranges_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EpochRanges.parse(text)


def rate(base: str | float, epochs: float, **options: object) -> LearningRate:
    return LearningRate(EpochRanges.parse(base), epochs, **options)  # type: ignore[arg-type]


def test_learning_rate_of_ranges_changes_at_the_first_step_of_the_epoch() -> None:
    lr = rate("1:2 -> 0.1, 3:4 -> 0.02", 4)
    steps = 7
    found = [lr.at(step / steps) for step in range(4 * steps)]
    assert found == [0.1] * 14 + [0.02] * 14


def test_learning_rate_of_steps() -> None:
    lr = rate(0.4, 90, decay="step", milestones=(30, 60, 80), gamma=0.1)
    assert [lr.at(p) for p in (0, 29.999, 30, 59.9, 60, 79.9, 80, 89.9)] == pytest.approx(
        [0.4, 0.4, 0.04, 0.04, 0.004, 0.004, 0.0004, 0.0004]
    )


def test_learning_rate_of_a_warm_up() -> None:
    lr = rate(0.256, 100, warmup_epochs=5)
    assert [lr.at(p) for p in (0, 1.25, 2.5, 5, 50)] == pytest.approx([0, 0.064, 0.128, 0.256, 0.256])
    lr = rate(0.4, 90, warmup_epochs=5, warmup_from=0.1, decay="step", milestones=(30,), gamma=0.5)
    assert [lr.at(p) for p in (0, 2.5, 5, 30)] == pytest.approx([0.1, 0.25, 0.4, 0.2])


def test_a_learning_rate_that_changes_between_epochs() -> None:
    """As in the official codes of STR and LATS: (n + 1) / 5 of the rate in epoch n of the warm-up, then the cosine."""
    lr = rate(0.256, 100, decay="cosine", warmup_epochs=5, changes="epoch")
    assert [lr.at(p) for p in (0, 0.99, 1, 4.5)] == pytest.approx([0.0512, 0.0512, 0.1024, 0.256])
    cosine = [0.128 * (1 + math.cos(math.pi * n / 95)) for n in (0, 0, 1, 94)]
    assert [lr.at(p) for p in (5, 5.99, 6, 99.9)] == pytest.approx(cosine)
    short = rate(0.4, 2, warmup_epochs=0.1, warmup_from=0.2, changes="epoch")  # a profile's
    assert [short.at(p) for p in (0, 0.05, 1)] == pytest.approx([0.4] * 3)
    from_ranges = rate("1:1 -> 0.1, 2:3 -> 0.2", 3, decay="step", milestones=(1.5,), gamma=0.5, changes="epoch")
    assert [from_ranges.at(p) for p in (0.5, 1.6, 2)] == pytest.approx([0.1, 0.2, 0.1])


def test_learning_rate_of_a_cosine() -> None:
    lr = rate(2.0, 10, decay="cosine", end=1.0)
    by_hand = [2.0, 1.5 + math.sqrt(2) / 4, 1.5, 1.5 - math.sqrt(2) / 4]
    assert [lr.at(p) for p in (0, 2.5, 5, 7.5)] == pytest.approx(by_hand)
    # After a warm-up of 2 epochs the cosine spans the other 8.
    lr = rate(2.0, 10, decay="cosine", warmup_epochs=2)
    assert [lr.at(p) for p in (1, 2, 6, 8)] == pytest.approx([1.0, 2.0, 1.0, 1 - math.sqrt(2) / 2])
    assert 0 < lr.at(9.99) < 1e-4


def test_cubic_by_hand() -> None:
    assert cubic(0.0, 0.8, 0.0) == 0.0
    assert cubic(0.0, 0.8, 0.5) == pytest.approx(0.7)
    assert cubic(0.0, 0.8, 1.0) == 0.8
    assert cubic(0.2, 0.8, 0.5) == pytest.approx(0.725)
    assert cubic(0.2, 0.8, -1.0) == pytest.approx(0.2)
    assert cubic(0.0, 0.8, 1.7) == 0.8


def test_step_of_rounds_to_the_nearest_step() -> None:
    assert [step_of(e, 10) for e in (0, 0.04, 0.05, 0.14, 2, 2.06)] == [0, 0, 1, 1, 20, 21]


def test_which_fields_and_values_are_epochs() -> None:
    named = ["epochs", "epoch", "warmup_epochs", "start_epoch", "every_epochs", "milestones"]
    assert all(is_epoch_field(name) for name in named)
    assert not any(is_epoch_field(name) for name in ("period", "iterations", "epochs_per", "depoch", "epoch_size"))
    assert is_epoch_ranges(TABLE_4) and is_epoch_ranges("1:3 -> 5")
    assert not any(is_epoch_ranges(value) for value in ("sgd", "a -> b", "1:25", 0.1, None, ["1:3 -> 5"]))


@pytest.mark.parametrize(
    ("factor", "stretched"),
    [
        (0.1, "1:3 -> 0.1, 4:5 -> 0.02, 6:8 -> 0.04, 9:10 -> 0.008"),  # ends 2.5, 5, 7.5, 10, half up
        (0.05, "1:1 -> 0.1, 2:3 -> 0.02, 4:4 -> 0.04, 5:5 -> 0.008"),  # ends 1.25, 2.5, 3.75, 5
        (0.04, "1:1 -> 0.1, 2:2 -> 0.02, 3:3 -> 0.04, 4:4 -> 0.008"),
        (0.03, "1:1 -> 0.1, 2:2 -> 0.02, 3:3 -> 0.008"),  # the middles stand for epochs 17, 50 and 84
        (0.02, "1:1 -> 0.1, 2:2 -> 0.04"),  # for epochs 25 and 75
        (0.01, "1:1 -> 0.02"),  # for epoch 50
        (0.001, "1:1 -> 0.008"),  # the one epoch stands for more than there are
        (2, "1:50 -> 0.1, 51:100 -> 0.02, 101:150 -> 0.04, 151:200 -> 0.008"),
    ],
)
def test_stretched_ranges_by_hand(factor: float, stretched: str) -> None:
    assert stretch({"lr": TABLE_4}, factor) == {"lr": stretched}


def test_short_ranges_keep_an_epoch() -> None:
    assert stretch("1:1 -> 5, 2:100 -> 1", 0.1) == "1:1 -> 5, 2:10 -> 1"
    assert stretch("1:98 -> 1, 99:99 -> 2, 100:100 -> 3", 0.1) == "1:8 -> 1, 9:9 -> 2, 10:10 -> 3"


def test_stretch_scales_epochs_and_nothing_else() -> None:
    config = {
        "schedule": {"name": "sgd", "epochs": 90, "batch_size": 256, "warmup_epochs": 5, "milestones": [30, 60, 80]},
        "method": {"period": "1:45 -> 100, 46:90 -> 200", "start_epoch": 3, "every_epochs": 2, "iterations": 20},
        "model": {"hidden": [300, 100], "layers": [{"epochs": 4}], "note": None, "bias": True},
    }
    assert stretch(config, 0.1) == {
        "schedule": {"name": "sgd", "epochs": 9, "batch_size": 256, "warmup_epochs": 0.5, "milestones": [3, 6, 8]},
        "method": {"period": "1:5 -> 100, 6:9 -> 200", "start_epoch": 0.3, "every_epochs": 0.2, "iterations": 20},
        "model": {"hidden": [300, 100], "layers": [{"epochs": 1}], "note": None, "bias": True},
    }
    assert config["schedule"]["epochs"] == 90  # the argument is left as it was


def test_stretch_by_one_changes_nothing() -> None:
    config = {"epochs": 7.5, "lr": " 1:3->0.10", "milestones": [1.23456789]}
    assert stretch(config, 1) == stretch(config, 1.0) == config


def test_whole_epochs_are_never_fewer_than_one() -> None:
    assert [whole_epochs(e, f) for e, f in ((100, 0.001), (40, 0.02), (100, 0.1), (25, 0.1), (3, 2))] == [
        1,
        1,
        10,
        3,
        6,
    ]


@given(st.integers(1, 6), st.integers(0, 10**6), st.sampled_from([0.01, 0.02, 0.1, 0.25, 0.5, 0.9, 1.5, 3]))
def test_stretched_ranges_cover_the_stretched_run(count: int, seed: int, factor: float) -> None:
    rng = random.Random(seed)
    ends = sorted(rng.sample(range(1, 201), count))
    starts = [1, *(end + 1 for end in ends[:-1])]
    text = ", ".join(f"{s}:{e} -> {v}" for v, (s, e) in enumerate(zip(starts, ends, strict=True)))
    ranges = EpochRanges.parse(stretch(text, factor))
    total = whole_epochs(ends[-1], factor)
    assert ranges.last_epoch == total
    values = [value for _, value in ranges.pairs]
    if total >= count:
        assert values == list(range(count))  # none is lost, and parse has checked that each has an epoch
    else:
        assert len(values) == total and values == sorted(values)


def test_the_last_epochs_have_a_rate_of_their_own() -> None:
    """0.1 x (i / 5) in the i-th of 5 epochs, a cosine over 95, then 5 epochs at 1e-5 (Chijiwa et al. 2021, B.2)."""
    given = {"decay": "cosine", "warmup_epochs": 5, "final_epochs": 5, "final": 1e-5}
    by_epoch = rate(0.1, 105, **given, changes="epoch")
    assert [by_epoch.at(i + part) for i in range(5) for part in (0.0, 0.7)] == pytest.approx(
        [0.02, 0.02, 0.04, 0.04, 0.06, 0.06, 0.08, 0.08, 0.1, 0.1]
    )
    assert [by_epoch.at(e) for e in (5.5, 99.99)] == pytest.approx([0.1, 0.05 * (1 + math.cos(math.pi * 94 / 95))])
    by_step = rate(0.1, 105, **given)
    assert by_step.at(5) == pytest.approx(0.1) and by_step.at(52.5) == pytest.approx(0.05)
    assert 0 < by_step.at(99.99) < 1e-6
    assert [lr.at(e) for lr in (by_epoch, by_step) for e in (100, 102.5, 104.99)] == [1e-5] * 6
    short = rate(0.1, 20, warmup_epochs=0.952, final_epochs=0.952, final=0.01)  # a profile's fractions
    assert [short.at(p) for p in (0.952, 19.04, 19.05)] == [0.1, 0.1, 0.01]


def test_the_rounds_of_magnitude_pruning_keep_equal_shares() -> None:
    """1 - 0.1^(2/3) and 1 - 0.1^(1/3), then dense."""
    assert imp_parent(0.9, 3) == ["method=imp", "method.sparsity=0.784556530997", "method.rounds=2"]
    assert imp_parent(0.784556530997, 2)[:2] == ["method=imp", "method.sparsity=0.535841116639"]
    assert imp_parent(0.535841116639, 1) == ["method=dense"]
    for sparsity, rounds in ((1.2, 3), ("much", 3), (0.9, 0)):
        assert imp_parent(sparsity, rounds) == ["method=dense"]  # type: ignore[arg-type]


def test_rounds_that_rewind_go_down_to_the_first_epochs() -> None:
    assert rewound_parent(0.36, 0.2, 3) == [
        "method=lottery_rewound",
        "method.sparsity=0.2",
        "method.rate=0.2",
        "method.rewind_epochs=3",
    ]
    assert rewound_parent(0.2, 0.2, 3)[1] == "method.sparsity=0"
    assert rewound_parent(0, 0.2, 3) == ["method=dense", "schedule.until_epoch=3"]
