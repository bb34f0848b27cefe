"""Small images that live as one uint8 tensor on the device; normalised (and augmented) per batch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from data.base import Dataset

HELD_OUT_SEED = 777  # Chijiwa et al. 2021's code has this one, for a generator and a draw of its own
Augmentation = Callable[[Tensor, torch.Generator], Tensor]


class Images(Dataset):
    """A classification dataset of equally shaped images.

    `train` and `test`: (images, labels), uint8 of shape (n, channels, height, width) and int64 of shape (n,).
    `peak`: the pixel value that counts as 1.0 before `mean` and `std` (per channel) are applied. `augment` takes a
    uint8 batch and a generator. `digest`: the expected content digest; ValueError when the data have another one.
    `validation`: so many training samples are held out, a fixed draw, the same in every run; ValueError where nothing
    is left. `train_subset`: of so many of the others the first of each class, in the classes' own proportions.
    """

    def __init__(
        self,
        train: tuple[Tensor, Tensor],
        test: tuple[Tensor, Tensor],
        *,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        peak: float = 255.0,
        augment: Augmentation | None = None,
        train_subset: int | None = None,
        validation: int = 0,
        digest: str | None = None,
    ) -> None:
        if digest is not None and digest != (found := content_digest(*train, *test)):
            raise ValueError(
                f"the data's digest is {found}, not {digest}: these are not the data the numbers belong to"
            )
        if validation >= len(train[1]):
            raise ValueError(f"validation = {validation} leaves nothing of {len(train[1])} samples to train on")
        self.validation = train[0][:0], train[1][:0]
        if validation:
            order = torch.randperm(len(train[1]), generator=torch.Generator().manual_seed(HELD_OUT_SEED))
            held, rest = order[:validation].sort().values, order[validation:].sort().values
            self.validation, train = (train[0][held], train[1][held]), (train[0][rest], train[1][rest])
        if train_subset is not None and train_subset < len(train[1]):
            chosen = proportional_part(train[1], train_subset)
            train = (train[0][chosen], train[1][chosen])
        self.train, self.test = train, test
        self.num_classes = num_classes
        self.in_shape = tuple(train[0].shape[1:])
        self.augment = augment
        self.offset = torch.tensor(mean).view(1, -1, 1, 1) * peak
        self.scale = torch.tensor(std).view(1, -1, 1, 1) * peak

    @property
    def train_size(self) -> int:
        return len(self.train[1])

    @property
    def validation_size(self) -> int:
        return len(self.validation[1])

    def to(self, device: torch.device) -> Images:
        """Move everything to the device once."""
        self.train = (self.train[0].to(device), self.train[1].to(device))
        self.test = (self.test[0].to(device), self.test[1].to(device))
        self.validation = (self.validation[0].to(device), self.validation[1].to(device))
        self.offset, self.scale = self.offset.to(device), self.scale.to(device)
        return self

    def batch(self, indices: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Training samples as (float images, labels); `seed` fixes the batch's augmentation."""
        indices = indices.to(self.train[1].device)
        images = self.train[0][indices]
        if self.augment is not None:
            images = self.augment(images, torch.Generator(images.device).manual_seed(seed))
        return self._normalise(images), self.train[1][indices]

    def test_batches(self, size: int, rank: int = 0, ranks: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """The test set in order, every sample once; of several ranks each gets every `ranks`-th batch."""
        return self._batches(*self.test, size, rank, ranks)

    def validation_batches(self, size: int, rank: int = 0, ranks: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        return self._batches(*self.validation, size, rank, ranks)

    def _batches(
        self, images: Tensor, labels: Tensor, size: int, rank: int, ranks: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(rank * size, len(labels), ranks * size):
            yield self._normalise(images[start : start + size]), labels[start : start + size]

    def _normalise(self, images: Tensor) -> Tensor:
        return images.float().sub_(self.offset).div_(self.scale)


def proportional_part(labels: Tensor, count: int) -> Tensor:
    """The positions, ascending, of `count` samples: the first of each class, as many as its share of `labels` (n,)."""
    counts = labels.bincount()
    by_class = labels.argsort(stable=True)
    place = torch.empty_like(labels)  # of each sample among those of its class
    place[by_class] = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[by_class]]
    share = (place.double() + 0.5) / counts[labels]  # of its class that is taken when it is
    return share.argsort(stable=True)[:count].sort().values


def content_digest(*tensors: Tensor) -> str:
    """A digest of tensors' contents and shapes."""
    h = hashlib.sha256()
    for tensor in tensors:
        h.update(str((tuple(tensor.shape), tensor.dtype)).encode())
        h.update(tensor.contiguous().view(-1).numpy().data)
    return h.hexdigest()[:16]
