"""Gradual magnitude pruning: the cubic by hand, the prune steps, nested masks with exact counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from methods.allocation import kept_of
from methods.gmp import GMP
from methods.schedules import cubic

SHAPES = [(6, 4), (6, 8), (4, 3)]  # 24, 48 and 12 weights: 84
# 266,200 (1 - s_i) for s_i = 0.9 (1 - (1 - i/10)^3) = 0.2439, 0.4392, 0.5913, 0.7056, 0.7875, 0.8424, 0.8757, 0.8928,
# 0.8991, 0.9; 56,567.5 is rounded up.
LENET_90 = [201_274, 149_285, 108_796, 78_369, 56_568, 41_953, 33_089, 28_537, 26_860, 26_620]


def prunings(b: Any, steps: int) -> dict[int, float]:
    """0-based step -> the sparsity pruned to after it."""
    found: dict[int, float] = {}
    b.method.prune = lambda sparsity: found.update({b.ctx.step: sparsity})
    for _ in range(steps):
        b.step([torch.zeros_like(w) for w in b.weights])
    return found


def test_the_compressed_lenet_by_hand(bench: Any, gaussian: Callable[..., Any]) -> None:
    """Table 4 of Mostafa & Wang 2019: T = 10 prunings, 2 epochs between them, 20 epochs after them."""
    weights = gaussian([(300, 784), (100, 300), (10, 100)], 0)
    method = GMP(sparsity=0.9, iterations=10, every_epochs=2, layer_floor=100)
    method.check(40)
    b = bench(method, weights, steps_per_epoch=1, epochs=40)
    counts = []  # at the end of every epoch
    for _ in range(40):
        b.step([torch.zeros_like(w) for w in b.weights])
        counts.append(sum(b.counts()))
    assert counts == [266_200, *[n for n in LENET_90 for _ in range(2)], *[26_620] * 19]
    assert b.counts() == [23_520, 3_000, 100]


def test_prunings_follow_the_ends_of_epochs(bench: Any, gaussian: Callable[..., Any]) -> None:
    b = bench(GMP(sparsity=0.8, iterations=2, every_epochs=1), gaussian(SHAPES, 0), steps_per_epoch=5, epochs=4)
    assert prunings(b, 20) == {4: pytest.approx(0.7), 9: 0.8}
    method = GMP(sparsity=0.8, iterations=2, every_epochs=1, start_epoch=2)
    found = prunings(bench(method, gaussian(SHAPES, 0), steps_per_epoch=5, epochs=4), 20)
    assert found == {14: pytest.approx(0.7), 19: 0.8}
    method = GMP(sparsity=0.8, iterations=4, every_epochs=0.5)  # 2.5 steps: after 3, 5, 8 and 10 finished steps
    found = prunings(bench(method, gaussian(SHAPES, 0), steps_per_epoch=5, epochs=4), 20)
    assert found == pytest.approx({2: 0.4625, 4: 0.7, 7: 0.7875, 9: 0.8})


def test_where_prunings_fall_on_one_step_the_last_counts(bench: Any, gaussian: Callable[..., Any]) -> None:
    method = GMP(sparsity=0.8, iterations=8, every_epochs=0.125)  # 2 steps per epoch: 4 prunings on each
    found = prunings(bench(method, gaussian(SHAPES, 0), steps_per_epoch=2, epochs=4), 8)
    assert found[1] == 0.8 and sorted(found) == [0, 1]


@pytest.mark.parametrize("every_epochs", [0, 0.01])
def test_a_ramp_shorter_than_a_step_still_prunes(bench: Any, gaussian: Callable[..., Any], every_epochs: float) -> None:
    method = GMP(sparsity=0.5, iterations=10, every_epochs=every_epochs)
    method.check(4)
    b = bench(method, gaussian(SHAPES, 0), steps_per_epoch=4, epochs=4)
    for _ in range(16):
        b.step([torch.zeros_like(w) for w in b.weights])
    assert b.counts() == [12, 24, 6]


def test_the_smallest_magnitudes_go_per_layer_or_over_all(bench: Any) -> None:
    weights = [torch.tensor([[1.0, -2.0, 3.0, -4.0]]), torch.tensor([[0.1, -0.2, 0.3, 5.0]])]
    uniform = bench(GMP(sparsity=0.5, iterations=1, every_epochs=1), weights)
    uniform.method.prune(0.5)
    assert uniform.kept() == [[False, False, True, True], [False, False, True, True]]
    overall = bench(GMP(sparsity=0.5, iterations=1, every_epochs=1, allocation="global"), weights)
    overall.method.prune(0.5)
    assert overall.kept() == [[False, True, True, True], [False, False, False, True]]
    overall.method.prune(0.75)
    assert overall.kept() == [[False, False, False, True], [False, False, False, True]]


def test_among_ties_the_earlier_weights_stay_also_across_layers(bench: Any) -> None:
    weights = [torch.ones(1, 3), -torch.ones(1, 3)]
    b = bench(GMP(sparsity=0.5, iterations=1, every_epochs=1, allocation="global"), weights)
    b.method.prune(1 / 3)
    assert b.kept() == [[True, True, True], [True, False, False]]


@pytest.mark.parametrize("allocation", ["uniform", "erk", "global"])
def test_masks_are_nested_exact_and_final(bench: Any, gaussian: Callable[..., Any], allocation: Any) -> None:
    method = GMP(sparsity=0.9, iterations=20, every_epochs=1, allocation=allocation)
    b = bench(method, gaussian(SHAPES, 0), momentum=0.9, nesterov=True, steps_per_epoch=3, epochs=30)
    previous = b.kept()
    for step in range(90):
        b.step(gaussian(SHAPES, 1 + step))
        kept = b.kept()
        assert all(o or not n for old, new in zip(previous, kept, strict=True) for o, n in zip(old, new, strict=True))
        assert all(k or w == 0 for ks, ws in zip(kept, b.values(), strict=True) for k, w in zip(ks, ws, strict=True))
        done = min((step + 1) // 3, 20)
        assert sum(b.counts()) == kept_of(84, 0.9 - 0.9 * (1 - done / 20) ** 3), step
        previous = kept
    assert sum(b.counts()) == 8


def test_counts_are_exact_where_largest_remainders_are_not_monotone(bench: Any, gaussian: Callable[..., Any]) -> None:
    """From pruning 47 to 48 of these 50 the third layer's share rises from 71 to 72 as the total falls by one."""
    shapes = [(38, 19), (3, 17), (12, 30), (46, 56)]
    method = GMP(sparsity=0.9, iterations=50, every_epochs=1, allocation="erk", layer_floor=5)
    b = bench(method, gaussian(shapes, 0))
    for i in range(1, 51):
        sparsity = cubic(0.0, 0.9, i / 50)
        method.prune(sparsity)
        assert sum(b.counts()) == kept_of(3709, sparsity), i
    assert min(b.counts()) >= 5


@pytest.mark.parametrize(("allocation", "layer_floor"), [("uniform", 0), ("erk", 0), ("uniform", 4), ("global", 0)])
def test_trace(bench: Any, plain_sgd: Any, gaussian: Callable[..., Any], allocation: Any, layer_floor: int) -> None:
    method = GMP(
        sparsity=0.75, iterations=5, every_epochs=2, start_epoch=1, allocation=allocation, layer_floor=layer_floor
    )
    b = bench(method, gaussian(SHAPES, 0), momentum=0.9, nesterov=True, steps_per_epoch=3, epochs=12)
    plain = plain_sgd(b.values(), b.kept(), lr=0.1, momentum=0.9, nesterov=True)
    # 84 (1 - 0.75 (1 - (1 - i/5)^3)): 53.256, 34.608, 25.032, 21.504 and 21, rounded to 53, 35, 25, 22 and 21, in
    # proportion to 24, 48 and 12 or, for erk, to 10, 14 and 7.
    levels = {
        ("uniform", 0): [[15, 30, 8], [10, 20, 5], [7, 14, 4], [6, 13, 3], [6, 12, 3]],
        ("uniform", 4): [[15, 30, 8], [10, 20, 5], [7, 14, 4], [6, 12, 4], [6, 11, 4]],
        ("erk", 0): [[17, 24, 12], [11, 16, 8], [8, 11, 6], [7, 10, 5], [7, 9, 5]],
    }
    flat = [(layer, i) for layer, shape in enumerate(SHAPES) for i in range(shape[0] * shape[1])]
    for step in range(36):
        grads = gaussian(SHAPES, 100 + step)
        b.step(grads)
        plain.step([g.flatten().tolist() for g in grads])
        if step in (8, 14, 20, 26, 32):  # the last steps of epochs 3, 5, 7, 9 and 11
            level = (step - 8) // 6
            order = sorted((p for p in flat if plain.kept[p[0]][p[1]]), key=lambda p: (-abs(plain.w[p[0]][p[1]]), p))
            if allocation == "global":
                stay = set(order[: [53, 35, 25, 22, 21][level]])
            else:
                counts = levels[allocation, layer_floor][level]
                stay = {p for layer, n in enumerate(counts) for p in [q for q in order if q[0] == layer][:n]}
            for layer, i in flat:
                if (layer, i) not in stay:
                    plain.kept[layer][i], plain.w[layer][i] = False, 0.0
        assert b.kept() == plain.kept, step
        for found, expected in zip(b.values(), plain.w, strict=True):
            assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert sum(b.counts()) == 21


def test_a_ramp_beyond_the_run_is_refused() -> None:
    GMP(sparsity=0.5, iterations=10, every_epochs=2, start_epoch=20).check(40)
    with pytest.raises(ValueError, match="the last of 10 prunings every 2 epochs from epoch 21 lies after"):
        GMP(sparsity=0.5, iterations=10, every_epochs=2, start_epoch=21).check(40)
    with pytest.raises(ValueError, match="layer_floor needs allocation uniform or erk"):
        GMP(sparsity=0.5, iterations=1, every_epochs=1, allocation="global", layer_floor=1).check(40)
