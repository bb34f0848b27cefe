"""Writing files so that nothing recorded is lost, and one clear sentence when a disk refuses. No torch here."""

from __future__ import annotations

import errno
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from runner.secrecy import redacted

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class Unwritable(OSError):
    """A file could not be written. The message names it, the cause, and where space lacks need and free space."""

    def __str__(self) -> str:
        return str(self.strerror)


@contextmanager
def writing(path: Path, need: int) -> Iterator[None]:
    """Raise `Unwritable` in place of an OSError while `need` bytes are written to `path`."""
    try:
        yield
    except Unwritable:
        raise
    except OSError as error:
        raise Unwritable(error.errno, refusal(path, need, error)) from error


def refusal(path: Path, need: int, error: OSError) -> str:
    """Why `path`, of `need` bytes, could not be written: a sentence without its full stop, with cause and mend."""
    text = f"{path} could not be written ({error.strerror or error})"
    if error.errno not in _NO_SPACE:
        return f"{text}; what was recorded stays; put that right, and the same command resumes"
    free = _free(path)
    room = f"it needs {amount(need)}" + (f", and {amount(free)} are free" if free is not None else "")
    mend = "make room (python scripts/runs.py gc says what can go)"
    return f"{text}: {room}; what was recorded stays; {mend}, and the same command resumes"


def refused(error: OSError) -> str | None:
    """The same for an error that names its file and was not caught while writing; None unless a disk is full."""
    return refusal(Path(os.fsdecode(error.filename)), 0, error) if error.errno in _NO_SPACE else None


def amount(size: float) -> str:
    """Bytes in words: 17 bytes, 1.2 kB, 45 MB."""
    units = ("bytes", "kB", "MB", "GB", "TB", "PB")
    power = 0
    while size >= 1000 and power < len(units) - 1:
        size, power = size / 1000, power + 1
    return f"{size:.0f} {units[power]}" if power == 0 or size >= 10 else f"{size:.1f} {units[power]}"


def _free(path: Path) -> int | None:
    """Bytes free for this user where `path` is, or would be."""
    for folder in path.parents:
        with suppress(OSError):
            return shutil.disk_usage(folder).free
    return None


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a whole file or leave the old one: temporary file, fsync, rename, fsync of the folder.

    Raises `Unwritable`; the old file is as it was then.
    """
    with staged(path, content.encode() if isinstance(content, str) else content):
        pass


@contextmanager
def staged(path: Path, *chunks: bytes | memoryview) -> Iterator[None]:
    """Write the new content of `path` beside it, whole and on the disk; on leaving the context it takes its place.

    What is done within the context happens when the new content is safe and the old one still in its place.
    """
    # Another machine of a shared file system may have a process of the same number.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    with writing(path, sum(len(chunk) for chunk in chunks)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "xb") as file:
                for chunk in chunks:
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            yield
            os.replace(temporary, path)
        finally:
            with suppress(OSError):  # whatever is wrong with the disk has been said, or will be by the next write
                temporary.unlink(missing_ok=True)
        flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Make what was renamed in a folder survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append(path: Path, content: bytes) -> None:
    """Append to a file and wait until the disk has it. Raises `Unwritable`, and then nothing has been appended."""
    with writing(path, len(content)), open(path, "ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                file.truncate(size)
            raise


class Log(logging.FileHandler):
    """A log file without secrets; a disk that refuses its lines is no reason for a run to end, nor to be told."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, with what nobody is to read hidden."""
        return redacted(super().format(record))

    def handleError(self, record: logging.LogRecord) -> None:
        """Called by `emit` for whatever went wrong."""

    def close(self) -> None:
        """Close the file, though what could not be written is tried once more then."""
        with suppress(OSError):
            super().close()
