"""A selection of a table and the collected runs make a sheet: the table with its cells filled, nothing guessed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from results import hyperparameters, published
from results.address import PAPERS, Selection, find_slot
from results.calibration import CALIBRATIONS, applied
from results.cell import Cell
from results.collect import Collection
from results.comparison import best_places
from results.document import load
from results.engines import Unmeasured
from results.plan import Compose, composed
from results.record import Record, extensions
from results.settings import SPREADS
from results.statistics import interpolated
from results.table import Line, Slot, Table, operands
from runner.compose import Composition
from runner.compose import compose as compose_config
from runner.compose import file as file_of
from runner.errors import Misuse
from runner.untrusted import printable

#: The profile that is no profile: the paper's own settings.
FULL = "full"


def titled(profile: str | None) -> str:
    """What a title adds for a profile: its name, and what it changes."""
    if profile is None:
        return ""
    return f" (profile {profile}: {load(file_of('profile', profile))['says']})"


@dataclass(frozen=True)
class Sheet:
    """A table as it can be printed. `cells` holds every selected place; rows and columns are those with any."""

    table: Table
    profile: str | None
    rows: tuple[Line, ...]
    columns: tuple[Line, ...]
    cells: Mapping[tuple[str, str], Cell]
    tests: int = 0  #: comparisons of best and runner-up that the whole table has

    @property
    def title(self) -> str:
        return self.table.title + titled(self.profile)

    @property
    def complete(self) -> bool:
        return all(cell.settled for cell in self.cells.values())


def fill(
    selection: Selection,
    runs: Collection,
    profile: str | None = None,
    compose: Compose = compose_config,
    papers: Path = PAPERS,
    calibrations: Path = CALIBRATIONS,
) -> Sheet:
    """Fills the selected cells; `profile` (any but `full`) changes every cell's overrides and so its runs."""
    profile = None if profile == FULL else profile
    table = selection.table
    filler = _Filler(runs, profile, compose, papers, calibrations)
    # Which cell is the best of its group depends on all of them, whatever part is wanted.
    every = list(table.slots(profile))
    filler.slots = {slot.address: slot for slot in every}
    wanted = [slot for slot in every if table.groups or slot.place in selection.places]
    cells = {slot.place: filler.fill(slot) for slot in wanted}
    best, tests = best_places(table, cells)
    chosen = {place: replace(cells[place], best=place in best) for place in cells if place in selection.places}
    return Sheet(table, profile, selection.rows, selection.columns, chosen, tests)


class _Filler:
    """Fills slots, each once; a derived cell has its operands filled first."""

    def __init__(
        self, runs: Collection, profile: str | None, compose: Compose, papers: Path, calibrations: Path
    ) -> None:
        self.runs, self.profile, self.compose = runs, profile, compose
        self.papers, self.calibrations = papers, calibrations
        self.filled: dict[str, Cell] = {}
        self.slots: dict[str, Slot] = {}
        self.composed: dict[tuple[str, ...], Composition] = {}

    def fill(self, slot: Slot, above: tuple[str, ...] = ()) -> Cell:
        """The slot's cell. `above`: the derived cells that wait for it."""
        if slot.address in above:
            raise Misuse(f"{slot.address} is derived from itself: {' <- '.join((*above, slot.address))}.")
        if slot.address not in self.filled:
            kind = slot.settings.kind
            if slot.needs:
                self.filled[slot.address] = self._cell(slot, fixed_status="needs")
            elif kind == "derived":
                self.filled[slot.address] = self._derived(slot, (*above, slot.address))
            else:
                self.filled[slot.address] = self._from_config(slot) if kind == "config" else self._from_runs(slot)
        return self.filled[slot.address]

    def _from_runs(self, slot: Slot) -> Cell:
        seeds, metric, scale = slot.settings.seeds, slot.settings.metric, slot.settings.scale
        assert seeds is not None and metric is not None and scale is not None  # results.settings.NEEDED
        slot, notes = applied(slot, self.compose, self.calibrations)
        if not slot.calibrated:
            return self._cell(slot, states=dict.fromkeys(seeds, "missing"), fixed_status="uncalibrated")
        composition = self._compose(slot)
        keys = (composition.key, *composition.ancestors)
        states: dict[int, str] = {}
        values, records, problems = {}, {}, []
        for seed in seeds:
            record = self.runs.get(keys[0], seed)
            if record is None or record.status in ("interrupted", "blocked"):
                states[seed] = "blocked" if self._blocked(keys, seed) else "missing"
                if record is not None and states[seed] == record.status:  # it says why
                    problems.append(f"{record.path}: {(record.summary or {}).get('reason')}.")
                continue
            records[seed] = record
            states[seed] = record.status
            if record.status != "completed":
                continue
            value = record.value(metric)
            if value is None:
                states[seed] = "missing"
                problems.append(f"{record.path}: has completed without the metric {metric} that {slot.address} reads.")
            else:
                values[seed] = value * scale
        nothing = slot.unprinted and not records
        return self._cell(
            slot,
            config=composition.config,
            key=keys[0],
            states=states,
            values=values,
            runs={seed: record.path for seed, record in records.items()},
            footnotes=(*notes, *footnotes(list(records.values()))),
            problems=tuple(problems),
            fixed_status="absent" if nothing else None,
        )

    def _blocked(self, keys: tuple[str, ...], seed: int) -> bool:
        """Whether a run cannot begin: what it starts from failed or diverged, or it was blocked and still would be.

        `keys`: its own, and those of the runs that it starts from, the nearest first.
        """
        if len(keys) == 1:
            return False
        above = self.runs.get(keys[1], seed)
        if above is not None and above.status not in ("interrupted", "blocked"):
            return above.status in ("failed", "diverged")
        own = self.runs.get(keys[0], seed)
        return (own is not None and own.status == "blocked") or self._blocked(keys[1:], seed)

    def _from_config(self, slot: Slot) -> Cell:
        slot, _ = applied(slot, self.compose, self.calibrations)
        if slot.unprinted or not slot.calibrated:  # a setting that the paper does not print need not even exist
            return self._cell(slot, fixed_status="absent" if slot.unprinted else "uncalibrated")
        composition = self._compose(slot)
        config = composition.config
        try:
            text = hyperparameters.text(slot.settings, config)
        except Unmeasured as error:
            return self._cell(slot, config=config, key=composition.key, problems=(str(error),), fixed_status="missing")
        except Misuse as error:
            raise Misuse(f"{slot.address}: {error}") from error
        printed = slot.published
        if printed is None or printed.mark is not None:
            status = "ok"  # nothing legible to compare with
        else:
            status = "ok" if text == printed.text else "differs"
        return self._cell(slot, config=config, key=composition.key, text=text, fixed_status=status)

    def _derived(self, slot: Slot, above: tuple[str, ...]) -> Cell:
        """Per seed where the operands share seeds; a config operand is a constant.

        Beside + - * / there is curve(at, x1, x2, ..., y1, y2, ...): the piecewise linear curve through the points
        (x, y) at `at`, the cell's own number. A seed whose curve does not reach it has no value, and is beyond.
        """
        expression = slot.settings.derive or ""
        addresses = operands(expression, slot)
        cells = {name: self._operand(address, above) for name, address in addresses.items()}
        measured = {name: cell for name, cell in cells.items() if cell.text is None}
        seeds = list(dict.fromkeys(s for cell in measured.values() for s in cell.seeds))
        shared = [seed for seed in seeds if all(seed in cell.seeds for cell in measured.values())]
        states = {seed: _worst([cell.states.get(seed, "missing") for cell in measured.values()]) for seed in shared}
        values = {}
        for seed in shared:
            if all(seed in cell.values for cell in measured.values()):
                try:
                    values[seed] = self._arithmetic(slot, expression, cells, seed)
                except _Beyond:
                    states[seed] = "beyond"
        open_ = [cell.status for cell in cells.values() if cell.status in ("needs", "uncalibrated")]
        absent = slot.unprinted and not values
        problems = () if shared or not measured else (f"{slot.address}: its operands share no seed.",)
        return self._cell(
            slot,
            seeds=tuple(shared),
            states=states,
            values=values,
            operands=tuple(addresses.values()),
            needs=tuple(dict.fromkeys(need for cell in cells.values() for need in cell.needs)),
            footnotes=tuple(dict.fromkeys(note for cell in cells.values() for note in cell.footnotes)),
            problems=problems,
            fixed_status="absent" if absent else open_[0] if open_ else None,
        )

    def _operand(self, address: str, above: tuple[str, ...]) -> Cell:
        if address not in self.slots:
            self.slots[address] = find_slot(address, self.profile, self.papers)
        return self.fill(self.slots[address], above)

    def _arithmetic(self, slot: Slot, expression: str, cells: Mapping[str, Cell], seed: int) -> float:
        def value_of(name: str) -> float:
            if name == "at" and slot.settings.at is not None:
                return slot.settings.at
            cell = cells.get(name)
            if cell is None:
                raise Misuse(f"{slot.address} calculates with '{name}', which is no number of its own.")
            if cell.text is None:
                return cell.values[seed]
            number, _ = published.numbers(cell.text)
            if number is None:
                raise Misuse(f"{slot.address} calculates with {cell.address}, which reads '{cell.text}'.")
            return number

        value: float = hyperparameters.arithmetic(expression, value_of, {"curve": _curve})
        return value

    def _compose(self, slot: Slot) -> Composition:
        """What the slot's overrides compose to, once for all slots of the same overrides."""
        if slot.overrides not in self.composed:
            self.composed[slot.overrides] = composed(slot, self.compose)
        return self.composed[slot.overrides]

    def _cell(self, slot: Slot, **measured: Any) -> Cell:
        settings = slot.settings
        common: dict[str, Any] = {"key": None, "seeds": settings.seeds or (), "needs": slot.needs}
        return Cell(
            paper=slot.table.split("/")[0],
            table=slot.table,
            row=slot.row.id,
            column=slot.column.id,
            overrides=slot.overrides,
            kind=settings.kind or "runs",
            metric=settings.metric,
            direction=settings.direction,
            unit=settings.unit or "",
            digits=2 if settings.digits is None else settings.digits,
            spread=settings.spread or SPREADS[0],
            profile=self.profile,
            published=slot.published,
            **(common | measured),
        )


class _Beyond(Exception):
    """A curve does not reach the point that is asked for."""


def _curve(at: float = math.nan, *points: float) -> float:
    """curve(at, x1, x2, ..., y1, y2, ...) of a derived cell."""
    half = len(points) // 2
    if len(points) < 4 or len(points) % 2:
        raise Misuse(f"curve(at, x1, x2, ..., y1, y2, ...) takes two or more x and as many y, not {len(points)}.")
    found = interpolated(at, points[:half], points[half:])
    if found is None:
        raise _Beyond
    return found


def footnotes(records: list[Record]) -> tuple[str, ...]:
    """What a reader of a cell must know of its runs: different library versions, uncommitted changes."""
    notes = []
    versions: dict[str, set[str]] = {}
    for record in records:
        for name, version in {"python": record.environment.get("python"), **_part(record, "packages")}.items():
            if version is not None:
                versions.setdefault(printable(name), set()).add(printable(str(version)))
        for name, told in extensions(record.environment).items():
            versions.setdefault(printable(name), set()).add(printable(str(told.get("digest"))))
    if mixed := [f"{name} {' and '.join(sorted(found))}" for name, found in versions.items() if len(found) > 1]:
        notes.append(f"runs with different versions: {', '.join(mixed)}")
    if dirty := sum(any(tree.get("dirty") for tree in _trees(record)) for record in records):
        notes.append(f"{dirty} of {len(records)} run(s) from a tree with uncommitted changes")
    return tuple(notes)


def _trees(record: Record) -> list[Mapping[str, Any]]:
    return [_part(record, "git"), *extensions(record.environment).values()]


def _part(record: Record, name: str) -> Mapping[str, Any]:
    part = record.environment.get(name)
    return part if isinstance(part, Mapping) else {}


def _worst(states: list[str]) -> str:
    """The state of a seed that several runs make up."""
    order = ("failed", "diverged", "blocked", "missing", "running", "beyond", "completed")
    return min(states, key=lambda state: order.index(state) if state in order else 0)
