"""ProbMask: its projection against an exact solution, its relaxation and its steps against autograd."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from methods.probmask import ProbMask, bisected, projected, relaxed, searched, slope
from runner.compose import compose
from runner.errors import Misuse
from runner.experiment import make, validate
from runner.records import RunDirectory
from runner.trainer import Interrupted, Trainer

SHAPES = [(6, 4), (6, 8), (4, 3)]
LR, MOMENTUM = 0.1, 0.9


def exact(z: list[float], budget: float) -> list[float]:
    """The projection by its corners: sum clip(z - v, 0, 1) is linear in v between the z and the z - 1."""

    def clipped(v: float) -> list[float]:
        return [min(max(value - v, 0.0), 1.0) for value in z]

    if math.fsum(clipped(0.0)) <= budget:
        return clipped(0.0)
    corners = sorted({0.0, *(c for value in z for c in (value, value - 1) if c > 0)})
    for low, high in pairwise(corners):
        above, below = math.fsum(clipped(low)), math.fsum(clipped(high))
        if below <= budget:
            return clipped(low + (above - budget) / (above - below) * (high - low))
    raise AssertionError("the last corner empties everything")


@settings(max_examples=25)
@given(st.lists(st.integers(-24, 24), min_size=1, max_size=20), st.integers(0, 40))
def test_the_projection_is_the_exact_one(eighths: list[int], share: int) -> None:
    z, budget = [value / 8 for value in eighths], share / 40 * len(eighths)
    found = projected(torch.tensor(z, dtype=torch.float64), budget).tolist()
    assert found == pytest.approx(exact(z, budget), abs=1e-9)
    assert all(0 <= s <= 1 for s in found) and math.fsum(found) <= budget + 1e-9


@pytest.mark.parametrize(
    ("z", "budget", "expected"),
    [
        ([0.2, 0.5, 0.9], 2.0, [0.2, 0.5, 0.9]),  # within the budget: stays
        ([-1.0, 0.5, 7.0], 3.0, [0.0, 0.5, 1.0]),  # within the box's reach: v is 0, never below
        ([1.0, 1.0, 1.0, 1.0], 1.0, [0.25] * 4),
        ([0.9, 0.6, 0.3], 0.9, [0.6, 0.3, 0.0]),  # v = 0.3
        ([0.9, 0.6, 0.3], 1.2, [0.7, 0.4, 0.1]),  # v = 0.2
        ([2.0, 0.5, 0.4], 1.0, [1.0, 0.0, 0.0]),  # v = 0.5 .. 1
        ([5.0, 5.0, 1.0], 1.0, [0.5, 0.5, 0.0]),  # v = 4.5
        ([0.7], 0.0, [0.0]),
    ],
)
def test_the_projection_by_hand(z: list[float], budget: float, expected: list[float]) -> None:
    assert projected(torch.tensor(z, dtype=torch.float64), budget).tolist() == pytest.approx(expected, abs=1e-12)


def test_no_feasible_point_is_nearer() -> None:
    """A projection onto a convex set: (z - p) (q - p) <= 0 for every feasible q."""
    rng = torch.Generator().manual_seed(0)
    for _ in range(20):
        z = torch.randn(30, generator=rng, dtype=torch.float64)
        p = projected(z, 6.0)
        corner = torch.zeros(30, dtype=torch.float64)
        corner[z.topk(6).indices] = 1
        assert float((z - p) @ (corner - p)) <= 1e-9
        for _ in range(50):
            q = torch.rand(30, generator=rng, dtype=torch.float64)
            q *= min(1.0, 6.0 / float(q.sum()))
            assert float((z - p) @ (q - p)) <= 1e-9


def test_in_single_precision_the_budget_is_held_to_rounding() -> None:
    z = torch.rand(100_000, generator=torch.Generator().manual_seed(0)) + 0.5
    found = projected(z, 2_000.0)
    assert found.dtype == torch.float32
    assert float(found.sum(dtype=torch.float64)) == pytest.approx(2_000, abs=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_search_ends_where_bisection_does(dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(1)
    for size in [1, 2, 7, 40, 300, 20_000]:
        even, normal = torch.rand(size, generator=rng), torch.randn(size, generator=rng)
        nearly = (even < 0.1).float() + 0.006 * normal  # as after a step of Adam late in training
        for z in (even, normal, nearly, (4 * normal).round() / 4, torch.ones(size), -even):
            for share in (0.0, 0.03, 0.1, 0.5, 1.0):
                z = z.to(dtype)
                slow, fast = bisected(z, share * size), searched(z, share * size)
                assert fast.dtype == dtype
                torch.testing.assert_close(fast, slow, rtol=0, atol=0 if dtype == torch.float32 else 1e-15)


def test_the_relaxation_by_hand() -> None:
    """s = 0.8, u = 0.5: no noise, logit 1.3863; the sharpness multiplies it."""
    s, u = torch.tensor([0.8], dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64)
    assert relaxed(s, u, 1.0).item() == pytest.approx(0.8)
    assert relaxed(s, u, 2.0).item() == pytest.approx(16 / 17)
    u[0] = 0.2  # the noise is the logit -1.3863
    assert relaxed(s, u, 33.0).item() == pytest.approx(0.5)


@pytest.mark.parametrize("sharpness", [1.0, 1.7, 20.0])
def test_the_slope_is_autograds(sharpness: float) -> None:
    rng = torch.Generator().manual_seed(0)
    s = torch.rand(500, generator=rng, dtype=torch.float64).requires_grad_()
    u = torch.rand(500, generator=rng, dtype=torch.float64)
    logits = torch.log(s) - torch.log(1 - s) + torch.log(u) - torch.log(1 - u)
    m = torch.sigmoid(sharpness * logits)
    m.sum().backward()
    assert s.grad is not None
    torch.testing.assert_close(relaxed(s.detach(), u, sharpness), m.detach())
    torch.testing.assert_close(slope(m.detach(), s.detach(), sharpness), s.grad)


def test_certain_masks_are_certain_and_nothing_is_nan() -> None:
    for dtype in (torch.float32, torch.float64):
        s = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.5, 0.5], dtype=dtype)
        u = torch.tensor([0.5, 0.5, 1 - 2**-24, 2**-24, 0.0, 1 - 2**-24], dtype=dtype)
        m = relaxed(s, u, 1.2)
        assert m[:4].tolist() == pytest.approx([0, 1, 0, 1], abs=1e-6)
        assert m[1] == 1 and m.isfinite().all()
        found = slope(m, s, 1.2)
        assert found.isfinite().all() and found[1] == 0


def test_a_draw_is_above_a_half_as_often_as_the_probability_says() -> None:
    """Whatever the temperature: log s / (1 - s) + logistic noise > 0 with probability s."""
    rng = torch.Generator().manual_seed(0)
    for s in (0.05, 0.5, 0.9):
        m = relaxed(torch.full((40_000,), s), torch.rand(40_000, generator=rng), 3.0)
        assert float((m > 0.5).float().mean()) == pytest.approx(s, abs=5 * math.sqrt(s * (1 - s) / 40_000))


class Slow:
    """The same training by autograd, layer by layer, with torch's own Adam on the list of the layers' probabilities."""

    def __init__(self, weights: list[Tensor], sparsity: float, epochs: int, clip: float) -> None:
        self.w = [torch.nn.Parameter(w.clone()) for w in weights]
        self.s = [torch.nn.Parameter(torch.ones_like(w)) for w in weights]
        self.sgd = torch.optim.SGD(self.w, lr=LR, momentum=MOMENTUM)
        self.adam = torch.optim.Adam(self.s, lr=0.05)
        self.sparsity, self.total, self.clip = sparsity, 5 * epochs, clip
        self.budgets: list[float] = []

    def step(self, t: int, uniform: Tensor, targets: list[Tensor]) -> None:
        sharpness = 1 / (0.97 * (1 - t / self.total) + 0.03)
        uniforms = uniform.split([w.numel() for w in self.w])
        loss = torch.zeros((), dtype=torch.float64)
        for w, s, u, target in zip(self.w, self.s, uniforms, targets, strict=True):
            logits = torch.log(s + 1e-20) - torch.log(1 - s + 1e-20) + (torch.log(u) - torch.log(1 - u)).view_as(w)
            loss = loss + 0.5 * (w * torch.sigmoid(sharpness * logits) - target).square().sum()
        self.sgd.zero_grad()
        self.adam.zero_grad()
        loss.backward()
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in (*self.w, *self.s)))
        for p in (*self.w, *self.s):
            p.grad.mul_(min(1.0, self.clip / (norm + 1e-6)) if self.clip else 1.0)
        self.adam.param_groups[0]["lr"] = 0.05 * 0.5 * (1 + math.cos(math.pi * t / self.total))
        self.sgd.step()
        self.adam.step()
        progress = min(max(((t + 1) / 5 - 1) / 2, 0.0), 1.0)  # from epoch 1 to epoch 3
        self.budgets.append(84 * (1 - self.sparsity * (1 - (1 - progress) ** 3)))
        z = [v for s in self.s for v in s.detach().flatten().tolist()]
        p = torch.tensor(exact(z, self.budgets[-1]), dtype=torch.float64)
        for s, part in zip(self.s, p.split([s.numel() for s in self.s]), strict=True):
            s.data.copy_(part.view_as(s))


@pytest.mark.parametrize("clip", [0.0, 1.5])
def test_trajectories_are_those_of_autograd(clip: float, bench: Any, gaussian: Callable[..., Any]) -> None:
    """Four epochs of five steps: the loss is |m w - t|^2 / 2, so that its gradient is known to the bench."""
    weights, targets = gaussian(SHAPES, 0), gaussian(SHAPES, 1)
    method = ProbMask(sparsity=0.75, start_epoch=1, end_epoch=3, score_lr=0.05, clip=clip)
    method.check(4)
    b = bench(method, weights, lr=LR, momentum=MOMENTUM, steps_per_epoch=5, epochs=4)
    slow = Slow(weights, 0.75, 4, clip)
    rng = torch.Generator().manual_seed(3)
    fixed = torch.rand(84, generator=rng, dtype=torch.float64)
    first = b.method.before_forward
    drawn: list[Tensor] = [fixed]
    b.method.uniform = lambda seed: drawn[0]
    b.method.drawn = fixed
    clipped = False
    for t in range(20):
        uniform = torch.rand(84, generator=rng, dtype=torch.float64)
        grads: list[Tensor] = []
        drawn[0] = uniform
        first(b.ctx)  # what `step` will compute with
        grads = [w.detach() - target for w, target in zip(b.weights, targets, strict=True)]
        clipped |= clip > 0 and math.sqrt(sum(float(g.square().sum()) for g in grads)) > clip
        inner = b.method.before_step

        def back(ctx: Any, inner: Any = inner) -> bool:
            drawn[0] = fixed  # of the mask between steps
            return bool(inner(ctx))

        b.method.before_step = back
        b.step(grads)
        b.method.before_step = inner
        slow.step(t, uniform, targets)
        s = torch.cat([p.detach().flatten() for p in slow.s])
        torch.testing.assert_close(b.method.s.detach(), s, rtol=1e-7, atol=1e-8)
        for found, expected in zip(b.method.dense, slow.w, strict=True):
            torch.testing.assert_close(found, expected.detach(), rtol=1e-7, atol=1e-8)
        hard = [h.view_as(w) for h, w in zip((fixed < s).split([24, 48, 12]), slow.w, strict=True)]
        assert b.kept() == [h.flatten().tolist() for h in hard], t
        assert b.values() == [pytest.approx((w * h).flatten().tolist()) for w, h in zip(slow.w, hard, strict=True)]
    assert slow.budgets[4] == 84 and slow.budgets[14] == pytest.approx(21) and slow.budgets[-1] == pytest.approx(21)
    assert clipped == (clip > 0)
    assert float(s.sum()) <= 21 + 1e-6 and len(set(s.tolist()) - {0.0, 1.0}) > 3


def test_until_the_budget_falls_it_is_plain_sgd(bench: Any, gaussian: Callable[..., Any], plain_sgd: Any) -> None:
    weights = gaussian(SHAPES, 0)
    method = ProbMask(sparsity=0.9, start_epoch=2, end_epoch=3)
    b = bench(method, weights, lr=LR, momentum=MOMENTUM, steps_per_epoch=5, epochs=4)
    dense = plain_sgd(
        [w.flatten().tolist() for w in weights], [[True] * w.numel() for w in weights], LR, MOMENTUM, False
    )
    for step in range(10):
        grads = gaussian(SHAPES, 10 + step)
        b.step(grads)
        dense.step([g.flatten().tolist() for g in grads])
        assert all(all(layer) for layer in b.kept()) and bool((b.method.s == 1).all())
        assert b.values() == [pytest.approx(layer, abs=1e-12) for layer in dense.w]
    b.step(gaussian(SHAPES, 30))
    assert bool((b.method.s < 1).all())


def test_the_draw_between_steps_changes_with_the_probabilities_alone(bench: Any, gaussian: Callable[..., Any]) -> None:
    b = bench(ProbMask(sparsity=0.5, end_epoch=1), gaussian([(50, 40)], 0), steps_per_epoch=5, epochs=2)
    b.method.s.data.fill_(0.5)
    b.method.refresh(b.ctx, 1)
    first = b.kept()[0]
    assert sum(first) == pytest.approx(1000, abs=5 * math.sqrt(500))
    b.method.refresh(b.ctx, 1)
    assert b.kept()[0] == first
    b.method.s.data.fill_(0.3)
    b.method.refresh(b.ctx, 1)
    fewer = b.kept()[0]
    assert sum(fewer) == pytest.approx(600, abs=5 * math.sqrt(420))
    assert all(o or not n for o, n in zip(first, fewer, strict=True))
    other = bench(ProbMask(sparsity=0.5, end_epoch=1), gaussian([(50, 40)], 0), steps_per_epoch=5, epochs=2, seed=1)
    other.method.s.data.fill_(0.5)
    other.method.refresh(other.ctx, 1)
    assert other.kept()[0] != first


def test_the_largest_probabilities_are_an_exact_number(bench: Any, gaussian: Callable[..., Any]) -> None:
    method = ProbMask(sparsity=0.75, end_epoch=1, inference="top")
    b = bench(method, gaussian(SHAPES, 0), steps_per_epoch=5, epochs=2)
    b.method.s.data.copy_(torch.rand(84, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    b.method.refresh(b.ctx, 10)
    kept = torch.tensor([k for layer in b.kept() for k in layer])
    assert int(kept.sum()) == 21 and b.method.s[kept].min() >= b.method.s[~kept].max()


def test_every_step_draws_another_mask_and_a_seed_repeats_them(bench: Any, gaussian: Callable[..., Any]) -> None:
    found = []
    for seed in (0, 0, 1):
        b = bench(ProbMask(sparsity=0.5, end_epoch=1), gaussian([(5, 4)], 0), steps_per_epoch=5, epochs=2, seed=seed)
        b.method.s.data.fill_(0.5)
        masks = []
        for _ in range(3):
            b.method.before_forward(b.ctx)
            masks.append(b.method.soft.tolist())
        found.append(masks)
    assert found[0] == found[1] != found[2]
    assert found[0][0] != found[0][1] != found[0][2]


def test_a_step_that_overflowed_leaves_the_probabilities(bench: Any, gaussian: Callable[..., Any]) -> None:
    b = bench(ProbMask(sparsity=0.5, end_epoch=0.2), gaussian(SHAPES, 0), steps_per_epoch=5, epochs=2)
    b.step(gaussian(SHAPES, 1))
    before, state = b.method.s.detach().clone(), {k: v.clone() for k, v in b.method.adam.state[b.method.s].items()}
    b.optimizer.step = lambda: None  # as a scaler leaves it out
    grads = gaussian(SHAPES, 2)
    grads[1][0, 0] = math.inf
    b.step(grads)
    torch.testing.assert_close(b.method.s.detach(), before, rtol=0, atol=1e-12)
    assert all(torch.equal(v, state[k]) for k, v in b.method.adam.state[b.method.s].items())
    b.step(gaussian(SHAPES, 3))
    assert not torch.allclose(b.method.s.detach(), before)


def test_half_of_a_run_and_the_rest_equal_the_whole(tiny: list[str], tmp_path: Path) -> None:
    """With draws (tests/test_contract.py has the largest probabilities)."""
    given = [*tiny, "method=probmask", "method.start_epoch=0", "method.end_epoch=1", "method.score_lr=0.1"]
    whole = Trainer(make(compose(given)), RunDirectory(tmp_path / "whole"))
    whole.fit()
    for half in range(2):
        t = Trainer(make(compose(given)), RunDirectory(tmp_path / "halves"))
        t.stop = lambda t=t: t.ctx.step == 5  # type: ignore[misc]
        with nullcontext() if half else pytest.raises(Interrupted):
            t.fit()
    assert t.ctx.step == 8
    found, expected = t.e.method.state_dict(), whole.e.method.state_dict()
    assert found["seed"] == expected["seed"] and len(expected["scores"]) == 4
    assert all(torch.equal(found["scores"][name], value) for name, value in expected["scores"].items())
    assert all(torch.equal(found["masks"][name], value) for name, value in expected["masks"].items())


def test_what_is_undecided_is_told(bench: Any, gaussian: Callable[..., Any]) -> None:
    b = bench(ProbMask(sparsity=0.5, end_epoch=1), gaussian([(2, 4)], 0), epochs=2)
    b.method.s.data.copy_(torch.tensor([0.0, 0.005, 0.02, 0.5, 0.98, 0.995, 1.0, 1.0]))
    assert b.method.diagnostics() == {"undecided": 3 / 8}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["method.end_epoch=41"], "from epoch 6.4 to epoch 41 does not lie within the run's 40 epochs"),
        (
            ["method.start_epoch=30"],
            "from epoch 30 to epoch 24 does not lie within the run's 40 epochs, or ends",
        ),
        (["method.temperature=0"], "method.temperature = 0 should be in the range 0 < x <= 1"),
        (["method.inference=best"], "method.inference = 'best' should be"),
    ],
)
def test_what_cannot_be_is_misuse(options: list[str], sentence: str) -> None:
    with pytest.raises(Misuse, match=sentence):
        validate(compose(["method=probmask", *options]))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_and_micro_batches_train_it_too(precision: str, tiny: list[str], tmp_path: Path) -> None:
    """The same draws, so that probabilities end near those of single precision."""
    given = [*tiny, "method=probmask", "method.start_epoch=0", "method.end_epoch=1", "schedule.accumulate=2"]
    ends = []
    for kind in ("fp32", precision):
        t = Trainer(make(compose([*given, f"precision={kind}"])), RunDirectory(tmp_path / kind))
        t.fit()
        ends.append(t.e.method.state_dict()["scores"]["s"])
        assert float(ends[-1].sum()) <= 62.001 and ends[-1].min() >= 0 and ends[-1].max() <= 1
    torch.testing.assert_close(ends[1], ends[0], atol=0.03, rtol=0)
    assert not torch.equal(ends[1], ends[0])
