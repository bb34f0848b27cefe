"""The runs at hand, one by one: found by their names, put in a row each, shown whole, compared. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from results import number
from results.address import PAPERS, select, tables
from results.calibration import applied
from results.collect import Collection, collect
from results.plan import composed, runnable
from results.record import SEED_DIRECTORY, Problem, Record, Unusable, read_directory, read_packed
from runner.compare import differences
from runner.compose import compose
from runner.errors import Misuse, nearest
from runner.identity import key as key_of
from runner.identity import parent_config, science


def name(record: Record) -> str:
    """<dataset>/<model>/<method>/<key>/seed<k>: the run's place below any root."""
    groups = (str(_section(record.config, group).get("name")) for group in ("dataset", "model", "method"))
    return "/".join((*(group.replace("/", "_") for group in groups), f"{record.key}/seed{record.seed}"))


def ordered(records: Iterable[Record]) -> list[Record]:
    """By name, the seeds in numerical order."""
    return sorted(records, key=lambda record: (name(record).rpartition("/")[0], record.seed))


def matching(runs: Collection, filters: Iterable[str], status: str | None = None) -> list[Record]:
    """The runs whose path or name contains every filter; with a status, those that have it."""
    wanted = list(filters)
    return ordered(
        record
        for record in runs.runs.values()
        if (status is None or record.status == status)
        and all(text in name(record) or text in record.path.as_posix() for text in wanted)
    )


def find(text: str, runs: Collection) -> tuple[Record, list[Problem]]:
    """The one run that `text` names, and what had to be left out of its record.

    `text` is a run directory, a packed record, or the beginning of KEY/seedK or of the run's name. Misuse lists the
    candidates where several fit, and the nearest names where none does.
    """
    path = Path(text)
    try:
        if path.is_file():
            return read_packed(path)
        if path.is_dir() and SEED_DIRECTORY.fullmatch(path.resolve().name):
            return read_directory(path)
    except Unusable as error:
        raise Misuse(f"{path}: {error}.") from error
    start = text.strip("/")
    known = [(record, (f"{record.key}/seed{record.seed}", name(record))) for record in runs.runs.values()]
    candidates = [record for record, names in known if start in names]
    candidates = candidates or [record for record, names in known if any(each.startswith(start) for each in names)]
    if not candidates and path.is_dir():
        candidates = list(collect([path]).runs.values())
        if not candidates:
            raise Misuse(f"There is no run in the folder {path}.")
    if not candidates:
        options = (
            [each for _, names in known for each in names] if "/" in start else [record.key for record, _ in known]
        )
        raise Misuse(f"There is no run {text!r}.{nearest(start, options)}")
    if len(candidates) > 1:
        listed = ", ".join(name(record) for record in ordered(candidates)[:20])
        more = ", ..." if len(candidates) > 20 else ""
        raise Misuse(f"{text!r} means {len(candidates)} runs; name one of them: {listed}{more}.")
    (record,) = candidates
    return record, []


def metrics(record: Record) -> Mapping[str, Any]:
    """The final metrics; of a run that has none yet, those of its last epoch so far."""
    final = (record.summary or {}).get("final")
    if isinstance(final, dict):
        return final
    return record.metrics[-1] if record.metrics else {}


def main_metric(found: Mapping[str, Any]) -> str | None:
    """The test metric that a run is judged by: the loss only where there is nothing else."""
    names = [metric for metric in found if metric.startswith("test/")]
    return next((metric for metric in names if metric != "test/loss"), names[0] if names else None)


def row(record: Record) -> dict[str, Any]:
    """What a list shows of a run. Sparsities and the metric are the last epoch's; `wall_s` is of finished runs."""
    found, config = metrics(record), record.config
    metric = main_metric(found)
    git = _section(record.environment, "git")
    return {
        "dataset": _section(config, "dataset").get("name"),
        "model": _section(config, "model").get("name"),
        "method": _section(config, "method").get("name"),
        "key": record.key,
        "seed": record.seed,
        "status": record.status,
        "epochs": found.get("epoch", 0),
        "of_epochs": _section(config, "schedule").get("epochs"),
        "metric": metric,
        "value": None if metric is None else number.read(found[metric]),
        "sparsity": number.read(found.get("mask/sparsity")),
        "effective_sparsity": number.read(found.get("effective/sparsity")),
        "wall_s": number.read((record.summary or {}).get("wall_s")),
        "commit": git.get("commit"),
        "dirty": git.get("dirty"),
        "profile": _section(config, "profile").get("name"),
        "packed": record.packed,
        "path": str(record.path),
    }


def cells(record: Record, papers: Path = PAPERS) -> list[str]:
    """The addresses of the tables' cells that read this run, under its own profile."""
    profile = _section(record.config, "profile").get("name")
    found = []
    for address in tables(papers):
        try:
            (selection,) = select((address,), papers)
            for asked in selection.slots(profile):
                slot, _ = applied(asked, compose)
                if runnable(slot) and record.seed in (slot.settings.seeds or ()) and composed(slot).key == record.key:
                    found.append(slot.address)
        except Misuse:  # a table that is wrong says so when it is asked for
            continue
    return found


def whole(record: Record, runs: Collection) -> dict[str, Any]:
    """Everything about one run; `parent` says where the run it started from is found, if it is; `cells` read it."""
    summary = record.summary or {}
    parent = None
    if (started_from := parent_config(dict(record.config))) is not None:
        found = runs.get(key_of(started_from), record.seed)
        parent = {
            "key": key_of(started_from),
            "seed": record.seed,
            "take": _section(record.config, "start").get("take"),
            "path": None if found is None else str(found.path),
            "status": None if found is None else found.status,
        }
    return {
        **row(record),
        "name": name(record),
        "reason": summary.get("reason"),
        "steps": summary.get("steps"),
        "started": summary.get("started"),
        "ended": summary.get("ended"),
        "parent": parent,
        "final": dict(metrics(record)),
        "best": _section(summary, "best") or None,
        "layers": {layer: counts for layer, counts in _section(summary, "layers").items() if _is_counted(counts)},
        "cells": cells(record),
        "overrides": list(record.overrides),
        "environment": record.environment,
        "config": record.config,
    }


def difference(a: Record, b: Record) -> dict[str, Any]:
    """Where two runs differ: configuration (`science`: part of the key), environment; and both runs' final metrics."""
    final_a, final_b = metrics(a), metrics(b)
    science_paths = {entry.path for entry in differences(*(science(dict(record.config)) for record in (a, b)))}
    return {
        "a": row(a),
        "b": row(b),
        "config": [
            {**entry._asdict(), "science": entry.path in science_paths} for entry in differences(a.config, b.config)
        ],
        "environment": [entry._asdict() for entry in differences(a.environment, b.environment)],
        "final": [
            {"metric": metric, "a": final_a.get(metric), "b": final_b.get(metric)}
            for metric in dict.fromkeys((*final_a, *final_b))
        ],
    }


def _is_counted(layer: Any) -> bool:
    counts = ("kept", "total", "nonzero")
    return (
        isinstance(layer, Mapping)
        and isinstance(layer.get("shape"), list)
        and all(isinstance(layer.get(name), int) for name in counts)
    )


def _section(mapping: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    section = mapping.get(part)
    return section if isinstance(section, Mapping) else {}
