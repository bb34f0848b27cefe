"""The data contract: what the trainer asks of a dataset, whether it lives on the device or streams from files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor


class Dataset(ABC):
    """A classification dataset: training samples by index, the test set in order.

    `num_classes`; `in_shape`: the shape (channels, height, width) of one input; of token sequences (number of different
    ids, most tokens). `validation_size`: training samples that are held out, 0 where there are none.
    """

    num_classes: int
    in_shape: tuple[int, ...]

    @property
    @abstractmethod
    def train_size(self) -> int:
        """The number of training samples."""

    @property
    def validation_size(self) -> int:
        return 0

    def validation_batches(self, size: int, rank: int = 0, ranks: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """The samples that are held out, as `test_batches` gives the test set."""
        return iter(())

    @abstractmethod
    def to(self, device: torch.device) -> Dataset:
        """Give every batch on this device from now on; returns the dataset."""

    @abstractmethod
    def batch(self, indices: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Training samples as (float32 inputs of shape (n, *in_shape), int64 labels of shape (n,)).

        `seed` alone fixes the batch's augmentation: the same call gives the same batch, whatever came before it.
        """

    @abstractmethod
    def test_batches(self, size: int, rank: int = 0, ranks: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """The test set in order and in batches of `size`, every sample once.

        Of several ranks each gets every `ranks`-th batch, the first ones from batch `rank`, and loads no other.
        """

    def expect(self, indices: Tensor, seed: int) -> None:  # noqa: B027  (resident data have nothing to prepare)
        """A hint that `batch(indices, seed)` comes soon: a streaming dataset begins to read. Changes no batch."""


def absent(path: Path, root: str, mend: str) -> FileNotFoundError:
    """The error for data that are not there; `mend` is the end of the sentence: how to get them."""
    return FileNotFoundError(
        f"{path} is absent: the data root is {root!r}; set data.root or REGROW_DATA to where the data are, or {mend}"
    )


def fetch_command(name: str, root: str) -> str:
    """How to get a dataset of `data.sources` into `root`, for `absent`."""
    return f"fetch them with: python scripts/fetch_data.py {name} --root {root}"
