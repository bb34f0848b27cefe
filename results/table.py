"""A table file: its rows and columns of overrides, what is read from their runs, and what the paper printed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from results import document
from results import settings as cell_settings
from results.published import Published
from results.published import parse as parse_published
from results.settings import DEFAULTS, NEEDED, SETTINGS, Settings
from runner.errors import Misuse, nearest

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_NEED = re.compile(r"[a-z_]+=\S+")
# Needs of what is read or drawn, not of what is run.
_OF_READING = ("metric", "record", "plot")
_OPERAND = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Line:
    """A row or a column. An `across` line takes none of the other axis's overrides: one run for the whole line.

    `without`: the sections (such as method) of which it takes no override from the other axis.
    """

    id: str
    title: str
    overrides: tuple[str, ...] = ()
    settings: Settings = field(default_factory=Settings)
    needs: tuple[str, ...] = ()
    across: bool = False
    without: tuple[str, ...] = ()
    section: str | None = None  #: rows: the heading under which the row stands

    def admits(self, override: str) -> bool:
        """Whether an override of the other axis holds in this line."""
        return not self.across and re.split(r"[.=]", override.lstrip("+~"))[0] not in self.without

    def asks(self, need: str) -> bool:
        """Whether a need of the other axis is one here too: a choice or option that this line does not take is none."""
        kind, _, name = need.partition("=")
        return kind in _OF_READING or self.admits(name if kind == "option" else need)


@dataclass(frozen=True)
class Exceptional:
    """What is different in one single cell; its overrides come last."""

    overrides: tuple[str, ...] = ()
    settings: Settings = field(default_factory=Settings)
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Group:
    """Cells to compare. `compare` rows: per column, the rows `among`; columns: per row, the columns `among`.

    `within`: only in these lines of the other axis.
    """

    name: str
    compare: str
    among: tuple[str, ...]
    within: tuple[str, ...]

    def families(self) -> Iterator[tuple[tuple[str, str], ...]]:
        """The (row, column) places of each comparison."""
        for other in self.within:
            yield tuple((each, other) if self.compare == "rows" else (other, each) for each in self.among)


@dataclass(frozen=True)
class Slot:
    """One place of a table: what its cell asks for, before anything is measured. Seeds are not in `overrides`."""

    table: str
    row: Line
    column: Line
    overrides: tuple[str, ...]
    settings: Settings
    published: Published | None
    needs: tuple[str, ...] = ()  #: what the configuration does not offer yet, as in `method=dpf`

    @property
    def address(self) -> str:
        return f"{self.table}/{self.row.id}/{self.column.id}"

    @property
    def place(self) -> tuple[str, str]:
        """(row id, column id)."""
        return self.row.id, self.column.id

    @property
    def knob(self) -> str | None:
        """The override `name=???` whose value is not known yet; None when all are."""
        return next((override for override in self.overrides if override.endswith("=???")), None)

    @property
    def calibrated(self) -> bool:
        """False while one of its overrides is `name=???`: a knob that is not known yet."""
        return self.knob is None

    @property
    def unprinted(self) -> bool:
        """The paper prints nothing there."""
        return self.published is not None and self.published.mark == "absent"


@dataclass(frozen=True)
class Table:
    """A table file's content, checked: see the module's docstring."""

    paper: str
    name: str
    title: str
    overrides: tuple[str, ...]
    settings: Settings
    needs: tuple[str, ...]
    rows: tuple[Line, ...]
    columns: tuple[Line, ...]
    cells: Mapping[tuple[str, str], Exceptional]
    published: Mapping[tuple[str, str], Published]
    groups: tuple[Group, ...]
    notes: tuple[str, ...]

    @property
    def address(self) -> str:
        return f"{self.paper}/{self.name}"

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of its cells."""
        return frozenset(slot.settings.kind or "" for slot in self.slots())

    def slots(self, profile: str | None = None) -> tuple[Slot, ...]:
        """All places, row by row. Overrides: the table's, the row's, the column's, the cell's, the profile's."""
        if profile not in self._slots:  # they are asked for again and again
            self._slots[profile] = tuple(self._make_slots(profile))
        return self._slots[profile]

    @cached_property
    def _slots(self) -> dict[str | None, tuple[Slot, ...]]:
        return {}

    def _make_slots(self, profile: str | None) -> Iterator[Slot]:
        at_end = () if profile is None else (f"profile={profile}",)
        below = {column.id: column.settings.over(self.settings).over(DEFAULTS) for column in self.columns}
        for row in self.rows:
            for column in self.columns:
                place = (row.id, column.id)
                own = self.cells.get(place, _NOTHING)
                settings = own.settings.over(row.settings).over(below[column.id])
                yield Slot(
                    table=self.address,
                    row=row,
                    column=column,
                    overrides=(
                        *self.overrides,
                        *filter(column.admits, row.overrides),
                        *filter(row.admits, column.overrides),
                        *own.overrides,
                        *at_end,
                    ),
                    settings=settings,
                    published=self.published.get(place),
                    needs=tuple(
                        dict.fromkeys(
                            (
                                *self.needs,
                                *filter(column.asks, row.needs),
                                *filter(row.asks, column.needs),
                                *own.needs,
                            )
                        )
                    ),
                )


_NOTHING = Exceptional()
_CELL_FIELDS = ("overrides", "needs", *SETTINGS)
FIELDS = ("title", "overrides", "needs", "rows", "columns", "cells", "groups", "published", "notes", *SETTINGS)


def load(path: Path) -> Table:
    """The table in results/papers/<paper>/<table>.yaml; any mistake in it is a Misuse that names the place."""
    return parse(document.load(path), path.parent.name, path.stem, str(path))


def parse(content: Mapping[str, Any], paper: str, name: str, where: str) -> Table:
    """The table that `content` (a table file's fields) says; `where` names the file in complaints."""
    document.check_fields(content, where, FIELDS, required=("title", "rows", "columns"))
    rows = _lines(content["rows"], where, "row", ("across", "without", "section"))
    columns = _lines(content["columns"], where, "column", ("across", "without"))
    table = Table(
        paper=paper,
        name=name,
        title=document.text(content["title"], f"{where}: title"),
        overrides=document.texts(content.get("overrides", []), f"{where}: overrides"),
        settings=cell_settings.parse(content, where),
        needs=_needs(content, where),
        rows=rows,
        columns=columns,
        cells={
            place: Exceptional(
                document.texts(document.check_fields(entry, at, _CELL_FIELDS).get("overrides", []), f"{at}: overrides"),
                cell_settings.parse(document.check_fields(entry, at, _CELL_FIELDS), at),
                _needs(document.check_fields(entry, at, _CELL_FIELDS), at),
            )
            for place, at, entry in _places(content.get("cells", {}), f"{where}: cells", rows, columns)
        },
        published={
            place: parse_published(entry, at)
            for place, at, entry in _places(content.get("published", {}), f"{where}: published", rows, columns)
        },
        groups=_groups(content.get("groups", {}), f"{where}: groups", rows, columns),
        notes=document.texts(content.get("notes", []), f"{where}: notes"),
    )
    _check_cells(table, where)
    return table


def operands(expression: str, slot: Slot) -> dict[str, str]:
    """{what stands in the braces: the cell's address} of a derived cell's expression."""
    paper, table = slot.table.split("/")
    found = {}
    for text in _OPERAND.findall(expression):
        parts = text.split("/")
        full = (paper, table, slot.row.id)[: 4 - len(parts)]
        found[text] = "/".join((*full, *parts))
    return found


def _check_cells(table: Table, where: str) -> None:
    places = {(row.id, column.id) for row in table.rows for column in table.columns}
    for slot in table.slots():
        cell = f"{where}: the cell {slot.row.id}/{slot.column.id}"
        kind = slot.settings.kind or ""
        for name in NEEDED[kind]:
            if getattr(slot.settings, name) is None:
                raise Misuse(f"{cell} has no {name}.")
        if kind == "derived":
            for text, address in operands(slot.settings.derive or "", slot).items():
                parts = tuple(address.split("/"))
                if len(parts) != 4 or (address.startswith(f"{table.address}/") and parts[2:] not in places):
                    raise Misuse(f"{cell} is derived from {{{text}}}, which is no cell.")
        if kind == "runs" and slot.knob is not None and slot.settings.target is None:
            raise Misuse(f"{cell} has the open knob {slot.knob} but no target: {{metric: ..., value: ...}} for it.")


def _lines(entries: object, where: str, kind: str, extra: Sequence[str]) -> tuple[Line, ...]:
    if not isinstance(entries, list) or not entries:
        raise Misuse(f"{where}: {kind}s must be a list of at least one {kind}.")
    lines: dict[str, Line] = {}
    for number, entry in enumerate(entries, start=1):
        place = f"{where}: {kind} {number}"
        entry = document.check_fields(
            entry, place, ("id", "title", "overrides", "needs", *extra, *SETTINGS), required=("id", "title")
        )
        name = document.text(entry["id"], f"{place}: id")
        if not _ID.fullmatch(name):
            raise Misuse(f"{place} has the id '{name}'; an id is letters, digits and _ . - only.")
        if name in lines:
            raise Misuse(f"{where} has two {kind}s with the id '{name}'.")
        if not isinstance(entry.get("across", False), bool):
            raise Misuse(f"{place} has across: {entry['across']!r}; it is true or false.")
        lines[name] = Line(
            id=name,
            title=document.text(entry["title"], f"{place}: title"),
            overrides=document.texts(entry.get("overrides", []), f"{place}: overrides"),
            settings=cell_settings.parse(entry, place),
            needs=_needs(entry, place),
            across=entry.get("across", False),
            without=document.texts(entry.get("without", []), f"{place}: without"),
            section=document.text(entry["section"], f"{place}: section") if "section" in entry else None,
        )
    return tuple(lines.values())


def _needs(entry: Mapping[str, Any], where: str) -> tuple[str, ...]:
    needs = document.texts(entry.get("needs", []), f"{where}: needs")
    for need in needs:
        if not _NEED.fullmatch(need):
            raise Misuse(f"{where} needs '{need}'; write what is missing as in method=dpf or metric=flops/inference.")
    return needs


def _places(
    entries: object, where: str, rows: Sequence[Line], columns: Sequence[Line]
) -> Iterator[tuple[tuple[str, str], str, object]]:
    """((row id, column id), its name in messages, its entry) of a {row: {column: entry}} mapping."""
    row_ids, column_ids = [row.id for row in rows], [column.id for column in columns]
    for row, line in document.check_fields(entries, where, row_ids).items():
        for column, entry in document.check_fields(line, f"{where}: {row}", column_ids).items():
            yield (row, column), f"{where}: {row}: {column}", entry


def _groups(entries: object, where: str, rows: Sequence[Line], columns: Sequence[Line]) -> tuple[Group, ...]:
    if not isinstance(entries, dict):
        raise Misuse(f"{where} must be a mapping of group names to {{compare: rows, among: [row ids]}}.")
    ids = {"rows": [row.id for row in rows], "columns": [column.id for column in columns]}
    groups = []
    for name, entry in entries.items():
        at = f"{where}: {name}"
        entry = document.check_fields(entry, at, ("compare", "among", "within"), required=("compare", "among"))
        if entry["compare"] not in ids:
            raise Misuse(f"{at} compares {entry['compare']!r}; it is rows or columns.")
        other = "columns" if entry["compare"] == "rows" else "rows"
        among = _known(entry["among"], f"{at}: among", ids[entry["compare"]])
        within = _known(entry["within"], f"{at}: within", ids[other]) if "within" in entry else tuple(ids[other])
        if len(among) < 2:
            raise Misuse(f"{at} compares one line with nothing; name at least two in among.")
        groups.append(Group(str(name), entry["compare"], among, within))
    return tuple(groups)


def _known(members: object, where: str, ids: Sequence[str]) -> tuple[str, ...]:
    found = document.texts(members, where)
    for member in found:
        if member not in ids:
            raise Misuse(f"{where} names the unknown line '{member}'.{nearest(member, ids)}")
    return found
