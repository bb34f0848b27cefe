"""A selection of a table and the collected runs make a sheet: the table with its cells filled, nothing guessed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from results import hyperparameters
from results.address import Selection
from results.cell import Cell
from results.collect import Collection
from results.plan import Compose, composed
from results.table import Line, Slot, Table
from runner import identity
from runner.compose import compose as compose_config
from runner.errors import Misuse

#: The profile that is no profile: the paper's own settings.
FULL = "full"


@dataclass(frozen=True)
class Sheet:
    """A table as it can be printed. `cells` holds every selected place; rows and columns are those with any."""

    table: Table
    profile: str | None
    rows: tuple[Line, ...]
    columns: tuple[Line, ...]
    cells: Mapping[tuple[str, str], Cell]

    @property
    def title(self) -> str:
        return self.table.title if self.profile is None else f"{self.table.title} (profile {self.profile})"

    @property
    def complete(self) -> bool:
        return all(cell.settled for cell in self.cells.values())


def fill(
    selection: Selection, runs: Collection, profile: str | None = None, compose: Compose = compose_config
) -> Sheet:
    """Fills the selected cells; `profile` (any but `full`) changes every cell's overrides and so its runs."""
    profile = None if profile == FULL else profile
    fill_cell = _FILL[selection.table.kind]
    cells = {}
    for slot in selection.slots(profile):
        cells[slot.row.id, slot.column.id] = fill_cell(slot, profile, runs, compose)
    return Sheet(selection.table, profile, selection.rows, selection.columns, cells)


def _fill_from_runs(slot: Slot, profile: str | None, runs: Collection, compose: Compose) -> Cell:
    seeds, metric = slot.settings.seeds, slot.settings.metric
    assert seeds is not None and metric is not None  # results.table checks it
    if not slot.calibrated:
        return _cell(slot, profile, states=dict.fromkeys(seeds, "missing"), fixed_status="uncalibrated")
    config = composed(slot, compose)
    key = identity.key(config)
    states, values, paths, problems = {}, {}, {}, []
    for seed in seeds:
        record = runs.get(key, seed)
        if record is None or record.status == "interrupted":
            states[seed] = "blocked" if _blocked(config, seed, runs) else "missing"
            continue
        paths[seed] = record.path
        states[seed] = record.status
        if record.status != "completed":
            continue
        value = record.value(metric)
        if value is None:
            states[seed] = "missing"
            problems.append(f"{record.path}: has completed without the metric {metric} that {slot.address} reads.")
        else:
            values[seed] = value
    return _cell(
        slot, profile, config=config, key=key, states=states, values=values, runs=paths, problems=tuple(problems)
    )


def _blocked(config: dict[str, Any], seed: int, runs: Collection) -> bool:
    """Whether a run that `config`'s run builds on has failed or diverged, so that it cannot begin."""
    parent = identity.parent_config(config)
    if parent is None:
        return False
    record = runs.get(identity.key(parent), seed)
    if record is None or record.status == "interrupted":
        return _blocked(parent, seed, runs)
    return record.status in ("failed", "diverged")


def _fill_from_config(slot: Slot, profile: str | None, runs: Collection, compose: Compose) -> Cell:
    config = composed(slot, compose)
    try:
        text = hyperparameters.text(slot.settings, config)
    except Misuse as error:
        raise Misuse(f"{slot.address}: {error}") from error
    published = slot.published
    if published is not None and published.mark == "absent":
        status = "absent"
    elif published is None or published.mark is not None:
        status = "ok"  # nothing legible to compare with
    else:
        status = "ok" if text == published.text else "differs"
    return _cell(slot, profile, config=config, key=identity.key(config), text=text, fixed_status=status)


def _cell(slot: Slot, profile: str | None, **measured: Any) -> Cell:
    settings = slot.settings
    return Cell(
        paper=slot.table.split("/")[0],
        table=slot.table,
        row=slot.row.id,
        column=slot.column.id,
        overrides=slot.overrides,
        **({"key": None} | measured),
        seeds=settings.seeds or (),
        metric=settings.metric,
        direction=settings.direction,
        unit=settings.unit or "",
        digits=2 if settings.digits is None else settings.digits,
        profile=profile,
        published=slot.published,
    )


_FILL: dict[str, Callable[[Slot, str | None, Collection, Compose], Cell]] = {
    "runs": _fill_from_runs,
    "config": _fill_from_config,
}
