"""Files and texts that anybody may have written, read within bounds: they can cost a sentence, never the process.

What records and table files hold is far inside the bounds. No torch here.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from functools import cache
from pathlib import Path
from typing import Any

from runner.disk import amount

LARGEST = 100_000_000  #: bytes of a file; an epoch's line of metrics has two thousand
DEEPEST = 64  #: lists and mappings within each other
MOST = 1_000_000  #: values of a YAML text, each as often as it is repeated
LONGEST = 300  #: digits of a whole number: a float can hold it

# What a terminal obeys, what turns the direction of reading, and what no encoding can write.
_OBEYED = r"\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_CONTROL = re.compile(f"[{_OBEYED}]")
_CONTROL_OR_BREAK = re.compile(rf"[{_OBEYED}\t\n\u2028\u2029]")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def content(path: Path) -> bytes:
    """The bytes of a file; OSError also for one that is no regular file (a pipe never ends) or is beyond `LARGEST`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        found = b""
        with open(descriptor, "rb", closefd=False) as file:
            if status.st_size <= LARGEST:
                found = file.read(status.st_size + 1)
                if len(found) > status.st_size:  # it has grown meanwhile
                    found += file.read(LARGEST)
    finally:
        os.close(descriptor)
    size = max(status.st_size, len(found))
    if size > LARGEST:
        raise OSError(errno.EFBIG, f"it has {amount(size)}, and at most {amount(LARGEST)} are read", str(path))
    return found


def parse_json(text: str) -> Any:
    """The value of a JSON text, NaN and Infinity included. ValueError: also beyond the bounds, for lone surrogates."""
    try:
        found = json.loads(text, parse_int=_whole)
        check_depth(found)
        if _SURROGATE.search(text):
            json.dumps(found, ensure_ascii=False).encode()
    except RecursionError:
        raise _too_deep() from None
    return found


def parse_yaml(text: str, loader: Any) -> Any:
    """The value of a YAML text by a safe loader of PyYAML's. yaml.YAMLError or ValueError for whatever is wrong."""
    import yaml

    if not _is_small(text):
        _check_events(text)
    try:
        return yaml.load(text, Loader=_bounded(loader))
    except (LookupError, TypeError, AttributeError, OverflowError) as error:  # of a tag that does not fit its value
        raise ValueError(f"a value is not of its type ({type(error).__name__}: {error})") from error


def check_depth(value: Any) -> None:
    """ValueError when lists and mappings lie within each other more than `DEEPEST` deep."""
    level = [value]
    for _ in range(DEEPEST + 1):
        level = [
            item
            for each in level
            if type(each) is dict or type(each) is list
            for item in (each.values() if type(each) is dict else each)
            if type(item) is dict or type(item) is list
        ]
        if not level:
            return
    raise _too_deep()


def printable(text: str, lines: bool = False) -> str:
    """`text` with what a terminal would obey, and what cannot be encoded, written as in Python; line breaks, too,
    unless they separate its `lines`.
    """
    return (_CONTROL if lines else _CONTROL_OR_BREAK).sub(_spelt, text)


def _spelt(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


def _whole(digits: str) -> int:
    if len(digits) > LONGEST:
        raise ValueError(f"a whole number has {len(digits)} digits, and at most {LONGEST} are read")
    return int(digits)


def _too_deep() -> ValueError:
    return ValueError(f"it is nested more than {DEEPEST} deep")


def _is_small(text: str) -> bool:
    """Whether a text is within the bounds by its looks: nothing is repeated, and little can be nested."""
    if "*" in text:
        return False
    # A bracket nests twice in [a: b]; of other lines each can begin one more list or mapping than it is indented.
    indented = max(len(line) - len(line.lstrip(" ")) for line in text.split("\n"))
    return indented + 2 * sum(map(text.count, "[{-?")) < DEEPEST


def _check_events(text: str) -> None:
    """ValueError when a text is beyond the bounds. Nothing is built for it: PyYAML builds by recursion in C."""
    import yaml

    open_: list[tuple[str | None, int]] = []  # anchor, and how many values there were before
    sizes: dict[str, tuple[int, int]] = {}  # how many values an anchor stands for, and how deep they are nested
    deepest: list[int] = []  # within each open collection
    values = 0
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        below = 0
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_):
                raise ValueError(f"the alias *{event.anchor} stands within what it repeats")
            size, below = sizes.get(event.anchor or "", (1, 0))
            values += size
        elif isinstance(event, yaml.CollectionStartEvent):
            open_.append((event.anchor, values))
            deepest.append(0)
            values += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_.pop()
            below = 1 + deepest.pop()
            if anchor is not None:
                sizes[anchor] = values - before, below
        elif isinstance(event, yaml.ScalarEvent):
            values += 1
            if event.anchor is not None:
                sizes[event.anchor] = 1, 0
        if deepest:
            deepest[-1] = max(deepest[-1], below)
        if len(open_) + below > DEEPEST:
            raise _too_deep()
        if values > MOST:
            raise ValueError(f"it repeats itself to more than {MOST:,} values")


@cache
def _bounded(loader: Any) -> Any:
    """The loader, but for whole numbers that no float holds."""
    import yaml

    class Bounded(loader):
        pass

    def whole(self: Any, node: yaml.ScalarNode) -> int:
        if len(node.value) > 4 * LONGEST:  # in base 2, or in base 60, which takes long to read
            raise ValueError(f"a whole number has more than {LONGEST} digits")
        found: int = loader.construct_yaml_int(self, node)
        if found.bit_length() > 996:  # LONGEST digits
            raise ValueError(f"a whole number has more than {LONGEST} digits")
        return found

    Bounded.add_constructor("tag:yaml.org,2002:int", whole)
    return Bounded
