"""Figure files, results/papers/<paper>/figures/<figure>.yaml, and the series that a filled table gives for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from results import document, hyperparameters, number
from results.address import PAPERS, Selection, select
from results.cell import Cell, mean, sample_std
from results.collect import Collection
from results.fill import Sheet, fill
from results.plan import Compose
from results.table import Line
from runner.compose import compose as compose_config
from runner.errors import Misuse, nearest

_FIELDS = ("title", "kind", "table", "rows", "columns", "metric", "x", "xlabel", "ylabel", "yscale")
YSCALES = ("linear", "shortfall")


@dataclass(frozen=True)
class Figure:
    """`kind: sparsity_accuracy`: each row's cells over the columns; `x` is the config path of a cell's position.

    `kind: curves`: each row's metric over the epochs, of one column.
    """

    address: str  #: PAPER/FIGURE
    title: str
    kind: str
    table: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    metric: str | None
    x: str
    xlabel: str
    ylabel: str
    yscale: str  #: linear, or shortfall: the distance to 100 % on a logarithmic axis


@dataclass(frozen=True)
class Series:
    """One line: `mean` and `std` at each `x`; `std` is None where there is one run only.

    `flat`: one value for all x. `place` is the row's place among the table's rows of its sort and fixes its looks, so
    that a row looks the same in every figure of its table.
    """

    title: str
    x: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float | None, ...]
    place: int
    flat: bool = False


@dataclass(frozen=True)
class Plotted:
    """A figure ready to be drawn, and sentences on what is not in it."""

    figure: Figure
    title: str
    profile: str | None
    series: tuple[Series, ...]
    remarks: tuple[str, ...]


def figures(papers: Path = PAPERS) -> dict[str, Path]:
    """Address PAPER/FIGURE -> file, in order."""
    return {f"{path.parents[1].name}/{path.stem}": path for path in sorted(papers.glob("*/figures/*.yaml"))}


def choose(addresses: Sequence[str] = (), papers: Path = PAPERS) -> list[Figure]:
    """The figures of PAPER or PAPER/FIGURE addresses, each once; no address means all."""
    files = figures(papers)
    names = {name.split("/")[0] for name in files}
    wanted: dict[str, None] = {}
    for address in addresses:
        if address in names:
            wanted.update({name: None for name in files if name.startswith(f"{address}/")})
        elif address in files:
            wanted[address] = None
        else:
            raise Misuse(f"There is no figure '{address}'.{nearest(address, [*files, *names])}")
    return [load(files[name], papers) for name in wanted or files]


def load(path: Path, papers: Path = PAPERS) -> Figure:
    """The figure in `path`; Misuse names any mistake."""
    content = document.load(path)
    where = str(path)
    document.check_fields(content, where, _FIELDS, required=("title", "kind", "table"))
    for name, value in content.items():
        good = isinstance(value, list) and value if name in ("rows", "columns") else isinstance(value, str)
        if not good:
            raise Misuse(
                f"{where} has {name}: {value!r}; it is a {'list of ids' if name in ('rows', 'columns') else 'text'}."
            )
    if content["kind"] not in _PLOT:
        raise Misuse(f"{where} has the unknown kind '{content['kind']}'.{nearest(content['kind'], list(_PLOT))}")
    if str(content["table"]).count("/") != 1:
        raise Misuse(f"{where} has table: {content['table']}; it is an address PAPER/TABLE.")
    table = select([content["table"]], papers)[0].table
    if table.kind != "runs":
        raise Misuse(f"{where}: {content['table']} is no table of runs; it has nothing to draw.")
    chosen: dict[str, tuple[str, ...]] = {}
    for name, lines in (("rows", table.rows), ("columns", table.columns)):
        ids = [line.id for line in lines]
        chosen[name] = tuple(content.get(name, ids))
        for line in chosen[name]:
            if line not in ids:
                raise Misuse(f"{where}: {content['table']} has no {name[:-1]} '{line}'.{nearest(str(line), ids)}")
    if content["kind"] == "curves" and len(chosen["columns"]) != 1:
        raise Misuse(f"{where} draws curves of one column; name it, as in columns: [{chosen['columns'][0]}].")
    yscale = content.get("yscale", "linear")
    if yscale not in YSCALES:
        raise Misuse(f"{where} has the unknown yscale '{yscale}'.{nearest(yscale, YSCALES)}")
    return Figure(
        address=f"{path.parents[1].name}/{path.stem}",
        title=content["title"],
        kind=content["kind"],
        table=content["table"],
        rows=chosen["rows"],
        columns=chosen["columns"],
        metric=content.get("metric"),
        x=content.get("x", "method.sparsity"),
        xlabel=content.get("xlabel", "epoch" if content["kind"] == "curves" else "sparsity"),
        ylabel=content.get("ylabel", ""),
        yscale=yscale,
    )


def plot(
    figure: Figure,
    runs: Collection,
    profile: str | None = None,
    compose: Compose = compose_config,
    papers: Path = PAPERS,
) -> Plotted:
    """The figure's series. Cells without a value are left out and named; Misuse when nothing is left."""
    table = select([figure.table], papers)[0].table
    places = frozenset((row, column) for row in figure.rows for column in figure.columns)
    sheet = fill(Selection(table, places), runs, profile, compose)
    series, left_out = _PLOT[figure.kind](figure, sheet, runs)
    if not series:
        raise Misuse(f"{figure.address} would be empty: {figure.table} has no run with a value for it yet.")
    remarks = [f"{figure.address}: not drawn: {', '.join(left_out)}."] if left_out else []
    fewer = [f"{cell.row}/{cell.column} (n={cell.n})" for cell in sheet.cells.values() if cell.status == "partial"]
    if fewer:
        remarks.append(f"{figure.address}: drawn from fewer runs than the table asks for: {', '.join(fewer)}.")
    suffix = f" (profile {sheet.profile})" if sheet.profile else ""
    return Plotted(figure, figure.title + suffix, sheet.profile, tuple(series), tuple(remarks))


def _sparsity_accuracy(figure: Figure, sheet: Sheet, runs: Collection) -> tuple[list[Series], list[str]]:
    series, left_out = [], []
    for row, cells in _rows(figure, sheet):
        points = []
        for cell in cells[:1] if row.across else cells:
            middle = cell.mean
            if middle is None or not math.isfinite(middle):
                left_out.append(f"{cell.row}/{cell.column} ({cell.status if middle is None else middle})")
                continue
            x = math.nan if row.across else hyperparameters.lookup(figure.x, cell.config or {})
            points.append((float(x), middle, cell.std))
        if points:
            x_values, means, deviations = zip(*sorted(points, key=lambda point: point[0]), strict=True)
            series.append(Series(row.title, x_values, means, deviations, _place(row, sheet), flat=row.across))
    return series, left_out


def _curves(figure: Figure, sheet: Sheet, runs: Collection) -> tuple[list[Series], list[str]]:
    series, left_out = [], []
    for row, (cell,) in _rows(figure, sheet):
        metric = figure.metric or (cell.metric or "").rpartition(":")[2]
        histories = [_history(cell, seed, metric, runs) for seed in cell.values]
        shared = sorted(set.intersection(*map(set, histories))) if histories else []
        if not shared:
            left_out.append(f"{cell.row}/{cell.column} ({f'no {metric} by epoch' if histories else cell.status})")
            continue
        values = [[history[epoch] for history in histories] for epoch in shared]
        means = tuple(math.nan if (m := mean(at_epoch)) is None else m for at_epoch in values)
        deviations = tuple(sample_std(at_epoch) for at_epoch in values)
        series.append(Series(row.title, tuple(map(float, shared)), means, deviations, _place(row, sheet), row.across))
    return series, left_out


_PLOT: dict[str, Callable[[Figure, Sheet, Collection], tuple[list[Series], list[str]]]] = {
    "sparsity_accuracy": _sparsity_accuracy,
    "curves": _curves,
}


def _rows(figure: Figure, sheet: Sheet) -> list[tuple[Line, list[Cell]]]:
    """The figure's rows in the table's order, each with its cells in the table's order."""
    return [(row, [sheet.cells[row.id, column.id] for column in sheet.columns]) for row in sheet.rows]


def _place(row: Line, sheet: Sheet) -> int:
    return [line.id for line in sheet.table.rows if line.across == row.across].index(row.id)


def _history(cell: Cell, seed: int, metric: str, runs: Collection) -> dict[int, float]:
    """Epoch -> metric of one run; epochs without the metric are left out."""
    record = runs.get(cell.key or "", seed)
    history = {}
    for line in record.metrics if record is not None else ():
        value = number.read(line.get(metric))
        if value is not None and isinstance(line.get("epoch"), int):
            history[line["epoch"]] = value
    return history
