"""Small images in a folder per class, or in a zip of such folders, that live on the device as one tensor."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch

from data.augment import PadMode, augmentation
from data.base import absent
from data.cache import decoded
from data.images import Images, content_digest

if TYPE_CHECKING:
    from data.cache import Part, Parts

PARTS = ("train", "test")
# Pillow's name of a format -> the endings of its files. No others: formats that run code or read other files stay out.
FORMATS = {"JPEG": (".jpg", ".jpeg"), "PNG": (".png",), "BMP": (".bmp",), "PPM": (".ppm", ".pgm")}
LARGEST = 1 << 24  # bytes of an image's file
BROKEN = (OSError, EOFError, RuntimeError, SyntaxError, ValueError, struct.error, zlib.error, zipfile.BadZipFile)

Count = Annotated[int, "1 <= x"]


def image_folder(
    *,
    root: str,
    path: str,
    digest: str | None,
    shape: list[Count],
    num_classes: Count,
    train_size: Count,
    test_size: Count,
    mean: list[float],
    std: list[float],
    pad: Annotated[int, "0 <= x"] = 4,
    pad_mode: PadMode = "zero",
    flip: bool = True,
    train_subset: Count | None = None,
) -> Images:
    """`train_size` and `test_size` images of `shape` (channels, height, width), from files <train or test>/<class>/*.

    `path`, below the root: a folder, or a file that ends in .zip. See `read_images` for the order. Without a `digest`
    it raises ValueError and says which one the data have: runs on other images differ in it. Training images are
    padded, cropped and mirrored as `augmentation` says.
    """
    if os.path.isabs(path) or ".." in Path(path).parts:
        raise ValueError(f"path = {path!r} should be a folder or a zip below the data root")
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ValueError(f"shape = {shape} should be [channels, height, width] with 1 channel (grey) or 3 (colours)")
    mend = "put the images there, as train/<class>/<any name>.png and test/<class>/<any name>.png (or jpg, bmp, ppm)"
    train, test = read_images(
        root,
        path,
        shape=(shape[0], shape[1], shape[2]),
        num_classes=num_classes,
        sizes=(train_size, test_size),
        mend=mend,
    )
    if digest is None:
        found = content_digest(*train, *test)
        raise ValueError(f"the images in {path} have the digest {found}: set dataset.digest={found}, part of the key")
    return Images(
        train,
        test,
        num_classes=num_classes,
        mean=mean,
        std=std,
        augment=augmentation(pad, pad_mode, flip),
        train_subset=train_subset,
        digest=digest,
    )


def read_images(
    root: str,
    path: str,
    *,
    shape: tuple[int, int, int],
    num_classes: int,
    sizes: tuple[int, int],
    mend: str,
    classes: Sequence[str] | None = None,
) -> Parts:
    """(training, test) images and labels of the files <train or test>/<class>/* in the folder or zip <root>/<path>.

    Classes are numbered in the order of their names, files of a class in the order of theirs; in the order of the
    samples the classes take turns, so that every first part of it is balanced. Files with other endings than those of
    `FORMATS` are passed over; grey and coloured images become what `shape` says. The decoded images are cached.

    FileNotFoundError, with `mend`, when there is no such folder or zip. ValueError when the classes or the numbers of
    images are others (`classes`: the names expected), or an image is broken or has another size.
    """
    place = Path(root) / path
    with ExitStack() as stack:
        try:
            found = _open_zip(place, stack) if path.endswith(".zip") else _open_folder(place)
        except FileNotFoundError as error:
            raise absent(Path(error.filename), root, mend) from None
        except (zipfile.BadZipFile, NotADirectoryError, IsADirectoryError) as error:
            kind = "whole zip" if path.endswith(".zip") else "folder of folders"
            raise ValueError(f"{place} is not a {kind} ({error}); replace it") from None
        samples = _samples(found.names, place, num_classes, sizes, classes)
        used = [name for part in samples for name, _ in part]
        fingerprint = _fingerprint(shape, ((name, *found.stamp(name)) for name in used))

        def read() -> Parts:
            train, test = (_decode(part, found, place, shape) for part in samples)
            return train, test

        return decoded(place, fingerprint, read)


@dataclass(frozen=True)
class _Files:
    """The files of a folder or zip: their names with slashes, what tells a change of one, and its bytes."""

    names: Sequence[str]
    stamp: Callable[[str], tuple[int, ...]]
    read: Callable[[str], bytes]


def _open_zip(place: Path, stack: ExitStack) -> _Files:
    archive = stack.enter_context(zipfile.ZipFile(place))
    entries = {entry.filename: entry for entry in archive.infolist() if not entry.is_dir()}

    def read(name: str) -> bytes:
        if entries[name].file_size > LARGEST:
            raise ValueError(f"it would unpack to {entries[name].file_size:,} bytes")
        return archive.read(name)

    return _Files(list(entries), lambda name: (entries[name].CRC, entries[name].file_size), read)


def _open_folder(place: Path) -> _Files:
    names = []
    for part in PARTS:
        for below in sorted(entry.name for entry in os.scandir(place / part) if entry.is_dir()):
            names += [f"{part}/{below}/{entry.name}" for entry in os.scandir(place / part / below) if entry.is_file()]

    def stamp(name: str) -> tuple[int, ...]:
        found = os.stat(place / name)
        return found.st_size, found.st_mtime_ns

    def read(name: str) -> bytes:
        if (size := os.stat(place / name).st_size) > LARGEST:
            raise ValueError(f"it has {size:,} bytes")
        return (place / name).read_bytes()

    return _Files(names, stamp, read)


def _samples(
    names: Iterable[str], place: Path, num_classes: int, sizes: tuple[int, int], classes: Sequence[str] | None
) -> list[list[tuple[str, int]]]:
    """(name, label) of every sample of the two parts: the first of each class, the second of each class, and so on."""
    endings = tuple(ending for several in FORMATS.values() for ending in several)
    files: dict[str, dict[str, list[str]]] = {part: {} for part in PARTS}
    for name in sorted(names):
        part, *rest = name.split("/")
        if part in files and len(rest) == 2 and name.lower().endswith(endings) and not rest[1].startswith("."):
            files[part].setdefault(rest[0], []).append(name)
    train, test = (sorted(files[part]) for part in PARTS)
    if odd := sorted(set(train) ^ set(test)):
        raise ValueError(f"the parts train and test of {place} differ in their classes, such as {odd[0]!r}")
    if classes is not None and train and (odd := sorted(set(train) ^ set(classes))):
        raise ValueError(f"{place} differs from {', '.join(classes)} in its classes, such as {odd[0]!r}")
    if len(train) != num_classes:
        raise ValueError(
            f"{place} holds {len(train)} classes, folders in train/ with images in them, not {num_classes}"
        )
    for part, wanted in zip(PARTS, sizes, strict=True):
        count = sum(map(len, files[part].values()))
        if count != wanted:
            raise ValueError(f"{place} holds {count} images in {part}/, not {wanted}: complete it, or replace it")
    turns = []
    for part in PARTS:
        numbered = [
            (number, label, name) for label, each in enumerate(train) for number, name in enumerate(files[part][each])
        ]
        turns.append([(name, label) for _, label, name in sorted(numbered)])
    return turns


def _fingerprint(shape: tuple[int, ...], files: Iterable[tuple[str | int, ...]]) -> str:
    """Of the files and of what decodes them: another version of a decoder may give other pixels."""
    from PIL import __version__, features

    found = hashlib.sha256(f"{shape} {__version__} {features.version('jpg')}".encode())
    for each in files:
        found.update(f"{each}\n".encode())
    return found.hexdigest()


def _decode(part: Sequence[tuple[str, int]], files: _Files, place: Path, shape: tuple[int, int, int]) -> Part:
    from PIL import Image

    images = np.empty((len(part), *shape), np.uint8)
    for index, (name, _) in enumerate(part):
        try:
            with Image.open(io.BytesIO(files.read(name)), formats=list(FORMATS)) as image:
                size = (image.height, image.width)
                if size == shape[1:]:
                    pixels = np.asarray(image.convert("RGB" if shape[0] == 3 else "L"))
        except BROKEN as error:
            raise ValueError(f"{name} in {place} is not a whole image ({error}); replace it") from None
        if size != shape[1:]:
            raise ValueError(f"{name} in {place} has {size[0]}x{size[1]} pixels, not {shape[1]}x{shape[2]}")
        images[index] = pixels.transpose(2, 0, 1) if shape[0] == 3 else pixels
    return torch.from_numpy(images), torch.tensor([label for _, label in part])
