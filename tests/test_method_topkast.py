"""Top-KAST's sets, gradients and exploration loss, and Powerprop's formulas, against plain ones."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from methods.allocation import kept_of
from methods.topkast import Powerprop, TopKAST
from runner.compose import compose
from runner.experiment import validate

SHAPES = [(4, 5), (3, 6)]


def largest(theta: list[float], count: int) -> list[bool]:
    first = set(sorted(range(len(theta)), key=lambda i: -abs(theta[i]))[:count])
    return [i in first for i in range(len(theta))]


@pytest.mark.parametrize("backward", [0.0, 0.5, 0.7])
def test_the_published_rules_one_weight_at_a_time(backward: float, bench: Any, gaussian: Any) -> None:
    """Momentum and exploration on B alone, everything else as it was; sets anew every third step."""
    method = TopKAST(sparsity=0.7, backward_sparsity=backward, exploration=0.03, period=3)
    b = bench(method, gaussian(SHAPES, 0), lr=0.1, momentum=0.9)
    theta = [t.flatten().tolist() for t in gaussian(SHAPES, 0)]
    buffer = [[0.0] * len(layer) for layer in theta]
    sizes = [len(layer) for layer in theta]
    counts = [(kept_of(n, 0.7), kept_of(n, backward)) for n in sizes]
    a = [largest(layer, count) for layer, (count, _) in zip(theta, counts, strict=True)]
    bs = [largest(layer, count) for layer, (_, count) in zip(theta, counts, strict=True)]
    firsts = a
    for step in range(12):
        assert b.kept() == a
        for layer, value in enumerate(b.values()):
            assert value == pytest.approx([t if k else 0.0 for t, k in zip(theta[layer], a[layer], strict=True)])
        grads = gaussian(SHAPES, 100 + step)
        b.step(grads)
        for layer, g in enumerate(t.flatten().tolist() for t in grads):
            density = sum(a[layer]) / sizes[layer]
            for i in range(sizes[layer]):
                whole = 0.0
                if bs[layer][i]:
                    whole = g[i] + 0.03 * theta[layer][i] * (1 if a[layer][i] else 1 / density)
                buffer[layer][i] = 0.9 * buffer[layer][i] + whole
                if bs[layer][i]:
                    theta[layer][i] -= 0.1 * buffer[layer][i]
        if (step + 1) % 3 == 0:
            a = [largest(layer, count) for layer, (count, _) in zip(theta, counts, strict=True)]
            bs = [largest(layer, count) for layer, (_, count) in zip(theta, counts, strict=True)]
        for dense, expected in zip(method.dense, theta, strict=True):
            assert dense.flatten().tolist() == pytest.approx(expected, abs=1e-12), step
    assert a != firsts


def test_the_exploration_gradient_is_that_of_the_printed_loss(bench: Any, gaussian: Any) -> None:
    method = TopKAST(sparsity=0.75, backward_sparsity=0.25, exploration=0.7, period=100)
    b = bench(method, gaussian(SHAPES, 3), lr=1.0)
    theta = [t.clone().requires_grad_() for t in method.dense]
    sets = zip(method.forward_set.tensors, method.backward_set.tensors, theta, strict=True)
    loss = 0.7 * sum(0.5 * (a * t**2).sum() + ((s - a) * t**2).sum() / (2 * a.mean()) for a, s, t in sets)
    expected = torch.autograd.grad(loss, theta)
    b.step([torch.zeros(shape) for shape in SHAPES])
    for now, before, grad in zip(method.dense, theta, expected, strict=True):
        torch.testing.assert_close(now, before.detach() - grad)


def test_weights_outside_of_both_sets_stay_whatever_the_optimizer_does(bench: Any, gaussian: Any) -> None:
    """Old momentum and weight decay included: a weight that leaves B is frozen where it is."""
    method = TopKAST(sparsity=0.8, backward_sparsity=0.6, exploration=0.1, period=2)
    b = bench(method, gaussian(SHAPES, 0), lr=0.3, momentum=0.9)
    for group in b.optimizer.param_groups:
        group["weight_decay"] = 0.2
    left = 0
    for step in range(20):
        outside = [(s == 0).clone() for s in method.backward_set.tensors]
        before = [t.clone() for t in method.dense]
        b.step(gaussian(SHAPES, step))
        for where, old, new, weight in zip(outside, before, method.dense, b.weights, strict=True):
            assert torch.equal(old[where], new[where])
            left += int(b.optimizer.state[weight]["momentum_buffer"][where].count_nonzero())
    assert left > 0  # there was momentum to be applied


def test_momentum_fades_outside_and_takes_no_decay(bench: Any, gaussian: Any) -> None:
    method = TopKAST(sparsity=0.8, backward_sparsity=0.6, exploration=0.1, period=1000)
    b = bench(method, gaussian(SHAPES, 0), lr=0.3, momentum=0.9)
    for group in b.optimizer.param_groups:
        group["weight_decay"] = 0.2
    for step in range(3):
        b.step(gaussian(SHAPES, step))
    for where, weight in zip(method.backward_set.tensors, b.weights, strict=True):
        assert not b.optimizer.state[weight]["momentum_buffer"][where == 0].any()


@pytest.mark.parametrize("allocation", ["uniform", "erk", "global"])
def test_the_sets_are_exact_and_nested(allocation: str, bench: Any, gaussian: Any) -> None:
    for seed in range(5):
        method = TopKAST(sparsity=0.7, backward_sparsity=0.3, exploration=0, allocation=allocation)
        bench(method, gaussian([(7, 5), (3, 11), (2, 3)], seed))
        forward, backward = method.forward_set, method.backward_set
        assert sum(forward.counts()) == kept_of(74, 0.7)
        assert kept_of(74, 0.3) <= sum(backward.counts()) <= kept_of(74, 0.3) + 2
        assert all(not bool((a * (1 - b)).any()) for a, b in zip(forward.tensors, backward.tensors, strict=True))


def test_what_goes_backward_holds_what_goes_forward() -> None:
    with pytest.raises(ValueError, match=r"backward_sparsity = 0\.95 exceeds sparsity = 0\.9"):
        TopKAST(sparsity=0.9, backward_sparsity=0.95, exploration=0).check(10)


def test_dense_all_through_is_plain_training(bench: Any, gaussian: Any) -> None:
    method = TopKAST(sparsity=0, backward_sparsity=0, exploration=0)
    b = bench(method, gaussian(SHAPES, 0), lr=0.1, momentum=0.9, nesterov=True)
    w = [t.clone().requires_grad_() for t in gaussian(SHAPES, 0)]
    optimizer = torch.optim.SGD(w, lr=0.1, momentum=0.9, nesterov=True)
    for step in range(5):
        grads = gaussian(SHAPES, step)
        b.step(grads)
        for weight, grad in zip(w, grads, strict=True):
            weight.grad = grad.clone()
        optimizer.step()
    assert all(torch.equal(found.detach(), weight.detach()) for found, weight in zip(b.weights, w, strict=True))


@pytest.mark.parametrize("alpha", [1.0, 1.375, 2.0, 3.0])
def test_powers_by_autograd(alpha: float, bench: Any, gaussian: Any) -> None:
    """theta starts so that the network does not change; the gradient is that of w(theta) on A and, straight, on B."""
    given: dict[str, Any] = {"sparsity": 0.6, "backward_sparsity": 0.3, "exploration": 0.0, "period": 100}
    method = Powerprop(alpha=alpha, **given)
    weights = gaussian(SHAPES, 0)
    b = bench(method, weights, lr=0.1)
    for found, weight, kept in zip(b.weights, weights, method.masks().values(), strict=True):
        torch.testing.assert_close(found.detach(), torch.where(kept, weight, 0.0))
    plain = TopKAST(**given)
    bench(plain, weights)
    assert all(torch.equal(m, n) for m, n in zip(method.masks().values(), plain.masks().values(), strict=True))
    theta: list[Tensor] = [t.clone().requires_grad_() for t in method.dense]
    grads = gaussian(SHAPES, 1)
    w = [t * t.abs() ** (alpha - 1) for t in theta]
    chained = torch.autograd.grad(w, theta, grads)
    b.step(grads)
    for new, old, grad, inside in zip(method.dense, theta, chained, method.backward_set.tensors, strict=True):
        torch.testing.assert_close(new, old.detach() - 0.1 * grad * inside)


@pytest.mark.parametrize(("alpha", "moves"), [(1.0, True), (1.5, False), (3.0, False)])
def test_the_gradient_at_zero(alpha: float, moves: bool, bench: Any) -> None:
    """1 at alpha = 1 and 0 above: never nan."""
    method = Powerprop(sparsity=0, backward_sparsity=0, exploration=0, alpha=alpha)
    b = bench(method, [torch.tensor([[0.0, 1.0]])], lr=0.5)
    b.step([torch.tensor([[1.0, 1.0]])])
    assert method.dense[0].flatten().tolist() == pytest.approx([-0.5 if moves else 0.0, 1 - 0.5 * alpha])
    assert math.isfinite(b.values()[0][0])


def test_the_published_pairs_of_sparsities_compose() -> None:
    given = ["experiment=acdc/imagenet", "method=topkast", "method.sparsity=0.8", "method.backward_sparsity=0"]
    config = compose([*given, "method.keep_dense=[conv1,fc]", "schedule.extend=2"])
    _, schedule, method = validate(config)
    assert isinstance(method, TopKAST) and method.backward_sparsity == 0
    assert schedule.epochs == 200 and schedule.l2 == 0


def test_a_run_that_would_never_choose_anew_is_refused(bench: Any, gaussian: Any) -> None:
    def begun(steps: int, period: int) -> None:
        method = TopKAST(sparsity=0.5, backward_sparsity=0.25, exploration=0.0, period=period)
        bench(method, gaussian([(4, 6)], seed=1), steps_per_epoch=steps, epochs=1)

    begun(100, 99)
    begun(1, 1)
    with pytest.raises(ValueError, match=r"period = 100, but the run has 100 steps.* set method\.period to 99 or less"):
        begun(100, 100)
