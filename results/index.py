"""What was read of the runs below a root, kept so that a run whose files have not changed is not opened again.

The index is a file in the user's cache folder (`runner.cache`), one per root. It holds of each record what tables need;
the rest is read from the record when asked for. It is only ever compared with the files: with the size, the time of
modification and the time of change of each. An index that is damaged, or made by other code, is not used.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from results import files
from results.record import Problem, Reading, Record, packed_content, packed_lines
from runner import cache, records
from runner.errors import Misuse

#: The files of a run directory that a record is read from.
FILES = ("config.yaml", "summary.json", "metrics.jsonl", "environment.json", "overrides.json")
#: (time of modification, of change, size) of each file in turn, zeros for one that is not there.
Signature = list[int]

# A file may change once more within the same tick of its file system's clock, or of a server's.
_RACY_NS = 2_000_000_000

_ROOT = Path(__file__).resolve().parent.parent
_CODE = (
    *("results/index.py", "results/record.py", "results/files.py", "results/number.py"),
    *("runner/identity.py", "runner/records.py", "runner/untrusted.py"),
)
_LAYER = ("shape", "kept", "nonzero", "total")


def signature(path: str, packed: bool) -> Signature:
    """Of the record at `path`; raises OSError when it cannot be looked at."""
    found: Signature = []
    for file in [path] if packed else [f"{path}/{name}" for name in FILES]:
        try:
            status = os.stat(file)
        except FileNotFoundError:
            found += (0, 0, 0)
        else:
            found += (status.st_mtime_ns, status.st_ctime_ns, status.st_size)
    return found


@dataclass(slots=True)
class Entry:
    """One record as the index holds it. `key` is None for one that cannot be used: `problems` say why."""

    signature: Signature
    key: str | None
    seed: int
    status: str
    parent: str | None
    environment: str  #: JSON
    layers: list[Any] | None  #: the names, shapes and totals of the layers; None: the summary has them as they are
    problems: list[tuple[str, str, str]]  #: file, sentence, kind
    remarks: list[tuple[str, str, str]]
    summary: bytes  #: JSON, without the layers' counts and the series
    counts: bytes  #: JSON: [kept per layer, nonzero per layer]

    @classmethod
    def of(cls, reading: Reading, found: Signature) -> Entry | None:
        """The entry of a reading; None when the index cannot hold all of it."""
        record = reading.record
        summary: dict[str, Any] = dict(record.summary or {})
        layers: list[Any] | None = None
        counts: list[list[Any]] = [[], []]
        if _uniform(summary.get("layers")):
            shapes, *counts, totals = ([layer[name] for layer in summary["layers"].values()] for name in _LAYER)
            layers = [list(summary["layers"]), shapes, totals]
            summary["layers"] = None
        for name, part in summary.items():
            if isinstance(part, dict) and any(isinstance(value, list) for value in part.values()):
                summary[name] = _LEFT_OUT
        texts = [_json(part) for part in (summary, counts, dict(record.environment), layers)]
        if None in texts:
            return None
        text, numbers, environment, _ = (part or b"" for part in texts)
        return cls(
            signature=found,
            key=record.key,
            seed=record.seed,
            status=record.status,
            parent=record.parent,
            environment=environment.decode(),
            layers=layers,
            problems=[_relative(problem, record.path) for problem in reading.problems],
            remarks=[_relative(remark, record.path) for remark in reading.remarks],
            summary=text,
            counts=numbers,
        )

    @classmethod
    def of_unusable(cls, problem: Problem, found: Signature) -> Entry:
        """The entry of a record that cannot be used."""
        return cls(found, None, 0, "", None, "{}", None, [_relative(problem, problem.path)], [], b"null", b"null")

    def content(self, place: str, packed: bool) -> tuple[Record | None, list[Problem], list[Problem]]:
        """The record at `place`, None when it cannot be used; its problems; its remarks."""
        record = None
        if self.key is not None:
            record = Record(place, packed, self.key, self.seed, self.status, self.parent, Stored(place, packed, self))
        return record, _absolute(self.problems, place), _absolute(self.remarks, place)


class Stored:
    """The content of a record in the index: the summary from there, what it has not from the files, once asked for."""

    def __init__(self, place: str, packed: bool, entry: Entry) -> None:
        self._place, self._packed, self._entry = place, packed, entry

    @property
    def _path(self) -> Path:
        return Path(self._place)

    @functools.cached_property
    def _kept(self) -> dict[str, Any]:
        return orjson.loads(self._entry.summary)

    def part(self, name: str) -> Any:
        """One part of the summary, None where it has none of that name."""
        if name == "layers" and self._entry.layers is not None:
            return self._layers
        found = self._kept.get(name)
        return self.summary[name] if found == _LEFT_OUT else found

    @functools.cached_property
    def _layers(self) -> dict[str, Any]:
        assert self._entry.layers is not None
        names, shapes, totals = self._entry.layers
        columns = names, shapes, *orjson.loads(self._entry.counts), totals
        return {name: dict(zip(_LAYER, layer, strict=True)) for name, *layer in zip(*columns, strict=True)}

    @functools.cached_property
    def summary(self) -> dict[str, Any]:
        summary = self._kept
        if any(part == _LEFT_OUT for part in summary.values()):
            self._check("summary.json")
            return self._packed_content["summary"] if self._packed else files.json_file(self._path / "summary.json")
        return summary if self._entry.layers is None else {**summary, "layers": self._layers}

    @functools.cached_property
    def environment(self) -> dict[str, Any]:
        return orjson.loads(self._entry.environment)

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        if self._packed:
            return self._packed_content["config"]
        self._check("config.yaml")
        return files.yaml_file(self._path / "config.yaml").own()

    @functools.cached_property
    def overrides(self) -> tuple[str, ...]:
        if self._packed:
            return tuple(map(str, self._packed_content["overrides"]))
        if any(file == "overrides.json" for file, _, _ in self._entry.problems):
            return ()
        self._check("overrides.json")
        return tuple(map(str, files.json_file(self._path / "overrides.json", list)))

    @functools.cached_property
    def metrics(self) -> tuple[Mapping[str, Any], ...]:
        if self._packed:
            return packed_lines(self._packed_content["metrics"])
        self._check("metrics.jsonl")
        return tuple(records.read_metrics(self._path / "metrics.jsonl")[0])

    @property
    def _packed_content(self) -> dict[str, Any]:
        self._check("")
        return packed_content(self._path)

    def _check(self, file: str) -> None:
        """Misuse unless the file is still the one that was read when the record was found."""
        place = 3 * FILES.index(file) if file else 0
        try:
            now = signature(self._place, self._packed)
        except OSError as error:
            raise Misuse(f"{self._path} cannot be read any more: {error.strerror}.") from error
        if now[place : place + 3] != self._entry.signature[place : place + 3]:
            raise Misuse(f"{self._path / file} has changed since it was looked at; run this again.")


# In place of a part of a summary that is long and no table's: per-epoch series.
_LEFT_OUT = "(in the record)"


def _uniform(layers: Any) -> bool:
    """Whether each layer has exactly the counts that the trainer writes."""
    return (
        isinstance(layers, dict)
        and bool(layers)
        and all(isinstance(layer, dict) and tuple(layer) == _LAYER for layer in layers.values())
    )


def _relative(problem: Problem, path: Path) -> tuple[str, str, str]:
    return "" if problem.path == path else problem.path.name, problem.what, problem.kind


def _absolute(said: list[tuple[str, str, str]], place: str) -> list[Problem]:
    return [Problem(Path(place, file), what, kind) for file, what, kind in said]


def _json(value: Any) -> bytes | None:
    """`value` as JSON; None when JSON cannot hold it as it is (a literal NaN, a huge integer)."""
    try:
        text = orjson.dumps(value)
    except TypeError:
        return None
    return text if orjson.loads(text) == value else None


def _is_text(path: str, entry: Entry) -> bool:
    """Whether JSON can hold what the index says of the record: names of files may be any bytes, seeds any integers."""
    try:
        orjson.dumps((path, entry.seed, entry.problems, entry.remarks))
    except TypeError:
        return False
    return True


class Index:
    """The entries of one root, by the records' paths below it."""

    def __init__(self, root: Path) -> None:
        self._root = os.path.realpath(root)
        self._name = f"runs-{cache.digest([os.fsencode(self._root)])}"
        self._entries = self._read()
        self._changed = False
        self._present: set[str] = set()

    def get(self, path: str, found: Signature) -> Entry | None:
        """The entry of the record at `path`, if no file of it has changed."""
        self._present.add(path)
        entry = self._entries.get(path)
        return entry if entry is not None and entry.signature == found else None

    def put(self, path: str, entry: Entry, now_ns: int) -> None:
        """Keep an entry whose files were looked at at `now_ns`, unless they may be changing still.

        Nor when the directory of the key lies outside the root: by what name it was given is no file's content.
        """
        if "/" in path and max(entry.signature[::3]) < now_ns - _RACY_NS and _is_text(path, entry):
            self._entries[path] = entry
            self._changed = True

    def keep(self, path: str) -> None:
        """The record at `path` is there, but was found below another root already."""
        self._present.add(path)

    def write(self) -> None:
        """Write what is new, and leave out what is no longer there. An index that cannot be written is none."""
        gone = self._entries.keys() - self._present
        if not self._changed and not gone:
            return
        environments: dict[str, int] = {}
        layers: dict[bytes, int] = {}
        rows: list[tuple[Any, ...]] = []
        lines: list[bytes] = []
        for path, each in self._entries.items():
            if path in gone:
                continue
            table = -1 if each.layers is None else layers.setdefault(orjson.dumps(each.layers), len(layers))
            environment = environments.setdefault(each.environment, len(environments))
            rows.append(
                (
                    *(path, each.signature, each.key, each.seed, each.status, each.parent),
                    *(environment, table, each.problems, each.remarks),
                )
            )
            lines += (each.summary, each.counts)
        root = os.fsencode(self._root).hex()
        header = {"code": _code(), "root": root, "environments": list(environments), "layers": len(layers)}
        if cache.write(self._name, [orjson.dumps(header), orjson.dumps(rows), *layers, *lines]):
            _remove_orphans(self._name)

    def _read(self) -> dict[str, Entry]:
        lines = cache.read(self._name)
        try:
            return {} if lines is None else self._parsed(lines)
        except (ValueError, LookupError, TypeError, AttributeError):  # no index of ours, whatever its checksum says
            return {}

    def _parsed(self, lines: list[bytes]) -> dict[str, Entry]:
        header = orjson.loads(lines[0])
        if header["code"] != _code() or bytes.fromhex(header["root"]) != os.fsencode(self._root):
            return {}
        environments, count = header["environments"], header["layers"]
        layers = [*map(orjson.loads, lines[2 : 2 + count]), None]
        rows = zip(orjson.loads(lines[1]), lines[2 + count :: 2], lines[3 + count :: 2], strict=True)
        return {
            path: Entry(found, key, seed, status, parent, environments[where], layers[table], problems, remarks, *texts)
            for (path, found, key, seed, status, parent, where, table, problems, remarks), *texts in rows
        }


@functools.cache
def _code() -> str:
    """The digest of the code that reads records: what other code made of them is not used."""
    return cache.digest((_ROOT / name).read_bytes() for name in _CODE)


def _remove_orphans(own: str) -> None:
    """Removes the indexes of roots that are gone."""
    for name in cache.names("runs-"):
        try:
            root = os.fsdecode(bytes.fromhex(orjson.loads(cache.first_line(name) or b"")["root"]))
        except (ValueError, KeyError, TypeError):  # damaged
            root = ""
        if name != own and not os.path.isdir(root):
            cache.remove([name])
