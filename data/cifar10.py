"""CIFAR-10 (Krizhevsky 2009): the exact pixels from the official archive, or JPEG copies of them from a zip."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from data.augment import PadMode, crop_flip
from data.base import absent, fetch_command
from data.images import Augmentation, Images
from data.sources import SOURCES

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SHAPE = (3, 32, 32)
TRAIN_SIZE, TEST_SIZE = 50_000, 10_000
_FOLDER = "cifar-10-batches-py"
_TRAIN_FILES = tuple(f"data_batch_{number}" for number in range(1, 6))

Part = tuple[Tensor, Tensor]
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
    train_subset: Count | None = None,
) -> Images:
    """The exact 50,000 training and 10,000 test images of shape (3, 32, 32), 10 classes.

    Reads `<root>/cifar10/cifar-10-python.tar.gz` in memory. FileNotFoundError when it is absent, ValueError when it
    does not have the official MD5. Training images are padded, cropped and mirrored as `crop_flip` says.
    """
    source = SOURCES["cifar10"]
    (file,) = source.files
    path = Path(root) / source.folder / file.name
    try:
        packed = path.read_bytes()
    except FileNotFoundError:
        raise absent(path, root, fetch_command("cifar10", root)) from None
    if hashlib.md5(packed, usedforsecurity=False).hexdigest() != file.md5:
        raise ValueError(f"{path} is not the official archive (MD5 {file.md5}); delete it and fetch it again")
    train, test = read_archive(packed)
    return _images(train, test, digest, mean, std, _augmentation(pad, pad_mode, flip), train_subset)


def cifar10_jpeg(
    *,
    root: str,
    digest: str | None,
    mean: list[float],
    std: list[float],
    pad: Pad = 4,
    pad_mode: PadMode = "reflect",
    flip: bool = True,
    train_subset: Count | None = None,
) -> Images:
    """JPEG copies of the 60,000 images: the same classes and split as `cifar10`, other pixels.

    Reads `<root>/cifar10-jpeg.zip`, with members `<train or test>/<class>/<4 digits>.jpg`. The classes take turns in
    the order of the samples, so that every first part of it is balanced. FileNotFoundError when the file is absent,
    ValueError when it is not such a zip.
    """
    path = Path(root) / "cifar10-jpeg.zip"
    try:
        with zipfile.ZipFile(path) as archive:
            train, test = (_read_jpegs(archive, *part) for part in (("train", TRAIN_SIZE), ("test", TEST_SIZE)))
    except FileNotFoundError:
        raise absent(
            path, root, f"use the exact images, dataset=cifar10, and {fetch_command('cifar10', root)}"
        ) from None
    except (zipfile.BadZipFile, zlib.error, KeyError, OSError) as error:
        raise ValueError(f"{path} is not a whole zip of the JPEG copies ({error}); replace it") from None
    return _images(train, test, digest, mean, std, _augmentation(pad, pad_mode, flip), train_subset)


def _images(
    train: Part,
    test: Part,
    digest: str | None,
    mean: list[float],
    std: list[float],
    augment: Augmentation | None,
    train_subset: int | None,
) -> Images:
    return Images(
        train,
        test,
        num_classes=len(CLASSES),
        mean=mean,
        std=std,
        augment=augment,
        train_subset=train_subset,
        digest=digest,
    )


def _augmentation(pad: int, mode: PadMode, flip: bool) -> Augmentation | None:
    return crop_flip(pad, mode, flip) if pad or flip else None


def read_archive(packed: bytes) -> tuple[Part, Part]:
    """(training, test) images and labels from the bytes of cifar-10-python.tar.gz. ValueError when it is not that."""
    try:
        with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as archive:
            *train, test = (_read_batch(archive, name) for name in (*_TRAIN_FILES, "test_batch"))
    except (tarfile.TarError, OSError, EOFError, zlib.error, KeyError) as error:
        raise ValueError(f"the archive of CIFAR-10 is not readable ({error}); delete it and fetch it again") from None
    images, labels = zip(*train, strict=True)
    return (torch.cat(images), torch.cat(labels)), test


def _read_batch(archive: tarfile.TarFile, name: str) -> Part:
    member = archive.extractfile(f"{_FOLDER}/{name}")
    if member is None:
        raise ValueError(f"{_FOLDER}/{name} in the archive of CIFAR-10 is not a file")
    batch = read_pickle(member.read())
    pixels, labels = (batch.get(field) if isinstance(batch, dict) else None for field in (b"data", b"labels"))
    if not (isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and isinstance(labels, list)):
        raise ValueError(f"{_FOLDER}/{name} in the archive of CIFAR-10 holds no images and labels")
    images = torch.from_numpy(pixels.reshape(len(labels), *SHAPE).copy())
    return images, torch.tensor(labels, dtype=torch.int64)


class _ArraysOnly(pickle.Unpickler):
    """Builds plain values and numpy arrays and calls nothing else, whatever the pickle asks for."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _empty_array
        raise ValueError(
            f"a pickle of CIFAR-10 asks for {module}.{name}, which is no array: it is not the official one"
        )


def _empty_array(*_: Any) -> np.ndarray:
    """What a pickled array is made from: its shape, type and content follow."""
    return np.empty(0, np.uint8)


def read_pickle(packed: bytes) -> Any:
    """The value of a pickle that holds plain values and numpy arrays only, text as bytes. ValueError otherwise."""
    try:
        return _ArraysOnly(io.BytesIO(packed), encoding="bytes").load()
    except ValueError:
        raise
    except Exception as error:  # a broken pickle may raise anything
        raise ValueError(
            f"a pickle of CIFAR-10 is not readable ({error}); delete the archive and fetch it again"
        ) from None


def _read_jpegs(archive: zipfile.ZipFile, part: str, size: int) -> Part:
    """Sample i is the (i // 10)-th of class i % 10."""
    from PIL import Image

    images = np.empty((size, *SHAPE), np.uint8)
    for index in range(size):
        number, label = divmod(index, len(CLASSES))
        name = f"{part}/{CLASSES[label]}/{number:04d}.jpg"
        with Image.open(io.BytesIO(archive.read(name))) as image:
            pixels = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        if pixels.shape != SHAPE:
            raise ValueError(f"{name} has shape {pixels.shape}, not {SHAPE}")
        images[index] = pixels
    return torch.from_numpy(images), torch.arange(size) % len(CLASSES)
