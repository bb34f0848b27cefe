"""A table file: its rows and columns of overrides, what is read from their runs, and what the paper printed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from results import document
from results.published import Published, parse
from runner.errors import Misuse, nearest

#: runs: cells are reductions over training runs; config: cells are read from the composed configurations.
KINDS = ("runs", "config")
DIRECTIONS = ("up", "down")

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Settings:
    """How a cell is read. Each may stand at the table, a column, a row or a cell; the nearest to the cell wins."""

    metric: str | None = None  #: runs: a name in the summary's final metrics; `best:` reads the best epoch's
    direction: str | None = None  #: runs: up or down, which way is better
    unit: str | None = None
    digits: int | None = None  #: runs: decimals printed
    seeds: tuple[int, ...] | None = None
    read: str | None = None  #: config: a path in the composed config, or arithmetic over paths
    number: str | None = None  #: config: how the paper prints the number, see results.hyperparameters
    given: Mapping[str, Any] | None = None  #: config: what else must hold for the printed cell to be true

    def over(self, other: Settings) -> Settings:
        """These settings, with the gaps filled from `other`."""
        return replace(
            other, **{f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        )


SETTINGS = tuple(f.name for f in fields(Settings))
_DEFAULTS = Settings(unit="", digits=2, number="plain", given=MappingProxyType({}))


@dataclass(frozen=True)
class Line:
    """A row or a column. An `across` row takes no column's overrides: one run for the whole row."""

    id: str
    title: str
    overrides: tuple[str, ...] = ()
    settings: Settings = field(default_factory=Settings)
    across: bool = False
    section: str | None = None  #: rows: the heading under which the row stands


@dataclass(frozen=True)
class Slot:
    """One place of a table: what its cell asks for, before anything is measured. Seeds are not in `overrides`."""

    table: str
    row: Line
    column: Line
    overrides: tuple[str, ...]
    settings: Settings
    published: Published | None

    @property
    def address(self) -> str:
        return f"{self.table}/{self.row.id}/{self.column.id}"

    @property
    def calibrated(self) -> bool:
        """False while one of its overrides is `name=???`: a knob that is not known yet."""
        return not any(override.endswith("=???") for override in self.overrides)


@dataclass(frozen=True)
class Table:
    """A table file's content, checked: see the module's docstring."""

    paper: str
    name: str
    title: str
    kind: str
    overrides: tuple[str, ...]
    settings: Settings
    rows: tuple[Line, ...]
    columns: tuple[Line, ...]
    cells: Mapping[tuple[str, str], Settings]
    published: Mapping[tuple[str, str], Published]
    groups: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...]

    @property
    def address(self) -> str:
        return f"{self.paper}/{self.name}"

    def slots(self, profile: str | None = None) -> Iterator[Slot]:
        """All places, row by row. Overrides: the table's, the row's, the column's, the profile's."""
        for row in self.rows:
            for column in self.columns:
                place = (row.id, column.id)
                settings = row.settings.over(column.settings).over(self.settings).over(_DEFAULTS)
                yield Slot(
                    table=self.address,
                    row=row,
                    column=column,
                    overrides=(
                        *self.overrides,
                        *row.overrides,
                        *(() if row.across else column.overrides),
                        *(() if profile is None else (f"profile={profile}",)),
                    ),
                    settings=self.cells.get(place, Settings()).over(settings),
                    published=self.published.get(place),
                )


def load(path: Path) -> Table:
    """The table in results/papers/<paper>/<table>.yaml; any mistake in it is a Misuse that names the place."""
    content = document.load(path)
    where = str(path)
    allowed = ("title", "kind", "overrides", "rows", "columns", "cells", "groups", "published", "notes", *SETTINGS)
    document.check_fields(content, where, allowed, required=("title", "rows", "columns"))
    kind = content.get("kind", "runs")
    if kind not in KINDS:
        raise Misuse(f"{where} has the unknown kind '{kind}'.{nearest(str(kind), KINDS)}")
    rows = _lines(content["rows"], where, "row", ("across", "section"))
    columns = _lines(content["columns"], where, "column", ())
    table = Table(
        paper=path.parent.name,
        name=path.stem,
        title=_text(content["title"], f"{where}: title"),
        kind=kind,
        overrides=_texts(content.get("overrides", []), f"{where}: overrides"),
        settings=_settings(content, where),
        rows=rows,
        columns=columns,
        cells={
            place: _settings(document.check_fields(entry, name, SETTINGS), name)
            for place, name, entry in _places(content.get("cells", {}), f"{where}: cells", rows, columns)
        },
        published={
            place: parse(entry, name)
            for place, name, entry in _places(content.get("published", {}), f"{where}: published", rows, columns)
        },
        groups=_groups(content.get("groups", {}), f"{where}: groups", rows),
        notes=_texts(content.get("notes", []), f"{where}: notes"),
    )
    _check_readable(table, where)
    return table


def _check_readable(table: Table, where: str) -> None:
    needed = ("metric", "direction", "seeds") if table.kind == "runs" else ("read",)
    for slot in table.slots():
        for name in needed:
            if getattr(slot.settings, name) is None:
                raise Misuse(f"{where}: the cell {slot.row.id}/{slot.column.id} has no {name}.")


def _lines(entries: object, where: str, kind: str, extra: Sequence[str]) -> tuple[Line, ...]:
    if not isinstance(entries, list) or not entries:
        raise Misuse(f"{where}: {kind}s must be a list of at least one {kind}.")
    lines: list[Line] = []
    for number, entry in enumerate(entries, start=1):
        place = f"{where}: {kind} {number}"
        entry = document.check_fields(
            entry, place, ("id", "title", "overrides", *extra, *SETTINGS), required=("id", "title")
        )
        name = _text(entry["id"], f"{place}: id")
        if not _ID.fullmatch(name):
            raise Misuse(f"{place} has the id '{name}'; an id is letters, digits and _ . - only.")
        if name in [line.id for line in lines]:
            raise Misuse(f"{where} has two {kind}s with the id '{name}'.")
        if not isinstance(entry.get("across", False), bool):
            raise Misuse(f"{place} has across: {entry['across']!r}; it is true or false.")
        lines.append(
            Line(
                id=name,
                title=_text(entry["title"], f"{place}: title"),
                overrides=_texts(entry.get("overrides", []), f"{place}: overrides"),
                settings=_settings(entry, place),
                across=entry.get("across", False),
                section=_text(entry["section"], f"{place}: section") if "section" in entry else None,
            )
        )
    return tuple(lines)


def _places(
    entries: object, where: str, rows: Sequence[Line], columns: Sequence[Line]
) -> Iterator[tuple[tuple[str, str], str, object]]:
    """((row id, column id), its name in messages, its entry) of a {row: {column: entry}} mapping."""
    for row, line in document.check_fields(entries, where, [r.id for r in rows]).items():
        for column, entry in document.check_fields(line, f"{where}: {row}", [c.id for c in columns]).items():
            yield (row, column), f"{where}: {row}: {column}", entry


def _settings(entry: Mapping[str, Any], where: str) -> Settings:
    values = {name: entry[name] for name in SETTINGS if name in entry}
    for name, value in values.items():
        good = {
            "digits": type(value) is int and value >= 0,
            "seeds": isinstance(value, list) and bool(value) and all(type(seed) is int and seed >= 0 for seed in value),
            "direction": value in DIRECTIONS,
            "given": isinstance(value, dict) and all(isinstance(path, str) for path in value),
        }.get(name, isinstance(value, str))
        if not good:
            raise Misuse(f"{where} has {name}: {value!r}; {_EXPECTED.get(name, 'it is a text')}.")
    if "seeds" in values:
        if len(set(values["seeds"])) != len(values["seeds"]):
            raise Misuse(f"{where} names a seed twice in {values['seeds']}.")
        values["seeds"] = tuple(values["seeds"])
    return Settings(**values)


_EXPECTED = {
    "digits": "it is a whole number of decimals",
    "seeds": "it is a list of whole numbers, like [0, 1, 2]",
    "direction": "it is up or down",
    "given": "it is a mapping of config paths to values",
}


def _groups(entries: object, where: str, rows: Sequence[Line]) -> dict[str, tuple[str, ...]]:
    if not isinstance(entries, dict):
        raise Misuse(f"{where} must be a mapping of group names to lists of row ids.")
    ids = [row.id for row in rows]
    groups = {str(name): _texts(members, f"{where}: {name}") for name, members in entries.items()}
    for name, members in groups.items():
        for member in members:
            if member not in ids:
                raise Misuse(f"{where}: {name} names the unknown row '{member}'.{nearest(member, ids)}")
    return groups


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise Misuse(f"{where} must be a text, not {value!r}.")
    return value.strip()


def _texts(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise Misuse(f"{where} must be a list of texts, not {value!r}.")
    return tuple(_text(item, where) for item in value)
