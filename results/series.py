"""From a figure and the runs at hand to what is drawn: series or a grid, and sentences on what is missing in them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from methods import thresholds
from results import hyperparameters, number, published
from results.address import PAPERS
from results.cell import Cell
from results.collect import Collection
from results.figure import Figure, Grid, NotDrawn, Plotted, RunMetric, Series, recorder_of
from results.fill import Sheet, fill, titled
from results.plan import Compose
from results.record import Record
from results.statistics import mean, sample_std
from results.table import Line, Slot
from runner.compose import compose as compose_config
from runner.errors import Misuse

_SMOOTH = 400  # points of a curve that a schedule gives
_NAMED = 3  # run directories that a remark names


def plot(
    figure: Figure,
    runs: Collection,
    profile: str | None = None,
    compose: Compose = compose_config,
    papers: Path = PAPERS,
) -> Plotted:
    """The figure's content. What has no value is left out and named; NotDrawn when nothing is left."""
    slots = figure.selection.slots(profile)
    of_cells = [slot.needs for slot in slots] if all(slot.needs for slot in slots) else []
    if figure.needs or of_cells:
        raise _waiting(figure, (*figure.needs, *chain(*of_cells)))
    sheet = fill(figure.selection, runs, profile, compose, papers)
    if all(cell.needs for cell in sheet.cells.values()):  # also what the cells are derived from
        raise _waiting(figure, chain(*(cell.needs for cell in sheet.cells.values())))
    reader = _Reader(figure, sheet, runs, compose)
    content = _CONTENT[figure.kind](reader)
    if not reader.drawn:
        empty = f"{figure.address} would be empty: {figure.table} has no run with a value for it yet."
        raise NotDrawn(" ".join((empty, *reader.unrecorded())))
    return Plotted(
        figure, figure.title + titled(sheet.profile), sheet.profile, remarks=reader.remarks(content), **content
    )


def _waiting(figure: Figure, needs: Iterable[str]) -> NotDrawn:
    return NotDrawn(f"{figure.address}: needs: {', '.join(dict.fromkeys(needs))}.")


@dataclass(frozen=True)
class _Line:
    """What one series is drawn from: cells in order, its name, and its looks."""

    title: str
    cells: tuple[Cell, ...]
    place: int
    reference: bool
    flat: bool


@dataclass
class _Reader:
    """Reads the figure's cells and notes what is missing."""

    figure: Figure
    sheet: Sheet
    runs: Collection
    compose: Compose
    drawn: int = 0  #: cells with a value
    left_out: list[str] = field(default_factory=list)
    fewer: list[str] = field(default_factory=list)
    lacking: dict[str, dict[Path, None]] = field(default_factory=dict)  #: metric -> runs without its record
    unplaced: int = 0  #: printed values without an x

    def __post_init__(self) -> None:
        slots = self.figure.selection.slots(self.sheet.profile)
        self.slots: dict[tuple[str, str], Slot] = {slot.place: slot for slot in slots}

    # Which cells make a series

    def lines(self) -> Iterator[_Line]:
        """Of `points`: a series per row, or per column (and section of rows), over the lines of the other axis."""
        rows, columns = self.sheet.rows, self.sheet.columns
        if self.figure.series == "rows":
            for row in rows:
                yield self._line(_title(row, rows), [(row, column) for column in columns], row, self._place(row))
            return
        sections = list(dict.fromkeys(row.section for row in rows))
        for column in columns:
            for section in sections:
                pairs = [(row, column) for row in rows if row.section == section]
                parts = [column.title] * (len(columns) > 1 or len(sections) == 1) + [section] * (len(sections) > 1)
                place = self._place(column) * len(sections) + sections.index(section)
                yield self._line(", ".join(part for part in parts if part), pairs, column, place)

    def _line(self, title: str, pairs: list[tuple[Line, Line]], line: Line, place: int) -> _Line:
        cells = tuple(self.sheet.cells[row.id, column.id] for row, column in pairs)
        # One run for several places: it holds for all of them. What is derived has no run of its own.
        runs = {(cell.overrides, cell.metric) for cell in cells}
        derived = any(cell.kind == "derived" for cell in cells)
        flat = line.across or (len(cells) > 1 and len(runs) == 1 and not derived)
        return _Line(title, cells, place, _is_reference(line), flat)

    def single(self) -> Iterator[_Line]:
        """Of `curves` and `layers`: a series per cell, named by what varies; a line's one run counts once."""
        rows, columns = self.sheet.rows, self.sheet.columns
        pairs = [(row, column) for row in rows for column in columns]
        if self.figure.series == "columns":
            pairs = [(row, column) for column in columns for row in rows]
        for place, (row, column) in enumerate(pairs):
            if (row.across and column is not columns[0]) or (column.across and row is not rows[0]):
                continue
            title, line = _title(row, rows), row
            if len(rows) == 1 and len(columns) > 1:
                title, line = column.title, column
            elif len(columns) > 1 and column.across:
                title = column.title
            elif len(columns) > 1 and not row.across:
                title = f"{title}, {column.title}"
            one_axis = len(rows) == 1 or len(columns) == 1
            yield _Line(
                title,
                (self.sheet.cells[row.id, column.id],),
                self._place(line) if one_axis else place,
                _is_reference(row) or _is_reference(column),
                flat=False,
            )

    def _place(self, line: Line) -> int:
        """The line's place among those of its sort in the whole table, whatever part of it is drawn."""
        table = self.sheet.table
        lines = table.rows if line in table.rows else table.columns
        return [each.id for each in lines if _is_reference(each) == _is_reference(line)].index(line.id)

    # What a series shows

    def points(self) -> dict[str, Any]:
        """One series per line; the cells at their x."""
        found = [self._points(line) for line in self.lines()]
        return {"series": tuple(series for series in found if series.mean or series.published)}

    def _points(self, line: _Line) -> Series:
        points: list[tuple[float, float, float | None]] = []
        printed: list[tuple[float, float, float | None]] = []
        seen: set[tuple[str | None, str | None]] = set()
        for cell in line.cells[:1] if line.flat else line.cells:
            if cell.key is not None and (cell.key, cell.metric) in seen:
                continue
            seen.add((cell.key, cell.metric))
            if (middle := self._value(cell)) is not None and (x := self._x(cell, line.flat)) is not None:
                points.append((x, middle, cell.reach))
                self.drawn += 1
                self._count(cell, cell.n if cell.kind != "config" else len(cell.seeds))
            printed += self._printed(cell, line.flat)
        points.sort(key=lambda point: point[0])
        x_values, means, deviations = zip(*points, strict=True) if points else ((), (), ())
        return Series(
            line.title, x_values, means, deviations, line.place, line.reference, line.flat, tuple(sorted(printed))
        )

    def _value(self, cell: Cell) -> float | None:
        """The cell's number; None, and noted, when it has none that can be drawn."""
        value = cell.mean if cell.text is None else published.numbers(cell.text)[0]
        if value is None or not math.isfinite(value):
            self._leave_out(cell, None if value is None else str(value))
            return None
        return value

    def _x(self, cell: Cell, flat: bool) -> float | None:
        x = self.figure.x
        if flat:
            return math.nan
        if isinstance(x, str):
            return self._position(cell)
        records = [self.runs.get(cell.key or "", seed) for seed in cell.values]
        values = [record.value(x.metric) for record in records if record is not None]
        middle = mean([value * x.scale for value in values if value is not None])
        if middle is None or len(values) != cell.n or None in values or not math.isfinite(middle):
            self._leave_out(cell, f"no {x.metric}")
            return None
        return middle

    def _position(self, cell: Cell) -> float:
        """x as the configuration says it."""
        assert isinstance(self.figure.x, str)
        if self.figure.x == "at":
            at = self.slots[cell.row, cell.column].settings.at
            if at is None:
                raise Misuse(f"{cell.address} has no `at`, which {self.figure.address} takes for its x.")
            return at
        try:
            x = hyperparameters.evaluate(self.figure.x, cell.config or self.compose(cell.overrides))
        except Misuse as error:
            raise Misuse(f"{cell.address}: {error}") from error
        if not hyperparameters.is_number(x):
            raise Misuse(f"{cell.address}: {self.figure.x} is {x!r}, which is no place on an axis.")
        return float(x)

    def _printed(self, cell: Cell, flat: bool) -> list[tuple[float, float, float | None]]:
        """What the paper prints for the cell, at the x where it belongs; a profile's runs compare with no paper."""
        value = cell.published
        if value is None or value.mean is None or self.sheet.profile is not None:
            return []
        if flat:
            return [(math.nan, value.mean, value.std)]
        x, target = self.figure.x, self.slots[cell.row, cell.column].settings.target
        if isinstance(x, str):
            composable = not cell.needs and not any(each.endswith("=???") for each in cell.overrides)
            return [(self._position(cell), value.mean, value.std)] if composable else []
        if target is not None and isinstance(target.value, float) and target.metric == x.metric:
            return [(target.value * x.scale, value.mean, value.std)]
        self.unplaced += 1
        return []

    def curves(self) -> dict[str, Any]:
        """One series per cell over the epochs that all of its runs have."""
        found = []
        for line in self.single():
            (cell,) = line.cells
            settings = self.slots[cell.row, cell.column].settings
            metric = (settings.metric or "").removeprefix("best:")
            histories = [
                {epoch: value * (settings.scale or 1.0) for epoch, value in history.items()}
                for record in self._completed(cell)
                if (history := self._history(record, metric))
            ]
            shared = sorted(set.intersection(*map(set, histories))) if histories else []
            if not shared:
                self._leave_out(cell, f"no {metric} by epoch" if self._completed(cell) else None)
                continue
            self._count(cell, len(histories))
            found.append(_averaged(line, {epoch: [each[epoch] for each in histories] for epoch in shared}))
        self.drawn = len(found)
        return {"series": tuple(found)}

    def layers(self) -> dict[str, Any]:
        """One series per cell: the effective sparsity of every layer after training, at the layer's place."""
        by_line: list[tuple[_Line, list[dict[str, float]]]] = []
        for line in self.single():
            (cell,) = line.cells
            scale = self.slots[cell.row, cell.column].settings.scale or 1.0
            runs = [
                {name: value * scale for name, value in sparsities.items()}
                for record in self._completed(cell)
                if (sparsities := _layer_sparsities(record))
            ]
            if not runs:
                self._leave_out(cell, "no layers" if self._completed(cell) else None)
                continue
            self._count(cell, len(runs))
            by_line.append((line, runs))
        names = list(dict.fromkeys(name for _, runs in by_line for each in runs for name in each))
        found = []
        for line, runs in by_line:
            at = {names.index(name): [each[name] for each in runs if name in each] for name in names}
            found.append(_averaged(line, {x: values for x, values in at.items() if values}))
        self.drawn = len(found)
        return {"series": tuple(found), "names": tuple(names)}

    def heatmap(self) -> dict[str, Any]:
        """Means by row and column."""
        values, texts = [], []
        for row in self.sheet.rows:
            cells = [self.sheet.cells[row.id, column.id] for column in self.sheet.columns]
            middles = [self._value(cell) for cell in cells]
            for cell, middle in zip(cells, middles, strict=True):
                if middle is not None:
                    self.drawn += 1
                    self._count(cell, cell.n if cell.kind != "config" else len(cell.seeds))
            values.append(tuple(math.nan if middle is None else middle for middle in middles))
            texts.append(tuple(_text(cell, middle) for cell, middle in zip(cells, middles, strict=True)))
        labels = {f"{cell.metric or ''}{f', {cell.unit}' if cell.unit else ''}" for cell in self.sheet.cells.values()}
        rows, columns = ((tuple(line.title for line in lines)) for lines in (self.sheet.rows, self.sheet.columns))
        label = labels.pop() if len(labels) == 1 else ""
        return {"grid": Grid(rows, columns, tuple(values), tuple(texts), label)}

    def schedule(self) -> dict[str, Any]:
        """One series per cell: what the schedule of its configuration gives, from the first step to the last."""
        found = []
        for line in self.single():
            (cell,) = line.cells
            if cell.needs:
                self._leave_out(cell)
                continue
            config = cell.config or self.compose(cell.overrides)
            try:
                threshold = thresholds.of(config["method"], config["schedule"], _steps(config["schedule"]["epochs"]))
            except ValueError as error:
                raise Misuse(f"{cell.address}: {error}; it cannot be drawn.") from error
            points = threshold.trace() if self.figure.quantity == "threshold" else threshold.penalties()
            x, y = zip(*points, strict=True)
            found.append(Series(line.title, x, y, (None,) * len(x), line.place, line.reference))
        self.drawn = len(found)
        return {"series": tuple(found)}

    # Runs, and what they lack

    def _completed(self, cell: Cell) -> list[Record]:
        records = [self.runs.get(cell.key, seed) for seed in cell.seeds] if cell.key is not None else []
        return [record for record in records if record is not None and record.status == "completed"]

    def _history(self, record: Record, metric: str) -> dict[int, float]:
        """Epoch -> metric of one run, from its lines or from its summary's series; empty, and noted, without it."""
        history = record.history(metric)
        recorder = recorder_of(metric)
        if not history and recorder is not None and recorder not in ((record.summary or {}).get("records") or ()):
            self.lacking.setdefault(metric, {})[record.path] = None
        return history

    def _leave_out(self, cell: Cell, why: str | None = None) -> None:
        reason = f"needs {', '.join(cell.needs)}" if cell.needs else why or cell.status
        self.left_out.append(f"{cell.row}/{cell.column} ({reason})")

    def _count(self, cell: Cell, runs: int) -> None:
        if runs < len(cell.seeds):
            self.fewer.append(f"{cell.row}/{cell.column} (n={runs})")

    def unrecorded(self) -> list[str]:
        """Sentences on complete runs that lack what the figure shows, and the mend."""
        sentences = []
        for metric, paths in self.lacking.items():
            named = ", ".join(map(str, list(paths)[:_NAMED])) + (", ..." if len(paths) > _NAMED else "")
            sentences.append(
                f"{self.figure.address}: {len(paths)} complete run(s) have not recorded {metric}: {named}. What is "
                f"recorded is settled when a run begins: move them away and submit {self.figure.table} again, or "
                f"repeat them with trainer.records=[{recorder_of(metric)}] into another runs root and name that first "
                "in --runs."
            )
        return sentences

    def remarks(self, content: Mapping[str, Any]) -> tuple[str, ...]:
        """What the drawing does not show by itself."""
        name = self.figure.address
        found = []
        if self.left_out:
            found.append(f"{name}: not drawn: {', '.join(self.left_out)}.")
        if self.fewer:
            found.append(f"{name}: drawn from fewer runs than the table asks for: {', '.join(self.fewer)}.")
        found += self.unrecorded()
        if self.unplaced and isinstance(self.figure.x, RunMetric):
            found.append(
                f"{name}: {self.unplaced} printed value(s) are left out: the paper's {self.figure.x.metric} is unknown."
            )
        series: tuple[Series, ...] = content.get("series", ())
        if self.figure.yscale == "log" and (hidden := sum(value <= 0 for each in series for value in each.mean)):
            found.append(f"{name}: {hidden} value(s) of 0 or below do not show on a logarithmic axis.")
        return tuple(found)


_CONTENT = {
    "points": _Reader.points,
    "curves": _Reader.curves,
    "layers": _Reader.layers,
    "heatmap": _Reader.heatmap,
    "schedule": _Reader.schedule,
}


def _steps(epochs: int) -> int:
    """Steps of an epoch, so that there are enough of them for a smooth curve."""
    return max(1, math.ceil(_SMOOTH / epochs))


def _is_reference(line: Line) -> bool:
    """Dense networks, and lines that hold for the whole other axis: what the others are compared with."""
    return line.across or "method=dense" in line.overrides


def _title(row: Line, rows: tuple[Line, ...]) -> str:
    """The row's title, with its section where another section has a row of the same title."""
    alone = [each.title for each in rows].count(row.title) == 1
    return row.title if alone or row.section is None else f"{row.section}: {row.title}"


def _averaged(line: _Line, values: Mapping[int, list[float]]) -> Series:
    """Mean and standard deviation over the runs at each x."""
    means = tuple(math.nan if (middle := mean(each)) is None else middle for each in values.values())
    deviations = tuple(sample_std(each) for each in values.values())
    return Series(line.title, tuple(map(float, values)), means, deviations, line.place, line.reference)


def _layer_sparsities(record: Record) -> dict[str, float]:
    """Layer -> share of its weights that are zero after training, in the model's order."""
    layers = (record.summary or {}).get("layers")
    found = {}
    for name, layer in layers.items() if isinstance(layers, Mapping) else ():
        nonzero, total = (number.read(layer.get(count)) for count in ("nonzero", "total"))
        if nonzero is not None and total:
            found[str(name).removesuffix(".weight")] = 1 - nonzero / total
    return found


def _text(cell: Cell, middle: float | None) -> str:
    """What stands in a heatmap's cell: our value, below it the paper's; or why there is none."""
    ours = cell.status if middle is None else f"{middle:.{cell.digits}f}"
    printed = cell.published is not None and cell.published.mean is not None and cell.profile is None
    return f"{ours}\n({cell.published.text})" if printed and cell.published is not None else ours
