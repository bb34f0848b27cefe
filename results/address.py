"""Addresses PAPER[/TABLE[/ROW[/COLUMN]]]: which table files there are, and which of their cells are meant."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from results import document
from results import table as tables_
from results.table import Line, Slot, Table
from runner.errors import Misuse, nearest
from runner.packages import packages

PAPERS = Path(__file__).resolve().parent / "papers"


@dataclass(frozen=True)
class Selection:
    """A table and the (row id, column id) pairs that are wanted of it."""

    table: Table
    places: frozenset[tuple[str, str]]

    @property
    def rows(self) -> tuple[Line, ...]:
        return tuple(row for row in self.table.rows if any(row.id == place[0] for place in self.places))

    @property
    def columns(self) -> tuple[Line, ...]:
        return tuple(column for column in self.table.columns if any(column.id == place[1] for place in self.places))

    def slots(self, profile: str | None = None) -> list[Slot]:
        return [slot for slot in self.table.slots(profile) if (slot.row.id, slot.column.id) in self.places]


def tables(papers: Path = PAPERS) -> dict[str, Path]:
    """Address PAPER/TABLE -> file, in order; a paper's figures lie one folder deeper and are not among them.

    With our papers come those of the user's packages.
    """
    files = sorted(_files(papers, "*/*.yaml"), key=lambda path: (path.parent.name, _by_number(path.stem)))
    return {f"{path.parent.name}/{path.stem}": path for path in files}


def figures(papers: Path = PAPERS) -> dict[str, Path]:
    """Address PAPER/FIGURE -> file, in order; with our papers come those of the user's packages."""
    files = sorted(_files(papers, "*/figures/*.yaml"), key=lambda path: (path.parents[1].name, _by_number(path.stem)))
    return {f"{path.parents[1].name}/{path.stem}": path for path in files}


def _files(papers: Path, pattern: str) -> Iterator[Path]:
    others = [package.papers for package in packages() if package.papers] if papers == PAPERS else []
    for folder in (papers, *others):
        yield from folder.glob(pattern)


def load(path: Path) -> Table:
    """The table in a table's file, or the cells that a figure's file has of its own."""
    if path.parent.name != "figures":
        return tables_.load(path)
    content = document.load(path)
    paper, name = path.parents[1].name, path.stem
    if "table" in content:
        raise Misuse(f"The figure {paper}/{name} draws cells of {content['table']}; address those.")
    return tables_.parse({k: v for k, v in content.items() if k in tables_.FIELDS}, paper, name, str(path))


def select(addresses: Sequence[str] = (), papers: Path = PAPERS) -> list[Selection]:
    """The cells that the addresses mean, one Selection a table, in the files' order; no address means all tables.

    Every part of an address may be a shell pattern: dsr/lenet_mnist/*/s90. A figure with cells of its own counts only
    when it is named.
    """
    files, drawn = tables(papers), figures(papers)
    wanted: dict[str, set[tuple[str, str]]] = {}
    loaded: dict[str, Table] = {}
    for address in addresses or sorted({name.split("/")[0] for name in files}):
        named = list(_expand(address, files, drawn))
        for name, row, column in named:
            if name not in loaded:
                loaded[name] = load(files.get(name) or drawn[name])
            rows = _matching(row, [line.id for line in loaded[name].rows])
            columns = _matching(column, [line.id for line in loaded[name].columns])
            wanted.setdefault(name, set()).update((r, c) for r in rows for c in columns)
        if not any(wanted[name] for name, _, _ in named):
            name, row, column = named[0]
            ids = {"row": [line.id for line in loaded[name].rows], "column": [line.id for line in loaded[name].columns]}
            kind, part = ("row", row) if row is not None and not _matching(row, ids["row"]) else ("column", column)
            raise Misuse(f"'{address}': table {name} has no {kind} '{part}'.{nearest(part or '', ids[kind])}")
    return [
        Selection(loaded[name], frozenset(wanted[name])) for name in dict.fromkeys((*files, *drawn)) if wanted.get(name)
    ]


def find_slot(address: str, profile: str | None = None, papers: Path = PAPERS) -> Slot:
    """The one cell of a full address PAPER/TABLE/ROW/COLUMN; its `overrides` are those of its runs, less the seed."""
    if address.strip("/").count("/") != 3:
        raise Misuse(f"'{address}' is not one cell; a cell's address is PAPER/TABLE/ROW/COLUMN.")
    found = [slot for selection in select([address], papers) for slot in selection.slots(profile)]
    if len(found) != 1:
        raise Misuse(f"'{address}' means {len(found)} cells; name one.")
    return found[0]


def _expand(
    address: str, files: Mapping[str, Path], drawn: Mapping[str, Path]
) -> Iterable[tuple[str, str | None, str | None]]:
    """(PAPER/TABLE, row or None, column or None) of every table that the address covers."""
    parts = address.strip("/").split("/")
    if len(parts) > 4 or not all(parts):
        raise Misuse(f"'{address}' is not an address; one reads PAPER/TABLE/ROW/COLUMN, the last three optional.")
    papers = sorted({name.split("/")[0] for name in files})
    if not fnmatch.filter(papers, parts[0]):
        raise Misuse(f"There is no paper '{parts[0]}'.{nearest(parts[0], papers)}")
    name = "/".join((parts[0], parts[1] if len(parts) > 1 else "*"))
    names = [each for each in files if _fits(each, name)] or [each for each in drawn if each == name]
    if not names:
        raise Misuse(f"There is no table '{name}'.{nearest(name, [*files, *drawn])}")
    row, column = (parts[place] if len(parts) > place else None for place in (2, 3))
    return [(each, row, column) for each in names]


def _fits(name: str, pattern: str) -> bool:
    """Whether every part of `name` matches the pattern's part; * does not reach across a slash."""
    return all(map(fnmatch.fnmatchcase, name.split("/"), pattern.split("/")))


def _matching(pattern: str | None, ids: list[str]) -> list[str]:
    return ids if pattern is None else fnmatch.filter(ids, pattern)


def _by_number(name: str) -> list[tuple[int, int | str]]:
    """table2 before table10."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", name) if part]
