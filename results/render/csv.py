"""Sheets as CSV, a line per cell: for spreadsheets and data frames."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Sequence
from typing import Any

from results.fill import Sheet
from results.render.cells import cell_as_json
from runner.records import spell

FIELDS = (
    "table",
    "row",
    "column",
    "kind",
    "profile",
    "key",
    "metric",
    "unit",
    "status",
    "needs",
    "n",
    "mean",
    "std",
    "low",
    "high",
    "values",
    "text",
    "published_mean",
    "published_std",
    "published_text",
    "difference",
    "inside",
    "best",
    "overrides",
)


def render(sheets: Sequence[Sheet], published: bool = True) -> str:
    """One header, then every cell; values in one field are separated by spaces, overrides quoted as for a shell."""
    target = io.StringIO()
    writer = csv.DictWriter(target, FIELDS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for sheet in sheets:
        for cell in sheet.cells.values():
            writer.writerow(_flat(spell(cell_as_json(cell))))
    return target.getvalue()


def _flat(cell: dict[str, Any]) -> dict[str, Any]:
    printed = cell["published"] or {"mean": None, "std": None, "text": None, "mark": None}
    measured = cell["measured"]
    low, high = measured["interval"] or (None, None)
    return {
        **cell,
        **measured,
        "low": low,
        "high": high,
        "needs": " ".join(cell["needs"]),
        "values": " ".join(map(str, measured["values"])),
        "overrides": shlex.join(cell["overrides"]),
        "published_mean": printed["mean"],
        "published_std": printed["std"],
        "published_text": printed["mark"] or printed["text"],
    }
