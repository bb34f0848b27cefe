"""Table and figure files as they were parsed, kept across processes: YAML is read thirty times slower than JSON."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from runner import cache

_ROOT = Path(__file__).resolve().parent.parent
_CODE = ("results/parsed.py", "results/document.py", "runner/untrusted.py")


class Documents:
    """The parsed files of one checkout, by path; each counts only for the content that it was parsed from."""

    def __init__(self) -> None:
        self._name = f"documents-{cache.digest([os.fsencode(_ROOT)])}"
        self._new = False

    @functools.cached_property
    def _entries(self) -> dict[str, tuple[str, bytes]]:
        lines = cache.read(self._name)
        header = {} if lines is None else orjson.loads(lines[0])
        if lines is None or header["code"] != _code():
            return {}
        return {path: (digest, text) for (path, digest), text in zip(header["files"], lines[1:], strict=True)}

    def get(self, path: str, digest: str) -> bytes | None:
        """What the file parsed to as JSON, if its content still has this digest."""
        known = self._entries.get(path)
        return known[1] if known is not None and known[0] == digest else None

    def add(self, path: str, digest: str, content: Any) -> None:
        """Keep what a file parsed to, if JSON can hold it; `write` makes it last."""
        try:
            text = orjson.dumps(content)
        except TypeError:
            return
        if orjson.loads(text) == content:
            self._entries[path] = (digest, text)
            self._new = True

    def write(self) -> None:
        """Write what is new, if anything is, without the files that are gone."""
        if self._new:
            there = {path: entry for path, entry in self._entries.items() if os.path.exists(path)}
            header = {"code": _code(), "files": [(path, digest) for path, (digest, _) in there.items()]}
            cache.write(self._name, [orjson.dumps(header), *[text for _, text in there.values()]])


_documents: Documents | None = None


@contextmanager
def remembered() -> Iterator[None]:
    """Within it, files that any process has parsed are not parsed again. Around a whole command."""
    global _documents
    if _documents is not None:  # inside another command
        yield
        return
    _documents = documents = Documents()
    try:
        yield
    finally:
        _documents = None
        documents.write()


def parsed(path: Path, text: bytes, parse: Callable[[], Any]) -> Any:
    """What `text`, the content of `path`, is parsed to by `parse`, which is called if that is not known."""
    if _documents is None:
        return parse()
    name, digest = os.path.abspath(path), cache.digest([text])
    known = _documents.get(name, digest)
    if known is not None:
        return orjson.loads(known)
    content = parse()
    _documents.add(name, digest, content)
    return content


@functools.cache
def _code() -> str:
    return cache.digest((_ROOT / name).read_bytes() for name in _CODE)
