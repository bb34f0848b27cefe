"""What the README says of the papers and of the choices, counted: `python -m results.status` writes it there anew.

Tables and cells of each paper, how many are read from configurations, how many have committed runs, and where.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from results.address import PAPERS, figures, select
from results.cell import Cell
from results.collect import LOGGED, Collection, collect
from results.fill import FULL, fill
from runner.compose import headline, names

README = Path(__file__).resolve().parents[1] / "README.md"
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


def main() -> int:
    """Write the README's parts anew, from the committed records."""
    parts = {"status": papers_table(collect([LOGGED])), "choices": choices()}
    README.write_text(written(README.read_text(encoding="utf-8"), parts), encoding="utf-8")
    return 0


def _measured(cells: Iterable[Cell]) -> int:
    return sum(cell.kind != "config" and bool(cell.values) for cell in cells)


def _profile(config: Any) -> Any:
    section = config.get("profile")
    return section.get("name") if isinstance(section, dict) else None


if __name__ == "__main__":
    sys.exit(main())
