"""ImageNet (ILSVRC 2012) from a folder per class, with the augmentation of Inception and ResNet training."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

from torch import Tensor

from data.base import absent
from data.image_files import ImageFiles, Sample

Count = Annotated[int, "1 <= x"]
Box = tuple[int, int, int, int]


def imagenet(
    *,
    root: str,
    digest: str | None,
    num_classes: Count,
    train_size: Count,
    test_size: Count,
    side: Count,
    resize: Count,
    area: list[Annotated[float, "0 < x <= 1"]],
    aspect: list[Annotated[float, "0 < x"]],
    flip: bool,
    mean: list[float],
    std: list[float],
    train_subset: Count | None = None,
) -> ImageFiles:
    """Images of shape (3, side, side), by default the 1,281,167 for training and the 50,000 of the validation set.

    Reads `<root>/imagenet/train/<class>/*` and `<root>/imagenet/val/<class>/*`; classes are numbered in the order of
    their folders' names. Training: a random part of `area` (range of shares) and `aspect` (range of width / height) is
    scaled to side x side and, with `flip`, mirrored half of the times (Szegedy et al. 2015). Test: the shorter edge is
    scaled to `resize`, the central side x side pixels are kept. `digest` is that of the files' names (`names_digest`).
    `train_subset` takes so many evenly spread samples. FileNotFoundError when the folders are absent, ValueError when
    they hold another number of classes or images, or other names.
    """
    folder = Path(root) / "imagenet"
    train, train_classes = _samples(folder / "train", root)
    test, test_classes = _samples(folder / "val", root)
    if train_classes != test_classes:
        other = min(set(train_classes) ^ set(test_classes))
        raise ValueError(f"{folder / 'train'} and {folder / 'val'} differ in their classes, such as {other}")
    for what, found, wanted in (
        ("classes", len(train_classes), num_classes),
        ("training images", len(train), train_size),
        ("test images", len(test), test_size),
    ):
        if found != wanted:
            raise ValueError(
                f"{folder} holds {found} {what}, not {wanted}: complete it, or set dataset's numbers to it"
            )
    if digest is not None and (found_digest := names_digest(train, test, folder)) != digest:
        raise ValueError(f"the digest of the files' names in {folder} is {found_digest}, not {digest}")
    for name, limits in (("area", area), ("aspect", aspect)):
        if len(limits) != 2 or limits[0] > limits[1]:
            raise ValueError(f"{name} = {limits} should be two numbers, the smaller one first")
    if resize < side:
        raise ValueError(f"resize = {resize} should not be below side = {side}")
    if train_subset is not None and train_subset < len(train):
        train = [train[position * len(train) // train_subset] for position in range(train_subset)]
    return ImageFiles(
        train,
        test,
        num_classes=num_classes,
        side=side,
        mean=mean,
        std=std,
        train_transform=random_part(side, (area[0], area[1]), (aspect[0], aspect[1]), flip),
        test_transform=partial(central_part, side=side, resize=resize),
    )


def _samples(folder: Path, root: str) -> tuple[list[Sample], list[str]]:
    from torchvision.datasets import ImageFolder

    if not folder.is_dir():
        raise absent(
            folder, root, "get ImageNet (ILSVRC 2012) from image-net.org and unpack it there: no command may fetch it"
        )
    try:
        found = ImageFolder(folder)
    except FileNotFoundError as error:
        raise ValueError(f"{folder} is not a folder of classes with images in each ({error})") from None
    return found.samples, found.classes


def names_digest(train: list[Sample], test: list[Sample], folder: Path) -> str:
    """A digest of which files there are (not of their pixels: that would mean reading 150 GB before every run)."""
    h = hashlib.sha256()
    for path, label in (*train, *test):
        h.update(f"{Path(path).relative_to(folder).as_posix()} {label}\n".encode())
    return h.hexdigest()[:16]


def random_part(
    side: int, area: tuple[float, float], aspect: tuple[float, float], flip: bool
) -> Callable[[Tensor, random.Random], Tensor]:
    """Crop at random, scale to side x side, mirror half of the times: torchvision's RandomResizedCrop and flip, with
    every draw from the given generator. Scaling is bilinear with antialiasing, within 2/255 of Pillow's."""
    from torchvision.transforms.v2 import functional as F

    def transform(image: Tensor, rng: random.Random) -> Tensor:
        top, left, height, width = random_box(image.shape[1], image.shape[2], area, aspect, rng)
        part: Tensor = F.resized_crop(image, top, left, height, width, [side, side], antialias=True)
        return part.flip(2) if flip and rng.random() < 0.5 else part

    return transform


def random_box(
    height: int, width: int, area: tuple[float, float], aspect: tuple[float, float], rng: random.Random
) -> Box:
    """(top, left, height, width) of a part with a uniform share of the area and a log-uniform width / height.

    As torchvision's: after ten parts that do not fit, the central one with the nearest aspect that does.
    """
    for _ in range(10):
        target = height * width * rng.uniform(*area)
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.random() * (height - h + 1)), int(rng.random() * (width - w + 1)), h, w
    w, h = min(width, round(height * aspect[1])), min(height, round(width / aspect[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def central_part(image: Tensor, side: int, resize: int) -> Tensor:
    """Scale the shorter edge to `resize` pixels, keep the central side x side."""
    from torchvision.transforms.v2 import functional as F

    part: Tensor = F.center_crop(F.resize(image, [resize], antialias=True), [side, side])
    return part
