"""Large images that stay in their files: threads read, crop and scale them while the device computes."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from data.base import Dataset
from data.order import derive

if TYPE_CHECKING:
    from PIL.Image import Image

Sample = tuple[str, int]


@dataclass
class _Reading:
    """A batch on its way: one future image a sample."""

    images: list[Future[Tensor]]
    labels: list[int]


class ImageFiles(Dataset):
    """A classification dataset of image files.

    `train`, `test`: (path, label) of every sample. `train_transform` takes an RGB image and a generator that is a
    function of the batch's seed and the sample's index alone, `test_transform` an RGB image; both give uint8 of shape
    (3, side, side). `mean` and `std` (per channel) are those of values scaled to [0, 1].
    """

    def __init__(
        self,
        train: Sequence[Sample],
        test: Sequence[Sample],
        *,
        num_classes: int,
        side: int,
        mean: Sequence[float],
        std: Sequence[float],
        train_transform: Callable[[Image, random.Random], Tensor],
        test_transform: Callable[[Image], Tensor],
    ) -> None:
        self.train, self.test = train, test
        self.num_classes = num_classes
        self.in_shape = (3, side, side)
        self.train_transform, self.test_transform = train_transform, test_transform
        self.offset = torch.tensor(mean).view(1, -1, 1, 1) * 255
        self.scale = torch.tensor(std).view(1, -1, 1, 1) * 255
        self.device = torch.device("cpu")
        self.threads = ThreadPoolExecutor(_processors(), thread_name_prefix="read")  # starts none before it is used
        self.expected: tuple[int, list[int], _Reading] | None = None

    @property
    def train_size(self) -> int:
        return len(self.train)

    def to(self, device: torch.device) -> ImageFiles:
        self.device = device
        self.offset, self.scale = self.offset.to(device), self.scale.to(device)
        return self

    def expect(self, indices: Tensor, seed: int) -> None:
        """Begin to read a training batch; only the last expected one is kept."""
        self.expected = (seed, indices.tolist(), self._read_training(indices.tolist(), seed))

    def batch(self, indices: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Training samples, augmented and normalised. ValueError names a file that is no whole image."""
        wanted = indices.tolist()
        reading = None
        if self.expected is not None and self.expected[:2] == (seed, wanted):
            reading, self.expected = self.expected[2], None
        return self._finish(reading or self._read_training(wanted, seed))

    def test_batches(self, size: int, rank: int = 0, ranks: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """The test set in order, every sample once; the next batch is read while one is used."""
        reading = None
        for start in range(rank * size, len(self.test), ranks * size):
            samples = self.test[start : start + size]
            after = self._read(samples, [self.test_transform] * len(samples))
            if reading is not None:
                yield self._finish(reading)
            reading = after
        if reading is not None:
            yield self._finish(reading)

    def _read_training(self, indices: list[int], seed: int) -> _Reading:
        transforms = [partial(_drawing, self.train_transform, derive(seed, index)) for index in indices]
        return self._read([self.train[index] for index in indices], transforms)

    def _read(self, samples: Sequence[Sample], transforms: Sequence[Callable[[Image], Tensor]]) -> _Reading:
        images = [self.threads.submit(_load, path, t) for (path, _), t in zip(samples, transforms, strict=True)]
        return _Reading(images, [label for _, label in samples])

    def _finish(self, reading: _Reading) -> tuple[Tensor, Tensor]:
        pinned = self.device.type == "cuda"
        pixels = torch.empty(len(reading.images), *self.in_shape, dtype=torch.uint8, pin_memory=pinned)
        labels = torch.tensor(reading.labels, pin_memory=pinned)
        for row, image in zip(pixels, reading.images, strict=True):
            row.copy_(image.result())
        images = pixels.to(self.device, non_blocking=True).float().sub_(self.offset).div_(self.scale)
        return images, labels.to(self.device, non_blocking=True)


def _load(path: str, transform: Callable[[Image], Tensor]) -> Tensor:
    from torchvision.datasets.folder import pil_loader

    try:
        image = pil_loader(path)
    except OSError as error:
        raise ValueError(f"{path} is not a whole image ({error}); replace it") from None
    return transform(image)


def _drawing(transform: Callable[[Image, random.Random], Tensor], seed: int, image: Image) -> Tensor:
    return transform(image, random.Random(seed))


def _processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
