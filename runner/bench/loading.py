"""How many images a second the datasets give, beside torchvision's loaders. By the wall clock, threads as named."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets, tv_tensors
from torchvision.transforms import v2

from data.augment import crop_flip
from data.imagenet import imagenet
from data.images import Images
from runner.bench.figures import Figure, spread
from runner.timing import in_turn

_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def small_images(rounds: int, threads: int, batch: int = 128, batches: int = 100) -> list[Figure]:
    """Crop, mirror and normalise 32x32 images: ours, and torchvision's transforms in a DataLoader with workers."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (10_000, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (10_000,), generator=generator)
    data = Images(
        (pixels, labels),
        (pixels[:1], labels[:1]),
        num_classes=10,
        mean=_MEAN,
        std=_STD,
        augment=crop_flip(4, "zero"),
    )
    order = torch.randint(0, len(labels), (batches, batch), generator=generator)

    def ours() -> int:
        for seed, indices in enumerate(order):
            data.batch(indices, seed)
        return batch * batches

    transform = v2.Compose(
        [
            v2.RandomCrop(32, padding=4),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(_MEAN, _STD),
        ]
    )

    class Transformed(Dataset[tuple[torch.Tensor, torch.Tensor]]):
        def __len__(self) -> int:
            return len(labels)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
            return transform(tv_tensors.Image(pixels[index])), labels[index]

    theirs = _epoch_of(DataLoader(Transformed(), batch, shuffle=True, num_workers=threads))
    section = f"images of 32x32 cropped, mirrored, normalised, {threads} threads"
    return _compared(section, ours, theirs, rounds, threads, target=150_000)


def large_images(rounds: int, threads: int, count: int = 240) -> list[Figure]:
    """Decode, crop at random to 224x224, mirror and normalise JPEGs of 500x375: ours, and torchvision's ImageFolder."""
    with tempfile.TemporaryDirectory(prefix="regrow-bench-") as folder:
        _pictures(Path(folder), count)
        data = imagenet(
            root=folder,
            digest=None,
            num_classes=4,
            train_size=count,
            test_size=4,
            side=224,
            resize=256,
            area=[0.08, 1],
            aspect=[3 / 4, 4 / 3],
            flip=True,
            mean=_MEAN,
            std=_STD,
        )

        def ours() -> int:
            parts = torch.randperm(count).split(40)
            data.expect(parts[0], 0)
            for seed, indices in enumerate(parts):
                expected = data.expected
                if seed + 1 < len(parts):
                    data.expect(parts[seed + 1], seed + 1)
                    data.expected, expected = expected, data.expected
                data.batch(indices, seed)
                data.expected = expected
            return count

        transform = v2.Compose(
            [
                v2.RandomResizedCrop(224),
                v2.RandomHorizontalFlip(),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(_MEAN, _STD),
            ]
        )
        folders = datasets.ImageFolder(str(Path(folder, "imagenet", "train")), transform)
        theirs = _epoch_of(DataLoader(folders, 40, shuffle=True, num_workers=threads))
        section = f"JPEGs of 500x375 decoded, cropped to 224x224, normalised, {threads} threads"
        return _compared(section, ours, theirs, rounds, threads, least_ratio=1.2)


def _pictures(root: Path, count: int) -> None:
    """An image folder: smooth noise, whose files are as large as photographs'."""
    rng = np.random.default_rng(0)
    for part, number in (("train", count), ("val", 4)):
        for i in range(number):
            coarse = Image.fromarray(rng.integers(0, 256, (47, 63, 3), dtype=np.uint8)).resize((500, 375))
            pixels = np.asarray(coarse).astype(np.int16) + rng.integers(-12, 13, (375, 500, 3))
            path = root / "imagenet" / part / f"n{i % 4:08d}"
            path.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path / f"{i}.JPEG", quality=90)


def _epoch_of(loader: DataLoader[tuple[torch.Tensor, torch.Tensor]]) -> Callable[[], int]:
    return lambda: sum(len(images) for images, _ in loader)


def _compared(
    section: str,
    ours: Callable[[], int],
    theirs: Callable[[], int],
    rounds: int,
    threads: int,
    target: float | None = None,
    least_ratio: float | None = None,
) -> list[Figure]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for run in (ours, theirs):
            run()  # warm up
        rates = in_turn({"ours": _rate(ours), "theirs": _rate(theirs)}, rounds)
    finally:
        torch.set_num_threads(before)
    ratios = [own / other for own, other in zip(rates["ours"], rates["theirs"], strict=True)]
    return [
        spread(section, "regrow", rates["ours"], "images/s", target=target, at_most=False),
        spread(section, f"torchvision, DataLoader with {threads} workers", rates["theirs"], "images/s"),
        spread(section, "regrow / torchvision", ratios, "x", target=least_ratio, at_most=False),
    ]


def _rate(run: Callable[[], int]) -> Callable[[], float]:
    def timed() -> float:
        began = time.perf_counter()
        return run() / (time.perf_counter() - began)

    return timed
