"""The official archives of CIFAR-10 and CIFAR-100 (Krizhevsky 2009), Python or binary version, read in memory."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from data.base import absent, fetch_command
from data.cache import decoded
from data.sources import SOURCES

if TYPE_CHECKING:
    from data.cache import Part, Parts

SHAPE = (3, 32, 32)
TRAIN_SIZE, TEST_SIZE = 50_000, 10_000
PIXELS = 3 * 32 * 32  # bytes of an image: the red plane, the green one, the blue one, each row by row


@dataclass(frozen=True)
class Layout:
    """What an archive holds: members of `folder`, pickles with the labels in `field`, or rows that begin with
    `label_bytes` of them (the last one counts: the fine label of CIFAR-100).
    """

    title: str
    folder: str
    train: tuple[str, ...]
    test: str
    field: bytes | None = None
    label_bytes: int = 0


_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
LAYOUTS = {
    "cifar-10-python.tar.gz": Layout("CIFAR-10", "cifar-10-batches-py", _BATCHES, "test_batch", field=b"labels"),
    "cifar-10-binary.tar.gz": Layout(
        "CIFAR-10", "cifar-10-batches-bin", tuple(f"{name}.bin" for name in _BATCHES), "test_batch.bin", label_bytes=1
    ),
    "cifar-100-python.tar.gz": Layout("CIFAR-100", "cifar-100-python", ("train",), "test", field=b"fine_labels"),
    "cifar-100-binary.tar.gz": Layout("CIFAR-100", "cifar-100-binary", ("train.bin",), "test.bin", label_bytes=2),
}


def read_official(name: str, root: str) -> Parts:
    """(training, test) images and labels of a dataset of `data.sources`, from the first of its archives that is there.

    FileNotFoundError when none is, ValueError when it does not have the official MD5.
    """
    source = SOURCES[name]
    folder = Path(root) / source.folder
    for file in (*source.files, *source.alternatives):
        path = folder / file.name
        try:
            packed = path.read_bytes()
        except FileNotFoundError:
            continue
        if hashlib.md5(packed, usedforsecurity=False).hexdigest() != file.md5:
            raise ValueError(f"{path} is not the official archive (MD5 {file.md5}); delete it and fetch it again")
        return decoded(path, file.md5, lambda: read_archive(packed, LAYOUTS[file.name]))  # noqa: B023  (called here)
    raise absent(folder / source.files[0].name, root, fetch_command(name, root))


def read_archive(packed: bytes, layout: Layout) -> Parts:
    """(training, test) images and labels from the bytes of an archive. ValueError when it has another layout."""
    try:
        with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as archive:
            *train, test = (_read_member(archive, name, layout) for name in (*layout.train, layout.test))
    except (tarfile.TarError, OSError, EOFError, zlib.error, KeyError) as error:
        raise ValueError(
            f"the archive of {layout.title} is not readable ({error}); delete it and fetch it again"
        ) from None
    images, labels = zip(*train, strict=True)
    return (torch.cat(images), torch.cat(labels)), test


def _read_member(archive: tarfile.TarFile, name: str, layout: Layout) -> Part:
    where = f"{layout.folder}/{name} in the archive of {layout.title}"
    member = archive.extractfile(f"{layout.folder}/{name}")
    if member is None:
        raise ValueError(f"{where} is not a file")
    packed = member.read()
    pixels: Any
    labels: Any
    if layout.field is None:
        rows = np.frombuffer(packed, np.uint8)
        width = layout.label_bytes + PIXELS
        if not len(rows) or len(rows) % width:
            raise ValueError(f"{where} holds {len(rows)} bytes, no whole number of images and labels")
        rows = rows.reshape(-1, width)
        pixels, labels = rows[:, layout.label_bytes :], rows[:, layout.label_bytes - 1].tolist()
    else:
        batch = read_pickle(packed, layout.title)
        pixels, labels = (batch.get(field) if isinstance(batch, dict) else None for field in (b"data", layout.field))
        if not (isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and isinstance(labels, list)):
            raise ValueError(f"{where} holds no images and labels")
        if pixels.size != len(labels) * PIXELS:
            raise ValueError(f"{where} holds {pixels.size} bytes of pixels for {len(labels)} labels")
    images = torch.from_numpy(pixels.reshape(len(labels), *SHAPE).copy())
    return images, torch.tensor(labels, dtype=torch.int64)


class _ArraysOnly(pickle.Unpickler):
    """Builds plain values and numpy arrays and calls nothing else, whatever the pickle asks for."""

    title = "CIFAR"

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _empty_array
        raise ValueError(
            f"a pickle of {self.title} asks for {module}.{name}, which is no array: it is not the official one"
        )


def _empty_array(*_: Any) -> np.ndarray:
    """What a pickled array is made from: its shape, type and content follow."""
    return np.empty(0, np.uint8)


def read_pickle(packed: bytes, title: str) -> Any:
    """The value of a pickle that holds plain values and numpy arrays only, text as bytes. ValueError otherwise."""
    reader = _ArraysOnly(io.BytesIO(packed), encoding="bytes")
    reader.title = title
    try:
        return reader.load()
    except ValueError:
        raise
    except Exception as error:  # a broken pickle may raise anything
        raise ValueError(
            f"a pickle of {title} is not readable ({error}); delete the archive and fetch it again"
        ) from None
