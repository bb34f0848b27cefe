"""CIFAR-100 (Krizhevsky 2009): the exact pixels from an official archive, with the 100 fine labels."""

from __future__ import annotations

from typing import Annotated

from data.augment import PadMode, augmentation
from data.cifar_archive import read_official
from data.images import Images

NUM_CLASSES = 100


def cifar100(
    *,
    root: str,
    digest: str | None,
    mean: list[float],
    std: list[float],
    pad: Annotated[int, "0 <= x <= 31"] = 4,
    pad_mode: PadMode = "zero",
    flip: bool = True,
    train_subset: Annotated[int, "1 <= x"] | None = None,
    corrupted_labels: Annotated[int, "0 <= x"] = 0,
    corruption_seed: Annotated[int, "0 <= x"] = 0,
) -> Images:
    """The exact 50,000 training and 10,000 test images of shape (3, 32, 32), 100 classes.

    Reads `<root>/cifar100/cifar-100-python.tar.gz`, or cifar-100-binary.tar.gz there. FileNotFoundError when both are
    absent, ValueError when the archive does not have the official MD5. Training images are padded, cropped and mirrored
    as `augmentation` says.
    """
    train, test = read_official("cifar100", root)
    return Images(
        train,
        test,
        num_classes=NUM_CLASSES,
        mean=mean,
        std=std,
        augment=augmentation(pad, pad_mode, flip),
        train_subset=train_subset,
        digest=digest,
        corrupted_labels=corrupted_labels,
        corruption_seed=corruption_seed,
    )
