"""Static masks, and what every masked method inherits: exact counts, masked gradients, projection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from methods.masks import digest
from methods.static import Static

SHAPES = [(6, 5), (4, 6), (2, 4)]  # 30, 24 and 8 weights


def test_a_static_mask_has_exact_counts_and_keeps_the_initial_weights(bench: Any, gaussian: Callable[..., Any]) -> None:
    weights = gaussian(SHAPES, 0)
    b = bench(Static(sparsity=0.5), weights)
    assert b.counts() == [15, 12, 4]
    for mask, now, initial in zip(b.method.masks().values(), b.weights, weights, strict=True):
        assert torch.equal(now.detach(), torch.where(mask, initial, 0.0))


def test_static_masks_follow_the_allocation(bench: Any, gaussian: Callable[..., Any]) -> None:
    weights = gaussian(SHAPES, 0)
    # 18.6 of 62 kept: 19. Sums of the shapes 11, 10 and 6 of 27: 7.74, 7.04 and 4.22.
    assert bench(Static(sparsity=0.7, allocation="erk"), weights).counts() == [8, 7, 4]
    # Shares of 30, 24 and 8: 9.19, 7.35 and 2.45.
    assert bench(Static(sparsity=0.7), weights).counts() == [9, 7, 3]
    # 5 in the last layer, 14 over 30 and 24: 7.78 and 6.22.
    assert bench(Static(sparsity=0.7, layer_floor=5), weights).counts() == [8, 6, 5]


def test_layers_kept_dense_have_no_mask_and_do_not_count(bench: Any, gaussian: Callable[..., Any]) -> None:
    b = bench(Static(sparsity=0.5, keep_dense=["fc1"]), gaussian(SHAPES, 0))
    assert {name: int(mask.sum()) for name, mask in b.method.masks().items()} == {"fc2.weight": 12, "fc3.weight": 4}
    assert (b.weights[0] != 0).all()
    assert list(b.method.effective()) == ["fc2.weight", "fc3.weight"]
    with pytest.raises(ValueError, match="no convolution or linear layer left to prune"):
        bench(Static(sparsity=0.5, keep_dense=["fc*"]), gaussian(SHAPES, 0))
    with pytest.raises(ValueError, match="no convolution or linear layer left to prune"):
        Static(sparsity=0.5).setup(nn.BatchNorm1d(3))


def test_the_mask_is_a_function_of_the_contexts_generator(bench: Any, gaussian: Callable[..., Any]) -> None:
    found = {}
    for seed, process in [(0, 1), (0, 2), (1, 1)]:
        torch.manual_seed(process)  # the global generator differs between ranks
        found[seed, process] = digest(bench(Static(sparsity=0.5), gaussian(SHAPES, 0), seed=seed).method.masks())
    assert found[0, 1] == found[0, 2] != found[1, 1]


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_a_static_run_equals_plain_masked_sgd(
    bench: Any, plain_sgd: Any, gaussian: Callable[..., Any], momentum: float, nesterov: bool
) -> None:
    b = bench(Static(sparsity=0.6), gaussian(SHAPES, 0), momentum=momentum, nesterov=nesterov)
    kept = b.kept()
    plain = plain_sgd(b.values(), kept, lr=0.1, momentum=momentum, nesterov=nesterov)
    for step in range(12):
        grads = gaussian(SHAPES, 100 + step)
        b.step(grads)
        plain.step([g.flatten().tolist() for g in grads])
        assert b.kept() == kept
        for found, expected in zip(b.values(), plain.w, strict=True):
            assert found == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_no_momentum_builds_up_behind_the_mask(bench: Any, gaussian: Callable[..., Any]) -> None:
    b = bench(Static(sparsity=0.6), gaussian(SHAPES, 0), momentum=0.9)
    for step in range(5):
        b.step(gaussian(SHAPES, step))
    for mask, weight in zip(b.method.masks().values(), b.weights, strict=True):
        buffer = b.optimizer.state[weight]["momentum_buffer"]
        assert (buffer[~mask] == 0).all() and (buffer[mask] != 0).all()


def test_momentum_from_before_a_drop_does_not_leak_back(bench: Any, gaussian: Callable[..., Any]) -> None:
    b = bench(Static(sparsity=0.0), gaussian(SHAPES, 0), momentum=0.9)
    b.step(gaussian(SHAPES, 1))
    half = torch.arange(30) % 2 == 0
    b.method.mask.set(0, half)
    for step in range(2, 8):
        b.step(gaussian(SHAPES, step))
        assert (b.weights[0].detach().flatten()[~half] == 0).all()
        assert (b.weights[0].detach().flatten()[half] != 0).all()


def test_saved_masks_are_taken_over(bench: Any, gaussian: Callable[..., Any]) -> None:
    b = bench(Static(sparsity=0.5), gaussian(SHAPES, 0), seed=1)
    other = bench(Static(sparsity=0.5), gaussian(SHAPES, 0), seed=2)
    assert digest(other.method.masks()) != digest(b.method.masks())
    other.method.load_state_dict(b.method.state_dict())
    assert digest(other.method.masks()) == digest(b.method.masks())
