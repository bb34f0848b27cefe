"""The files of a record, read strictly: what is wrong with one is an `Unusable` with one sentence and a kind."""

from __future__ import annotations

import copy
import functools
import re
from pathlib import Path
from typing import Any

import orjson

from runner import identity, records, untrusted

# orjson makes a float of an integer of more than 64 bits, and Python's json does not. (Long fractions are found too.)
_DIGITS = bytes(ord("0") if chr(byte).isdigit() and byte < 128 else ord(" ") for byte in range(256))
_LONG_NUMBER = b"0" * 19

# A section of a plain YAML mapping: `key:`, then whatever is indented, continues a list, or is blank.
_SECTION = re.compile(r"[A-Za-z_]\w*:(?: [^\n]*)?\n(?:(?: [^\n]*|-(?: [^\n]*)?|)\n)*", re.ASCII)


class Unusable(Exception):
    """A record that cannot be used at all; the text says why, `kind` is one of results.integrity.KINDS."""

    def __init__(self, what: str, kind: str = "malformed") -> None:
        super().__init__(what)
        self.kind = kind


def json_file(path: Path, kind: type = dict) -> Any:
    """The object (or list, by `kind`) in a JSON file; NaN and Infinity are read too."""
    try:
        text = untrusted.content(path)
    except OSError as error:
        raise Unusable(f"cannot be read: {path.name}: {error.strerror}", _kind(error)) from error
    try:
        content = _fast_json(text)
    except ValueError:
        try:
            content = untrusted.parse_json(text.decode())
        except ValueError as error:  # json.JSONDecodeError and UnicodeDecodeError are both
            raise Unusable(f"is not valid JSON: {path.name}: {error}", "truncated") from error
    if not isinstance(content, kind):
        raise Unusable(f"is not what it should be: {path.name} holds no {'list' if kind is list else 'object'}")
    return content


def _fast_json(text: bytes) -> Any:
    """The value of a JSON text that orjson reads as Python does; ValueError for any other."""
    if _LONG_NUMBER in text.translate(_DIGITS):
        raise ValueError
    content = orjson.loads(text)
    untrusted.check_depth(content)
    return content


class Config:
    """A stored configuration. `shared` is not to be changed: runs of one kind have most of their sections in common."""

    def __init__(self, shared: dict[str, Any], sections: tuple[str, ...] | None = None) -> None:
        self.shared = shared
        self._sections = sections  # the texts that it was parsed from, one by one

    def own(self) -> dict[str, Any]:
        """A copy of one's own."""
        return copy.deepcopy(self.shared)

    def keys(self) -> tuple[str, str | None]:
        """Its run's key, and that of the run it starts from; raises whatever a malformed configuration makes."""
        if self._sections is None:
            return _keys(self.shared)
        # What is no science is no part of the key: the seeds of a run are the same to it.
        science = tuple(text for text in self._sections if text.partition(":")[0] in identity.SCIENCE)
        if science not in _keys_of:
            _keys_of[science] = _keys(self.shared)
        return _keys_of[science]


_keys_of: dict[tuple[str, ...], tuple[str, str | None]] = {}


def _keys(config: dict[str, Any]) -> tuple[str, str | None]:
    key = identity.key(config)
    parent = identity.parent_config(config)
    return key, None if parent is None else identity.key(parent)


def yaml_file(path: Path) -> Config:
    """The mapping in a YAML file."""
    try:
        text = untrusted.content(path)
    except FileNotFoundError as error:
        raise Unusable(
            f"has no {path.name}: the run has not begun, or was stopped before it did", "missing_file"
        ) from error
    except OSError as error:
        raise Unusable(f"cannot be read: {path.name}: {error.strerror}", "unreadable") from error
    if text.isascii() and b"\r" not in text and b"&" not in text:  # anchors would be known to other sections
        sections = _sections(text.decode())
        if sections is not None:
            return sections
    import yaml

    try:
        content = untrusted.parse_yaml(text.decode(), _loader())
    except (yaml.YAMLError, ValueError) as error:
        raise Unusable(f"is not valid YAML: {path.name}: {' '.join(str(error).split())}", "truncated") from error
    if not isinstance(content, dict):
        raise Unusable(f"is not what it should be: {path.name} holds no mapping")
    return Config(content)


def _sections(text: str) -> Config | None:
    """The mapping that `text` is, section by section; None when it is not made of sections alone, or not valid."""
    texts: list[str] = []
    content: dict[str, Any] = {}
    at = 0
    while at < len(text):
        match = _SECTION.match(text, at)  # here or nowhere: to search on takes the square of the text's length
        parsed = _section(match[0]) if match else None
        if match is None or parsed is None:
            return None
        texts.append(match[0])
        content.update(parsed)
        at = match.end()
    return Config(content, tuple(texts)) if texts else None


@functools.lru_cache(maxsize=8192)
def _section(text: str) -> dict[str, Any] | None:
    import yaml

    try:
        content = untrusted.parse_yaml(text, _loader())
    except (yaml.YAMLError, ValueError):
        return None
    return content if isinstance(content, dict) else None


@functools.cache
def _loader() -> Any:
    """The C parser reads a config about ten times faster; both build plain data only."""
    import yaml

    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class MetricLines:
    """What was found in a metrics.jsonl: how many whole lines, the last one, and a sentence for each that is not."""

    def __init__(self, count: int, last: dict[str, Any], complaints: list[str], complete: bool) -> None:
        self.count, self.last, self.complaints = count, last, complaints
        self.complete = complete  #: the file ends with a line break


def metric_lines(path: Path) -> MetricLines:
    """Reads every line and keeps none but the last; raises OSError."""
    text = untrusted.content(path)
    plain = text.isascii() and b"\r" not in text and text.count(b"[") + text.count(b"{") <= text.count(b"\n")
    if plain and text.endswith(b"\n"):
        try:
            lines = list(map(orjson.loads, text[:-1].split(b"\n")))
        except orjson.JSONDecodeError:
            lines = []
        if lines and set(map(type, lines)) == {dict}:
            return MetricLines(len(lines), lines[-1], [], True)
    lines, complaints = records.read_metrics(path)
    complaints = [sentence.removeprefix(str(path)).strip() + "." for sentence in complaints]
    return MetricLines(len(lines), lines[-1] if lines else {}, complaints, not text or text.endswith(b"\n"))


def _kind(error: OSError) -> str:
    return "missing_file" if isinstance(error, FileNotFoundError) else "unreadable"
