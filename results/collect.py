"""All runs below some folders, each (key, seed) once; and packing a finished run into one file worth keeping."""

from __future__ import annotations

import gc
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from results import number
from results.index import Entry, Index, signature
from results.record import (
    FINISHED,
    SEED_DIRECTORY,
    SEED_FILE,
    STATUSES,
    Problem,
    Record,
    Unusable,
    examine_directory,
    examine_packed,
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

    @property
    def sentence(self) -> str:
        """What is to be said of `other`."""
        if self.agrees:
            return f"is another record of the run in {self.kept}, and agrees with it."
        return f"is another record of the run in {self.kept} with another result; only the latter is used."


@dataclass(frozen=True)
class Collection:
    """The runs that tables and figures read. `remarks`: what leaves a record usable, but its reader should know.

    `notes`: sentences about the place that the runs are from.
    """

    runs: dict[tuple[str, int], Record]
    problems: tuple[Problem, ...] = ()
    duplicates: tuple[Duplicate, ...] = ()
    remarks: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()

    def get(self, key: str, seed: int) -> Record | None:
        return self.runs.get((key, seed))

    def sentences(self) -> list[str]:
        """What the reader of a table must know about the records behind it, a sentence each."""
        lines = [f"Problem: {problem}" for problem in self.problems]
        lines += [f"Problem: {each.other}: {each.sentence}" for each in self.duplicates if not each.agrees]
        agreeing = sum(duplicate.agrees for duplicate in self.duplicates)
        if agreeing:
            lines.append(
                f"Note: {agreeing} further record(s) of runs already found agree with them; each run counts once."
            )
        return [*lines, *(f"Note: {note}" for note in self.notes)]


def collect(roots: Iterable[Path | str], indexed: bool = True) -> Collection:
    """Every run below `roots`, however deep: run directories and packed records.

    Of two records of one (key, seed) a completed one is kept before any other, and at equal status
    a run directory before a packed file, an earlier root before a later one. Nothing is merged.
    With `indexed`, records whose files have not changed since they were last read are not opened.
    """
    problems: list[Problem] = []
    remarks: list[Problem] = []
    found: list[Record] = []
    seen: set[str] = set()
    with without_cycles():
        for root in map(Path, roots):
            index = Index(root) if indexed else None
            for place in _places(root, problems):
                if place.real in seen:  # the roots overlap
                    if index is not None:
                        index.keep(place.name)
                    continue
                seen.add(place.real)
                record, left_out, said = _read(place, index)
                problems += left_out
                remarks += said
                if record is not None:
                    found.append(record)
            if index is not None:
                index.write()
        return settled(found, problems, remarks)


@contextmanager
def without_cycles() -> Iterator[None]:
    """Within it Python looks for no garbage in cycles: where many objects are made to stay, it would look in vain, and
    through all of them again and again.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def settled(
    records: Iterable[Record],
    problems: Iterable[Problem] = (),
    remarks: Iterable[Problem] = (),
    notes: Iterable[str] = (),
) -> Collection:
    """Each (key, seed) once, by the rules of `collect`; of equally good records the earlier one."""
    found: dict[tuple[str, int], list[Record]] = {}
    for record in records:
        found.setdefault(record.identity, []).append(record)
    runs: dict[tuple[str, int], Record] = {}
    duplicates: list[Duplicate] = []
    for name, candidates in found.items():
        kept, *others = sorted(candidates, key=_preference) if len(candidates) > 1 else candidates
        runs[name] = kept
        duplicates += [Duplicate(kept.path, other.path, _agree(kept, other)) for other in others]
    return Collection(runs, tuple(problems), tuple(duplicates), tuple(remarks), tuple(notes))


def merged(collections: Sequence[Collection]) -> Collection:
    """Several collections as one; of equally good records of a run that of the earlier collection is kept."""
    whole = settled(
        [record for each in collections for record in each.runs.values()],
        [problem for each in collections for problem in each.problems],
        [remark for each in collections for remark in each.remarks],
        [note for each in collections for note in each.notes],
    )
    earlier = [duplicate for each in collections for duplicate in each.duplicates]
    return replace(whole, duplicates=(*earlier, *whole.duplicates))


def _preference(record: Record) -> tuple[int, bool]:
    return _RANK[record.status], record.packed


def _read(place: Place, index: Index | None) -> tuple[Record | None, Sequence[Problem], Sequence[Problem]]:
    """The record there, None when it is unusable; problems; remarks."""
    now = time.time_ns()
    try:
        found = signature(place.path, place.packed)
    except OSError as error:
        return None, [Problem(Path(place.path), f"cannot be read ({error.strerror}).", "unreadable")], []
    entry = index.get(place.name, found) if index is not None else None
    # One that has failed or was blocked may be under way again, which no file tells.
    if entry is not None and not (entry.status in ("failed", "blocked") and records.is_held(Path(place.path))):
        return entry.content(place.path, place.packed)
    path = Path(place.path)
    examine = examine_packed if place.packed else examine_directory
    try:
        reading = examine(path)
        entry = Entry.of(reading, found) if reading.lasting else None
        if entry is None:  # what is not kept is held in memory
            reading = examine(path, whole=True) if reading.lasting else reading
            return reading.record, reading.problems, reading.remarks
    except Unusable as error:
        problem = Problem(path, f"{error}.", error.kind)
        if error.kind == "unreadable":  # which may end without a change of any file
            return None, [problem], []
        entry = Entry.of_unusable(problem, found)
    if index is not None:
        index.put(place.name, entry, now)
    return entry.content(place.path, place.packed)


class Place(NamedTuple):
    """Where a record lies: its path, the same with no link in it, and its name below the root."""

    path: str
    real: str
    name: str
    packed: bool


def _places(root: Path, problems: list[Problem]) -> Iterator[Place]:
    """The places of all records, in the order of their names, a folder's packed records before its subfolders."""
    top, real_top = str(root), os.path.realpath(root)
    names = [""]
    while names:
        name = names.pop()
        path = f"{top}/{name}" if name else top
        if SEED_DIRECTORY.fullmatch(os.path.basename(path)) and (name or root.is_dir()):  # checkpoints lie deeper
            yield Place(path, f"{real_top}/{name}" if name else real_top, name, packed=False)
            continue
        try:
            with os.scandir(path) as entries:
                found = sorted((entry.name, _is_dir(entry), entry.is_symlink()) for entry in entries)
        except OSError as error:
            problems.append(Problem(Path(path), f"cannot be read ({error.strerror}).", "unreadable"))
            continue
        prefix = f"{name}/" if name else ""
        for file, is_folder, is_link in found:
            if not is_folder and SEED_FILE.fullmatch(file):
                real = os.path.realpath(f"{path}/{file}") if is_link else f"{real_top}/{prefix}{file}"
                yield Place(f"{path}/{file}", real, prefix + file, packed=True)
        # A repetition is no second run of the tables', and frozen tasks are no runs.
        left_out = () if name else ("rerun", "submissions")
        names += [
            prefix + folder
            for folder, is_folder, is_link in reversed(found)
            if is_folder and not is_link and folder not in left_out
        ]


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _agree(one: Record, other: Record) -> bool:
    """Whether two records of a run tell the same result; a record without a summary tells none. Times may differ."""
    if one.summary is None or other.summary is None:
        return True
    return _result(one.summary) == _result(other.summary)


def _result(summary: Any) -> tuple[Any, dict[str, Any]]:
    final = summary.get("final")
    # Times may differ, and FLOPs follow from the rest; an older version counted none.
    told = final.items() if isinstance(final, Mapping) else ()
    kept = {name: value for name, value in told if not name.startswith(("time/", "flops"))}
    return summary.get("status"), kept


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
        "config": _elsewhere(record.config),
        "overrides": _not_of_the_site(record.overrides),
        "environment": record.environment,
        "summary": record.summary,
        "metrics": {name: [number.rounded(line.get(name)) for line in record.metrics] for name in names},
    }


def _elsewhere(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without the facts of its site, its parents' included; it has the same key."""
    kept = {name: section for name, section in config.items() if name not in _SITE}
    if start := kept.get("start"):
        kept["start"] = {**start, "parent": _elsewhere(start["parent"])}
        if "overrides" in start:
            kept["start"]["overrides"] = _not_of_the_site(start["overrides"])
    return kept


def _not_of_the_site(overrides: Iterable[str]) -> list[str]:
    return [override for override in overrides if re.split("[.=]", override)[0] not in _SITE]


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
