"""Everything about the cells as one JSON block of the page, each configuration and environment stored once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from results import number
from results.cell import Cell
from results.collect import Collection
from results.fill import Sheet
from results.record import Record
from results.render.report.agreement import Verdict
from runner.records import spell

# Facts of one site, and no part of a key: whoever reads the page elsewhere has no use for them.
_SITE = ("data", "runs", "cluster")


class Pool:
    """Stores equal mappings once, at every level: most configurations differ in a few values.

    A mapping becomes {"$": index into `mappings`}; its values may be such references again.
    """

    def __init__(self) -> None:
        self.mappings: list[dict[str, Any]] = []
        self._places: dict[str, int] = {}

    def add(self, value: Any) -> Any:
        """`value` (JSON-like) with every mapping in it replaced by a reference."""
        if isinstance(value, Mapping):
            entry = {str(name): self.add(part) for name, part in value.items()}
            spelt = json.dumps(entry)
            if spelt not in self._places:
                self._places[spelt] = len(self.mappings)
                self.mappings.append(entry)
            return {"$": self._places[spelt]}
        if isinstance(value, list | tuple):
            return [self.add(item) for item in value]
        return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def details(
    sheets: Sequence[Sheet], verdicts: Iterable[Verdict | None], runs: Collection, root: Path
) -> dict[str, Any]:
    """What the dialogs show. `cells` are in reading order, and so are their `verdicts`; None leaves out what the paper
    prints. Paths below `root` are written relative to it.
    """
    judged = iter(verdicts)
    pool = Pool()
    content: dict[str, Any] = {"tables": [], "cells": [], "runs": {}, "configs": {}, "pool": pool.mappings}
    for place, sheet in enumerate(sheets):
        content["tables"].append(
            {
                "address": sheet.table.address,
                "title": sheet.title,
                "rows": {row.id: row.title for row in sheet.rows},
                "columns": {column.id: column.title for column in sheet.columns},
            }
        )
        for cell in in_reading_order(sheet):
            content["cells"].append(_cell(cell, place, next(judged)))
            if cell.key is None:
                continue
            if cell.config is not None and cell.key not in content["configs"]:
                kept = {name: section for name, section in cell.config.items() if name not in (*_SITE, "seed")}
                content["configs"][cell.key] = pool.add(spell(kept))
            for seed, path in cell.runs.items():
                content["runs"][f"{cell.key}/seed{seed}"] = _run(path, runs.get(cell.key, seed), pool, root)
    return content


def in_reading_order(sheet: Sheet) -> list[Cell]:
    """The cells as the page has them, row by row; their places in it are how the page's buttons name them."""
    places = ((row.id, column.id) for row in sheet.rows for column in sheet.columns)
    return [sheet.cells[place] for place in places if place in sheet.cells]


def as_script(content: Any) -> str:
    """`content` as JSON that may stand inside <script>: pure ASCII, and no character that HTML gives a meaning."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def relative(path: Path, root: Path) -> str:
    """`path` as seen from `root` where it lies below it, else as it is."""
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _cell(cell: Cell, table: int, judged: Verdict | None) -> dict[str, Any]:
    """Empty entries are left out: most cells of a young project have few."""
    entries: dict[str, Any] = {
        "t": table,
        "r": cell.row,
        "c": cell.column,
        "status": cell.status,
        "kind": cell.kind,
        "metric": cell.metric,
        "direction": cell.direction,
        "unit": cell.unit,
        "digits": cell.digits,
        "profile": cell.profile,
        "key": cell.key,
        "overrides": list(cell.overrides),
        "seeds": list(cell.seeds),
        "states": [cell.states.get(seed, "missing") for seed in cell.seeds],
        "values": [cell.values.get(seed) for seed in cell.seeds] if cell.values else [],
        "n": cell.n,
        "mean": cell.mean,
        "std": cell.std,
        "interval": cell.interval,
        "text": cell.text,
        "best": cell.best,
        "needs": list(cell.needs),
        "operands": list(cell.operands),
        "footnotes": list(cell.footnotes),
        "problems": list(cell.problems),
    }
    if judged is not None:
        entries |= {
            "published": None if cell.published is None else cell.published.as_json(),
            "difference": cell.difference,
            "inside": cell.inside,
            "agreement": judged.name,
            "why": judged.why,
        }
    spelt: dict[str, Any] = spell(entries)
    # 0 is a value, and `inside` says something by being unknown.
    empty: tuple[Any, ...] = (None, False, "", [], {})
    return {
        name: value
        for name, value in spelt.items()
        if name == "inside" or not any(type(value) is type(each) and value == each for each in empty)
    }


def _run(path: Path, record: Record | None, pool: Pool, root: Path) -> dict[str, Any]:
    """`made`: the record's environment, git included; runs of one study share it."""
    run: dict[str, Any] = {"path": relative(path, root)}
    if record is not None:
        summary = record.summary or {}
        run |= {"reason": summary.get("reason"), "wall_s": number.read(summary.get("wall_s"))}
        run["made"] = pool.add(spell(dict(record.environment)))
    return {name: value for name, value in spell(run).items() if value is not None}
