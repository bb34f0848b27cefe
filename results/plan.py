"""Which runs a table needs: each cell's overrides composed to a config, the config hashed to a key, one run a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results.calibration import CALIBRATIONS, applied
from results.table import Slot
from runner.compose import Composition, identify
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


def composed(slot: Slot, compose: Compose = compose_config) -> Composition:
    """The resolved config of a slot, with its keys; a Misuse names the cell it arose in."""
    try:
        if compose is compose_config:  # which knows the keys of what it composed before
            return identify(slot.overrides)
        return Composition(compose(list(slot.overrides)))
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
    found: dict[tuple[str, int], tuple[Slot, Composition, list[str]]] = {}
    for asked in slots:
        slot, _ = applied(asked, compose, calibrations)
        if not runnable(slot):
            continue
        composition = composed(slot, compose)
        for seed in slot.settings.seeds or ():
            found.setdefault((composition.key, seed), (slot, composition, []))[2].append(slot.address)
    return [
        PlannedRun(
            key=key,
            seed=seed,
            overrides=(*slot.overrides, f"seed={seed}"),
            parent=composition.ancestors[0] if composition.ancestors else None,
            cells=tuple(cells),
            config={**composition.config, "seed": seed},
        )
        for (key, seed), (slot, composition, cells) in found.items()
    ]
