"""Download a dataset's files through torchvision: each is written beside its place, verified, then moved there in one
step, so that neither a broken connection nor a full disk leaves half a file behind."""

import gzip
import hashlib
import os
import zlib
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError, URLError

from data.sources import File, Source

CHUNK = 1 << 20  # bytes read at a time


class FetchError(OSError):
    """A file could be had from no mirror, or not be stored; the message is one sentence with the cause and the mend."""


class MirrorError(OSError):
    """One mirror failed; the next may serve."""


def verified(path: Path, file: File) -> bool:
    """True if `path` holds `file`: by the digest of the file, or of what it holds where that is known."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        if _md5(stream) == file.md5:
            return True
    if file.content_md5 is None:
        return False
    try:
        with gzip.open(path) as stream:
            return _md5(stream) == file.content_md5
    except (gzip.BadGzipFile, EOFError, zlib.error):
        return False


def missing(source: Source, root: Path) -> list[File]:
    """The files of `source` that are not below `root`, or are not what their digests say."""
    return [file for file in source.files if not verified(root / source.folder / file.name, file)]


def fetch(source: Source, root: Path, say: Callable[[str], None]) -> None:
    """Download what `missing` names to `root`/`source.folder`, telling `say` of each file.

    Raises FetchError; the files that arrived before it stay, and none of them is partial.
    """
    folder = root / source.folder
    for file in missing(source, root):
        try:
            _download(source, file, folder)
        except FetchError:
            raise
        except OSError as error:
            raise FetchError(
                f"{folder / file.name} could not be written ({error.strerror or error}): "
                "make room or give another folder with --root"
            ) from error
        say(f"{file.name}: downloaded and verified")


def _download(source: Source, file: File, folder: Path) -> None:
    # Not tempfile: its files are readable by their owner only, and a data root is often shared.
    part = folder / f".{file.name}.{os.getpid()}.part"
    failures = []
    try:
        for url in source.urls(file):
            try:
                _receive(url, part)
            except MirrorError as error:
                failures.append(f"{url}: {error}")
                continue
            if verified(part, file):
                part.replace(folder / file.name)
                return
            failures.append(f"{url}: not the published file, its MD5 sum differs")
    finally:
        if folder.is_dir():
            part.unlink(missing_ok=True)
    raise FetchError(
        f"{file.name} could not be downloaded ({'; '.join(failures)}): "
        f"check the network connection, or put the file into {folder} yourself"
    )


def _receive(url: str, part: Path) -> None:
    # What the network does wrong becomes a MirrorError; what the disk does wrong stays an OSError of its own.
    from torchvision.datasets.utils import download_url

    part.parent.mkdir(parents=True, exist_ok=True)
    part.unlink(missing_ok=True)  # torchvision takes what lies there for the file
    try:
        download_url(url, str(part.parent), part.name)
    except (URLError, ConnectionError, TimeoutError, HTTPException, RecursionError, RuntimeError) as error:
        raise MirrorError(_reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, HTTPError):
        return f"HTTP {error.code} {error.reason}"
    if isinstance(error, URLError):
        cause = error.reason
        return (cause.strerror or str(cause)) if isinstance(cause, OSError) else str(cause)
    return str(error) or type(error).__name__


def _md5(stream: BinaryIO | gzip.GzipFile) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    while chunk := stream.read(CHUNK):
        digest.update(chunk)
    return digest.hexdigest()
