"""Allocation: exact totals, caps and floors, against hand-computed numbers and a bisection of the ERK equation."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from methods.allocation import allocate, kept_of, prunable_weights
from methods.schedules import apportion

LENET = [(300, 784), (100, 300), (10, 100)]


def test_apportion_by_hand() -> None:
    assert apportion(10, [1, 1]) == [5, 5]
    assert apportion(10, [3, 1]) == [8, 2]  # 7.5 and 2.5: the tie goes to the earlier one
    assert apportion(7, [1, 2, 4]) == [1, 2, 4]
    assert apportion(4, [3, 2, 1]) == [2, 1, 1]  # 2, 1.33 and 0.67: the largest remainder
    assert apportion(1, [1, 1, 1]) == [1, 0, 0]
    assert apportion(5, [0, 2, 3]) == [0, 2, 3]
    assert apportion(0, [1, 2]) == [0, 0]
    assert apportion(3, [0, 0]) == [2, 1]  # nothing to be proportional to: equal shares


def test_apportion_splits_a_capped_surplus_again_among_the_others() -> None:
    assert apportion(10, [8, 1, 1], [4, 10, 10]) == [4, 3, 3]
    assert apportion(10, [8, 1, 1], [4, 10, 2]) == [4, 4, 2]
    assert apportion(16, [8, 1, 1], [4, 10, 2]) == [4, 10, 2]
    assert apportion(4, [5, 0, 0], [1, 2, 2]) == [1, 2, 1]
    with pytest.raises(ValueError, match="17 items do not fit into caps that hold 16"):
        apportion(17, [8, 1, 1], [4, 10, 2])


def exact_apportion(total: int, weights: list[int], caps: list[int]) -> tuple[list[int], bool]:
    """Largest remainders in exact arithmetic, and whether a tie of remainders had to be broken."""
    counts = {i: caps[i] for i in range(len(weights)) if caps[i] == 0}
    while True:
        free = [i for i in range(len(weights)) if i not in counts]
        left = total - sum(counts.values())
        mass = sum(weights[i] for i in free)
        quota = {i: Fraction(left * weights[i], mass) if mass else Fraction(left, len(free)) for i in free}
        full = [i for i in free if left and quota[i] >= caps[i]]
        if full:
            counts |= {i: caps[i] for i in full}
            continue
        rest = left - sum(math.floor(q) for q in quota.values())
        ranked = sorted(free, key=lambda i: (math.floor(quota[i]) - quota[i], i))
        tie = 0 < rest < len(ranked) and quota[ranked[rest - 1]] % 1 == quota[ranked[rest]] % 1
        counts |= {i: math.floor(quota[i]) + (i in ranked[:rest]) for i in free}
        return [counts[i] for i in range(len(weights))], tie


@given(st.data())
def test_apportion_is_exact_and_equals_exact_arithmetic(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 7))
    weights = data.draw(st.lists(st.integers(0, 1000), min_size=n, max_size=n))
    caps = data.draw(st.lists(st.integers(0, 500), min_size=n, max_size=n))
    total = data.draw(st.integers(0, sum(caps)))
    counts = apportion(total, weights, caps)
    assert sum(counts) == total
    assert all(0 <= count <= cap for count, cap in zip(counts, caps, strict=True))
    expected, tie = exact_apportion(total, weights, caps)
    if tie:  # the last bit of a quota may decide; each count is still within one of the exact one
        assert all(abs(a - b) <= 1 for a, b in zip(counts, expected, strict=True))
    else:
        assert counts == expected


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=8), st.integers(0, 10**6))
def test_apportion_of_real_weights_stays_within_one_of_the_quota(weights: list[float], total: int) -> None:
    counts = apportion(total, weights)
    assert sum(counts) == total
    mass = math.fsum(weights)
    if mass > 1e-300:
        assert all(abs(c - total * (w / mass)) < 1 + 1e-6 for c, w in zip(counts, weights, strict=True))


def test_kept_of_by_hand() -> None:
    assert kept_of(10, 0.0) == 10
    assert kept_of(266_200, 0.9) == 26_620
    assert kept_of(266_200, 0.95) == 13_310
    assert kept_of(266_200, 0.98) == 5_324
    assert kept_of(266_200, 0.99) == 2_662
    assert kept_of(10, 0.97) == 0  # 0.3
    assert kept_of(100, 0.333) == 67  # 66.7


def test_kept_of_rounds_half_up_in_spite_of_binary_fractions() -> None:
    assert 5 * (1 - 0.9) < 0.5 and kept_of(5, 0.9) == 1
    assert kept_of(5, 0.5) == 3
    assert kept_of(5, 0.7) == 2  # 1.5
    assert kept_of(15, 0.9) == 2  # 1.5


@given(st.integers(0, 10**8), st.integers(0, 999))
def test_kept_of_equals_decimal_arithmetic(total: int, permille: int) -> None:
    assert kept_of(total, permille / 1000) == math.floor(Fraction(1000 - permille, 1000) * total + Fraction(1, 2))


def test_uniform_keeps_the_same_share_everywhere() -> None:
    assert allocate("uniform", LENET, 0.9) == [23_520, 3_000, 100]
    assert allocate("uniform", LENET, 0.99) == [2_352, 300, 10]
    assert allocate("uniform", [(3, 5), (3, 5)], 0.9) == [2, 1]  # 3 of 30 kept; 1.5 each, the tie goes to the first
    assert allocate("uniform", [(2, 2), (3, 3)], 0.0) == [4, 9]


def test_layer_floor_of_the_compressed_lenet() -> None:
    """The official code keeps at least 100 weights of the last layer; the others share the rest in proportion."""
    # 90 %: 10 % of 10 x 100 is 100 already.
    assert allocate("uniform", LENET, 0.90, 100) == [23_520, 3_000, 100]
    # 95 %: 13,310 - 100 = 13,210 over 235,200 + 30,000: 11,715.66 and 1,494.34.
    assert allocate("uniform", LENET, 0.95, 100) == [11_716, 1_494, 100]
    # 98 %: 5,324 - 100 = 5,224: 4,633.05 and 590.95.
    assert allocate("uniform", LENET, 0.98, 100) == [4_633, 591, 100]
    # 99 %: 2,662 - 100 = 2,562: 2,272.18 and 289.82.
    assert allocate("uniform", LENET, 0.99, 100) == [2_272, 290, 100]


def test_layer_floor_never_asks_for_more_than_a_layer_has() -> None:
    assert allocate("uniform", [(10, 10), (2, 2)], 0.5, 8) == [48, 4]
    assert allocate("uniform", [(2, 2), (2, 2)], 0.0, 100) == [4, 4]
    with pytest.raises(ValueError, match="a floor of 60 weights per layer needs 120, but only 100 are kept"):
        allocate("uniform", [(10, 10), (10, 10)], 0.5, 60)


def test_erk_by_hand_with_capped_layers() -> None:
    shapes = [(100, 100), (10, 10), (2, 5)]  # sizes 10,000, 100, 10; sums 200, 20, 7
    # 1,011 kept: 7/227 of them are 31 > 10, so the last layer is dense; 1,001 over 200 + 20 make 910 and 91.
    assert allocate("erk", shapes, 0.9) == [910, 91, 10]
    # 2,022 kept: 10 there; 20/220 of 2,012 are 183 > 100, so the second is dense too.
    assert allocate("erk", shapes, 0.8) == [1_912, 100, 10]


def test_erk_counts_the_kernel_dimensions() -> None:
    # sums 8 + 4 + 3 + 3 = 18 and 20 + 8 = 28; sizes 288 and 160; 224 kept: 87.65 and 136.35.
    assert allocate("erk", [(8, 4, 3, 3), (20, 8)], 0.5) == [88, 136]


SHAPES = st.lists(st.lists(st.integers(1, 40), min_size=2, max_size=4), min_size=1, max_size=8)


@given(SHAPES, st.floats(0, 0.999))
@example([[16, 3, 3, 3], [16, 16, 3, 3], [32, 16, 3, 3], [10, 32]], 0.8)
@example([[64, 3, 7, 7], [64, 64, 1, 1], [64, 64, 3, 3], [256, 64, 1, 1], [1000, 256]], 0.9)
def test_erk_solves_its_equation(shapes: list[list[int]], sparsity: float) -> None:
    sizes, sums = [math.prod(s) for s in shapes], [sum(s) for s in shapes]
    total = kept_of(sum(sizes), sparsity)
    counts = allocate("erk", shapes, sparsity)
    assert sum(counts) == total
    assert all(0 <= c <= size for c, size in zip(counts, sizes, strict=True))
    # Independently: the scale epsilon for which sum_l min(size_l, epsilon sum_l) = total, by bisection.
    low, high = 0.0, max(size / s for size, s in zip(sizes, sums, strict=True))
    for _ in range(200):
        middle = (low + high) / 2
        if math.fsum(min(size, middle * s) for size, s in zip(sizes, sums, strict=True)) < total:
            low = middle
        else:
            high = middle
    wanted = [min(size, high * s) for size, s in zip(sizes, sums, strict=True)]
    # Capping is decided before rounding: at a cap's edge the two may differ by the surplus of one rounding per layer.
    assert all(abs(c - w) < 1 + 1e-6 for c, w in zip(counts, wanted, strict=True))


@given(SHAPES, st.floats(0, 0.99), st.sampled_from(["uniform", "erk"]), st.integers(0, 30))
def test_floors_hold_and_the_total_stays_exact(
    shapes: list[list[int]], sparsity: float, allocation: Any, floor: int
) -> None:
    sizes = [math.prod(s) for s in shapes]
    total = kept_of(sum(sizes), sparsity)
    floors = [min(floor, size) for size in sizes]
    if sum(floors) > total:
        with pytest.raises(ValueError, match=f"a floor of {floor} weights per layer"):
            allocate(allocation, shapes, sparsity, floor)
        return
    counts = allocate(allocation, shapes, sparsity, floor)
    assert sum(counts) == total
    assert all(low <= c <= size for low, c, size in zip(floors, counts, sizes, strict=True))


def network() -> nn.Sequential:
    return nn.Sequential(
        *[nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()],
        nn.ModuleDict({"shortcut": nn.Conv2d(4, 4, 1), "body": nn.Conv2d(4, 4, 3)}),
        *[nn.LayerNorm(4), nn.Embedding(5, 4), nn.Linear(4, 2)],
    )


def test_prunable_weights_are_those_of_convolutions_and_linear_layers() -> None:
    model = network()
    weights = prunable_weights(model)
    assert list(weights) == ["0.weight", "3.shortcut.weight", "3.body.weight", "6.weight"]
    assert all(weights[name] is dict(model.named_parameters())[name] for name in weights)


def test_keep_dense_patterns_match_layer_names() -> None:
    assert list(prunable_weights(network(), ["0", "*.shortcut"])) == ["3.body.weight", "6.weight"]
    assert list(prunable_weights(network(), ["3.*"])) == ["0.weight", "6.weight"]
    assert list(prunable_weights(network(), ["type:Linear"])) == ["0.weight", "3.shortcut.weight", "3.body.weight"]
    with pytest.raises(ValueError, match=r"pattern 'fc' matches none of the layers 0, 3\.shortcut, 3\.body, 6"):
        prunable_weights(network(), ["0", "fc"])
    with pytest.raises(ValueError, match=r"pattern 'type:linear' matches none of the layers"):
        prunable_weights(network(), ["type:linear"])
