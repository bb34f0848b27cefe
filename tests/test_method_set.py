"""SET against a re-statement on Python lists, and the rewiring steps that it shares with its children."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from methods.masks import digest
from methods.set import SET

SHAPES = [(6, 4), (6, 8), (4, 3)]  # 24, 48 and 12 weights; at half density 12, 24 and 6


def first_free(free: torch.Tensor, count: int, rng: torch.Generator) -> torch.Tensor:
    """In place of the random draw, so that a re-statement knows the outcome."""
    where = free.nonzero().flatten()
    assert len(where) >= count
    return where[:count]


def rewirings(b: Any, steps: int) -> list[int]:
    """The 0-based steps that a rewiring followed."""
    found: list[int] = []
    b.method.rewire = lambda ctx: found.append(ctx.step)
    grads = [torch.zeros_like(w) for w in b.weights]
    for _ in range(steps):
        b.step(grads)
    return found


def test_rewiring_follows_positive_multiples_of_the_period(bench: Any, gaussian: Callable[..., Any]) -> None:
    method = SET(sparsity=0.5, count=4, period=3, stop=1.0)
    assert rewirings(bench(method, gaussian(SHAPES, 0), steps_per_epoch=5, epochs=4), 20) == [3, 6, 9, 12, 15, 18]
    method = SET(sparsity=0.5, count=4, period=1, stop=1.0)
    assert rewirings(bench(method, gaussian(SHAPES, 0), steps_per_epoch=5, epochs=1), 5) == [1, 2, 3, 4]


def test_the_period_follows_the_epoch(bench: Any, gaussian: Callable[..., Any]) -> None:
    # Epochs 1 and 2 are steps 0 to 9, epochs 3 to 8 are 10 to 39; 95 % of 40 are 38.
    method = SET(sparsity=0.5, count=4, period="1:2 -> 2, 3:8 -> 3")
    b = bench(method, gaussian(SHAPES, 0), steps_per_epoch=5, epochs=8)
    assert rewirings(b, 40) == [2, 4, 6, 8, 12, 15, 18, 21, 24, 27, 30, 33, 36]


@pytest.mark.parametrize(("stop", "last"), [(0.0, None), (0.5, 9), (0.55, 10), (0.95, 18), (1.0, 19)])
def test_rewiring_stops(bench: Any, gaussian: Callable[..., Any], stop: float, last: int | None) -> None:
    method = SET(sparsity=0.5, count=4, period=1, stop=stop)
    found = rewirings(bench(method, gaussian(SHAPES, 0), steps_per_epoch=5, epochs=4), 20)
    assert found == ([] if last is None else list(range(1, last + 1)))


def dropped_counts(b: Any) -> list[int]:
    kept = [b.method.mask.kept(i) for i in range(len(b.weights))]
    gone = b.method.drop(kept, b.ctx)
    assert not any(bool((g & ~k).any()) for g, k in zip(gone, kept, strict=True))
    return [int(g.sum()) for g in gone]


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (7, [2, 4, 1]),  # 12 : 24 : 6
        (8, [2, 5, 1]),  # 2.29, 4.57, 1.14
        (9, [3, 5, 1]),  # 2.57, 5.14, 1.29
        (1, [0, 1, 0]),
        (42, [12, 24, 6]),
        (1000, [12, 24, 6]),
    ],
)
def test_the_count_is_split_in_proportion_to_kept_weights(
    bench: Any, gaussian: Callable[..., Any], count: int, expected: list[int]
) -> None:
    b = bench(SET(sparsity=0.5, count=count, period=1), gaussian(SHAPES, 0))
    assert b.counts() == [12, 24, 6]
    assert dropped_counts(b) == expected


def test_the_split_is_by_kept_weights_not_by_layer_size(bench: Any, gaussian: Callable[..., Any]) -> None:
    b = bench(SET(sparsity=0.5, count=17, period=1), gaussian(SHAPES, 0))
    b.method.mask.set(0, torch.arange(24) < 4)
    assert b.counts() == [4, 24, 6]
    assert dropped_counts(b) == [2, 12, 3]


def test_no_layer_drops_more_than_it_can_grow_elsewhere(bench: Any, gaussian: Callable[..., Any]) -> None:
    b = bench(SET(sparsity=0.0, count=10, period=1), gaussian(SHAPES, 0))
    assert dropped_counts(b) == [0, 0, 0]
    b.method.mask.set(1, torch.arange(48) >= 3)  # 24, 45 and 12 kept; 0, 3 and 0 empty
    assert dropped_counts(b) == [0, 3, 0]


def test_the_smallest_magnitudes_go_and_among_ties_the_later_ones(bench: Any) -> None:
    weight = torch.tensor([[-5.0, 0.1, 0.0, -0.1, 9.0, 0.1, 0.2, 0.0]])
    b = bench(SET(sparsity=0.0, count=3, period=1), [weight])
    b.method.mask.set(0, torch.tensor([True, True, False, True, True, True, True, False]))
    (gone,) = b.method.drop([b.method.mask.kept(0)], b.ctx)
    assert gone.nonzero().flatten().tolist() == [3, 5]  # two empty positions; of three of magnitude 0.1 the first stays


def exact_split(count: int, sizes: list[int]) -> list[int]:
    shares = [count * size // sum(sizes) for size in sizes]
    rest = sorted(range(len(sizes)), key=lambda i: (-(count * sizes[i] % sum(sizes)), i))[: count - sum(shares)]
    return [share + (i in rest) for i, share in enumerate(shares)]


def restated_rewiring(w: list[list[float]], kept: list[list[bool]], count: int) -> None:
    for layer, n in enumerate(exact_split(count, [sum(k) for k in kept])):
        alive = [i for i, k in enumerate(kept[layer]) if k]
        empty = [i for i, k in enumerate(kept[layer]) if not k]
        for i in sorted(alive, key=lambda i: (abs(w[layer][i]), -i))[:n]:
            kept[layer][i], w[layer][i] = False, 0.0
        for i in empty[:n]:
            kept[layer][i] = True


@pytest.mark.parametrize("count", [7, 10])
def test_trace(
    bench: Any, plain_sgd: Any, gaussian: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr("methods.rewiring.random_positions", first_free)
    method = SET(sparsity=0.5, count=count, period="1:4 -> 2, 5:8 -> 3")
    b = bench(method, gaussian(SHAPES, 0), momentum=0.9, nesterov=True, steps_per_epoch=5, epochs=8)
    plain = plain_sgd(b.values(), b.kept(), lr=0.1, momentum=0.9, nesterov=True)
    rewired = 0
    for step in range(40):
        grads = gaussian(SHAPES, 100 + step)
        b.step(grads)
        plain.step([g.flatten().tolist() for g in grads])
        if 0 < step < 38 and step % (2 if step < 20 else 3) == 0:
            restated_rewiring(plain.w, plain.kept, count)
            rewired += 1
        assert b.kept() == plain.kept, step
        for found, expected in zip(b.values(), plain.w, strict=True):
            assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert rewired == 15


def test_random_rewirings_keep_every_invariant(bench: Any, gaussian: Callable[..., Any]) -> None:
    b = bench(SET(sparsity=0.5, count=9, period=1, stop=1.0), gaussian(SHAPES, 0), momentum=0.9, epochs=100)
    b.step(gaussian(SHAPES, 1))  # no rewiring follows step 0
    moved = 0
    for step in range(200):
        before = b.kept()
        b.step(gaussian(SHAPES, 2 + step))
        after, values = b.kept(), b.values()
        assert b.counts() == [12, 24, 6]
        for old, new, w in zip(before, after, values, strict=True):
            assert all(w[i] == 0 for i, kept in enumerate(new) if not kept)
            grown = [i for i, (o, n) in enumerate(zip(old, new, strict=True)) if n and not o]
            assert all(w[i] == 0 for i in grown)
            moved += len(grown)
    assert moved == 9 * 200  # dropped weights do not grow back in the same rewiring, so every one of them moved


def test_growth_is_uniform_over_the_empty_positions(bench: Any) -> None:
    hits = torch.zeros(40)
    method = SET(sparsity=0.5, count=5, period=1)
    b = bench(method, [torch.ones(1, 40)])
    start, weights = torch.arange(40) < 20, torch.arange(1.0, 41.0, dtype=torch.float64).view(1, 40)
    for _ in range(400):
        b.method.mask.set(0, start)
        b.weights[0].data.copy_(weights)
        b.method.mask.project()
        method.rewire(b.ctx)
        hits += method.mask.kept(0) & ~start
    assert (hits[:20] == 0).all() and hits.sum() == 2000
    # 100 expected at each of 20 positions; the 99.9 % quantile of chi-square with 19 degrees of freedom is 43.8.
    assert float(((hits[20:] - 100) ** 2 / 100).sum()) < 43.8


@pytest.mark.parametrize("reset", [False, True])
def test_momentum_of_grown_weights(bench: Any, gaussian: Callable[..., Any], reset: bool) -> None:
    b = bench(SET(sparsity=0.5, count=12, period=3, reset_momentum=reset), gaussian(SHAPES, 0), momentum=0.9)
    for step in range(3):
        b.step(gaussian(SHAPES, 1 + step))
    # As if there were old momentum everywhere; the step before the rewiring multiplies it by 0.9.
    for weight in b.weights:
        b.optimizer.state[weight]["momentum_buffer"].fill_(2.0)
    before = b.kept()
    b.step([torch.zeros_like(w) for w in b.weights])
    grown = [[n and not o for o, n in zip(*pair, strict=True)] for pair in zip(before, b.kept(), strict=True)]
    assert sum(map(sum, grown)) == 12
    for weight, new in zip(b.weights, grown, strict=True):
        buffer = b.optimizer.state[weight]["momentum_buffer"].flatten().tolist()
        assert buffer == pytest.approx([0.0 if reset and n else 1.8 for n in new])


def test_growth_draws_from_the_contexts_generator_alone(bench: Any, gaussian: Callable[..., Any]) -> None:
    found = []
    for seed, process in [(0, 1), (0, 2), (1, 1)]:
        b = bench(SET(sparsity=0.5, count=9, period=1), gaussian(SHAPES, 0))  # the same start for all
        b.ctx.rng.manual_seed(seed)
        torch.manual_seed(process)
        for step in range(4):
            b.step(gaussian(SHAPES, step))
        found.append(digest(b.method.masks()))
    assert found[0] == found[1] != found[2]
