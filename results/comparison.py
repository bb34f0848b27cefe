"""Which cell of a comparison group is the best beyond chance: Welch's test against the second, Holm over a table."""

from __future__ import annotations

import math
from collections.abc import Mapping

from results.cell import Cell
from results.statistics import holm, welch
from results.table import Table

Place = tuple[str, str]

# Of a cell that takes part without a value: it has lost, or there was never anything to compare.
_OUT = ("diverged", "absent", "beyond")


def best_places(table: Table, cells: Mapping[Place, Cell]) -> tuple[frozenset[Place], int]:
    """(the best of their groups, how many tests the table has).

    A group is judged once every one of its cells has its runs, has diverged or is absent. The best mean is compared
    with the second; with one run on either side there is no test, and nothing is marked.
    """
    p_values: dict[Place, float] = {}
    for group in table.groups:
        for family in group.families():
            judged = _first_two([cells[place] for place in family if place in cells])
            if judged is None:
                continue
            first, second = judged
            p = welch(list(first.values.values()), list(second.values.values()))
            if p is not None:
                place = (first.row, first.column)
                p_values[place] = max(p, p_values.get(place, 0.0))  # best of two groups: the harder test counts
    return frozenset(holm(p_values)), len(p_values)


def _first_two(cells: list[Cell]) -> tuple[Cell, Cell] | None:
    """The best and the runner-up by mean; None while a cell's runs are missing, or fewer than two have a value."""
    ranked = []
    for cell in cells:
        if cell.status in _OUT and cell.mean is None:
            continue
        if cell.status not in ("ok", "partial") or cell.mean is None or not math.isfinite(cell.mean):
            return None
        ranked.append(cell)
    if len(ranked) < 2 or len({cell.direction for cell in ranked}) > 1:
        return None
    ranked.sort(key=lambda cell: cell.mean or 0.0, reverse=ranked[0].direction == "up")
    return ranked[0], ranked[1]
