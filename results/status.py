"""What is committed of results, made anew from the committed records by `python -m results.status`.

The tables in results/shown, and what the manuals say of the papers, of the choices and of speed, counted.
Methods, tables and cells of each paper, how many are read from configurations, how many have committed runs, and where.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from results.address import PAPERS, Selection, figures, select, tables
from results.benchmarks import benchmarks
from results.cell import Cell
from results.collect import LOGGED, Collection, collect, write_atomically
from results.fill import FULL, fill
from results.render import FORMATS
from runner.compose import headline, names
from runner.packages import VARIABLE

README = Path(__file__).resolve().parents[1] / "README.md"
MANUAL = Path(__file__).with_name("README.md")
RUNNING = README.parent / "runner" / "README.md"
SHOWN = Path(__file__).with_name("shown")
COLUMNS = (
    "paper",
    "methods",
    "tables",
    "figures",
    "printed",
    "read",
    "differ",
    "train",
    "measured",
    "stand-ins",
    "measured there",
    "profiles",
    "networks",
    "devices",
)
_SAYS = {
    "methods": "methods in its tables",
    "tables": "tables with printed entries (numbers in the text are one)",
    "figures": "figures",
    "printed": "cells with a printed entry",
    "read": "of these: read from configurations and built models, equal",
    "differ": "of these: read so, and not as printed",
    "train": "of these: need training or timing",
    "measured": "of which measured here in full",
    "stand-ins": "tables of ours",
    "measured there": "cells measured in those, or under a shorter profile",
    "profiles": "profiles",
    "networks": "networks measured here, and their data",
    "devices": "on",
}


@dataclass(frozen=True)
class Measured:
    """What committed records fill of a table under a profile (None: its full settings)."""

    address: str
    profile: str | None
    cells: int
    wanted: int  #: cells that take training
    runs: int
    networks: tuple[str, ...]  #: with their data
    devices: tuple[str, ...]
    sources: tuple[str, ...]  #: the tables from which cells without runs of their own derive


def rows(runs: Collection, papers: Path = PAPERS) -> list[dict[str, Any]]:
    """One a paper, in the folders' order, under the names of COLUMNS.

    Beside those `filled` lists what is `Measured`, and `differing` the cells that are read and not as printed.
    """
    profiles = {_profile(record.config) for record in runs.runs.values()} - {FULL}
    shortened = sorted(str(profile) for profile in profiles if profile)
    found: dict[str, dict[str, Any]] = {}
    drawn = Counter(name.split("/")[0] for name in figures(papers))
    used: dict[str, set[str]] = defaultdict(set)
    for selection in select((), papers):
        paper = selection.table.paper
        row = found.setdefault(
            paper,
            {"paper": paper, **dict.fromkeys(COLUMNS[1:11], 0), "figures": drawn[paper], "filled": [], "differing": []},
        )
        whole = list(fill(selection, runs).cells.values())
        used[paper] |= _methods(whole)
        printed = [cell for cell in whole if cell.published is not None]
        row["tables" if printed else "stand-ins"] += 1
        if printed:
            row["printed"] += len(printed)
            read = [cell for cell in printed if cell.kind == "config"]
            row["read"] += sum(cell.status == "ok" for cell in read)
            row["differing"] += [cell for cell in read if cell.status == "differs"]
            others = [cell for cell in printed if cell.kind != "config" and cell.status != "absent"]
            row["train"] += len(others)
            row["measured"] += _measured(others)
        else:
            row["measured there"] += _measured(whole)
        row["filled"] += _filled(selection, whole, runs, None)
        trained = {slot.place for slot in selection.slots() if slot.settings.kind != "config"}
        for profile in shortened if trained else ():
            cells = list(fill(replace(selection, places=frozenset(trained)), runs, profile).cells.values())
            row["measured there"] += _measured(cells)
            row["filled"] += _filled(selection, cells, runs, profile)
    for paper, row in found.items():
        row["methods"] = len(used[paper])
        row["differ"] = len(row["differing"])
        row["profiles"] = sorted({each.profile for each in row["filled"] if each.profile})
        row["networks"] = sorted({network for each in row["filled"] for network in each.networks})
        row["devices"] = sorted({device for each in row["filled"] for device in each.devices})
    return list(found.values())


def papers_table(every: Sequence[Mapping[str, Any]]) -> str:
    """The table of `rows`, of what has something printed."""
    every = [row for row in every if row["tables"]]
    lines = ["| | " + " | ".join(f"`{row['paper']}`" for row in every) + " |"]
    lines.append("|---" * (len(every) + 1) + "|")
    for name, says in _SAYS.items():
        entries = (_listed(value) if isinstance(value := row[name], list) else f"{value:,}" for row in every)
        lines.append(f"| {says} | " + " | ".join(entries) + " |")
    return "\n".join(lines) + "\n"


def measured_table(every: Sequence[Mapping[str, Any]]) -> str:
    """The tables that committed records fill, wholly or in part: cells, runs, networks, where."""
    lines = ["| table | profile | cells filled | runs | networks and data | on |", "|---|---|---|---|---|---|"]
    for each in (each for row in every for each in row["filled"]):
        runs = str(each.runs) if each.runs else "those of " + _listed(f"`{source}`" for source in each.sources)
        cells = [f"`{each.address}`", each.profile or FULL, f"{each.cells} of {each.wanted}", runs]
        lines.append("| " + " | ".join([*cells, _listed(each.networks), _listed(each.devices)]) + " |")
    return "\n".join(lines) + "\n"


def differing_table(every: Sequence[Mapping[str, Any]]) -> str:
    """The cells that are read from configurations and built models, and are not as printed."""
    lines = ["| cell | here | printed |", "|---|---|---|"]
    for cell in (cell for row in every for cell in row["differing"]):
        lines.append(f"| `{cell.address}` | {cell.text} | {cell.published.text} |")
    return "\n".join(lines) + "\n"


def choices() -> str:
    """The methods, models and data sets with what their files say of them, each list folded."""
    lines = []
    for group, title in (("method", "methods"), ("model", "models"), ("dataset", "data sets")):
        every = names(group)
        lines += [f"<details><summary>{len(every)} {title}</summary>", ""]
        lines += [f"- `{name}`: {headline(group, name)}" for name in every]
        lines += ["", "</details>", ""]
    return "\n".join(lines[:-1]) + "\n"


def written(text: str, parts: Mapping[str, str]) -> str:
    """`text` with what stands between the marks of each part replaced; ValueError without the marks."""
    for name, part in parts.items():
        begin, end = f"<!-- {name}: python -m results.status -->\n", f"<!-- end of {name} -->\n"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"there is no {begin.strip()} with its {end.strip()}")
        text = before + begin + "\n" + part + "\n" + end + after
    return text


def shown(runs: Collection, folder: Path = SHOWN) -> dict[str, str]:
    """The committed tables by the names of their files, <paper>_<table>[.<profile>].md, made of `runs`."""
    addresses = {address.replace("/", "_"): address for address in tables()}
    found = {}
    for path in sorted(folder.glob("*.md")):
        name, _, profile = path.stem.partition(".")
        if name in addresses:
            (selection,) = select([addresses[name]])
            found[path.name] = FORMATS["md"]([fill(selection, runs, profile or None)], False)
    return found


def parts(runs: Collection) -> dict[Path, dict[str, str]]:
    """What is written into the manuals: file -> name of the part -> its text."""
    every = rows(runs)
    return {
        README: {"status": papers_table(every), "choices": choices()},
        RUNNING: {"bench": benchmarks()},
        MANUAL: {"measured": measured_table(every), "differing": differing_table(every)},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the committed tables and the manuals' counts anew; with --out the tables only, into that folder."""
    parser = argparse.ArgumentParser(prog="python -m results.status", description=main.__doc__)
    parser.add_argument("--out", type=Path, metavar="DIR", help="write the tables there, and leave the manuals alone")
    out = parser.parse_args(arguments).out
    os.environ.pop(VARIABLE, None)  # what is committed tells of nobody's own package
    runs = collect([LOGGED])
    for name, text in shown(runs).items():
        write_atomically((out or SHOWN) / name, text)
    if out is None:
        for file, texts in parts(runs).items():
            write_atomically(file, written(file.read_text(encoding="utf-8"), texts))
    return 0


def _measured(cells: Iterable[Cell]) -> int:
    return sum(cell.kind != "config" and bool(cell.values) for cell in cells)


def _filled(selection: Selection, cells: Sequence[Cell], runs: Collection, profile: str | None) -> list[Measured]:
    """What of a table has been measured, if anything has."""
    trained = [cell for cell in cells if cell.kind != "config"]
    full = [cell for cell in trained if cell.values]
    if not full:
        return []
    records = {record.path: record for record in runs.runs.values()}
    behind = [records[path] for path in sorted({path for cell in full for path in cell.runs.values()})]
    networks = {f"`{record.config['model']['name']}` on `{record.config['dataset']['name']}`" for record in behind}
    devices = {_device(record.environment) for record in behind}
    address = f"{selection.table.paper}/{selection.table.name}"
    sources = {operand.rsplit("/", 2)[0] for cell in full for operand in cell.operands} - {address}
    counts = len(full), len(trained), len(behind)
    return [Measured(address, profile, *counts, *(tuple(sorted(names)) for names in (networks, devices, sources)))]


def _methods(cells: Iterable[Cell]) -> set[str]:
    """The choices of `method` that they name."""
    chosen = (override.partition("=") for cell in cells for override in cell.overrides)
    return {value for group, _, value in chosen if group == "method"}


def _device(environment: Mapping[str, Any]) -> str:
    """What a run computed on: the card's name, else the kind of device."""
    return str(environment.get("device_name") or str(environment.get("device", "unknown")).upper())


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _profile(config: Any) -> Any:
    section = config.get("profile")
    return section.get("name") if isinstance(section, dict) else None


if __name__ == "__main__":
    sys.exit(main())
