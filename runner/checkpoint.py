"""Checkpoints: written whole or not at all, the last good one kept, a damaged one noticed."""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import os
import re
from pathlib import Path
from typing import Any

import torch

from runner.disk import staged
from runner.errors import Misuse
from runner.failure import foreseen

LAST, PREVIOUS = "last.pt", "previous.pt"
_DIGEST = hashlib.sha256().digest_size
_NAMED = re.compile(r"(?:GLOBAL|function|class|type) `?([\w.]+\.[\w.]+)")
log = logging.getLogger("regrow")


class Damaged(Misuse):
    """A checkpoint is not what was written; the one before may be."""


def save(state: dict[str, Any], folder: Path) -> None:
    """Save as the folder's last checkpoint; the one before stays as `previous.pt`. Raises `runner.disk.Unwritable`."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getbuffer()
    last = folder / LAST
    with staged(last, payload, hashlib.sha256(payload).digest()):
        if last.exists():
            _keep(last, folder / PREVIOUS)


def _keep(last: Path, previous: Path) -> None:
    """Keep the last checkpoint as the one before it, too, until the new one is in its place."""
    # A second link, not a move: at no moment is there no good checkpoint.
    link = previous.with_name(f".{PREVIOUS}.{os.getpid()}")
    link.unlink(missing_ok=True)
    try:
        os.link(last, link)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        os.replace(last, previous)  # a file system without links: for a moment `previous` is the only good one
    else:
        os.replace(link, previous)


def read(path: Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Load one checkpoint file. Damaged, or Misuse when it holds anything but tensors and plain values."""
    try:
        blob = path.read_bytes()
    except OSError as error:
        raise Misuse(f"{path} cannot be read ({error.strerror}); put that right and go on.") from None
    payload, digest = blob[:-_DIGEST], blob[-_DIGEST:]
    if hashlib.sha256(payload).digest() != digest:
        raise Damaged(f"{path} is damaged (its digest does not match); delete it to start from the one before.")
    try:
        state = torch.load(io.BytesIO(payload), map_location=device, weights_only=True)
    except Exception as error:  # a broken pickle may raise anything
        if foreseen(error):  # a lack of memory
            raise
        found = _NAMED.search(str(error))
        what = f"asks for {found[1]}" if found else "cannot be unpacked"
        raise Misuse(f"{path} is no checkpoint of ours: it {what}, and nothing of it was run; delete it.") from None
    if not isinstance(state, dict):
        raise Misuse(f"{path} is no checkpoint of ours: it holds a {type(state).__name__}; delete it.")
    return state


def load(folder: Path, device: str | torch.device = "cpu") -> dict[str, Any] | None:
    """The last good checkpoint of a folder, or None. A damaged one is passed over with a warning."""
    for name in (LAST, PREVIOUS):
        path = folder / name
        if path.exists():
            try:
                return read(path, device)
            except Damaged as damage:
                log.warning("%s Trying the one before.", damage)
    return None
