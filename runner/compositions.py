"""What has been composed, kept across processes: one cache file per state of conf/, of the code and of the environment.

A composition is a function of the files of conf/ and of the user's packages' conf/, of the code and the libraries that
compose, of the environment variables that the files read, and of the overrides. The first three name the file, the last
is looked up in it.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import orjson

from runner import cache
from runner.packages import is_choice

#: key, the keys of the runs it starts from, the configuration as JSON.
Kept = tuple[str, tuple[str, ...], bytes]

_ROOT = Path(__file__).resolve().parent.parent
_CODE = (
    "runner/compose.py",
    "runner/compositions.py",
    "runner/hydra_groups.py",
    "runner/identity.py",
    "runner/packages.py",
    "methods/schedules.py",
)
# Where each library says its version: read, not imported.
_LIBRARIES = {"hydra": "__init__.py", "omegaconf": "version.py", "yaml": "__init__.py"}

_RESOLVER = re.compile(rb"\$\{\s*([\w.]+)\s*:")
_VARIABLE = re.compile(rb"\$\{\s*oc\.env\s*:\s*(\w+)\s*[,}]")
# The resolvers whose value follows from the configuration alone: OmegaConf's, and runner.hydra_groups' own.
_PURE = {b"oc.create", b"oc.decode", b"oc.deprecated", b"oc.dict.keys", b"oc.dict.values", b"oc.select"}
_PURE |= {b"lottery_parent", b"imp_parent", b"rewound_parent", b"difference"}
_ENVIRONMENTS = 8  # cache files kept, of one state of conf/


@functools.cache
def contents(conf: Path) -> Mapping[str, bytes]:
    """All configuration files, as they were when this process first asked: what it composes is of that time too."""
    every = (Path(folder, file) for folder, _, files in os.walk(conf) for file in files)
    paths = sorted(path for path in every if path.suffix == ".yaml" and is_choice(path))
    return {path.relative_to(conf).as_posix(): path.read_bytes() for path in paths}


@functools.cache
def variables(*confs: Path) -> tuple[str, ...] | None:
    """The environment variables that configuration files read; None when they read something that nobody can list."""
    found: set[str] = set()
    for content in (content for conf in confs for content in contents(conf).values()):
        resolvers = _RESOLVER.findall(content)
        names = _VARIABLE.findall(content)
        if len(names) != resolvers.count(b"oc.env") or not set(resolvers) <= {*_PURE, b"oc.env"}:
            return None
        found |= {name.decode() for name in names}
    return tuple(sorted(found))


class Compositions:
    """The compositions of one state of the folders of choices and of one environment (the values of `variables`)."""

    def __init__(self, confs: tuple[Path, ...], environment: tuple[str | None, ...]) -> None:
        self.confs = confs
        self.environment = environment
        self._entries: dict[tuple[str, ...], Kept] | None = None
        self._new = False

    def get(self, overrides: tuple[str, ...]) -> Kept | None:
        """What is kept of exactly these overrides."""
        return self._all().get(overrides)

    def add(self, overrides: tuple[str, ...], kept: Kept | None) -> None:
        """Keep a composition, unless it cannot be kept; `write` makes it last."""
        if kept is not None:
            self._all()[overrides] = kept
            self._new = True

    def write(self) -> None:
        """Write what is new, if anything is, and remove what no longer fits."""
        if not self._new:
            return
        lines: dict[bytes, int] = {}
        header = []
        for overrides, (key, ancestors, text) in self._all().items():
            header.append((overrides, key, ancestors, lines.setdefault(text, len(lines))))
        name = self._name()
        if cache.write(name, [orjson.dumps(header), *lines]):
            _, place, state, _ = name.split("-")
            others = [each for each in cache.names(f"compose-{place}-") if each != name]
            stale = [each for each in others if not each.startswith(f"compose-{place}-{state}-")]
            cache.remove([*stale, *[each for each in others if each not in stale][: 1 - _ENVIRONMENTS]])

    def _all(self) -> dict[tuple[str, ...], Kept]:
        if self._entries is None:
            lines = cache.read(self._name())
            self._entries = {} if lines is None else _read(lines)
        return self._entries

    def _name(self) -> str:
        place = cache.digest(map(os.fsencode, self.confs))
        environment = cache.digest(os.fsencode(repr(value)) for value in self.environment)
        return f"compose-{place}-{_state(self.confs)}-{environment}"


def _read(lines: list[bytes]) -> dict[tuple[str, ...], Kept]:
    texts = lines[1:]
    return {
        tuple(overrides): (key, tuple(ancestors), texts[number])
        for overrides, key, ancestors, number in orjson.loads(lines[0])
    }


@functools.cache
def _state(confs: tuple[Path, ...]) -> str:
    """The digest of the configuration files and of the code and libraries that compose."""
    parts = []
    for conf in confs:
        parts += [part for name, content in contents(conf).items() for part in (name.encode(), content)]
        parts.append(b"")
    parts += [(_ROOT / name).read_bytes() for name in _CODE]
    parts.append(sys.version.encode())
    for library, file in _LIBRARIES.items():
        found = importlib.util.find_spec(library)
        assert found is not None and found.origin is not None  # requirements
        parts.append(Path(found.origin).with_name(file).read_bytes())
    return cache.digest(parts)
