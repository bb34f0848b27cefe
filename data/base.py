"""The data contract: what the trainer asks of a dataset, whether it lives on the device or streams from files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.order import epoch_order

Batch = tuple[Any, ...]  # what a task of the dataset's kind makes a loss of


class Dataset(ABC):
    """Training samples by index, the test set in order.

    `num_classes`: outputs of a model; `in_shape`: the shape of one input, (channels, height, width) of an image, of a
    classified text (number of different ids, most tokens).
    `batch_size`: the only one that batches may have, of a dataset that is read on from batch to batch.
    """

    num_classes: int
    in_shape: tuple[int, ...]
    batch_size: int | None = None

    #: Further labelled samples, evaluated at every epoch's end. A name is what its metrics' names begin with:
    #: "validation/", the samples that are held out from training, gives validation/accuracy and so on.
    probes: tuple[str, ...] = ()

    @property
    @abstractmethod
    def train_size(self) -> int:
        """The number of training samples."""

    @abstractmethod
    def to(self, device: torch.device) -> Dataset:
        """Give every batch on this device from now on; returns the dataset."""

    def order(self, seed: int, epoch: int) -> Tensor:
        """The indices of all training samples in the order of an epoch, on the CPU: here at random."""
        return epoch_order(self.train_size, seed, epoch)

    @abstractmethod
    def batch(self, indices: Tensor, seed: int) -> Batch:
        """Training samples; for classification (float32 inputs of shape (n, *in_shape), int64 labels of shape (n,)).

        `seed` alone fixes the batch's augmentation: the same call gives the same batch, whatever came before it.
        """

    @abstractmethod
    def test_batches(self, size: int, rank: int = 0, ranks: int = 1) -> Iterator[Batch]:
        """The test set in order and in batches of `size`, every sample once.

        Of several ranks each gets every `ranks`-th batch, the first ones from batch `rank`, and loads no other.
        """

    def probe_batches(self, name: str, size: int, rank: int = 0, ranks: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """The samples of one of the `probes`, as `test_batches` gives the test set."""
        raise KeyError(name)

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
