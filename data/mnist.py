"""MNIST (LeCun et al. 1998), read from the four idx files."""

from __future__ import annotations

import gzip
import hashlib
import struct
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from data.base import absent, fetch_command
from data.images import Images
from data.sources import SOURCES


def mnist(
    *,
    root: str,
    digest: str | None,
    mean: list[float],
    std: list[float],
    train_subset: Annotated[int, "1 <= x"] | None = None,
) -> Images:
    """60,000 training and 10,000 test images of shape (1, 28, 28), 10 classes.

    Reads `<root>/mnist/*.gz`. FileNotFoundError when a file is absent, ValueError when what it holds does not have the
    official MD5 (files compressed anew are the same data).
    """
    folder = Path(root) / "mnist"
    arrays = {file.name: read_idx(folder / file.name, file.content_md5, root) for file in SOURCES["mnist"].files}

    def part(images: str, labels: str) -> tuple[Tensor, Tensor]:
        return arrays[f"{images}-idx3-ubyte.gz"].unsqueeze(1), arrays[f"{labels}-idx1-ubyte.gz"].long()

    return Images(
        part("train-images", "train-labels"),
        part("t10k-images", "t10k-labels"),
        num_classes=10,
        mean=mean,
        std=std,
        train_subset=train_subset,
        digest=digest,
    )


def read_idx(path: Path, md5: str | None, root: str) -> Tensor:
    """The unsigned bytes of a gzipped idx file (4-byte magic, then one big-endian size per dimension)."""
    try:
        packed = path.read_bytes()
    except FileNotFoundError:
        raise absent(path, root, fetch_command("mnist", root)) from None
    try:
        raw = gzip.decompress(packed)
    except (OSError, EOFError) as error:
        raise ValueError(f"{path} is not a whole gzip file ({error}); delete it and fetch it again") from None
    if md5 is not None and hashlib.md5(raw).hexdigest() != md5:
        raise ValueError(f"{path} does not hold the official data (MD5 {md5}); delete it and fetch it again")
    if raw[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is not an idx file of unsigned bytes")
    shape = struct.unpack_from(f">{raw[3]}I", raw, 4)
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=4 + 4 * len(shape)).reshape(shape).copy())
