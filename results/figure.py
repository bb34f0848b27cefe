"""Figure files, results/papers/<paper>/figures/<figure>.yaml: which cells, on which axes, and what runs must record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from results import document, settings, table
from results.address import PAPERS, Selection, figures, select
from results.calibration import applied
from results.plan import Compose, composed, runnable
from results.settings import Settings
from results.table import Exceptional, Slot, Table
from runner.compose import compose as compose_config
from runner.errors import Misuse, nearest
from runner.recorders import RECORDERS

#: What each kind of plot takes beside the fields of every figure.
KINDS: Mapping[str, tuple[str, ...]] = {
    "points": ("x", "xscale", "yscale", "series", "metric", "scale"),
    "curves": ("xscale", "yscale", "series", "metric", "scale"),
    "layers": ("yscale", "series", "scale"),
    "heatmap": ("metric", "scale"),
    "schedule": ("xscale", "yscale", "series", "quantity"),
}
#: Of `schedule`: the threshold, or the L1 penalty that its growth implies, in units of that of LATS with the same end.
QUANTITIES = ("threshold", "l1_penalty")
#: density: the logarithm of 1 - x, for sparsities; shortfall: of the distance to 100 %, for accuracies.
XSCALES = ("linear", "log", "density")
YSCALES = ("linear", "log", "shortfall")

_COMMON = ("title", "plot", "xlabel", "ylabel", "records", "needs", "notes")
_OF_TABLE = ("table", "rows", "columns")


class NotDrawn(Misuse):
    """There is nothing to draw (yet): what the figure needs is not there, or none of its runs is."""


@dataclass(frozen=True)
class RunMetric:
    """A position that is read from the runs: the mean over the seeds of `scale` times the metric."""

    metric: str
    scale: float = 1.0


@dataclass(frozen=True)
class Figure:
    """`points`: a series per row over the columns, at `x`. `curves`: a metric by epoch, a curve per cell. `layers`: the
    sparsity of every layer at the end, a series per cell. `heatmap`: rows x columns. `schedule`: a `quantity` of soft
    threshold pruning over the share of the training, from the cells' configurations alone, a curve per cell.

    `series: columns`: a series per column over the rows, and where these have sections, per column and section.
    """

    address: str  #: PAPER/FIGURE
    title: str
    kind: str  #: what the file says in `plot`
    selection: Selection  #: the cells; a metric of the figure's own is put in place of theirs
    x: str | RunMetric  #: an expression over the configuration, `at` for the cells' own number, or a metric
    xlabel: str
    ylabel: str
    xscale: str
    yscale: str
    series: str  #: rows or columns
    records: tuple[str, ...]
    needs: tuple[str, ...]
    notes: tuple[str, ...]
    quantity: str = QUANTITIES[0]

    @property
    def table(self) -> str:
        """The address of the table whose cells it draws; its own where it has cells of its own."""
        return self.selection.table.address


@dataclass(frozen=True)
class Series:
    """One line: `mean` and `std` (what a table prints behind its ±) at each `x`; None where there is one run only.

    `published`: what the paper prints, as (x, mean, std). `place` is the line's place among the table's lines of its
    sort and fixes its looks, so that it looks the same in every figure of its table. `reference`: dense networks and
    lines that hold for the whole other axis. `flat`: one value for all x.
    """

    title: str
    x: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float | None, ...]
    place: int
    reference: bool = False
    flat: bool = False
    published: tuple[tuple[float, float, float | None], ...] = ()


@dataclass(frozen=True)
class Grid:
    """A heatmap: `values` by row and column, nan where there is none; `texts` say what stands there."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    texts: tuple[tuple[str, ...], ...]
    label: str


@dataclass(frozen=True)
class Plotted:
    """A figure ready to be drawn, and sentences on what is not in it. `names`: of layers, at x = 0, 1, ..."""

    figure: Figure
    title: str
    profile: str | None
    series: tuple[Series, ...] = ()
    remarks: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    grid: Grid | None = None


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


def records(
    slots: Iterable[Slot], compose: Compose = compose_config, profile: str | None = None, papers: Path = PAPERS
) -> dict[str, tuple[str, ...]]:
    """Key -> what the runs of these slots must record, for all figures of all papers; other keys are left out.

    `profile`: the one that the slots were made with. Cells that need what is not there yet ask for nothing.
    """
    found: dict[str, set[str]] = {}  # key -> names of recorders
    keys: dict[tuple[str, ...], str] = {}

    def key(slot: Slot) -> str:
        if slot.overrides not in keys:
            keys[slot.overrides] = composed(slot, compose).key
        return keys[slot.overrides]

    # Only files that ask for records, and only then their cells: tables are many and long.
    contents = {path: document.load(path) for path in figures(papers).values()}
    recorded = [load(path, papers) for path, content in contents.items() if "records" in content]
    read = [(figure, slot) for figure in recorded if not figure.needs for slot in figure.selection.slots(profile)]
    wanted = {key(slot) for slot in slots if runnable(slot)} if read else set()
    for figure, asked in read:
        slot, _ = applied(asked, compose)
        if runnable(slot) and key(slot) in wanted:
            found.setdefault(key(slot), set()).update(figure.records)
    return {name: tuple(each for each in RECORDERS if each in names) for name, names in found.items()}


def recorder_of(metric: str) -> str | None:
    """The name of the recorder that gives `metric` by epoch; None for what every run has."""
    fitting = (name for name, each in RECORDERS.items() if any(fnmatchcase(metric, p) for p in each.metrics))
    return next(fitting, None)


def load(path: Path, papers: Path = PAPERS) -> Figure:
    """The figure in `path`; Misuse names any mistake."""
    content = document.load(path)
    where = str(path)
    address = f"{path.parents[1].name}/{path.stem}"
    if "plot" not in content:
        raise Misuse(f"{where} lacks the field 'plot'.{nearest('', KINDS)}")
    kind = _one_of(content, "plot", where, tuple(KINDS))
    own = () if "table" in content else tuple(name for name in table.FIELDS if name not in _OF_TABLE)
    document.check_fields(
        content,
        where,
        dict.fromkeys((*_COMMON, *_OF_TABLE, *KINDS[kind], *own)),
        required=("title", *(("table",) if "table" in content else ("rows", "columns"))),
    )
    needs = document.texts(content.get("needs", []), f"{where}: needs")
    if "table" in content:
        selection = _of_table(content, where, papers)
    else:
        fields = {name: value for name, value in content.items() if name in table.FIELDS}
        cells = table.parse(fields, path.parents[1].name, path.stem, where)
        selection = Selection(cells, frozenset(slot.place for slot in cells.slots()))
    default_x = "method.sparsity" if kind == "points" else ""
    x = _x(content.get("x", default_x), f"{where}: x")
    figure = Figure(
        address=address,
        title=document.text(content["title"], f"{where}: title"),
        kind=kind,
        selection=selection,
        x=x,
        xlabel=_label(content, "xlabel", where, _XLABELS.get(kind, "") or (x if isinstance(x, str) else x.metric)),
        ylabel=_label(content, "ylabel", where, ""),
        xscale=_one_of(content, "xscale", where, XSCALES if kind not in ("curves", "schedule") else ("linear", "log")),
        yscale=_one_of(content, "yscale", where, YSCALES),
        series=_one_of(content, "series", where, ("rows", "columns")),
        records=_records(content, where, needs),
        needs=needs,
        notes=document.texts(content.get("notes", []), f"{where}: notes"),
        quantity=_one_of(content, "quantity", where, QUANTITIES),
    )
    _check_metrics(figure, where)
    return figure


_XLABELS = {"curves": "epoch", "layers": "layer", "heatmap": " ", "schedule": "share of the training"}


def _of_table(content: Mapping[str, Any], where: str, papers: Path) -> Selection:
    """The chosen cells of the table that the figure names."""
    name = document.text(content["table"], f"{where}: table")
    if name.count("/") != 1:
        raise Misuse(f"{where} has table: {name}; it is an address PAPER/TABLE.")
    source = select([name], papers)[0].table
    chosen = {}
    for axis, lines in (("rows", source.rows), ("columns", source.columns)):
        ids = [line.id for line in lines]
        chosen[axis] = document.texts(content[axis], f"{where}: {axis}") if axis in content else tuple(ids)
        for line in chosen[axis]:
            if line not in ids:
                raise Misuse(f"{where}: {name} has no {axis[:-1]} '{line}'.{nearest(line, ids)}")
        if not chosen[axis]:
            raise Misuse(f"{where} has {axis}: []; leave it out to draw them all.")
    places = frozenset((row, column) for row in chosen["rows"] for column in chosen["columns"])
    over = settings.parse({name: content[name] for name in ("metric", "scale") if name in content}, where)
    if over.metric is not None or content["plot"] == "layers":
        over = over.over(Settings(scale=1.0))
    elif over.scale is not None:
        raise Misuse(f"{where} has a scale but no metric that it belongs to; the cells' own is scaled already.")
    return Selection(_with(source, places, over), places)


def _with(source: Table, places: Iterable[tuple[str, str]], over: Settings) -> Table:
    """`source` with `over` above the settings of these places; what a paper printed belongs to its own metric."""
    if over == Settings():
        return replace(source, groups=())
    nothing = Exceptional()
    cells = {place: source.cells.get(place, nothing) for place in places}
    cells = {place: replace(cell, settings=over.over(cell.settings)) for place, cell in cells.items()}
    return replace(source, cells={**source.cells, **cells}, published={}, groups=())


def _x(entry: object, where: str) -> str | RunMetric:
    if isinstance(entry, str):
        return entry
    fields = document.check_fields(entry, where, ("metric", "scale"), required=("metric",))
    parsed = settings.parse(fields, where)
    return RunMetric(document.text(fields["metric"], f"{where}: metric"), parsed.scale or 1.0)


def _label(content: Mapping[str, Any], name: str, where: str, default: str) -> str:
    return document.text(content[name], f"{where}: {name}") if name in content else default.strip()


def _one_of(content: Mapping[str, Any], name: str, where: str, options: Sequence[str]) -> str:
    value = content.get(name, options[0])
    if value not in options:
        raise Misuse(f"{where} has the unknown {name} '{value}'.{nearest(str(value), options)}")
    return str(value)


def _records(content: Mapping[str, Any], where: str, needs: Sequence[str]) -> tuple[str, ...]:
    names = document.texts(content.get("records", []), f"{where}: records")
    for name in names:
        if name not in RECORDERS and f"record={name}" not in needs:
            raise Misuse(f"{where} has the unknown record '{name}'.{nearest(name, RECORDERS)}")
    return names


def _check_metrics(figure: Figure, where: str) -> None:
    """A curve of what only a recorder knows must ask for it, or no run would have it."""
    for slot in figure.selection.slots() if figure.kind == "curves" else ():
        if slot.settings.kind != "runs":
            raise Misuse(f"{where}: {slot.address} is not made of runs; it has no curve.")
        recorder = recorder_of(slot.settings.metric or "")
        if recorder is not None and recorder not in figure.records:
            raise Misuse(f"{where} draws {slot.settings.metric} by epoch; add records: [{recorder}].")
