"""DeepR against a re-statement on Python lists, and its noise, signs, deaths and births by themselves."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

from methods.deepr import DeepR, draw_dormant
from methods.masks import digest

SHAPES = [(6, 4), (6, 8), (4, 3)]  # 24, 48 and 12 weights; at half density 12, 24 and 6


def zeros(b: Any) -> list[torch.Tensor]:
    return [torch.zeros_like(w) for w in b.weights]


def quiet(**options: Any) -> DeepR:
    """Neither noise nor L1: a plain walk with fixed signs."""
    return DeepR(**{"sparsity": 0.0, "alpha": 0.0, "temperature": 0.0, **options})


def test_signs_are_those_of_the_initial_weights(bench: Any) -> None:
    b = bench(DeepR(sparsity=0.5), [torch.tensor([[1.5, -0.5, 0.0, -2.0]])])
    assert b.method.signs[0].tolist() == [[1.0, -1.0, 1.0, -1.0]]  # those of masked weights too; zero is positive


@pytest.mark.parametrize(("epoch", "temperature"), [(1, 1e-2), (2, 1e-2), (3, 1e-6)])
def test_the_noise_has_variance_twice_eta_t(bench: Any, epoch: int, temperature: float) -> None:
    n = 40_000
    b = bench(quiet(sparsity=0.5, temperature="1:2 -> 1e-2, 3:9 -> 1e-6"), [torch.full((200, 2 * n // 200), 50.0)])
    b.ctx.epoch, b.ctx.lr = epoch, 0.3
    before = b.weights[0].detach().clone()
    b.method.after_step(b.ctx)
    kept = next(iter(b.method.masks().values()))
    noise = (b.weights[0].detach() - before)[kept]
    std = math.sqrt(2 * 0.3 * temperature)
    assert noise.numel() == n
    assert abs(float(noise.mean())) < 4 * std / math.sqrt(n)
    assert float(noise.std()) == pytest.approx(std, rel=4 / math.sqrt(2 * n))
    assert (noise.abs() / std).quantile(0.6827).item() == pytest.approx(1, rel=0.02)  # a normal distribution
    assert float((b.weights[0].detach()[~kept]).abs().max()) == 0


def test_without_learning_rate_or_temperature_there_is_no_noise(bench: Any, gaussian: Callable[..., Any]) -> None:
    for options in ({"temperature": 0.0, "lr": 0.1}, {"temperature": 1.0, "lr": 0.0}):
        lr = options.pop("lr")
        b = bench(quiet(**options), gaussian(SHAPES, 0), lr=lr)
        before = b.values()
        b.step(zeros(b))
        assert b.values() == before


def test_alpha_pulls_theta_down_also_at_zero(bench: Any) -> None:
    b = bench(quiet(alpha=0.25, sparsity=0.0), [torch.tensor([[2.0, -2.0, 1.0, -1.0, 3.0]])], lr=0.5)
    b.method.mask.set(0, torch.tensor([True, True, True, True, False]))
    b.method.mask.project()
    b.weights[0].data[0, 2:4] = 0.0  # theta = 0 with sign + and with sign -
    b.weights[0].grad = torch.tensor([[1.0, 1.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    assert b.method.before_step(b.ctx) is True
    assert b.weights[0].grad.tolist() == [[1.25, 0.75, 1.25, 0.75, 0.0]]


def test_the_update_of_theta_by_hand(bench: Any) -> None:
    """theta <- theta - eta (dE/dtheta + alpha), w = s theta."""
    b = bench(quiet(alpha=0.5), [torch.tensor([[2.0, -2.0]])], lr=0.1)
    b.step([torch.tensor([[1.0, 1.0]])])
    # dE/dtheta = s dE/dw: theta = 2 - 0.1 (1 + 0.5) = 1.85 and 2 - 0.1 (-1 + 0.5) = 2.05.
    assert b.values()[0] == pytest.approx([1.85, -2.05])


def test_a_weight_that_would_change_its_sign_dies(bench: Any) -> None:
    weight = torch.tensor([[1.0, 1.0, 1.0, -1.0, -1.0, -1.0, 7.0, -7.0, 7.0]])
    b = bench(quiet(), [weight], lr=1.0)
    b.method.mask.set(0, torch.arange(9) < 6)
    b.method.mask.project()
    b.method._find_active()
    b.step([torch.tensor([[0.5, 1.0, 1.5, -0.5, -1.0, -1.5, 0.0, 0.0, 0.0]])])
    (values,), (kept,) = b.values(), b.kept()
    assert values == [0.5, 0.0, 0.0, -0.5, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert kept[0] and kept[1] and kept[3] and kept[4]  # exactly zero is still alive
    assert sum(kept) == 6


def test_a_newborn_lives_at_zero_with_its_own_sign(bench: Any) -> None:
    weight = torch.tensor([[1.0, -3.0]])
    b = bench(quiet(rebirth="others"), [weight], lr=1.0)
    b.method.mask.set(0, torch.tensor([True, False]))
    b.method.mask.project()
    b.method._find_active()
    b.step([torch.tensor([[2.0, 0.0]])])  # 1 - 2 < 0: position 0 dies, position 1 is born
    assert b.kept() == [[False, True]] and b.values() == [[0.0, 0.0]]
    b.step([torch.tensor([[0.0, 0.5]])])  # w = -0.5 is theta = +0.5 there
    assert b.kept() == [[False, True]] and b.values() == [[0.0, -0.5]]
    b.step([torch.tensor([[0.0, -1.0]])])  # w = +0.5 would be theta < 0
    assert b.kept() == [[True, False]] and b.values() == [[0.0, 0.0]]


def deaths(b: Any, where: list[int]) -> set[int]:
    """Let these active positions of a one-layer bench die in one step; returns what is alive after it."""
    b.weights[0].data.view(-1)[where] = -1e-3 * b.method.signs[0].view(-1)[where]
    b.method.after_step(b.ctx)
    return {i for i, kept in enumerate(b.kept()[0]) if kept}


def walk(bench: Any, rebirth: str, size: int, alive: int, seed: int) -> Any:
    b = bench(quiet(rebirth=rebirth), [torch.full((1, size), 5.0)], seed=seed)
    b.method.mask.set(0, torch.arange(size) < alive)
    b.method.mask.project()
    b.method._find_active()
    return b


def test_others_are_not_those_that_died_in_this_step(bench: Any) -> None:
    for seed in range(20):  # 12 dormant for 2 births (rejection), 3 for 2 (exact)
        assert not deaths(walk(bench, "others", 20, 8, seed), [2, 5]) & {2, 5}
        assert not deaths(walk(bench, "others", 11, 8, seed), [2, 5]) & {2, 5}


def test_any_includes_those_that_died_in_this_step(bench: Any) -> None:
    for size in (20, 11):
        born = Counter(
            i for seed in range(400) for i in deaths(walk(bench, "any", size, 8, seed), [2, 5]) - set(range(8)) | {-1}
        )
        back = Counter(i for seed in range(400) for i in deaths(walk(bench, "any", size, 8, seed), [2, 5]) & {2, 5})
        expected = 400 * 2 / (size - 6)  # every dormant position alike: the two dead ones and those never alive
        for i in (2, 5):
            assert back[i] == pytest.approx(expected, abs=4 * math.sqrt(expected))
        for i in range(8, size):
            assert born[i] == pytest.approx(expected, abs=4 * math.sqrt(expected))


def test_where_too_few_others_are_dormant_the_dead_return_at_zero(bench: Any) -> None:
    b = walk(bench, "others", 9, 8, 0)
    alive = deaths(b, [1, 2, 3])
    assert len(alive) == 8 and 8 in alive and set(range(4, 8)) | {0} <= alive
    assert sum(value != 0 for value in b.values()[0]) == 5
    assert sorted(b.method.active[0].tolist()) == sorted(alive)


@pytest.mark.parametrize(("dormant", "count"), [(40, 2), (40, 15), (6, 2)])
def test_draw_dormant_is_uniform(dormant: int, count: int) -> None:
    mask = torch.ones(60, dtype=torch.float64)
    empty = torch.arange(60) % 60 // 1 >= 60 - dormant
    mask[empty] = 0
    rng, hits, draws = torch.Generator().manual_seed(3), torch.zeros(60), 100 * dormant // count
    for _ in range(draws):
        born = draw_dormant(mask, dormant, count, rng, torch.empty(0, dtype=torch.long))
        assert len(set(born.tolist())) == count == len(born)
        hits[born] += 1
    assert (hits[~empty] == 0).all()
    expected = draws * count / dormant
    # Draws without replacement vary less than chi-square; 99.9 % quantiles for 39 and 5 degrees of freedom.
    assert float(((hits[empty] - expected) ** 2 / expected).sum()) < {40: 72.1, 6: 20.6}[dormant]


def test_counts_and_indices_stay_consistent_over_many_steps(bench: Any, gaussian: Callable[..., Any]) -> None:
    for rebirth in ("any", "others"):
        b = bench(DeepR(sparsity=0.5, temperature=0.05, rebirth=rebirth), gaussian(SHAPES, 0), momentum=0.9, lr=0.05)
        assert b.counts() == [12, 24, 6]
        masks = set()
        for step in range(150):
            b.step(gaussian(SHAPES, 1 + step))
            assert b.counts() == [12, 24, 6]
            masks.add(digest(b.method.masks()))
            for kept, w, sign, active in zip(b.kept(), b.values(), b.method.signs, b.method.active, strict=True):
                assert sorted(active.tolist()) == [i for i, k in enumerate(kept) if k]
                assert all(v == 0 for v, k in zip(w, kept, strict=True) if not k)
                assert all(v * s >= 0 for v, s in zip(w, sign.flatten().tolist(), strict=True))
        assert len(masks) > 100


def lowest_dormant(mask: torch.Tensor, dormant: int, count: int, rng: torch.Generator, spare: Any) -> torch.Tensor:
    """In place of the random draw, so that a re-statement knows the outcome."""
    where = (mask == 0).nonzero().flatten()
    assert len(where) >= count and dormant <= len(where)
    return where[:count]


@pytest.mark.parametrize("rebirth", ["any", "others"])
def test_trace(
    bench: Any, plain_sgd: Any, gaussian: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, rebirth: str
) -> None:
    monkeypatch.setattr("methods.deepr.draw_dormant", lowest_dormant)
    alpha, temperature = 0.01, {1: 0.02, 2: 0.02, 3: 1e-4, 4: 1e-4}
    method = DeepR(sparsity=0.5, alpha=alpha, temperature="1:2 -> 0.02, 3:4 -> 1e-4", rebirth=rebirth)  # type: ignore[arg-type]
    weights = gaussian(SHAPES, 0)
    signs = [[-1.0 if v < 0 else 1.0 for v in w.flatten().tolist()] for w in weights]
    b = bench(method, weights, momentum=0.9, nesterov=True, steps_per_epoch=10, epochs=4, lr=0.02)
    plain = plain_sgd(b.values(), b.kept(), lr=0.02, momentum=0.9, nesterov=True)
    active = [[i for i, k in enumerate(layer) if k] for layer in plain.kept]
    died = 0
    for step in range(40):
        grads, rng = gaussian(SHAPES, 100 + step), torch.Generator()
        rng.set_state(b.ctx.rng.get_state())
        b.step(grads)
        pull = [
            [v + alpha * s for v, s in zip(g.flatten().tolist(), sign, strict=True)]
            for g, sign in zip(grads, signs, strict=True)
        ]
        plain.step(pull)
        std = math.sqrt(2 * 0.02 * temperature[1 + step // 10])
        for w, kept, sign, alive in zip(plain.w, plain.kept, signs, active, strict=True):
            for i, nu in zip(alive, torch.randn(len(alive), generator=rng).tolist(), strict=True):
                w[i] += std * nu
            dead = [place for place, i in enumerate(alive) if w[i] * sign[i] < 0]
            for place in dead:
                w[alive[place]] = 0.0
            for place in dead:
                kept[alive[place]] = False
            asleep = [i for i, k in enumerate(kept) if not k]
            if rebirth == "others":
                asleep = [i for i in asleep if i not in [alive[place] for place in dead]]
            for place, i in zip(dead, asleep, strict=False):
                alive[place] = i
                kept[i] = True
            died += len(dead)
        assert b.kept() == plain.kept, step
        assert [a.tolist() for a in method.active] == active, step
        for found, expected in zip(b.values(), plain.w, strict=True):
            assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert died > 50


def test_signs_and_order_of_the_active_weights_are_state(bench: Any, gaussian: Callable[..., Any]) -> None:
    def make(seed: int) -> Any:
        return bench(DeepR(sparsity=0.5, temperature=0.05), gaussian(SHAPES, seed), lr=0.05, seed=seed)

    one, two = make(0), make(1)
    for step in range(20):
        one.step(gaussian(SHAPES, step))
    assert any(a.tolist() != sorted(a.tolist()) for a in one.method.active)
    two.method.load_state_dict(one.method.state_dict())
    two.ctx.rng.set_state(one.ctx.rng.get_state())
    two.ctx.step, two.ctx.epoch = one.ctx.step, one.ctx.epoch
    for mine, other in zip(two.weights, one.weights, strict=True):
        mine.data.copy_(other)
    for step in range(20, 40):
        one.step(gaussian(SHAPES, step))
        two.step(gaussian(SHAPES, step))
    assert one.values() == two.values() and one.kept() == two.kept()


def test_the_walk_draws_from_the_contexts_generator_alone(bench: Any, gaussian: Callable[..., Any]) -> None:
    found = []
    for seed, process in [(0, 1), (0, 2), (1, 1)]:
        b = bench(DeepR(sparsity=0.5, temperature=0.05), gaussian(SHAPES, 0), lr=0.05)
        b.ctx.rng.manual_seed(seed)
        torch.manual_seed(process)
        for step in range(10):
            b.step(gaussian(SHAPES, step))
        found.append((digest(b.method.masks()), b.values()))
    assert found[0] == found[1] and found[0] != found[2]
