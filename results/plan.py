"""Which runs a table needs: each cell's overrides composed to a config, the config hashed to a key, one run a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

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


def composed(slot: Slot, compose: Compose = compose_config) -> dict[str, Any]:
    """The resolved config of a slot; a Misuse names the cell it arose in."""
    try:
        return compose(list(slot.overrides))
    except Misuse as error:
        raise Misuse(f"{slot.address}: {error}") from error


def plan(slots: Iterable[Slot], compose: Compose = compose_config) -> list[PlannedRun]:
    """The runs behind `slots`, each (key, seed) once, in the slots' order; slots of unknown knobs have none.

    Stage parents are not in the list: a stage runs its parent first.
    """
    found: dict[tuple[str, int], PlannedRun] = {}
    for slot in slots:
        if not slot.calibrated:
            continue
        config = composed(slot, compose)
        key, parent = identity.key(config), identity.parent_config(config)
        for seed in slot.settings.seeds or ():
            before = found.get((key, seed))
            found[key, seed] = PlannedRun(
                key=key,
                seed=seed,
                overrides=before.overrides if before else (*slot.overrides, f"seed={seed}"),
                parent=None if parent is None else identity.key(parent),
                cells=(*before.cells, slot.address) if before else (slot.address,),
            )
    return list(found.values())
