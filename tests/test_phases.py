"""Phases of AC/DC, epoch by epoch as the paper and the official configurations list them, and in profiles."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from methods.acdc import ACDC
from methods.phases import alternating, whole_phases
from methods.schedules import stretch
from runner.compose import compose


def epochs(config: dict[str, Any]) -> str:
    """A letter per epoch of a composed AC/DC run: d or s."""
    method = ACDC(**{k: v for k, v in config["method"].items() if k not in ("name", "revision", "_target_")})
    lengths = whole_phases(method.lengths(config["schedule"]["epochs"]), config["schedule"]["epochs"])
    return "".join("ds"[index % 2] * length for index, length in enumerate(lengths))


def sparse_epochs(text: str) -> list[int]:
    return [epoch for epoch, letter in enumerate(text) if letter == "s"]


def spans(*pairs: tuple[int, int]) -> list[int]:
    """All epochs of these spans, from 0, the last one of each included."""
    return [epoch for first, last in pairs for epoch in range(first, last + 1)]


def acdc_14(*more: str) -> list[str]:
    lengths = ["method.dense_epochs=13", "method.last_dense_epochs=13", "method.last_sparse_epochs=50"]
    return ["experiment=acdc/cifar100", "method=acdc", "schedule.epochs=225", *lengths, *more]


def test_resnet50() -> None:
    """Section 4 and Figure 2a."""
    found = epochs(compose(["experiment=acdc/imagenet", "method=acdc"]))
    starts = range(10, 75, 10)
    assert len(found) == 100
    assert sparse_epochs(found) == spans(*((start, start + 4) for start in starts), (85, 99))
    assert found.count("s") == 50  # "in total, we have an equal number of epochs of dense and sparse training"


def test_twice_the_epochs_have_more_of_the_same_phases() -> None:
    """The official configuration of 200 epochs: the last two phases are as long as in 100."""
    found = epochs(compose(["experiment=acdc/imagenet", "method=acdc", "schedule.epochs=200"]))
    assert sparse_epochs(found) == spans(*((start, start + 4) for start in range(10, 175, 10)), (185, 199))


def test_wide_resnet_20() -> None:
    """Appendix B.1, and iht_cifar100_wideresnet_steplr_freq20: pruned from 10, 50, ... 170, restored from 30 ..."""
    found = epochs(compose(["experiment=acdc/cifar100", "method=acdc"]))
    assert sparse_epochs(found) == spans((10, 29), (50, 69), (90, 109), (130, 149), (170, 199))
    assert len(found) == 200
    assert found == epochs(compose(["experiment=acdc/memorisation", "method=acdc"]))


def test_wide_resnet_14() -> None:
    """iht_cifar100_wideresnet_steplr_dense13: pruned every 33 epochs from 10 to 180, restored so from 30 to 170."""
    found = epochs(compose(acdc_14()))
    ends = [*range(30, 171, 33), 225]
    assert sparse_epochs(found) == spans(*((a, b - 1) for a, b in zip(range(10, 181, 33), ends, strict=True)))
    assert len(found) == 225


def test_wide_resnet_7() -> None:
    lengths = ["method.dense_epochs=7", "method.last_dense_epochs=7", "method.last_sparse_epochs=41"]
    found = epochs(compose(["experiment=acdc/cifar100", "method=acdc", "schedule.epochs=240", *lengths]))
    assert found == "d" * 10 + ("s" * 20 + "d" * 7) * 7 + "s" * 41


def test_transformer_xl() -> None:
    """Section 4, epochs from 1: dense 1-5, in turn every 3, dense 33-39, sparse 40-48."""
    lengths = alternating(48, warmup=5, sparse=3, dense=3, last_dense=7, last_sparse=9)
    ends = list(accumulate(whole_phases(lengths, 48)))
    assert ends == [5, 8, 11, 14, 17, 20, 23, 26, 29, 32, 39, 48]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["experiment=acdc/imagenet", "method=acdc", "profile=short"], "dd" + "sd" * 6 + "sdd" + "sss"),
        (["experiment=acdc/cifar100", "method=acdc", "profile=short"], "d" + "ssdd" * 4 + "sss"),
        # ends 0.9, 2.7, 3.8, 5.6, 6.8, 8.5, 9.7, 11.5, 12.6, 14.4, 15.6 and 20
        (acdc_14("profile=short"), "dssdssdssdsddsddssss"),
        (["experiment=acdc/imagenet", "method=acdc", "profile=smoke"], "ds"),
        (["experiment=acdc/cifar100", "method=acdc", "profile=smoke"], "dsds"),
    ],
)
def test_profiles_keep_the_order_and_end_sparse(overrides: list[str], expected: str) -> None:
    assert epochs(compose(overrides)) == expected


def test_what_does_not_divide_lengthens_the_last_phase() -> None:
    lengths = {"warmup": 10, "sparse": 5, "dense": 5, "last_dense": 10, "last_sparse": 15}
    assert alternating(57, **lengths) == [10, 5, 5, 5, 10, 22]
    assert alternating(40, **lengths) == [10, 5, 10, 15]
    assert alternating(20, **lengths) == [5, 2.5, 5, 7.5]  # too short for one phase of each kind


def test_whole_phases_by_hand() -> None:
    assert whole_phases([1.4, 1.2, 1.4, 4], 8) == [1, 2, 1, 4]  # ends 1.4, 2.6, 4
    assert whole_phases([0.2, 0.2, 0.2, 7.4], 8) == [1, 1, 1, 5]  # ends 0.2, 0.4, 0.6
    assert whole_phases([10, 10], 1) == [0, 1]  # a single epoch is sparse
    assert whole_phases([0, 4, 4, 4], 12) == [0, 4, 4, 4]  # begins sparse
    assert whole_phases([0, 4, 4, 4], 2) == [0, 2]
    assert whole_phases([0, 1, 1, 4, 4, 4], 3) == [0, 1, 1, 1]  # and goes on so: 0, 5, 5, 4
    # The first pair (12, 1) goes: its dense epoch before it, its sparse ones after it. 2, 24, 1, 1 of 28.
    assert whole_phases([1, 12, 1, 12, 1, 1], 5) == [1, 2, 1, 1]
    # The middle pair (2, 1) is the shortest: its dense epoch goes before it, its sparse ones after it.
    assert whole_phases([3, 6, 4, 2, 1, 8], 5) == [1, 1, 1, 2]  # 3, 6, 5, 10 of 24, in 5 epochs: ends 0.6, 1.9, 2.9
    assert whole_phases([3, 6, 4, 2, 1, 8], 24) == [3, 6, 4, 2, 1, 8]


@given(
    st.lists(st.floats(0.05, 30), min_size=2, max_size=16).filter(lambda x: len(x) % 2 == 0),
    st.integers(1, 60),
    st.booleans(),
)
def test_whole_phases_cover_the_run(lengths: list[float], epochs: int, begins_sparse: bool) -> None:
    if begins_sparse:
        lengths[0] = 0.0
    found = whole_phases(lengths, epochs)
    assert sum(found) == epochs and len(found) % 2 == 0 and len(found) <= len(lengths)
    assert all(length >= 1 for length in found[1:])
    assert found[0] >= 1 or begins_sparse or epochs == 1
    assert found[0] == 0 or not begins_sparse
    assert len(found) >= min(len(lengths), 2 * (epochs // 2))


def test_lists_of_phases_stretch() -> None:
    assert stretch({"phase_epochs": [10, 5, 5, 30]}, 0.1) == {"phase_epochs": [1, 0.5, 0.5, 3]}
    method = ACDC(sparsity=0.5, phase_epochs=[1, 0.5, 0.5, 3])
    method.check(5)
    assert whole_phases(method.lengths(5), 5) == [1, 1, 1, 2]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"phase_epochs": [10, 20]}, "phase_epochs are 30 epochs in all, but the run has 40"),
        ({"phase_epochs": [10, 20, 10]}, "lengths of dense and sparse phases in turn"),
        ({"phase_epochs": [10, 0, 10, 20]}, "all above 0 but perhaps the first"),
        ({"dense_epochs": 0}, "dense_epochs = 0: only warmup_epochs may be"),
        ({"allocation": "globl"}, "allocation = 'globl' should be global, uniform, erk or a pattern like 2:4"),
        ({"allocation": "2:4"}, "keeps 2 of 4 weights; set sparsity=0.5, not 0.9"),
        ({"allocation": "4:2"}, "keeps 4 of 2 weights; the first number is the smaller"),
    ],
)
def test_what_does_not_fit_is_said(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as raised:
        ACDC(**{"sparsity": 0.9, **options}).check(40)
    assert sentence in str(raised.value)
