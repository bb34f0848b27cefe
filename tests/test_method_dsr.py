"""DSR against a re-statement on Python lists, and each of its rules by itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from methods.dsr import DSR, spread
from methods.masks import digest

SHAPES = [(6, 4), (6, 8), (4, 3)]  # 24, 48 and 12 weights; at half density 12, 24 and 6


def first_free(free: torch.Tensor, count: int, rng: torch.Generator) -> torch.Tensor:
    """In place of the random draw, so that a re-statement knows the outcome."""
    where = free.nonzero().flatten()
    assert len(where) >= count
    return where[:count]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drop(b: Any) -> list[torch.Tensor]:
    return b.method.drop([b.method.mask.kept(i) for i in range(len(b.weights))], b.ctx)


@pytest.mark.parametrize(
    ("small", "factor"),
    [(0, 2.0), (1, 2.0), (8, 2.0), (9, 1.0), (10, 1.0), (11, 1.0), (12, 0.5), (50, 0.5)],
)
def test_the_threshold_adapts_outside_the_tolerance(bench: Any, small: int, factor: float) -> None:
    """K = 10 and delta = 0.1: fewer than 9 double it, more than 11 halve it."""
    weight = torch.where(torch.arange(100) < small, 0.5, 2.0).view(10, 10)
    b = bench(DSR(sparsity=0.0, count=10, period=1, threshold=1.0), [weight])
    (gone,) = drop(b)
    assert int(gone.sum()) == small
    assert b.method.current_threshold == factor


@pytest.mark.parametrize(
    ("count", "tolerance", "small", "factor"),
    [
        *[(600, 0.1, n, f) for n, f in ((539, 2.0), (540, 1.0), (660, 1.0), (661, 0.5))],
        *[(10, 0.0, n, f) for n, f in ((9, 2.0), (10, 1.0), (11, 0.5))],
        *[(40, 0.25, n, f) for n, f in ((29, 2.0), (30, 1.0), (50, 1.0), (51, 0.5))],
    ],
)
def test_exactly_at_the_tolerance_the_threshold_stays(
    bench: Any, count: int, tolerance: float, small: int, factor: float
) -> None:
    weight = torch.where(torch.arange(1000) < small, -0.5, -2.0).view(10, 100)
    b = bench(DSR(sparsity=0.0, count=count, period=1, threshold=1.0, tolerance=tolerance), [weight])
    drop(b)
    assert b.method.current_threshold == factor


def test_the_drop_uses_the_threshold_before_it_adapts(bench: Any) -> None:
    weight = torch.tensor([[0.3, 0.7, 1.5, 3.0, 0.1, 5.0]])
    b = bench(DSR(sparsity=0.0, count=5, period=1, threshold=1.0), [weight])
    assert drop(b)[0].tolist() == [True, True, False, False, True, False]
    assert b.method.current_threshold == 2.0
    assert drop(b)[0].tolist() == [True, True, True, False, True, False]
    assert b.method.current_threshold == 4.0  # 4 went, fewer than 4.5


def test_weights_below_the_threshold_go_and_those_at_it_stay(bench: Any) -> None:
    weight = torch.tensor([[0.25, -0.25, 0.125, -0.125, 0.0, -3.0]])
    b = bench(DSR(sparsity=0.0, count=3, period=1, threshold=0.25), [weight])
    assert drop(b)[0].tolist() == [False, False, True, True, True, False]


def test_one_threshold_serves_all_layers_and_counts_them_together(bench: Any) -> None:
    weights = [torch.full((1, 6), 0.5), torch.full((1, 6), 2.0)]
    weights[0][0, 0] = weights[1][0, 0] = 1.0
    weights[1][0, 1] = 0.5
    b = bench(DSR(sparsity=0.0, count=6, period=1, threshold=1.0), weights)
    assert [int(gone.sum()) for gone in drop(b)] == [5, 1]
    assert b.method.current_threshold == 1.0


def test_a_layer_keeps_its_last_weight_the_one_of_lowest_index(bench: Any) -> None:
    weights = [torch.full((2, 3), 0.1), torch.full((1, 4), 9.0), torch.full((2, 2), 0.1)]
    b = bench(DSR(sparsity=0.0, count=9, period=1, threshold=1.0), weights)
    b.method.mask.set(0, torch.tensor([False, False, True, True, False, True]))
    b.method.mask.set(2, torch.tensor([False, False, False, True]))
    assert [gone.nonzero().flatten().tolist() for gone in drop(b)] == [[3, 5], [], []]


def test_a_layer_without_weights_stays_so(bench: Any) -> None:
    weights = [torch.full((1, 4), 9.0), torch.full((1, 8), 0.1)]
    b = bench(DSR(sparsity=0.0, count=2, period=1, threshold=1.0), weights)
    b.method.mask.set(0, torch.zeros(4, dtype=torch.bool))
    b.method.mask.set(1, torch.arange(8) < 4)
    b.method.mask.project()
    b.method.rewire(b.ctx)
    assert b.counts() == [0, 4]


def test_growth_is_proportional_to_the_survivors() -> None:
    for seed in range(5):  # nothing is left to the random layer
        assert spread(10, [60, 30, 10], [100, 100, 100], generator(seed)) == [6, 3, 1]
        assert spread(8, [0, 3, 1], [100, 100, 100], generator(seed)) == [0, 6, 2]
        assert spread(0, [3, 1], [9, 9], generator(seed)) == [0, 0]


def test_the_rounding_remainder_goes_to_one_random_layer() -> None:
    rng = generator()
    found = Counter(tuple(spread(10, [1, 1, 1], [100, 100, 100], rng)) for _ in range(300))
    assert set(found) == {(4, 3, 3), (3, 4, 3), (3, 3, 4)}  # 3.33 each
    assert min(found.values()) > 70
    found = Counter(tuple(spread(2, [1, 1, 1, 1, 1], [9] * 5, rng)) for _ in range(300))
    assert len(found) == 5 and all(sorted(counts) == [0, 0, 0, 0, 2] for counts in found)  # 0.4 each
    found = Counter(tuple(spread(3, [1, 1], [9, 9], rng)) for _ in range(100))
    assert set(found) == {(1, 2), (2, 1)}  # 1.5 each, rounded to 2: the random layer gives one back


def test_a_full_layers_surplus_overflows_to_the_others() -> None:
    for seed in range(5):
        assert spread(10, [1, 1], [1, 100], generator(seed)) == [1, 9]
        assert spread(12, [2, 1, 1], [0, 100, 100], generator(seed)) == [0, 6, 6]
        assert spread(6, [5, 0, 0], [2, 2, 2], generator(seed)) == [2, 2, 2]


@given(st.data())
def test_spread_is_exact_within_the_room(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 6))
    weights = data.draw(st.lists(st.integers(0, 300), min_size=n, max_size=n))
    room = data.draw(st.lists(st.integers(0, 300), min_size=n, max_size=n))
    assume(sum(room) > 0)
    total = data.draw(st.integers(0, sum(room)))
    counts = spread(total, weights, room, generator(data.draw(st.integers(0, 10))))
    assert sum(counts) == total
    assert all(0 <= c <= cap for c, cap in zip(counts, room, strict=True))


def test_just_dropped_positions_do_not_grow_and_grown_weights_are_zero(bench: Any) -> None:
    weight = torch.tensor([[0.1, 0.2, 0.3, 4.0, 5.0, 6.0, 0.0, 0.0, 0.0, 0.0]])
    for seed in range(10):
        b = bench(DSR(sparsity=0.0, count=3, period=1, threshold=1.0), [weight], seed=seed)
        b.method.mask.set(0, torch.arange(10) < 6)
        b.method.rewire(b.ctx)
        (kept,), (values,) = b.kept(), b.values()
        assert kept[:6] == [False, False, False, True, True, True] and sum(kept) == 6
        assert values == [0.0, 0.0, 0.0, 4.0, 5.0, 6.0, 0.0, 0.0, 0.0, 0.0]


def test_with_too_few_empty_positions_dropped_ones_return_at_zero(bench: Any) -> None:
    weights = [torch.full((2, 5), 0.1), torch.full((1, 5), 9.0)]
    b = bench(DSR(sparsity=0.0, count=5, period=1, threshold=1.0), weights)
    b.method.mask.set(0, torch.arange(10) != 3)
    b.method.mask.set(1, torch.arange(5) != 0)
    b.method.mask.project()
    b.method.rewire(b.ctx)  # 8 of 9 go in the first layer, and 2 positions are empty in both
    assert b.counts() == [8, 5]
    (first, second), (kept, _) = b.values(), b.kept()
    assert kept[0] and kept[3] and first == [pytest.approx(0.1), *[0.0] * 9]
    assert second == [0.0, *[9.0] * 4]


@pytest.mark.parametrize("sparsity", [0.9, 0.5, 0.1])
def test_the_total_is_constant_over_200_random_rewirings(
    bench: Any, gaussian: Callable[..., Any], sparsity: float
) -> None:
    method = DSR(sparsity=sparsity, count=9, period=1, threshold=0.2, stop=1.0)
    b = bench(method, gaussian(SHAPES, 0), momentum=0.9, epochs=100)
    total, seen, thresholds = sum(b.counts()), set(), set()
    for step in range(201):
        before = b.kept()
        b.step(gaussian(SHAPES, 1 + step))
        assert sum(b.counts()) == total and min(b.counts()) >= 1
        for old, new, w in zip(before, b.kept(), b.values(), strict=True):
            assert all(w[i] == 0 for i, kept in enumerate(new) if not kept or not old[i])
        seen.add(tuple(b.counts()))
        thresholds.add(method.current_threshold)
    assert len(seen) > 4 and len(thresholds) > 1  # the layers' shares moved, and the threshold


def test_momentum_is_not_reset(bench: Any, gaussian: Callable[..., Any]) -> None:
    b = bench(DSR(sparsity=0.5, count=9, period=1, threshold=0.5), gaussian(SHAPES, 0), momentum=0.9)
    b.step(gaussian(SHAPES, 1))
    for weight in b.weights:
        b.optimizer.state[weight]["momentum_buffer"].fill_(2.0)
    before = b.kept()
    b.step([torch.zeros_like(w) for w in b.weights])
    assert b.kept() != before
    for weight in b.weights:
        assert b.optimizer.state[weight]["momentum_buffer"].flatten().tolist() == pytest.approx([1.8] * weight.numel())


class Restated:
    """Mostafa & Wang 2019, algorithm 1, on Python lists. The random layer of the remainder is replayed."""

    def __init__(self, count: int, tolerance: float, threshold: float) -> None:
        self.count, self.tolerance, self.threshold = count, tolerance, threshold

    def rewire(self, w: list[list[float]], kept: list[list[bool]], rng: torch.Generator) -> None:
        empty = [[i for i, k in enumerate(layer) if not k] for layer in kept]
        total = 0
        for values, layer in zip(w, kept, strict=True):
            alive = [i for i, k in enumerate(layer) if k]
            small = [i for i in alive if abs(values[i]) < self.threshold]
            if len(small) == len(alive):
                small = small[1:]
            for i in small:
                layer[i], values[i] = False, 0.0
            total += len(small)
        if total > self.count + self.tolerance * self.count:
            self.threshold = self.threshold / 2
        elif total < self.count - self.tolerance * self.count:
            self.threshold = self.threshold * 2
        survivors = [sum(layer) for layer in kept]
        while total:
            open_layers = [i for i, positions in enumerate(empty) if positions]
            alive_there = sum(survivors[i] for i in open_layers)
            share = {i: round(total * survivors[i] / alive_there) for i in open_layers}
            share[open_layers[int(torch.randint(len(open_layers), (), generator=rng))]] += total - sum(share.values())
            for i in open_layers:
                assert share[i] >= 0
                for _ in range(min(share[i], len(empty[i]))):
                    kept[i][empty[i].pop(0)] = True
                    total -= 1


@pytest.mark.parametrize(("sparsity", "count", "threshold"), [(0.5, 7, 0.05), (0.8, 4, 1.0), (0.25, 9, 0.3)])
def test_trace(
    bench: Any,
    plain_sgd: Any,
    gaussian: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    sparsity: float,
    count: int,
    threshold: float,
) -> None:
    monkeypatch.setattr("methods.rewiring.random_positions", first_free)
    method = DSR(sparsity=sparsity, count=count, period="1:6 -> 2, 7:12 -> 3", threshold=threshold)
    b = bench(method, gaussian(SHAPES, 0), momentum=0.9, nesterov=True, steps_per_epoch=5, epochs=12, lr=0.02)
    plain = plain_sgd(b.values(), b.kept(), lr=0.02, momentum=0.9, nesterov=True)
    restated, thresholds = Restated(count, 0.1, threshold), set()
    for step in range(60):
        grads, rng = gaussian(SHAPES, 100 + step), generator()
        rng.set_state(b.ctx.rng.get_state())
        b.step(grads)
        plain.step([g.flatten().tolist() for g in grads])
        if 0 < step < 57 and step % (2 if step < 30 else 3) == 0:
            restated.rewire(plain.w, plain.kept, rng)
        assert method.current_threshold == restated.threshold, step
        assert b.kept() == plain.kept, step
        for found, expected in zip(b.values(), plain.w, strict=True):
            assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)
        thresholds.add(restated.threshold)
    assert len(thresholds) > 1


def test_the_threshold_is_state(bench: Any, gaussian: Callable[..., Any]) -> None:
    method = DSR(sparsity=0.5, count=9, period=1, threshold=1e-3)
    b = bench(method, gaussian(SHAPES, 0))
    for step in range(4):
        b.step(gaussian(SHAPES, 1 + step))
    assert method.current_threshold == 8e-3 and method.threshold == 1e-3
    other = bench(DSR(sparsity=0.5, count=9, period=1, threshold=1e-3), gaussian(SHAPES, 0))
    other.method.load_state_dict(method.state_dict())
    assert other.method.current_threshold == 8e-3
    assert digest(other.method.masks()) == digest(method.masks())


def test_growth_draws_from_the_contexts_generator_alone(bench: Any, gaussian: Callable[..., Any]) -> None:
    found = []
    for seed, process in [(0, 1), (0, 2), (1, 1)]:
        b = bench(DSR(sparsity=0.5, count=9, period=1, threshold=0.3), gaussian(SHAPES, 0))
        b.ctx.rng.manual_seed(seed)
        torch.manual_seed(process)
        for step in range(4):
            b.step(gaussian(SHAPES, step))
        found.append(digest(b.method.masks()))
    assert found[0] == found[1] != found[2]
