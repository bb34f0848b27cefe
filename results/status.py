"""What is committed of results, made anew from the committed records by `python -m results.status`.

The tables in results/shown, and what the README says of the papers and of the choices, counted.
Tables and cells of each paper, how many are read from configurations, how many have committed runs, and where.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from results.address import PAPERS, figures, select, tables
from results.cell import Cell
from results.collect import LOGGED, Collection, collect, write_atomically
from results.fill import FULL, fill
from results.render import FORMATS
from runner.compose import headline, names
from runner.packages import VARIABLE

README = Path(__file__).resolve().parents[1] / "README.md"
SHOWN = Path(__file__).with_name("shown")
COLUMNS = (
    "paper",
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
)
_SAYS = {
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
}


def rows(runs: Collection, papers: Path = PAPERS) -> list[dict[str, Any]]:
    """One a paper, in the folders' order, under the names of COLUMNS."""
    profiles = {_profile(record.config) for record in runs.runs.values()} - {FULL}
    shortened = sorted(str(profile) for profile in profiles if profile)
    found: dict[str, dict[str, Any]] = {}
    drawn = Counter(name.split("/")[0] for name in figures(papers))
    for selection in select((), papers):
        paper = selection.table.paper
        row = found.setdefault(
            paper, {"paper": paper, "figures": drawn[paper], **dict.fromkeys(COLUMNS[3:10], 0), "tables": 0}
        )
        row.setdefault("profiles", [])
        whole = list(fill(selection, runs).cells.values())
        printed = [cell for cell in whole if cell.published is not None]
        row["tables" if printed else "stand-ins"] += 1
        if printed:
            row["printed"] += len(printed)
            read = [cell for cell in printed if cell.kind == "config"]
            row["read"] += sum(cell.status == "ok" for cell in read)
            row["differ"] += sum(cell.status == "differs" for cell in read)
            others = [cell for cell in printed if cell.kind != "config" and cell.status != "absent"]
            row["train"] += len(others)
            row["measured"] += _measured(others)
        else:
            row["measured there"] += _measured(whole)
        trained = {slot.place for slot in selection.slots() if slot.settings.kind != "config"}
        for profile in shortened if trained else ():
            if count := _measured(fill(replace(selection, places=frozenset(trained)), runs, profile).cells.values()):
                row["measured there"] += count
                row["profiles"] = sorted({*row["profiles"], profile})
    return list(found.values())


def papers_table(runs: Collection, papers: Path = PAPERS) -> str:
    """The table of `rows`, of what has something printed."""
    every = [row for row in rows(runs, papers) if row["tables"]]
    lines = ["| | " + " | ".join(f"`{row['paper']}`" for row in every) + " |"]
    lines.append("|---" * (len(every) + 1) + "|")
    for name, says in _SAYS.items():
        entries = (", ".join(value) if isinstance(value := row[name], list) else f"{value:,}" for row in every)
        lines.append(f"| {says} | " + " | ".join(entries) + " |")
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the committed tables and the README's counts anew; with --out the tables only, into that folder."""
    parser = argparse.ArgumentParser(prog="python -m results.status", description=main.__doc__)
    parser.add_argument("--out", type=Path, metavar="DIR", help="write the tables there, and leave the README alone")
    out = parser.parse_args(arguments).out
    os.environ.pop(VARIABLE, None)  # what is committed tells of nobody's own package
    runs = collect([LOGGED])
    for name, text in shown(runs).items():
        write_atomically((out or SHOWN) / name, text)
    if out is None:
        parts = {"status": papers_table(runs), "choices": choices()}
        write_atomically(README, written(README.read_text(encoding="utf-8"), parts))
    return 0


def _measured(cells: Iterable[Cell]) -> int:
    return sum(cell.kind != "config" and bool(cell.values) for cell in cells)


def _profile(config: Any) -> Any:
    section = config.get("profile")
    return section.get("name") if isinstance(section, dict) else None


if __name__ == "__main__":
    sys.exit(main())
