"""A plan as text: what is to run, generation by generation of stages, what it will cost, and what is not possible."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from results.cost import Costs, Estimate, quantity
from results.missing import DONE, LEFT, TO_DO, Missing
from results.table import Slot
from runner.identity import Config
from runner.progress import duration
from runner.slurm import ranges
from runner.submission import Task, levels

if TYPE_CHECKING:
    from results.plan import PlannedRun

_FEW = 8  # names of one kind that a line shows


def heading(cells: int, missing: Missing) -> list[str]:
    """How all planned runs stand, in one sentence; a second one for parents that no cell asks for."""
    count = missing.count
    planned = sum(count[name] for name in TO_DO)
    parts = [f"{count[name]} {name}" for name in (*DONE, *LEFT) if count[name]] + [f"{planned} to do"]
    again = [f"{count[name]} {name} before" for name in ("interrupted", "failed") if count[name]]
    lines = [
        f"{cells} cell(s), {len(missing.runs)} run(s): {', '.join(parts)}"
        + f" ({', '.join(again)})" * bool(again)
        + "."
    ]
    if extra := len(missing.tasks) - planned:
        lines.append(f"{extra} run(s) more are parents of these, of which the weights are needed.")
    return lines


def impossible(needing: Iterable[Slot], uncalibrated: Iterable[Slot], unprinted: Iterable[Slot]) -> list[str]:
    """The cells that are not planned, and why; nothing for none."""
    tables: dict[str, list[Slot]] = {}
    for slot in needing:
        tables.setdefault(slot.table, []).append(slot)
    lines = [f"{len(slots)} cell(s) of {table} need {_needs(slots)}" for table, slots in tables.items()]
    by_knob: dict[str, list[str]] = {}
    for slot in uncalibrated:
        by_knob.setdefault(slot.knob or "", []).append(slot.address)
    lines += [f"uncalibrated, {knob} is not known yet: {_counted(cells)}" for knob, cells in sorted(by_knob.items())]
    if absent := [slot.address for slot in unprinted]:
        lines.append(f"absent from the paper; planned only if addressed in full: {_counted(absent)}")
    return lines


def plan(missing: Missing, tasks: Sequence[Task], costs: Costs) -> list[str]:
    """The tasks by level, those of one dataset, model and method together; then what is running, queued, blocked."""
    lines = []
    for level, indices in enumerate(levels(tasks)):
        chosen = [tasks[index] for index in indices]
        after = f", after level {level}" if level else ""
        lines.append(f"Level {level + 1}{after}: {len(chosen)} run(s), {_sum([_cost(task, costs) for task in chosen])}")
        for name, group in _grouped((_name(task.config), task) for task in chosen).items():
            lines += _group(name, group, missing, costs)
    for standing in LEFT:
        runs = [run for run in missing.runs if missing.standings[run.key, run.seed] == standing]
        for name, some in _grouped((_name(run.config), run) for run in runs).items():
            lines.append(f"{standing}: {_what(name, some)}: {_cells(run.cells for run in some)}")
    return lines


def total(tasks: Sequence[Task], costs: Costs, parallel: int) -> str:
    """What all tasks cost, one at a time and `parallel` at a time."""
    estimates = [_cost(task, costs) for task in tasks]
    text = f"Estimated for {len(tasks)} run(s): {_sum(estimates)}"
    seconds = [each.seconds for each in estimates if each.seconds is not None]
    if (at_once := min(parallel, len(tasks))) > 1 and seconds:
        text += f"; about {duration(max(sum(seconds) / at_once, max(seconds)))} with {at_once} at a time"
    return f"{text}."


def _group(name: str, tasks: Sequence[Task], missing: Missing, costs: Costs) -> list[str]:
    cells = [missing.cells(task.identity) for task in tasks]
    read = _cells(cells) if any(cells) else "parents of later levels only"
    estimates = [_cost(task, costs) for task in tasks]
    known = [one.seconds for one in estimates if one.seconds is not None]
    each = [duration(min(known)), duration(max(known))] if known else []
    a_run = f"{' to '.join(dict.fromkeys(each))} a run, " if len(known) > 1 else ""
    bases = "; ".join(dict.fromkeys(one.basis for one in estimates))
    return [f"  {_what(name, tasks)}: {read}", f"      {a_run}{_sum(estimates)} ({bases})"]


def _what(name: str, runs: Sequence[Task] | Sequence[PlannedRun]) -> str:
    seeds = sorted({run.config["seed"] for run in runs})
    return f"{len(runs)} x {name}, seed{'s' * (len(seeds) > 1)} {ranges(seeds)}"


def _sum(estimates: Sequence[Estimate]) -> str:
    """Total time and FLOPs; how many runs lack one of them."""
    seconds = [one.seconds for one in estimates if one.seconds is not None]
    flops = [one.flops for one in estimates if one.flops is not None]
    return ", ".join(
        (
            _partly(duration(sum(seconds)), len(seconds), len(estimates), "time"),
            _partly(quantity(sum(flops), "FLOPs"), len(flops), len(estimates), "FLOPs"),
        )
    )


def _partly(sum_: str, known: int, of: int, what: str) -> str:
    if not known:
        return f"{what} not known"
    return sum_ + (f" without {of - known} run(s) of unknown {what}" if known < of else "")


def _cost(task: Task, costs: Costs) -> Estimate:
    return costs.of(task.config, task.identity[0])


def _name(config: Config) -> str:
    return "/".join(str(config[group]["name"]) for group in ("dataset", "model", "method"))


def _grouped(pairs: Iterable[tuple[str, object]]) -> Mapping[str, list]:
    found: dict[str, list] = {}
    for name, item in pairs:
        found.setdefault(name, []).append(item)
    return found


def _needs(slots: Sequence[Slot]) -> str:
    """What is not there, what most cells need first; how many need it where not all do."""
    count = Counter(need for slot in slots for need in slot.needs)
    return ", ".join(f"{need} ({n})" if n < len(slots) else need for need, n in count.most_common())


def _counted(cells: Sequence[str]) -> str:
    return f"{len(cells)} cell(s), {_cells([cells])}"


def _cells(several: Iterable[Iterable[str]]) -> str:
    found = compact(dict.fromkeys(cell for cells in several for cell in cells))
    return " ".join(found[:_FEW]) + (f" and {len(found) - _FEW} more rows" if len(found) > _FEW else "")


def compact(addresses: Iterable[str]) -> list[str]:
    """Addresses with braces, rows of equal columns together: PAPER/TABLE/{row,row}/{column,column}."""
    columns: dict[tuple[str, str], list[str]] = {}
    for address in addresses:
        table, row, column = address.rsplit("/", 2)
        columns.setdefault((table, row), []).append(column)
    rows: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (table, row), found in columns.items():
        rows.setdefault((table, tuple(found)), []).append(row)
    return [f"{table}/{_braces(found)}/{_braces(list(of))}" for (table, of), found in rows.items()]


def _braces(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else "{" + _few(names) + "}"


def _few(names: Sequence[str]) -> str:
    if len(names) <= _FEW:
        return ",".join(names)
    return ",".join(names[: _FEW - 1]) + f", {len(names) - _FEW + 1} more"
