"""OptG against a restatement on Python lists and against autograd; its schedules by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from methods.allocation import kept_of
from methods.optg import OptG
from runner.compose import compose
from runner.experiment import make
from runner.records import RunDirectory
from runner.trainer import Trainer

SHAPES = [(6, 4), (6, 8), (4, 3)]
LR, MOMENTUM, DECAY = 0.1, 0.9, 0.02


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def scaled(b: Any) -> Any:
    """The bench with the trainer's habit of setting every group's rate before the forward pass, whose weights `forward`
    has.
    """

    def set_rates(ctx: Any) -> None:
        b.forward = b.values()
        for group in ctx.optimizer.param_groups:
            group["lr"] = ctx.lr * group.get("lr_scale", 1.0)

    b.method.before_forward = set_rates
    b.optimizer.param_groups[0]["weight_decay"] = DECAY
    return b


def best(scores: list[list[float]], keep: int) -> list[list[bool]]:
    """Over all layers; ties to the lower index."""
    flat = sorted((-s, i, j) for i, layer in enumerate(scores) for j, s in enumerate(layer))
    kept = {(i, j) for _, i, j in flat[:keep]}
    return [[(i, j) in kept for j in range(len(layer))] for i, layer in enumerate(scores)]


def test_trace(bench: Any, gaussian: Callable[..., Any]) -> None:
    """Six epochs of four steps, one number at a time; the loss is |m w - t|^2 / 2."""
    start, targets = gaussian(SHAPES, 0), [t.flatten().tolist() for t in gaussian(SHAPES, 1)]
    b = scaled(bench(OptG(sparsity=0.75, beta=0.8), start, lr=LR, momentum=MOMENTUM, steps_per_epoch=4, epochs=6))
    w = [layer.flatten().tolist() for layer in start]
    s, mw, ms = ([[0.0] * len(layer) for layer in w] for _ in range(3))
    came_back, kept, factors = 0, [[True] * len(layer) for layer in w], []
    for step in range(24):
        epoch = step // 4
        factor = sigmoid(0.8 * (epoch - 3))
        if step % 4 == 0:
            factors.append(factor)
            before, kept = kept, best(s, kept_of(84, 0.75 * factor))
            came_back += sum(
                n and not o for new, old in zip(kept, before, strict=True) for n, o in zip(new, old, strict=True)
            )
        computed = [[v if k else 0.0 for v, k in zip(*pair, strict=True)] for pair in zip(w, kept, strict=True)]
        grads = [[c - t for c, t in zip(*pair, strict=True)] for pair in zip(computed, targets, strict=True)]
        for layer, g in enumerate(grads):
            for i, gi in enumerate(g):
                ms[layer][i] = MOMENTUM * ms[layer][i] + gi * w[layer][i]  # no decay; dropped ones too
                mw[layer][i] = MOMENTUM * mw[layer][i] + (gi if kept[layer][i] else 0.0) + DECAY * w[layer][i]
                s[layer][i] -= LR * factor * ms[layer][i]
                w[layer][i] -= LR * mw[layer][i]
        b.step([torch.tensor(g, dtype=torch.float64).view_as(t) for g, t in zip(grads, start, strict=True)])
        assert b.forward == [pytest.approx(layer, abs=1e-12) for layer in computed], step
        if step < 23:
            assert b.kept() == kept, step
        for found, expected in zip(b.method.dense, w, strict=True):
            assert found.flatten().tolist() == pytest.approx(expected, abs=1e-12), step
        for found, expected in zip(b.method.scores, s, strict=True):
            assert found.flatten().tolist() == pytest.approx(expected, abs=1e-12), step
    # The last factor, sigma(1.6), leaves 0.75 * 0.168 too many.
    assert b.kept() == best(s, 21) and sum(map(sum, kept)) == kept_of(84, 0.75 * sigmoid(1.6)) > 21
    assert came_back > 0
    assert [b.method.factor(e, 6) for e in range(6)] == pytest.approx(factors, rel=1e-12)


def test_the_factor_by_hand() -> None:
    """sigma(e - E/2): half at half of the training, and no overflow."""
    method = OptG(sparsity=0.9)
    assert method.factor(50, 100) == 0.5
    assert method.factor(52, 100) == pytest.approx(0.8807970779778823)
    assert method.factor(48, 100) == pytest.approx(0.11920292202211755)
    assert method.factor(0, 100) == pytest.approx(1.9287498479639178e-22)
    assert method.factor(99, 100) == 1.0
    assert (OptG(sparsity=0.9, beta=100).factor(0, 100), OptG(sparsity=0.9, beta=100).factor(99, 100)) == (0.0, 1.0)


def test_sparsity_over_a_hundred_epochs(bench: Any, gaussian: Callable[..., Any]) -> None:
    """Dense to epoch 40; 84 weights less 84 * 0.75 * sigma(-2, -1, 0, 1, 2) in epochs 49 to 53; no extra choice."""
    b = scaled(bench(OptG(sparsity=0.75), gaussian(SHAPES, 0), lr=LR, steps_per_epoch=1, epochs=100))
    counts = []
    chosen = []
    inner = b.method.choose
    b.method.choose = lambda sparsity: (chosen.append(sparsity), inner(sparsity))
    for epoch in range(100):
        b.step(gaussian(SHAPES, epoch))
        counts.append(sum(b.counts()))
    assert counts[:41] == [84] * 41
    # 63 sigma = 7.51, 16.94, 31.5, 46.06 and 55.49
    assert counts[48:53] == [76, 67, 53, 38, 29]
    assert counts[65:] == [21] * 35 and len(chosen) == 100


def test_the_gradients_are_those_of_autograd(tiny: list[str], tmp_path: Path) -> None:
    """One step of a real network: dL/ds = w dL/d(m w) everywhere, dL/dw = m dL/d(m w)."""
    config = compose([*tiny, "method=optg", "method.sparsity=0.9", "schedule.optimizer.momentum=0",
                      "schedule.optimizer.nesterov=false", "schedule.lr=0.5"])  # fmt: skip
    t = Trainer(make(config), RunDirectory(tmp_path))
    t.e.method.begin(t.ctx)
    t.ctx.epoch = 2  # sigma(0): sparsity 0.45
    with torch.no_grad():
        for score in t.e.method.scores:  # type: ignore[attr-defined]
            score.normal_(generator=torch.Generator().manual_seed(0))
    t.e.method.on_epoch(t.ctx)
    method: Any = t.e.method
    masks = {name: mask.float() for name, mask in method.masks().items()}
    assert 0.4 < 1 - sum(m.sum() for m in masks.values()) / 620 < 0.5
    w = {name: dense.clone().requires_grad_() for name, dense in zip(method.weights, method.dense, strict=True)}
    m = {name: mask.clone().requires_grad_() for name, mask in masks.items()}
    order = t.e.data.order(0, 1)[:10]
    images, labels = t.e.data.batch(order, t.own_seed("augment", 0, 0))
    others = {name: p.detach() for name, p in t.model.named_parameters() if name not in w}
    product = {name: w[name] * m[name] for name in w}
    F.cross_entropy(torch.func.functional_call(t.model, {**others, **product}, (images,)), labels).backward()
    scores = [score.detach().clone() for score in method.scores]
    t.model.train()
    t.step(order)
    for name, dense, score, old in zip(method.weights, method.dense, method.scores, scores, strict=True):
        torch.testing.assert_close(score.grad, m[name].grad, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(score.detach(), old - 0.25 * m[name].grad, rtol=1e-4, atol=1e-7)  # 0.5 sigma(0)
        torch.testing.assert_close(dense, (w[name] - 0.5 * w[name].grad).detach(), rtol=1e-4, atol=1e-7)
        dropped = masks[name] == 0
        assert bool((score.grad[dropped] != 0).any()) and torch.equal(dense[dropped], w[name].detach()[dropped])


def test_the_scores_rate_is_the_runs_times_the_factor(tiny: list[str], tmp_path: Path) -> None:
    config = compose([*tiny, "method=optg", "schedule.epochs=4", "schedule.lr=0.2", "schedule.decay=cosine"])
    t = Trainer(make(config), RunDirectory(tmp_path))
    seen = []
    t.stop = lambda: seen.append([group["lr"] for group in t.optimizer.param_groups]) is not None  # type: ignore[func-returns-value]
    t.fit()
    assert len(seen) == 16
    for step, (own, scores) in enumerate(seen):
        assert own == pytest.approx(0.1 * (1 + math.cos(math.pi * step / 16)))
        assert scores == pytest.approx(own * sigmoid(step // 4 - 2))


def test_an_epoch_is_evaluated_with_its_own_mask(tiny: list[str], tmp_path: Path) -> None:
    """The next epoch's is chosen after the evaluation of this one's."""
    t = Trainer(make(compose([*tiny, "method=optg", "schedule.epochs=4"])), RunDirectory(tmp_path))
    expected = [1 - kept_of(620, 0.9 * sigmoid(e - 2)) / 620 for e in range(3)]
    assert [line["mask/sparsity"] for line in t.fit()] == pytest.approx([*expected, 0.9])


@pytest.mark.parametrize("allocation", ["uniform", "erk"])
def test_layers_may_have_shares_of_their_own(allocation: Any, bench: Any, gaussian: Callable[..., Any]) -> None:
    from methods.allocation import allocate

    b = bench(OptG(sparsity=0.5, allocation=allocation), gaussian(SHAPES, 0), steps_per_epoch=1, epochs=2)
    for step in range(2):
        b.step(gaussian(SHAPES, step))
    assert b.counts() == allocate(allocation, SHAPES, 0.5)
