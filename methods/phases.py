"""Phases: how a run divides into dense and sparse stretches that take turns (AC/DC). Pure Python: no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise

from methods.schedules import whole_ends


def alternating(
    epochs: float, *, warmup: float, sparse: float, dense: float, last_dense: float, last_sparse: float
) -> list[float]:
    """Lengths in epochs of the phases, dense and sparse in turn, the first dense and the last sparse.

    warmup, then sparse and dense as often as they fit, one more sparse, last_dense, last_sparse. What is left over
    lengthens the last phase; a run too short for one phase of each kind shrinks them all alike.
    """
    ends = warmup + sparse + last_dense + last_sparse
    pair = sparse + dense
    count = math.floor((epochs - ends) / pair + 1e-3) if pair > 0 and epochs > ends else 0
    lengths = [warmup, *[sparse, dense] * count, sparse, last_dense, last_sparse]
    left = epochs - sum(lengths)
    if left >= 0:
        lengths[-1] += left
    else:
        lengths = [length * epochs / sum(lengths) for length in lengths]
    return lengths


def whole_phases(lengths: Sequence[float], epochs: int) -> list[int]:
    """The same phases in whole epochs, `epochs` in all: none has less than one epoch, and the last one stays.

    `lengths` as from `alternating`; only the first may be 0 (a run that begins sparse). Boundaries are rounded to the
    nearest epoch. Where there are fewer epochs than phases, the shortest neighbours (a sparse and a dense phase) are
    given to the phases around them, so that dense and sparse epochs keep their shares; a single epoch is sparse.
    """
    left = [length * epochs / sum(lengths) for length in lengths]
    first = 1 if left[0] > 0 else 2  # a run that begins sparse goes on doing so
    while sum(length > 0 for length in left) > epochs:
        inner = range(first, len(left) - 2)
        if not inner:
            return [0, epochs]
        i = min(inner, key=lambda i: left[i] + left[i + 1])
        left[i - 1] += left[i + 1]
        left[i + 2] += left[i]
        del left[i : i + 2]
    skipped = 0 if left[0] > 0 else 1
    ends = whole_ends(list(accumulate(left[skipped:])), epochs)
    return [0] * skipped + [after - before for before, after in pairwise([0, *ends])]
