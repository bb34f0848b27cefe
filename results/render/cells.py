"""Sheets as one list of cells: the JSON that others script against. Non-finite numbers are "nan", "inf", "-inf"."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from results.cell import Cell
from results.fill import Sheet
from runner.records import spell


def render(sheets: Sequence[Sheet], published: bool = True) -> str:
    """A JSON list over all sheets; the published values are always in it."""
    content = [cell_as_json(cell) for sheet in sheets for cell in sheet.cells.values()]
    return json.dumps(spell(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def cell_as_json(cell: Cell) -> dict[str, Any]:
    """`measured.values` follow `measured.seeds`, the seeds that have a value; `states` has every wanted seed.

    `interval` is the 95 % confidence interval of the mean, `inside` whether the published mean lies in it, `difference`
    measured less published.
    """
    return {
        "address": cell.address,
        "table": cell.table,
        "row": cell.row,
        "column": cell.column,
        "profile": cell.profile,
        "key": cell.key,
        "overrides": list(cell.overrides),
        "kind": cell.kind,
        "needs": list(cell.needs),
        "operands": list(cell.operands),
        "metric": cell.metric,
        "direction": cell.direction,
        "unit": cell.unit,
        "published": None if cell.published is None else cell.published.as_json(),
        "measured": {
            "mean": cell.mean,
            "std": cell.std,
            "n": cell.n,
            "interval": None if cell.interval is None else list(cell.interval),
            "values": list(cell.values.values()),
            "seeds": list(cell.values),
            "states": {str(seed): state for seed, state in cell.states.items()},
            "status": cell.status,
            "runs": [str(path) for path in cell.runs.values()],
            "text": cell.text,
        },
        "difference": cell.difference,
        "inside": cell.inside,
        "best": cell.best,
        "footnotes": list(cell.footnotes),
    }
