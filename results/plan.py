"""Which runs a table needs: each cell's overrides composed to a config, the config hashed to a key, one run a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results.calibration import CALIBRATIONS, applied
from results.table import Slot
from runner import identity
from runner.compose import compose as compose_config
from runner.errors import Misuse

#: Overrides -> the fully resolved config.
Compose = Callable[[Sequence[str]], dict[str, Any]]


@dataclass(frozen=True)
class PlannedRun:
    """One run, and all the cells that read it. `parent` is the key of the run it starts from, if it is a stage."""

    key: str
    seed: int
    overrides: tuple[str, ...]  #: the seed's included
    parent: str | None
    cells: tuple[str, ...]
    config: dict[str, Any]  #: composed, the seed's included


def composed(slot: Slot, compose: Compose = compose_config) -> dict[str, Any]:
    """The resolved config of a slot; a Misuse names the cell it arose in."""
    try:
        return compose(list(slot.overrides))
    except Misuse as error:
        raise Misuse(f"{slot.address}: {error}") from error


def runnable(slot: Slot) -> bool:
    """Whether the cell is made of runs of its own that can be composed today."""
    return slot.settings.kind == "runs" and not slot.needs and slot.calibrated


def plan(
    slots: Iterable[Slot], compose: Compose = compose_config, calibrations: Path = CALIBRATIONS
) -> list[PlannedRun]:
    """The runs behind `slots`, each (key, seed) once, in the slots' order; slots that are not `runnable` have none.

    Stage parents are not in the list: a stage runs its parent first.
    """
    by_overrides: dict[tuple[str, ...], tuple[dict[str, Any], str]] = {}
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for asked in slots:
        slot, _ = applied(asked, compose, calibrations)
        if not runnable(slot):
            continue
        if slot.overrides not in by_overrides:
            config = composed(slot, compose)
            by_overrides[slot.overrides] = config, identity.key(config)
        config, key = by_overrides[slot.overrides]
        for seed in slot.settings.seeds or ():
            run = found.setdefault((key, seed), {"config": config, "overrides": slot.overrides, "cells": []})
            run["cells"].append(slot.address)
    parents: dict[str, str | None] = {}
    for config, key in by_overrides.values():
        parent = identity.parent_config(config)
        parents[key] = None if parent is None else identity.key(parent)
    return [
        PlannedRun(
            key=key,
            seed=seed,
            overrides=(*run["overrides"], f"seed={seed}"),
            parent=parents[key],
            cells=tuple(run["cells"]),
            config={**run["config"], "seed": seed},
        )
        for (key, seed), run in found.items()
    ]
