"""Figures as pictures: matplotlib without a display, PNG and SVG, colours that colour-blind readers can tell apart."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text
from matplotlib.ticker import EngFormatter, MaxNLocator, NullLocator

from results.figure import Grid, Plotted, Series
from runner.errors import Misuse

# Okabe & Ito's palette, strongest contrasts first; black is kept for references (dense).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")  # one more than colours: no pair repeats before 56 rows
_DASHES = ("--", ":", "-.")
_MISSING = "#E8E8E8"
_ACCURACIES = (0, 20, 40, 60, 80, 90, 95, 97, 98, 98.5, 99, 99.5)  # ticks of a shortfall axis, %
_SPARSITIES = (0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999)
_TICKS = 8  # where there are more positions than these, round ones are labelled
_SHORT = 6  # characters of a label; what is measured has more digits than a choice
_APART = 0.1  # of the axis: labels closer than this would touch
_NAMES = 70  # layers' names that fit side by side
_LEGEND = 28  # names in a column of the legend

#: matplotlib settings of every figure.
STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.5,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "regrow",
}


@dataclass(frozen=True)
class _Scale:
    """An axis: where a value lies on it and back, which values it can show, and what it is called in complaints."""

    forward: Callable[[Any], Any]
    backward: Callable[[Any], Any]
    shows: Callable[[float], bool]
    name: str


_SCALES = {
    "linear": _Scale(lambda x: x, lambda p: p, lambda x: True, "an axis"),
    "log": _Scale(np.log10, lambda p: 10.0**p, lambda x: x > 0, "a logarithmic axis"),
    # 80, 90, 95, 98 and 99 % stand well apart.
    "density": _Scale(
        lambda s: -np.log10(np.maximum(1 - s, 1e-12)), lambda p: 1 - 10.0**-p, lambda s: 0 <= s < 1, "a sparsity axis"
    ),
}


def save(plotted: Plotted, folder: Path) -> list[Path]:
    """Draws the figure into <folder>/<paper>_<figure>[.<profile>].png and .svg; the same series give the same bytes."""
    stem = plotted.figure.address.replace("/", "_") + (f".{plotted.profile}" if plotted.profile else "")
    with mpl.rc_context(STYLE):
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
    figure = plotted.figure
    canvas = Canvas(layout=ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.08))
    axes = canvas.add_subplot()
    if plotted.grid is not None:
        _heatmap(canvas, axes, plotted.grid)
    else:
        _DRAW[figure.kind](axes, plotted)
        if figure.yscale == "shortfall":
            _shortfall(axes)
        elif figure.yscale == "log":
            axes.set_yscale("log")
            axes.set_ylim(bottom=_floor(plotted))
        _legend(canvas, axes, plotted)
    axes.set_xlabel(figure.xlabel)
    axes.set_ylabel(figure.ylabel)
    _fit_texts(canvas, axes, plotted.title)
    return canvas


def _legend(canvas: Canvas, axes: Axes, plotted: Plotted) -> None:
    """Beside the axes, in the series' order; the canvas grows with what is to be named."""
    order = {series.title: place for place, series in enumerate(plotted.series)}
    named = sorted(zip(*axes.get_legend_handles_labels(), strict=True), key=lambda each: order.get(each[1], len(order)))
    handles, labels = zip(*named, strict=True)
    columns = math.ceil(len(labels) / _LEGEND)
    letters = max(map(len, labels)) * columns
    wide = 7.2 + 0.07 * max(0, letters - 17) + min(3.0, max(0.0, 0.11 * len(plotted.names) - 4.5))
    canvas.set_size_inches(wide, max(4.2, 0.4 + 0.19 * math.ceil(len(labels) / columns)))
    size = "medium" if len(labels) <= 14 else "small"
    canvas.legend(handles, labels, loc="outside right upper", ncols=columns, fontsize=size)


def _fit_texts(canvas: Canvas, axes: Axes, text: str) -> None:
    """Title and labels in as many lines as the axes are wide and high: none may be cut or reach below the legend."""
    x, y = axes.xaxis.label, axes.yaxis.label
    canvas.draw_without_rendering()  # still without the title: one long line would leave the axes no width
    _wrap(y, y.get_window_extent().height / (0.85 * axes.get_window_extent().height))  # the title takes some of it
    canvas.draw_without_rendering()  # the more lines it has, the less wide the axes are
    for part in (x, axes.set_title(text)):
        _wrap(part, part.get_window_extent().width / axes.get_window_extent().width)


def _wrap(part: Text, overrun: float) -> None:
    """Into as many lines as the text is too long."""
    if overrun > 1:
        words = part.get_text()
        part.set_text("\n".join(textwrap.wrap(words, max(20, int(0.95 * len(words) / overrun)))))


def _points(axes: Axes, plotted: Plotted) -> None:
    """Means with standard deviations as bars; what the paper prints as hollow marks."""
    scale = _SCALES[plotted.figure.xscale]
    lines = [series for series in plotted.series if not series.flat]
    xs = sorted({x for each in lines for x in (*each.x, *(point[0] for point in each.published))})
    for x in xs:
        if not scale.shows(x):
            raise Misuse(f"{plotted.figure.address}: x = {x:g} cannot be drawn on {scale.name}.")
    _set_xscale(axes, plotted.figure.xscale)
    span = scale.forward(xs[-1]) - scale.forward(xs[0]) if xs else 0.0
    for count, series in enumerate(lines):
        # A slight shift keeps the bars of different rows from covering each other.
        shift = 0.005 * span * (count - (len(lines) - 1) / 2)
        _bars(axes, series, [scale.backward(scale.forward(x) + shift) for x in series.x])
        printed = [(scale.backward(scale.forward(x) + shift), *rest) for x, *rest in series.published]
        _hollow(axes, series, printed)
    for series in plotted.series:
        if series.flat:
            _level(axes, series)
    if any(series.published for series in plotted.series):
        axes.plot([], [], color="#555555", marker="o", linestyle="none", markerfacecolor="none", label="paper")
    _xticks(axes, xs, plotted.figure.xscale)


def _bars(axes: Axes, series: Series, x: Sequence[float]) -> None:
    if not x:
        return
    axes.errorbar(
        x,
        series.mean,
        yerr=[math.nan if std is None else std for std in series.std],
        color=_colour(series),
        linestyle=_dash(series),
        marker=_marker(series),
        capsize=2.5,
        elinewidth=1,
        label=series.title,
    )


def _hollow(axes: Axes, series: Series, printed: Sequence[tuple[float, float, float | None]]) -> None:
    if not printed:
        return
    x, means, deviations = zip(*printed, strict=True)
    axes.errorbar(
        x,
        means,
        yerr=[math.nan if std is None else std for std in deviations],
        color=_colour(series),
        linestyle="none",
        marker=_marker(series),
        markersize=8,
        markerfacecolor="none",
        markeredgewidth=1.1,
        elinewidth=0.8,
        label=None if series.x else series.title,  # a row without runs is known by its hollow marks
    )


def _level(axes: Axes, series: Series) -> None:
    """One value for all x: a level line; the paper's stands at its right end."""
    if series.mean:
        value, std = series.mean[0], series.std[0]
        axes.axhline(value, color=_colour(series), linestyle=_dash(series, "--"), label=series.title, zorder=1)
        if std is not None:
            axes.axhspan(value - std, value + std, color=_colour(series), alpha=0.08, linewidth=0, zorder=0)
    for _, value, _ in series.published:
        axes.plot(
            [1],
            [value],
            color=_colour(series),
            marker=_marker(series),
            markersize=8,
            markerfacecolor="none",
            linestyle="none",
            transform=axes.get_yaxis_transform(),
            clip_on=False,
            label=None if series.mean else series.title,
        )


def _curves(axes: Axes, plotted: Plotted) -> None:
    _set_xscale(axes, plotted.figure.xscale)
    for series in plotted.series:
        every = max(1, len(series.x) // 8)
        axes.plot(
            series.x,
            series.mean,
            color=_colour(series),
            linestyle=_dash(series, "--"),
            marker=None if series.reference else _marker(series),
            markevery=(series.place % every, every),  # not where another row has its marks
            label=series.title,
        )
        low, high = _band(series, _floor(plotted) if plotted.figure.yscale == "log" else -math.inf)
        axes.fill_between(series.x, low, high, color=_colour(series), alpha=0.12, linewidth=0)
    if plotted.figure.xscale == "linear":
        axes.set_xlim(left=0)


def _schedule(axes: Axes, plotted: Plotted) -> None:
    _set_xscale(axes, plotted.figure.xscale)
    for series in plotted.series:
        dash = ("-", *_DASHES)[series.place // len(COLOURS) % (1 + len(_DASHES))]
        axes.plot(series.x, series.mean, color=_colour(series), linestyle=dash, label=series.title)
    if plotted.figure.xscale == "linear":
        axes.set_xlim(0, 1)


def _layers(axes: Axes, plotted: Plotted) -> None:
    for count, series in enumerate(plotted.series):
        shift = min(0.08, 0.4 / len(plotted.series)) * (count - (len(plotted.series) - 1) / 2)
        axes.errorbar(
            [x + shift for x in series.x],
            series.mean,
            yerr=[math.nan if std is None else std for std in series.std],
            color=_colour(series),
            linestyle=_dash(series),
            linewidth=0.7,
            marker=_marker(series),
            markersize=5 if len(plotted.names) <= 60 else 3,
            capsize=2,
            elinewidth=0.8,
            label=series.title,
        )
    step = math.ceil(len(plotted.names) / _NAMES)
    shown = range(0, len(plotted.names), step)
    rotation = 0 if len(plotted.names) <= 6 and max(map(len, plotted.names)) <= 12 else 90
    axes.set_xticks(
        list(shown),
        [plotted.names[place] for place in shown],
        rotation=rotation,
        fontsize="medium" if len(plotted.names) <= 20 else 6,
    )
    axes.set_xlim(-0.5, len(plotted.names) - 0.5)


_DRAW: dict[str, Callable[[Axes, Plotted], None]] = {
    "points": _points,
    "curves": _curves,
    "layers": _layers,
    "schedule": _schedule,
}


def _heatmap(canvas: Canvas, axes: Axes, grid: Grid) -> None:
    """The first row above, as in a table."""
    canvas.set_size_inches(2.6 + max(0.8 * len(grid.columns), 2.0), 1.4 + max(0.45 * len(grid.rows), 1.6))
    values = np.ma.masked_invalid(np.array(grid.values))
    axes.set_facecolor(_MISSING)
    mesh = axes.pcolormesh(values, cmap="cividis", edgecolors="white", linewidth=1)
    low, high = mesh.get_clim()
    for row, texts in enumerate(grid.texts):
        for column, text in enumerate(texts):
            value = grid.values[row][column]
            dark = math.isfinite(value) and value < (low + high) / 2
            axes.text(
                column + 0.5, row + 0.5, text, ha="center", va="center", color="white" if dark else "black", fontsize=9
            )
    axes.set_xticks([place + 0.5 for place in range(len(grid.columns))], grid.columns)
    axes.set_yticks([place + 0.5 for place in range(len(grid.rows))], grid.rows)
    axes.invert_yaxis()
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    colours = canvas.colorbar(mesh, ax=axes, label=grid.label)
    colours.outline.set_visible(False)


def _shortfall(axes: Axes) -> None:
    """Accuracies by their distance to 100 %, logarithmically: 98 and 98.5 % stand as well apart as 40 and 55 %."""
    low, high = axes.get_ylim()

    def forward(accuracy: Any) -> Any:
        return -np.log(np.maximum(100.0 - np.asarray(accuracy, dtype=float), 1e-3))

    axes.set_yscale("function", functions=(forward, lambda position: 100.0 - np.exp(-np.asarray(position))))
    drawn = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axes.get_lines()])
    high = min(high, float(np.nanmax(drawn)) + 0.25, 99.9)
    axes.set_ylim(low, high)
    ticks = [tick for tick in _ACCURACIES if low <= tick <= high]
    if len(ticks) < 3:
        ticks = [tick for tick in MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high) if low <= tick <= high]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.yaxis.set_minor_locator(NullLocator())


def _set_xscale(axes: Axes, name: str) -> None:
    if name == "density":
        scale = _SCALES[name]
        axes.set_xscale("function", functions=(scale.forward, scale.backward))
    elif name == "log":
        axes.set_xscale("log")


def _xticks(axes: Axes, xs: Sequence[float], name: str) -> None:
    """Ticks at the positions themselves where these are few, apart and short; a sparsity axis has round ones else."""
    scale = _SCALES[name]
    places = [scale.forward(x) for x in xs]
    span = places[-1] - places[0] if places else 0.0
    few = 0 < len(xs) <= _TICKS and all(b - a >= _APART * span for a, b in pairwise(places))
    if name == "density":
        low, high = (min(xs, default=0.0), max(xs, default=0.0))
        ticks = xs if few else [tick for tick in _SPARSITIES if low <= tick <= high] or [low, high]
        axes.set_xticks(ticks, [f"{100 * tick:g} %" for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
    elif max(map(abs, xs), default=0.0) >= 1e5:
        axes.xaxis.set_major_formatter(EngFormatter())
        if few and name == "log":
            axes.set_xticks(xs)
            axes.xaxis.set_minor_locator(NullLocator())
    elif few and max(len(f"{x:g}") for x in xs) <= _SHORT:
        axes.set_xticks(xs, [f"{x:g}" for x in xs])
        axes.xaxis.set_minor_locator(NullLocator())


def _floor(plotted: Plotted) -> float:
    """Where a logarithmic axis begins: below the smallest mean that it can show."""
    values = [value for each in plotted.series for value in (*each.mean, *(point[1] for point in each.published))]
    return 0.7 * min((value for value in values if value > 0), default=1.0)


def _band(series: Series, floor: float) -> tuple[list[float], list[float]]:
    deviations = [math.nan if std is None else std for std in series.std]
    low = [max(value - std, floor) for value, std in zip(series.mean, deviations, strict=True)]
    high = [value + std for value, std in zip(series.mean, deviations, strict=True)]
    return low, high


def _colour(series: Series) -> str:
    return "black" if series.reference else COLOURS[series.place % len(COLOURS)]


def _marker(series: Series) -> str:
    return MARKERS[series.place % len(MARKERS)]


def _dash(series: Series, default: str = "-") -> str:
    """References are told apart by their dashes."""
    return _DASHES[series.place % len(_DASHES)] if series.reference else "-" if not series.flat else default
