"""Sheets and figures as one HTML page that needs nothing else: no network, no other file, no script to be read."""

from __future__ import annotations

import base64
import functools
import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from results.cell import STATUSES, Cell
from results.collect import Collection
from results.fill import Sheet
from results.render import words
from results.render.report import agreement, alternative, embedded

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

    from results.figure import Figure, Plotted
    from results.table import Line

TEMPLATES = Path(__file__).resolve().parent / "report"

#: Where the page says it otherwise than `words.MEANING`: in text a cell that is whole explains itself.
_MEANINGS = {
    **words.MEANING,
    "ok": "every run that the table asks for, or a setting that is as printed",
    "needs": "not possible yet; the cell's details say what is not there",
}
_POWER = re.compile(r"10\^\{(-?\d+)\}")


@dataclass(frozen=True)
class Undrawn:
    """A figure that cannot be drawn yet, and the sentence that says why."""

    figure: Figure
    reason: str


@dataclass(frozen=True)
class Entry:
    """A cell as its place in the table shows it; `place` is its place among the page's cells."""

    place: int
    cell: Cell
    shown: words.Shown
    letters: str  #: of its footnotes
    verdict: agreement.Verdict | None  #: None where the page leaves out what the papers print
    printed: str  #: "" where there is nothing beside our value

    @property
    def agreement(self) -> str | None:
        return self.verdict.name if self.verdict else None


@dataclass(frozen=True)
class Progress:
    """How many of some cells are in each status, and how those with a value compare with their papers.

    `agreements`: measured values apart from settings, whose agreement takes no run. `measured`: complete ones.
    """

    statuses: Mapping[str, int]
    agreements: Mapping[str, Mapping[str, int]]
    measured: int

    @property
    def wanted(self) -> int:
        """Cells that the papers print or that have runs: all but the blank ones and those beyond."""
        return sum(self.statuses.values()) - self.statuses.get("absent", 0) - self.statuses.get("beyond", 0)

    @property
    def done(self) -> int:
        return self.statuses.get("ok", 0)

    @property
    def parts(self) -> list[tuple[str, int, float]]:
        """(status, cells, percent of the bar), in the order of STATUSES."""
        total = sum(self.statuses.values())
        return [(name, self.statuses[name], 100 * self.statuses[name] / total) for name in STATUSES if name in self]

    @property
    def sentence(self) -> str:
        return ", ".join(f"{count} {name}" for name, count, _ in self.parts)

    def __contains__(self, status: object) -> bool:
        return status in self.statuses


def render(
    sheets: Sequence[Sheet],
    runs: Collection,
    figures: Sequence[Plotted | Undrawn] = (),
    findings: Iterable[str] = (),
    published: bool = True,
    papers: Mapping[str, str] = MappingProxyType({}),
    root: Path | None = None,
) -> str:
    """The page. `findings`: sentences on the records behind it; `papers`: short name -> what to call the paper.

    Without `published` the papers' values and every comparison with them are left out. Run directories below `root`
    (default: the working directory) are written relative to it. The same arguments give the same page.
    """
    # Papers before what is none, each with its tables together: buttons name cells by their place on the page.
    order = list(dict.fromkeys(sheet.table.paper for sheet in sheets))
    sheets = sorted(sheets, key=lambda sheet: (sheet.table.paper not in papers, order.index(sheet.table.paper)))
    places = itertools.count()
    tables = [_table(sheet, places, published) for sheet in sheets]
    pictures = [_picture(figure, number) for number, figure in enumerate(figures)]
    entries = [entry for table in tables for entry in table["entries"]]
    content = embedded.details(sheets, [entry.verdict for entry in entries], runs, root or Path.cwd())
    content["meanings"] = _MEANINGS
    environment = _environment()
    script, style = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("script.js", "style.css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template("page.html.j2").render(
        papers=_papers(tables, pictures, papers),
        progress=_progress(entries),
        facts=_facts([entry.cell for entry in entries], runs),
        findings=[_finding(sentence) for sentence in findings],
        statuses=[(name, _MEANINGS[name]) for name in STATUSES if any(e.cell.status == name for e in entries)],
        signs=agreement.SIGNS,
        agreements=agreement.MEANINGS,
        published=published,
        profile=next((sheet.profile for sheet in sheets if sheet.profile), None),
        details=_markup(embedded.as_script(content)),
        style=_markup(style),
        script=_markup(script),
        script_digest=digest,
    )
    # A file's name may hold bytes that are no UTF-8; the page must be writable all the same.
    return page.encode("utf-8", "backslashreplace").decode("utf-8")


def _table(sheet: Sheet, places: Iterator[int], published: bool) -> dict[str, Any]:
    letters = words.footnote_letters(sheet)
    entries = [_entry(cell, next(places), letters, published) for cell in embedded.in_reading_order(sheet)]
    by_place = {(entry.cell.row, entry.cell.column): entry for entry in entries}

    def lines(rows: Iterable[Line]) -> list[tuple[Line, list[Entry | None]]]:
        return [(row, [by_place.get((row.id, column.id)) for column in sheet.columns]) for row in rows]

    return {
        "sheet": sheet,
        "address": sheet.table.address,
        "paper": sheet.table.paper,
        "entries": entries,
        "sections": [(name, lines(rows)) for name, rows in itertools.groupby(sheet.rows, lambda row: row.section)],
        "progress": _progress(entries),
        "legend": words.legend(sheet, published=False),
        "footnotes": {letter: note for note, letter in letters.items()},
        "profile": f" --profile {sheet.profile}" if sheet.profile else "",
        "settings": all(entry.cell.kind == "config" for entry in entries),
        "runnable": any(entry.cell.kind == "runs" and not entry.cell.needs for entry in entries),
    }


def _entry(cell: Cell, place: int, letters: Mapping[str, str], published: bool) -> Entry:
    shown = words.shown(cell, published)
    judged = agreement.verdict(cell) if published else None
    if shown.remark == cell.status == "differs":
        shown = replace(shown, remark="")  # the sign says it
    printed = {"absent": "not printed"}.get(shown.published, shown.published) if published else ""
    if judged and cell.text is not None and judged.name == agreement.AGREES:
        printed = "as printed"
    return Entry(place, cell, shown, ",".join(letters[note] for note in cell.footnotes), judged, printed)


def _picture(figure: Plotted | Undrawn, number: int) -> dict[str, Any]:
    picture: dict[str, Any] = {
        "figure": figure.figure,
        "address": figure.figure.address,
        "paper": figure.figure.address.split("/")[0],
        "table": figure.figure.table,
    }
    if isinstance(figure, Undrawn):
        return {
            **picture,
            "title": figure.figure.title,
            "reason": figure.reason.removeprefix(f"{figure.figure.address}: "),
        }
    from results.render.report.picture import inline, wide  # loads matplotlib

    return {
        **picture,
        "title": figure.title,
        "svg": _markup(inline(figure, f"f{number}-")),
        "wide": wide(figure),
        "described": alternative.described(figure),
        "numbers": alternative.numbers(figure),
        "remarks": figure.remarks,
    }


def _papers(
    tables: Sequence[dict[str, Any]], pictures: Sequence[dict[str, Any]], titles: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Each paper with its tables, each table with its figures; figures with cells of their own come last."""
    addresses = {table["address"] for table in tables}
    for table in tables:
        table["figures"] = [picture for picture in pictures if picture["table"] == table["address"]]
    papers = []
    for name in dict.fromkeys(part["paper"] for part in (*tables, *pictures)):
        own = [table for table in tables if table["paper"] == name]
        papers.append(
            {
                "name": name,
                "title": titles.get(name, ""),
                "tables": own,
                "figures": [p for p in pictures if p["paper"] == name and p["table"] not in addresses],
                "progress": _progress([entry for table in own for entry in table["entries"]]),
            }
        )
    return papers


def _progress(entries: Iterable[Entry]) -> Progress:
    statuses: Counter[str] = Counter()
    agreements: dict[str, Counter[str]] = {"measured": Counter(), "settings": Counter()}
    measured = 0
    for entry in entries:
        status, setting = entry.cell.status, entry.cell.kind == "config"
        statuses[status] += 1
        measured += status == "ok" and not setting
        if entry.agreement is not None:
            agreements["settings" if setting else "measured"][entry.agreement] += 1
    return Progress(statuses, {name: found for name, found in agreements.items() if found}, measured)


def _facts(cells: Sequence[Cell], runs: Collection) -> dict[str, Any]:
    """What the page is made of: its runs, and the commits of the code that made them."""
    used = {(cell.key, seed) for cell in cells for seed in cell.runs}
    records = [record for key, seed in used if key is not None and (record := runs.get(key, seed)) is not None]
    gits = [git for record in records if isinstance(git := record.environment.get("git"), Mapping)]
    return {
        "runs": len(records),
        "commits": sorted({str(git["commit"])[:9] for git in gits if git.get("commit")}),
        "dirty": sum(bool(git.get("dirty")) for git in gits),
    }


def _finding(sentence: str) -> dict[str, str]:
    """Sentences begin with what they are, "Problem: ..." or "Note: ..."."""
    kind, colon, rest = sentence.partition(": ")
    if colon and kind.lower() in ("problem", "note"):
        return {"kind": kind.lower(), "text": rest}
    return {"kind": "note", "text": sentence}


def _markup(text: str) -> Markup:
    """`text` as HTML that is inserted as it is: the page's own style and script, escaped JSON, pictures it drew."""
    from markupsafe import Markup

    return Markup(text)


def powers(text: str) -> Markup:
    """The papers' 10^{-5} with a raised exponent; everything else escaped."""
    from markupsafe import Markup, escape

    return Markup(_POWER.sub(lambda m: f"10<sup>{m[1].replace('-', '−')}</sup>", str(escape(text))))


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["powers"] = powers
    environment.filters["thousands"] = lambda number: f"{number:,}"
    return environment
