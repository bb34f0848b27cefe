"""Which sample comes when: a function of (seed, epoch) alone, so that any position of a run can be resumed."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def derive(seed: int, *names: str | int) -> int:
    """An independent 63-bit seed for a named purpose of a run with this seed (stable across processes and versions)."""
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def epoch_order(size: int, seed: int, epoch: int) -> Tensor:
    """A permutation of range(size) for one epoch, on the CPU, identical on every rank."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(derive(seed, "order", epoch)))
