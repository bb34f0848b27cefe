"""Files of this user's cache folder: what can be made again at any time, checked when read, never missed. No torch."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress

from data.cache import folder as folder

_MAGIC = b"regrow cache 1 %08x %d\n"  # checksum and length of what follows, in bytes
_HEAD = len(_MAGIC % (0, 0)) + 20


def digest(parts: Iterable[bytes]) -> str:
    """16 hexadecimal digits of the SHA-256 of `parts`, their boundaries included."""
    found = hashlib.sha256()
    for part in parts:
        found.update(b"%d:" % len(part))
        found.update(part)
    return found.hexdigest()[:16]


def read(name: str) -> list[bytes] | None:
    """The lines that `write` put there; None when there is no such file, not exactly what was written, or another
    user's, who could have written anything.
    """
    path = folder()
    if path is None:
        return None
    try:
        with open(path / name, "rb") as file:
            if os.fstat(file.fileno()).st_uid != os.getuid():
                return None
            content = file.read()
    except OSError:
        return None
    body = content.find(b"\n", 0, _HEAD) + 1
    if not body or content[:body] != _MAGIC % (zlib.crc32(memoryview(content)[body:]), len(content) - body):
        return None
    return content[body:].split(b"\n")


def first_line(name: str) -> bytes | None:
    """The first line of a file, unchecked; None when there is no such file."""
    path = folder()
    if path is None:
        return None
    try:
        with open(path / name, "rb") as file:
            file.readline()
            return file.readline().rstrip(b"\n")
    except OSError:
        return None


def write(name: str, lines: Sequence[bytes]) -> bool:
    """Replaces the file whole; `lines` hold no line break. False when the folder does not take it, which costs time
    at the next reading and nothing else. Whoever reads meanwhile sees the old file or the new one.
    """
    path = folder()
    if path is None:
        return False
    body = b"\n".join(lines)
    temporary = path / f".{name}.{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        # Without fsync: after a power failure the checksum tells.
        with open(temporary, "wb") as file:
            file.write(_MAGIC % (zlib.crc32(body), len(body)))
            file.write(body)
        os.replace(temporary, path / name)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        return False
    return True


def remove(names: Iterable[str]) -> None:
    """Removes files that nobody will ask for again."""
    path = folder()
    for name in names if path is not None else ():
        with suppress(OSError):
            (path / name).unlink()  # type: ignore[operator]


def names(prefix: str) -> list[str]:
    """The files that begin so, the oldest first."""
    path = folder()
    if path is None:
        return []
    try:
        with os.scandir(path) as entries:
            found = [(entry.stat().st_mtime_ns, entry.name) for entry in entries if entry.name.startswith(prefix)]
    except OSError:
        return []
    return [name for _, name in sorted(found)]
