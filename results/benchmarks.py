"""What the committed records of `scripts/bench.py` say, as Markdown for the manual. No torch here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from results.collect import LOGGED
from runner.bench.figures import Figure, number

RECORDS = LOGGED / "bench"


def benchmarks(folder: Path = RECORDS) -> str:
    """A paragraph and folded tables for each record, a section of figures each: medians, ranges, what was wanted."""
    parts = [_told(path.stem, json.loads(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob("*.json"))]
    return "\n".join(parts) if parts else "No record is committed.\n"


def _told(name: str, record: Mapping[str, Any]) -> str:
    figures = [Figure(**{key: value for key, value in each.items() if key != "missed"}) for each in record["figures"]]
    wanted = [figure for figure in figures if figure.target is not None]
    missed = [figure for figure in wanted if figure.missed]
    environment = record["environment"]
    lines = [
        f"**`{name}`**: {environment['processor']} ({environment['instructions']}), {environment['cores']} cores,",
        f"torch {environment['packages']['torch']}, commit {environment['git']['commit'][:7]}, medians of "
        f"{record['rounds']} rounds, load {record['load']:.2f} at the end.",
        f"{len(wanted) - len(missed)} of {len(wanted)} targets are reached.",
        "",
    ]
    for section, members in groupby(figures, key=lambda figure: figure.section):
        every = list(members)
        short = [figure.name for figure in every if figure.missed]
        says = f"; missed: {', '.join(short)}" if short else ""
        lines += [
            f"<details><summary>{section}{says}</summary>",
            "",
            "| | median | range | wanted |",
            "|---|---|---|---|",
        ]
        lines += [_row(figure) for figure in every]
        lines += ["", "</details>", ""]
    return "\n".join(lines)


def _row(figure: Figure) -> str:
    wanted = ""
    if figure.target is not None:
        wanted = f"{'≤' if figure.at_most else '≥'} {number(figure.target)}" + (" **missed**" if figure.missed else "")
    spread = ""
    if figure.least is not None and figure.greatest is not None:
        spread = f"{number(figure.least)} to {number(figure.greatest)}"
    name = figure.name + (f" ({figure.note})" if figure.note else "")
    return f"| {name} | {number(figure.value)} {figure.unit} | {spread} | {wanted} |"
