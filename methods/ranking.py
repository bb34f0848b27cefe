"""Ranking: which weights (or filters) have the largest scores, over all layers together or within each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from methods.allocation import allocate, kept_of
from methods.masks import Pursuit, top_mask

Ranking = Literal["global", "uniform", "erk"]


def ranked(
    scores: Sequence[Tensor], shapes: Sequence[Sequence[int]], ranking: Ranking, sparsity: float
) -> list[Tensor]:
    """Flat boolean masks of the largest `scores`: exactly `kept_of(total, sparsity)` in all, ties to the lower index.

    `ranking`: "global" compares the scores of all layers; "uniform" and "erk" rank within layers, whose shares are
    those of `methods.allocation.allocate` for these `shapes` (of the weights, one per score tensor).
    """
    if ranking == "global":
        return top_over_all(scores, kept_of(sum(s.numel() for s in scores), sparsity))
    return top_per_layer(scores, allocate(ranking, shapes, sparsity))


def top_of_groups(score: Tensor, keep: int, size: int) -> Tensor:
    """Flat boolean mask of the `keep` largest of every `size` consecutive scores along the input channels, ties to the
    lower index: the pattern keep:size (N:M, Mishra et al. 2021).

    `score`: of a weight of shape (out, in, ...). Groups run on where a row of input channels ends, as in AC/DC's
    official code, so that a first convolution of 3 channels has groups too. ValueError when there is no whole number
    of groups.
    """
    if score.numel() % size:
        raise ValueError(f"{score.numel()} weights do not divide into groups of {size}")
    by_channel = score.movedim(1, -1)
    groups = by_channel.reshape(-1, size)
    first = groups.sort(dim=1, descending=True, stable=True).indices[:, :keep]
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, first, True)
    return mask.view(by_channel.shape).movedim(-1, 1).reshape(-1)


def top_over_all(scores: Sequence[Tensor], keep: int, pursuit: Pursuit | None = None) -> list[Tensor]:
    """Flat boolean masks of the `keep` largest of all scores together. `pursuit`: of earlier such scores."""
    flat = [s.reshape(-1) for s in scores]
    return list(top_mask(torch.cat(flat), keep, pursuit).split([s.numel() for s in flat]))


def top_per_layer(
    scores: Sequence[Tensor], counts: Sequence[int], pursuits: Sequence[Pursuit | None] | None = None
) -> list[Tensor]:
    """Flat boolean masks of the `counts[i]` largest of scores i. `pursuits`: of earlier such scores."""
    return [top_mask(*each) for each in zip(scores, counts, pursuits or [None] * len(scores), strict=True)]
