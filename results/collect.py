"""All runs below some folders, each (key, seed) once; and packing a finished run into one file worth keeping."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results import number
from results.record import (
    FINISHED,
    SEED_DIRECTORY,
    SEED_FILE,
    STATUSES,
    Problem,
    Record,
    Unusable,
    read_directory,
    read_packed,
)
from runner import identity, records
from runner.errors import Misuse
from runner.records import SCHEMA, spell

#: Real measured records, committed with the code.
LOGGED = Path(__file__).resolve().parent / "logged"

# completed, then diverged (a result too); a running run says more than one that has failed or was broken off.
_RANK = {"completed": 0, "diverged": 1, "running": 2, "failed": 3, "interrupted": 4, "blocked": 5}
assert set(_RANK) == set(STATUSES)

# Facts of one site, and no part of a key: a kept record is read elsewhere.
_SITE = ("data", "runs", "cluster")


@dataclass(frozen=True)
class Duplicate:
    """The same (key, seed) found twice: `kept` is used and `other` is not. `agrees`: they tell no different result."""

    kept: Path
    other: Path
    agrees: bool


@dataclass(frozen=True)
class Collection:
    """The runs that tables and figures read."""

    runs: dict[tuple[str, int], Record]
    problems: tuple[Problem, ...] = ()
    duplicates: tuple[Duplicate, ...] = ()

    def get(self, key: str, seed: int) -> Record | None:
        return self.runs.get((key, seed))

    def sentences(self) -> list[str]:
        """What the reader of a table must know about the records behind it, a sentence each."""
        lines = [f"Problem: {problem}" for problem in self.problems]
        lines += [
            f"Problem: {duplicate.other}: is another record of the run in {duplicate.kept} with another result; "
            f"only the latter is used."
            for duplicate in self.duplicates
            if not duplicate.agrees
        ]
        agreeing = sum(duplicate.agrees for duplicate in self.duplicates)
        if agreeing:
            lines.append(
                f"Note: {agreeing} further record(s) of runs already found agree with them; each run counts once."
            )
        return lines


def collect(roots: Iterable[Path | str]) -> Collection:
    """Every run below `roots`, however deep: run directories and packed records.

    Of two records of one (key, seed) a completed one is kept before any other, and at equal status
    a run directory before a packed file, an earlier root before a later one. Nothing is merged.
    """
    problems: list[Problem] = []
    found: dict[tuple[str, int], list[Record]] = {}
    seen: set[Path] = set()
    for root in map(Path, roots):
        for path in _record_paths(root, problems):
            real = path.resolve()
            if real in seen:  # the roots overlap
                continue
            seen.add(real)
            try:
                record, left_out = read_directory(path) if path.is_dir() else read_packed(path)
            except Unusable as error:
                problems.append(Problem(path, f"{error}."))
                continue
            problems += left_out
            found.setdefault(record.identity, []).append(record)
    runs: dict[tuple[str, int], Record] = {}
    duplicates: list[Duplicate] = []
    for name, candidates in found.items():
        kept, *others = sorted(candidates, key=lambda record: (_RANK[record.status], record.packed))
        runs[name] = kept
        duplicates += [Duplicate(kept.path, other.path, _agree(kept, other)) for other in others]
    return Collection(runs, tuple(problems), tuple(duplicates))


def _record_paths(root: Path, problems: list[Problem]) -> Iterator[Path]:
    def report(error: OSError) -> None:
        problems.append(Problem(Path(error.filename), f"cannot be read ({error.strerror})."))

    for folder, subfolders, files in os.walk(root, onerror=report):
        subfolders.sort()
        if Path(folder) == root:  # a repetition is no second run of the tables', and frozen tasks are no runs
            subfolders[:] = [name for name in subfolders if name not in ("rerun", "submissions")]
        if SEED_DIRECTORY.fullmatch(Path(folder).name):
            subfolders.clear()  # checkpoints
            yield Path(folder)
            continue
        yield from (Path(folder, file) for file in sorted(files) if SEED_FILE.fullmatch(file))


def _agree(one: Record, other: Record) -> bool:
    """Whether two records of a run tell the same result; a record without a summary tells none. Times may differ."""
    if one.summary is None or other.summary is None:
        return True
    return _result(one.summary) == _result(other.summary)


def _result(summary: Any) -> tuple[Any, dict[str, Any]]:
    final = summary.get("final") or {}
    return summary.get("status"), {name: value for name, value in final.items() if not name.startswith("time/")}


def pack(run_dir: Path | str) -> dict[str, Any]:
    """A finished run directory as one JSON-able mapping, metrics as columns of 6 significant digits, null where absent.

    Where the run's folders lay and which cluster it ran on stay behind; the key is not made of them.
    Raises Misuse when the run has not finished or its record has any problem: what is kept must be whole.
    """
    path = Path(run_dir)
    try:
        record, problems = read_directory(path)
    except Unusable as error:
        raise Misuse(f"{path} cannot be packed: it {error}.") from error
    if problems:
        raise Misuse(f"{path} cannot be packed: {problems[0]}")
    if record.status not in FINISHED:
        raise Misuse(f"{path} cannot be packed: the run is {record.status}; pack it when it has finished.")
    names = dict.fromkeys(name for line in record.metrics for name in line)
    return {
        "schema": SCHEMA,
        "config": {name: section for name, section in record.config.items() if name not in _SITE},
        "overrides": [override for override in record.overrides if re.split("[.=]", override)[0] not in _SITE],
        "environment": record.environment,
        "summary": record.summary,
        "metrics": {name: [number.rounded(line.get(name)) for line in record.metrics] for name in names},
    }


def write_packed(run_dir: Path | str, logged_root: Path | str = LOGGED) -> Path:
    """Packs `run_dir` into <logged_root>/<dataset>/<model>/<method>/<key>/seed<k>.json, whole or not at all.

    Raises Misuse like `pack`, and when another result of the same run lies there already.
    """
    content = pack(run_dir)
    folder = identity.run_dir(Path(logged_root), content["config"])
    path = folder.with_name(f"{folder.name}.json")
    if path.exists():
        try:
            present, _ = read_packed(path)
        except Unusable as error:
            raise Misuse(f"{path} is in the way: it {error}; remove it first.") from error
        if present.summary is None or _result(present.summary) != _result(content["summary"]):
            raise Misuse(f"{path} already holds another result of this run; remove it first if it is the wrong one.")
    write_atomically(path, _packed_text(content))
    return path


def _packed_text(content: dict[str, Any]) -> str:
    """Strict JSON with a line per field and per metric: short files, readable differences."""
    lines = []
    for name, value in spell(content).items():
        if name == "metrics":
            columns = ",\n".join(f"  {json.dumps(metric)}: {json.dumps(column)}" for metric, column in value.items())
            lines.append(f'"metrics": {{\n{columns}\n}}')
        else:
            lines.append(f"{json.dumps(name)}: {json.dumps(value, allow_nan=False)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def write_atomically(path: Path, text: str) -> None:
    """Writes `path` so that no reader ever sees half of it; raises Misuse when the disk does not take it."""
    try:
        records.write_atomic(path, text)
    except OSError as error:
        raise Misuse(f"{path} cannot be written: {error.strerror}.") from error
