"""Addresses PAPER[/TABLE[/ROW[/COLUMN]]]: which table files there are, and which of their cells are meant."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from results.table import Line, Slot, Table, load
from runner.errors import Misuse, nearest

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
    """Address PAPER/TABLE -> file, in order; a paper's figures lie one folder deeper and are not among them."""
    return {f"{path.parent.name}/{path.stem}": path for path in sorted(papers.glob("*/*.yaml"))}


def select(addresses: Sequence[str] = (), papers: Path = PAPERS) -> list[Selection]:
    """The cells that the addresses mean, one Selection a table, in the files' order; no address means all."""
    files = tables(papers)
    wanted: dict[str, set[tuple[str, str]]] = {}
    loaded: dict[str, Table] = {}
    for address in addresses or sorted({name.split("/")[0] for name in files}):
        for name, row, column in _expand(address, files):
            if name not in loaded:
                loaded[name] = load(files[name])
            table = loaded[name]
            rows = _matching(address, row, [line.id for line in table.rows], f"table {name}", "row")
            columns = _matching(address, column, [line.id for line in table.columns], f"table {name}", "column")
            wanted.setdefault(name, set()).update((r, c) for r in rows for c in columns)
    return [Selection(loaded[name], frozenset(wanted[name])) for name in files if name in wanted]


def find_slot(address: str, profile: str | None = None, papers: Path = PAPERS) -> Slot:
    """The one cell of a full address PAPER/TABLE/ROW/COLUMN; its `overrides` are those of its runs, less the seed."""
    if address.strip("/").count("/") != 3:
        raise Misuse(f"'{address}' is not one cell; a cell's address is PAPER/TABLE/ROW/COLUMN.")
    return select([address], papers)[0].slots(profile)[0]


def _expand(address: str, files: dict[str, Path]) -> Iterable[tuple[str, str | None, str | None]]:
    """(PAPER/TABLE, row or None, column or None) of every table that the address covers."""
    parts = address.strip("/").split("/")
    if len(parts) > 4 or not all(parts):
        raise Misuse(f"'{address}' is not an address; one reads PAPER/TABLE/ROW/COLUMN, the last three optional.")
    papers = sorted({name.split("/")[0] for name in files})
    if parts[0] not in papers:
        raise Misuse(f"There is no paper '{parts[0]}'.{nearest(parts[0], papers)}")
    if len(parts) == 1:
        return [(name, None, None) for name in files if name.startswith(f"{parts[0]}/")]
    name = "/".join(parts[:2])
    if name not in files:
        raise Misuse(f"There is no table '{name}'.{nearest(name, list(files))}")
    return [(name, parts[2] if len(parts) > 2 else None, parts[3] if len(parts) > 3 else None)]


def _matching(address: str, name: str | None, ids: list[str], where: str, kind: str) -> list[str]:
    if name is None:
        return ids
    if name not in ids:
        raise Misuse(f"'{address}': {where} has no {kind} '{name}'.{nearest(name, ids)}")
    return [name]
