"""A drawn figure for whoever does not see it: a sentence on what it shows, and its numbers as a table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from results.figure import Plotted, Series

#: More positions than these are not listed one by one: of an epoch curve first, lowest, highest and last say more.
LISTED = 12

_NONE = "–"
Point = tuple[float, float, float | None]  # x, mean, std


def described(plotted: Plotted) -> str:
    """What a screen reader says in place of the picture."""
    figure, grid = plotted.figure, plotted.grid
    if grid is not None:
        what = f"{grid.label or 'values'} for {len(grid.rows)} rows and {len(grid.columns)} columns"
        return f"Heat map: {plotted.title}. {what}. The numbers follow below."
    axes = " against ".join(label for label in (figure.ylabel or "values", figure.xlabel) if label)
    lines = ", ".join(series.title for series in plotted.series)
    return f"Plot: {plotted.title}. {axes}, for {lines}. The numbers follow below."


def numbers(plotted: Plotted) -> dict[str, Any]:
    """{corner, head, rows}: a row per series, (title, texts); a column per position, or four that sum a curve up."""
    if plotted.grid is not None:
        return {
            "corner": "",
            "head": plotted.grid.columns,
            "rows": list(zip(plotted.grid.rows, plotted.grid.texts, strict=True)),
        }
    lines = [(series.title, series.flat, _points(series)) for series in plotted.series if series.mean]
    lines += [
        (f"{series.title} (paper)", series.flat, list(series.published))
        for series in plotted.series
        if series.published
    ]
    positions = sorted({x for _, flat, points in lines if not flat for x, _, _ in points})
    if len(positions) > LISTED and not plotted.names:
        head: Sequence[str] = ["first", "lowest", "highest", "last"]
        return {"corner": "", "head": head, "rows": [(title, _summary(flat, points)) for title, flat, points in lines]}
    head = [plotted.names[int(x)] if plotted.names else f"{x:g}" for x in positions]
    rows = [(title, _at(positions, flat, points)) for title, flat, points in lines]
    return {"corner": plotted.figure.xlabel, "head": head, "rows": rows}


def _points(series: Series) -> list[Point]:
    return list(zip(series.x, series.mean, series.std, strict=True))


def _at(positions: Iterable[float], flat: bool, points: Sequence[Point]) -> list[str]:
    if flat:
        return [_text(*points[0]) for _ in positions]
    found = {x: _text(x, value, std) for x, value, std in points}
    return [found.get(x, _NONE) for x in positions]


def _summary(flat: bool, points: Sequence[Point]) -> list[str]:
    finite = [point for point in points if math.isfinite(point[1])]
    if not finite or flat:
        return [_text(*finite[0]) if finite else _NONE] * 4
    lowest, highest = (choose(finite, key=lambda point: point[1]) for choose in (min, max))
    return [f"{_text(*point)} at {point[0]:g}" for point in (finite[0], lowest, highest, finite[-1])]


def _text(_x: float, value: float, std: float | None) -> str:
    return f"{value:.5g}" + ("" if std is None else f" ± {std:.2g}")
