"""Large images that stay in their files: threads decode, crop and scale them while the device computes."""

from __future__ import annotations

import functools
import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from data.base import Dataset
from data.order import derive
from data.unreadable import Unreadable

Sample = tuple[str, int]
_JPEG = b"\xff\xd8\xff"
_AHEAD = 64  # parts of batches that are expected at a time
_PATIENCE_S = 10.0  # how often it is asked whether anybody is still reading


@dataclass
class _Reading:
    """A batch on its way: one future image a sample."""

    images: list[Future[Tensor]]
    labels: list[int]
    paths: list[str]


class ImageFiles(Dataset):
    """A classification dataset of image files.

    `train`, `test`: (path, label) of every sample. `train_transform` takes an image, uint8 of shape (3, height, width),
    and a generator that is a function of the batch's seed and the sample's index alone, `test_transform` an image; both
    give uint8 of shape (3, side, side). `mean` and `std` (per channel) are those of values scaled to [0, 1]; scaling by
    them is done on the device.
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
        train_transform: Callable[[Tensor, random.Random], Tensor],
        test_transform: Callable[[Tensor], Tensor],
    ) -> None:
        self.train, self.test = train, test
        self.num_classes = num_classes
        self.in_shape = (3, side, side)
        self.train_transform, self.test_transform = train_transform, test_transform
        self.offset = torch.tensor(mean).view(1, -1, 1, 1) * 255
        self.scale = torch.tensor(std).view(1, -1, 1, 1) * 255
        self.device = torch.device("cpu")
        self.name = f"read-{id(self):x}-"
        self.threads = ThreadPoolExecutor(_processors(), thread_name_prefix=self.name)  # starts none before it is used
        self.expected: dict[tuple[int, tuple[int, ...]], _Reading] = {}  # by seed and samples

    @property
    def train_size(self) -> int:
        return len(self.train)

    def to(self, device: torch.device) -> ImageFiles:
        self.device = device
        self.offset, self.scale = self.offset.to(device), self.scale.to(device)
        return self

    def expect(self, indices: Tensor, seed: int) -> None:
        """Begin to read a training batch. Batches come in the order in which they are expected; what is passed over is
        forgotten, and so is the oldest of more than `_AHEAD`.
        """
        wanted = seed, tuple(indices.tolist())
        if wanted not in self.expected:
            self.expected[wanted] = self._read_training(wanted[1], seed)
        if len(self.expected) > _AHEAD:
            self._forget()

    def batch(self, indices: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Training samples, augmented and normalised. Unreadable names a file that is no whole image."""
        wanted = seed, tuple(indices.tolist())
        if wanted not in self.expected:
            return self._finish(self._read_training(wanted[1], seed))
        while next(iter(self.expected)) != wanted:
            self._forget()
        return self._finish(self.expected.pop(wanted))

    def _forget(self) -> None:
        for image in self.expected.pop(next(iter(self.expected))).images:
            image.cancel()

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

    def _read_training(self, indices: Sequence[int], seed: int) -> _Reading:
        transforms = [partial(_drawing, self.train_transform, derive(seed, index)) for index in indices]
        return self._read([self.train[index] for index in indices], transforms)

    def _read(self, samples: Sequence[Sample], transforms: Sequence[Callable[[Tensor], Tensor]]) -> _Reading:
        images = [self.threads.submit(_load, path, t) for (path, _), t in zip(samples, transforms, strict=True)]
        return _Reading(images, [label for _, label in samples], [path for path, _ in samples])

    def _await(self, image: Future[Tensor], path: str) -> Tensor:
        """The image, once it has been read. Unreadable when it cannot be, or when no thread is left to do it."""
        while True:
            try:
                return image.result(_PATIENCE_S)
            except TimeoutError:
                if image.done() or any(thread.name.startswith(self.name) for thread in threading.enumerate()):
                    continue
                raise Unreadable(f"the threads that read images have died before {path} was read; run again") from None

    def _finish(self, reading: _Reading) -> tuple[Tensor, Tensor]:
        pinned = self.device.type == "cuda"
        pixels = torch.empty(len(reading.images), *self.in_shape, dtype=torch.uint8, pin_memory=pinned)
        labels = torch.tensor(reading.labels, pin_memory=pinned)
        for row, image, path in zip(pixels, reading.images, reading.paths, strict=True):
            row.copy_(self._await(image, path))
        images = pixels.to(self.device, non_blocking=True).float().sub_(self.offset).div_(self.scale)
        return images, labels.to(self.device, non_blocking=True)


def _load(path: str, transform: Callable[[Tensor], Tensor]) -> Tensor:
    try:
        return transform(decoded(path))
    except MemoryError:
        raise
    except Exception as error:  # damaged files make Pillow raise errors of many kinds
        raise Unreadable(f"{path} is not a whole image ({error}); replace it") from error


def decoded(path: str) -> Tensor:
    """The pixels of an image file as RGB, uint8 of shape (3, height, width); orientation marks are passed over.

    JPEGs in grey or colour by torchvision's decoder, whose pixels are Pillow's in half the time; what it does not take
    (other formats, CMYK, damage) by Pillow, which raises errors of many kinds.
    """
    from torchvision.datasets.folder import pil_loader
    from torchvision.transforms.v2.functional import pil_to_tensor

    content = Path(path).read_bytes()
    if content.startswith(_JPEG) and (decode_jpeg := _jpeg_decoder()) is not None:
        try:
            image = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        except RuntimeError:
            image = None
        if image is not None and image.shape[0] in (1, 3):
            return image.expand(3, -1, -1)
    pixels: Tensor = pil_to_tensor(pil_loader(path))
    return pixels


@functools.cache
def _jpeg_decoder() -> Callable[[Tensor], Tensor] | None:
    """torchvision's, announced to go in some later version; without it Pillow decodes the same pixels."""
    try:
        from torchvision.io import decode_jpeg
    except ImportError:
        return None
    found: Callable[[Tensor], Tensor] = decode_jpeg
    return found


def _drawing(transform: Callable[[Tensor, random.Random], Tensor], seed: int, image: Tensor) -> Tensor:
    return transform(image, random.Random(seed))


def _processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
