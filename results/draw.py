"""Series as pictures: matplotlib without a display, PNG and SVG, colours that colour-blind readers can tell apart."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import NullLocator

from results.figure import Plotted, Series
from runner.errors import Misuse

# Okabe & Ito's palette, strongest contrasts first; black is kept for rows that hold for all columns (dense).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")  # one more than colours: no pair repeats before 56 rows
_ACCURACIES = (0, 20, 40, 60, 80, 90, 95, 97, 98, 98.5, 99, 99.5)  # ticks of a shortfall axis, %
_FLAT_STYLES = ("--", ":", "-.")

_STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.5,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "regrow",
}


def save(plotted: Plotted, folder: Path) -> list[Path]:
    """Draws the figure into <folder>/<paper>_<figure>[.<profile>].png and .svg; the same series give the same bytes."""
    stem = plotted.figure.address.replace("/", "_") + (f".{plotted.profile}" if plotted.profile else "")
    with mpl.rc_context(_STYLE):
        canvas = draw(plotted)
        paths = [folder / f"{stem}.png", folder / f"{stem}.svg"]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            canvas.savefig(paths[0], dpi=200)
            canvas.savefig(paths[1], metadata={"Date": None})
        except OSError as error:
            raise Misuse(f"{folder} does not take the figure: {error.strerror}.") from error
    return paths


def draw(plotted: Plotted) -> Canvas:
    """The figure on a canvas of its own: no global state of pyplot."""
    canvas = Canvas(figsize=(7.2, 4.2), layout=ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.08))
    axes = canvas.add_subplot()
    if plotted.figure.kind == "curves":
        for series in plotted.series:
            _curve(axes, series)
        axes.set_xlim(left=0)
    else:
        _points(axes, plotted.series)
    axes.set_title(plotted.title)
    axes.set_xlabel(plotted.figure.xlabel)
    axes.set_ylabel(plotted.figure.ylabel)
    if plotted.figure.yscale == "shortfall":
        _shortfall(axes)
    canvas.legend(loc="outside right upper")
    return canvas


def _points(axes: Axes, all_series: tuple[Series, ...]) -> None:
    """Means with standard deviations. The x axis is the density's logarithm: 80, 90, 95, 98, 99 % stand well apart."""
    lines = [series for series in all_series if not series.flat]
    for count, series in enumerate(lines):
        # A slight shift keeps the bars of different rows from covering each other.
        shift = 0.006 * (count - (len(lines) - 1) / 2)
        axes.errorbar(
            [_position(x) + shift for x in series.x],
            series.mean,
            yerr=[math.nan if std is None else std for std in series.std],
            color=_COLOURS[series.place % len(_COLOURS)],
            marker=_MARKERS[series.place % len(_MARKERS)],
            capsize=2.5,
            elinewidth=1,
            label=series.title,
        )
    for series in all_series:
        if not series.flat:
            continue
        value, std = series.mean[0], series.std[0]
        axes.axhline(value, color="black", linestyle=_flat_style(series), label=series.title, zorder=1)
        if std is not None:
            axes.axhspan(value - std, value + std, color="black", alpha=0.08, linewidth=0, zorder=0)
    ticks = sorted({x for series in lines for x in series.x})
    axes.set_xticks([_position(x) for x in ticks], [f"{100 * x:g} %" for x in ticks])
    axes.xaxis.set_minor_locator(NullLocator())


def _shortfall(axes: Axes) -> None:
    """Accuracies by their distance to 100 %, logarithmically: 98 and 98.5 % stand as well apart as 40 and 55 %."""
    low, high = axes.get_ylim()

    def forward(accuracy: Any) -> Any:
        return -np.log(np.maximum(100.0 - np.asarray(accuracy, dtype=float), 1e-3))

    axes.set_yscale("function", functions=(forward, lambda position: 100.0 - np.exp(-np.asarray(position))))
    high = min(high, max(float(np.nanmax(line.get_ydata())) for line in axes.get_lines()) + 0.25, 99.9)
    axes.set_ylim(low, high)
    ticks = [tick for tick in _ACCURACIES if low <= tick <= high]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.yaxis.set_minor_locator(NullLocator())


def _curve(axes: Axes, series: Series) -> None:
    colour = "black" if series.flat else _COLOURS[series.place % len(_COLOURS)]
    style = _flat_style(series) if series.flat else "-"
    every = max(1, len(series.x) // 8)
    axes.plot(
        series.x,
        series.mean,
        color=colour,
        linestyle=style,
        marker=None if series.flat else _MARKERS[series.place % len(_MARKERS)],
        markevery=(series.place % every, every),  # not where another row has its marks
        label=series.title,
    )
    deviations = [math.nan if std is None else std for std in series.std]
    low = [value - std for value, std in zip(series.mean, deviations, strict=True)]
    high = [value + std for value, std in zip(series.mean, deviations, strict=True)]
    axes.fill_between(series.x, low, high, color=colour, alpha=0.12, linewidth=0)


def _flat_style(series: Series) -> str:
    return _FLAT_STYLES[series.place % len(_FLAT_STYLES)]


def _position(sparsity: float) -> float:
    if not 0 <= sparsity < 1:
        raise Misuse(f"{sparsity:g} cannot be drawn as a sparsity; it lies outside 0 <= s < 1.")
    return -math.log10(1 - sparsity)
