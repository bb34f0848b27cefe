"""Adaptive input and softmax: frequent words get wide embeddings, rare ones narrow ones, in clusters (Grave et al. 2017
for the softmax, Baevski & Auli 2019 for the input). Words are numbered by falling frequency."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AdaptiveInput(nn.Module):
    """Word ids (...) -> embeddings (..., width), scaled by sqrt(width) as in Vaswani et al. 2017.

    `cutoffs`: the first word of each cluster but the first. Cluster i has a table of width / divisor^i columns and,
    with a divisor above 1, a projection to `width`: modules "tables.i" and "projections.i".
    """

    def __init__(self, words: int, width: int, cutoffs: Sequence[int], divisor: int) -> None:
        super().__init__()
        self.ends = [0, *cutoffs, words]
        if self.ends != sorted(set(self.ends)):
            raise ValueError(f"cutoffs = {list(cutoffs)} should ascend from above 0 to below the {words} words")
        if width < divisor ** len(cutoffs):
            raise ValueError(f"divisor = {divisor} leaves the last of {len(cutoffs) + 1} clusters no column of {width}")
        widths = [width // divisor**i for i in range(len(cutoffs) + 1)]
        sizes = [high - low for low, high in pairwise(self.ends)]
        self.width = width
        self.tables = nn.ModuleList(nn.Embedding(size, columns) for size, columns in zip(sizes, widths, strict=True))
        projected = widths if divisor > 1 else []
        self.projections = nn.ModuleList(nn.Linear(columns, width, bias=False) for columns in projected)

    def forward(self, words: Tensor) -> Tensor:
        # Every cluster looks every word up, its own or not: cheaper than to ask the device which words it has.
        found = None
        for i, table in enumerate(self.tables):
            low, high = self.ends[i], self.ends[i + 1]
            part: Tensor = table((words - low).clamp(0, high - low - 1))
            if self.projections:
                part = self.projections[i](part)
            part = part.to(next(table.parameters()).dtype)
            inside = ((words >= low) & (words < high)).unsqueeze(-1)
            found = part if found is None else torch.where(inside, part, found)
        assert found is not None
        return found * math.sqrt(self.width)

    def backward_projection(self, i: int, hidden: Tensor) -> Tensor:
        """(n, width) -> (n, columns of table i), by the transposed projection of cluster i."""
        if not self.projections:
            return hidden
        weight: Any = self.projections[i].weight
        return F.linear(hidden, weight.t())


class AdaptiveSoftmax(nn.Module):
    """Log-probabilities of words from hidden vectors, with the tables of an `AdaptiveInput` as output weights.

    The head chooses among the words of the first cluster and the other clusters; a word of one of those has the
    probability of its cluster times that within it. The clusters also share the input's projections, transposed; the
    head, with a divisor above 1, has one of its own: module "projection" (as NVIDIA's code for WikiText-103 does it,
    tie_projs = [False, True, True, True]). "cluster_weight" and "cluster_bias" are the head's rows for the clusters.
    """

    def __init__(self, embedding: AdaptiveInput) -> None:
        super().__init__()
        ends, width = embedding.ends, embedding.width
        clusters = len(ends) - 2
        self.ends = ends
        self.projection = nn.Linear(width, width, bias=False) if embedding.projections else None
        self.biases = nn.ParameterList(torch.zeros(high - low) for low, high in pairwise(ends))
        if clusters:
            self.cluster_weight = nn.Parameter(torch.zeros(clusters, width))
            self.cluster_bias = nn.Parameter(torch.zeros(clusters))

    def forward(self, hidden: Tensor, embedding: AdaptiveInput, targets: Tensor | None) -> Tensor:
        """(n, width) -> the loss -log p(target) (n,), or without targets log p of every word (n, words).

        Negative targets have the loss 0.
        """
        head = self._head(hidden, embedding)
        first, clusters = self.ends[1], len(self.ends) - 2
        if targets is None:
            tails = [head[:, first + i - 1, None] + self._tail(i, hidden, embedding) for i in range(1, clusters + 1)]
            return torch.cat([head[:, :first], *tails], dim=1)
        place = targets.clamp(0, first - 1)  # in the head: the word, or its cluster
        for i in range(1, clusters + 1):
            place = torch.where(targets >= self.ends[i], first + i - 1, place)
        found = head.gather(1, place.unsqueeze(1)).squeeze(1)
        for i in range(1, clusters + 1):
            # A cluster without targets takes part with no rows: its gradient is zero, and not missing on some ranks.
            chosen = ((targets >= self.ends[i]) & (targets < self.ends[i + 1])).nonzero().view(-1)
            within = self._tail(i, hidden[chosen], embedding)
            word = (targets[chosen] - self.ends[i]).unsqueeze(1)
            found = found.index_add(0, chosen, within.gather(1, word).squeeze(1).to(found.dtype))
        return torch.where(targets < 0, 0.0, -found)

    def _head(self, hidden: Tensor, embedding: AdaptiveInput) -> Tensor:
        if self.projection is not None:
            hidden = self.projection(hidden)
        table = embedding.tables[0].weight
        logits = F.linear(hidden, table, self.biases[0])  # type: ignore[arg-type]
        if len(self.ends) > 2:
            logits = torch.cat([logits, F.linear(hidden, self.cluster_weight, self.cluster_bias)], dim=1)
        return F.log_softmax(logits, dim=1)

    def _tail(self, i: int, hidden: Tensor, embedding: AdaptiveInput) -> Tensor:
        narrow = embedding.backward_projection(i, hidden)
        logits = F.linear(narrow, embedding.tables[i].weight, self.biases[i])  # type: ignore[arg-type]
        return F.log_softmax(logits, dim=1)
