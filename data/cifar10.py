"""CIFAR-10 (Krizhevsky 2009): the exact pixels from an official archive, or JPEG copies of them from a zip."""

from __future__ import annotations

from typing import Annotated

from data.augment import Crop, PadMode, augmentation
from data.base import fetch_command
from data.cifar_archive import SHAPE, TEST_SIZE, TRAIN_SIZE, read_official
from data.image_folder import read_images
from data.images import Images

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

Pad = Annotated[int, "0 <= x <= 31"]
Count = Annotated[int, "1 <= x"]


def cifar10(
    *,
    root: str,
    digest: str | None,
    mean: list[float],
    std: list[float],
    pad: Pad = 4,
    pad_mode: PadMode = "reflect",
    flip: bool = True,
    crop: Crop = "padded",
    validation: Annotated[int, "0 <= x"] = 0,
    train_subset: Count | None = None,
    corrupted_labels: Annotated[int, "0 <= x"] = 0,
    corruption_seed: Annotated[int, "0 <= x"] = 0,
) -> Images:
    """The exact 50,000 training and 10,000 test images of shape (3, 32, 32), 10 classes.

    Reads `<root>/cifar10/cifar-10-python.tar.gz`, or cifar-10-binary.tar.gz there. FileNotFoundError when both are
    absent, ValueError when the archive does not have the official MD5. Training images are padded, cropped and mirrored
    as `augmentation` says.
    """
    train, test = read_official("cifar10", root)
    return Images(
        train,
        test,
        num_classes=len(CLASSES),
        mean=mean,
        std=std,
        augment=augmentation(pad, pad_mode, flip, crop),
        validation=validation,
        train_subset=train_subset,
        digest=digest,
        corrupted_labels=corrupted_labels,
        corruption_seed=corruption_seed,
    )


def cifar10_jpeg(
    *,
    root: str,
    digest: str | None,
    mean: list[float],
    std: list[float],
    pad: Pad = 4,
    pad_mode: PadMode = "reflect",
    flip: bool = True,
    crop: Crop = "padded",
    validation: Annotated[int, "0 <= x"] = 0,
    train_subset: Count | None = None,
    corrupted_labels: Annotated[int, "0 <= x"] = 0,
    corruption_seed: Annotated[int, "0 <= x"] = 0,
) -> Images:
    """JPEG copies of the 60,000 images: the same classes and split as `cifar10`, other pixels.

    Reads `<root>/cifar10-jpeg.zip`, with members `<train or test>/<class>/<4 digits>.jpg`, as `read_images` does: the
    classes take turns. FileNotFoundError when the file is absent, ValueError when it is not such a zip.
    """
    train, test = read_images(
        root,
        "cifar10-jpeg.zip",
        shape=SHAPE,
        num_classes=len(CLASSES),
        sizes=(TRAIN_SIZE, TEST_SIZE),
        mend=f"use the exact images, dataset=cifar10, and {fetch_command('cifar10', root)}",
        classes=CLASSES,
    )
    return Images(
        train,
        test,
        num_classes=len(CLASSES),
        mean=mean,
        std=std,
        augment=augmentation(pad, pad_mode, flip, crop),
        validation=validation,
        train_subset=train_subset,
        digest=digest,
        corrupted_labels=corrupted_labels,
        corruption_seed=corruption_seed,
    )
