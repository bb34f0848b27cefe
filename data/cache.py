"""Decoded data in this user's cache folder, so that archives and files are unpacked once. Torch when needed."""

from __future__ import annotations

import hashlib
import os
import pickle
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

    Part = tuple[Tensor, Tensor]  # images, uint8 of shape (n, channels, height, width); labels, int64 of shape (n,)
    Parts = tuple[Part, Part]  # training, test

# The tensors of a part: images and labels, or tokens, the ends of their sequences and labels.
Tensors = TypeVar("Tensors", bound="tuple[Tensor, ...]")

SCHEMA = 1


def folder() -> Path | None:
    """$REGROW_CACHE (empty: no cache), else $XDG_CACHE_HOME/regrow, else ~/.cache/regrow; None: nothing is cached."""
    own = os.environ.get("REGROW_CACHE")
    if own is not None:
        return Path(own) if own else None
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base, "regrow")
    try:
        return Path.home() / ".cache" / "regrow"
    except RuntimeError:  # no home
        return None


def decoded(source: Path, fingerprint: str, read: Callable[[], tuple[Tensors, Tensors]]) -> tuple[Tensors, Tensors]:
    """What `read()` gives: from the cache where it holds that of `source` with this `fingerprint`, else made and kept.

    A source has one file, images-<digest of its path>.pt, which is replaced when the fingerprint changes. It is
    believed only when it is this user's and its tensors have the digest that was written with them; anything else is
    made again. Without a cache folder, or room in it, every call reads the source: slower and otherwise the same.
    """
    place = folder()
    if place is None:
        return read()
    path = place / f"images-{hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:16]}.pt"
    found = _load(path, fingerprint)
    if found is None:
        found = read()
        _store(path, fingerprint, found)
    return found


def _load(path: Path, fingerprint: str) -> Any:
    import torch

    from data.images import content_digest

    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_uid != os.getuid():  # another's, who could have written anything
                return None
            content = torch.load(file, weights_only=True, map_location="cpu")
        if (content["schema"], content["fingerprint"]) != (SCHEMA, fingerprint):
            return None
        train, test = content["train"], content["test"]
        if content["digest"] != content_digest(*train, *test):
            return None
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, pickle.UnpicklingError):
        return None
    return tuple(train), tuple(test)


def _store(path: Path, fingerprint: str, parts: tuple[tuple[Tensor, ...], tuple[Tensor, ...]]) -> None:
    import torch

    from data.images import content_digest

    train, test = parts
    content = {"schema": SCHEMA, "fingerprint": fingerprint, "digest": content_digest(*train, *test)}
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Without fsync: after a power failure the digest tells.
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            torch.save({**content, "train": train, "test": test}, file)
        temporary.replace(path)
    except (OSError, RuntimeError):  # torch's writer turns a full disk into a RuntimeError
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
