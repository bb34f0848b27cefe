"""Small images that live as one uint8 tensor on the device; normalised (and augmented) per batch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from data.base import Dataset
from data.order import derive

HELD_OUT_SEED = 777  # Chijiwa et al. 2021's code has this one, for a generator and a draw of its own
Augmentation = Callable[[Tensor, torch.Generator], Tensor]


class Images(Dataset):
    """A classification dataset of equally shaped images.

    `train` and `test`: (images, labels), uint8 of shape (n, channels, height, width) and int64 of shape (n,).
    `peak`: the pixel value that counts as 1.0 before `mean` and `std` (per channel) are applied. `augment` takes a
    uint8 batch and a generator. `digest`: the expected content digest; ValueError when the data have another one.
    `validation`: so many training samples are held out, a fixed draw, the same in every run, the probe "validation/".
    What follows is of the others alone. ValueError where nothing is left.
    `corrupted_labels`: so many of them, drawn at random, get a label drawn from all classes alike (one in `num_classes`
    keeps its own); `corruption_seed` alone fixes which, whatever the run's seed. They are the probes
    "train/corrupted_true_" and "train/corrupted_false_": the corrupted samples without augmentation, with their true
    and with their given labels. ValueError when there are not as many samples.
    `train_subset`: of so many the first of each class, in the classes' own proportions; corrupted are those in it.
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
        corrupted_labels: int = 0,
        corruption_seed: int = 0,
    ) -> None:
        if digest is not None and digest != (found := content_digest(*train, *test)):
            raise ValueError(
                f"the data's digest is {found}, not {digest}: these are not the data the numbers belong to"
            )
        if validation >= len(train[1]):
            raise ValueError(f"validation = {validation} leaves nothing of {len(train[1])} samples to train on")
        self.validation = train[0][:0], train[1][:0]
        if validation:
            held, rest = held_out(len(train[1]), validation)
            self.validation, train = (train[0][held], train[1][held]), (train[0][rest], train[1][rest])
        true = train[1]
        if corrupted_labels:
            train = (train[0], corrupted(true, corrupted_labels, num_classes, corruption_seed))
        where = drawn(len(true), corrupted_labels, corruption_seed)
        if train_subset is not None and train_subset < len(true):
            chosen = proportional_part(true, train_subset)
            where = torch.isin(chosen, where).nonzero().view(-1)
            train, true = (train[0][chosen], train[1][chosen]), true[chosen]
        self.train, self.test = train, test
        self.probes = ("validation/",) if validation else ()
        if corrupted_labels:
            self.probes += ("train/corrupted_true_", "train/corrupted_false_")
        self.where, self.true = where, true[where]
        self.num_classes = num_classes
        self.in_shape = tuple(train[0].shape[1:])
        self.augment = augment
        self.offset = torch.tensor(mean).view(1, -1, 1, 1) * peak
        self.scale = torch.tensor(std).view(1, -1, 1, 1) * peak

    @property
    def train_size(self) -> int:
        return len(self.train[1])

    def to(self, device: torch.device) -> Images:
        """Move everything to the device once."""
        self.train = (self.train[0].to(device), self.train[1].to(device))
        self.test = (self.test[0].to(device), self.test[1].to(device))
        self.validation = (self.validation[0].to(device), self.validation[1].to(device))
        self.where, self.true = self.where.to(device), self.true.to(device)
        self.offset, self.scale = self.offset.to(device), self.scale.to(device)
        return self

    def batch(self, indices: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Training samples as (float images, labels); `seed` fixes the batch's augmentation."""
        indices = indices.to(self.train[1].device)
        images = self.train[0].index_select(0, indices)
        if self.augment is not None:
            images = self.augment(images, torch.Generator(images.device).manual_seed(seed))
        return self._normalise(images), self.train[1].index_select(0, indices)

    def test_batches(self, size: int, rank: int = 0, ranks: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """The test set in order, every sample once; of several ranks each gets every `ranks`-th batch."""
        return self._in_order(*self.test, size, rank, ranks)

    def probe_batches(self, name: str, size: int, rank: int = 0, ranks: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """What is held out; the corrupted samples, with their true labels or with those that training sees."""
        if name == "validation/":
            return self._in_order(*self.validation, size, rank, ranks)
        labels = {"train/corrupted_true_": self.true, "train/corrupted_false_": self.train[1][self.where]}[name]
        return self._in_order(self.train[0][self.where], labels, size, rank, ranks)

    def _in_order(
        self, images: Tensor, labels: Tensor, size: int, rank: int, ranks: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(rank * size, len(labels), ranks * size):
            yield self._normalise(images[start : start + size]), labels[start : start + size]

    def _normalise(self, images: Tensor) -> Tensor:
        return images.float().sub_(self.offset).div_(self.scale)


def held_out(size: int, count: int) -> tuple[Tensor, Tensor]:
    """The positions, ascending, of `count` of `size` samples, and of the others; the same in every run."""
    order = torch.randperm(size, generator=torch.Generator().manual_seed(HELD_OUT_SEED))
    return order[:count].sort().values, order[count:].sort().values


def drawn(size: int, count: int, seed: int) -> Tensor:
    """The positions, ascending, of `count` of `size` samples, drawn by `seed`. ValueError when there are fewer."""
    if count > size:
        raise ValueError(f"corrupted_labels = {count} exceeds the {size} training samples")
    rng = torch.Generator().manual_seed(derive(seed, "corrupted"))
    return torch.randperm(size, generator=rng)[:count].sort().values


def corrupted(labels: Tensor, count: int, num_classes: int, seed: int) -> Tensor:
    """`labels` (n,) with those at the positions that `drawn` gives replaced by labels drawn from all classes alike."""
    rng = torch.Generator().manual_seed(derive(seed, "labels"))
    labels = labels.clone()
    labels[drawn(len(labels), count, seed)] = torch.randint(num_classes, (count,), generator=rng)
    return labels


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
