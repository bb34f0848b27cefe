"""The addressed cells, sorted by whether runs can be planned for them today."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from results.address import PAPERS, select
from results.calibration import applied
from results.table import Slot, operands
from runner.compose import compose


@dataclass
class Wanted:
    """`slots`: with runs to plan, each address once. The others have none: cells read from configurations; `needing`
    what is not there yet; `uncalibrated`, a knob is not known; `unprinted`, the paper prints nothing there.
    """

    slots: list[Slot] = field(default_factory=list)
    read: list[Slot] = field(default_factory=list)
    needing: list[Slot] = field(default_factory=list)
    uncalibrated: list[Slot] = field(default_factory=list)
    unprinted: list[Slot] = field(default_factory=list)

    def changed(self, overrides: Sequence[str], seeds: tuple[int, ...] | None) -> list[Slot]:
        """The slots with further overrides, and with other seeds unless None."""
        slots = [replace(slot, overrides=(*slot.overrides, *overrides)) for slot in self.slots]
        if seeds is None:
            return slots
        return [replace(slot, settings=replace(slot.settings, seeds=seeds)) for slot in slots]


def wanted(addresses: Sequence[str], profile: str | None = None, papers: Path = PAPERS) -> Wanted:
    """Sorts the cells of the addresses; a derived cell stands for those that it is made of, in its own table or others.

    A cell for which the paper prints nothing is planned only when its whole address is among `addresses`.
    """
    found = Wanted()
    whole = {address.strip("/") for address in addresses}
    seen: set[str] = set()
    asked: Collection[str] = list(addresses)
    while asked:
        following: dict[str, None] = {}
        for slot in _slots(asked, profile, papers):
            if slot.address in seen:
                continue
            seen.add(slot.address)
            kind = slot.settings.kind
            if slot.needs:
                found.needing.append(slot)
            elif kind == "derived":
                following |= dict.fromkeys(operands(slot.settings.derive or "", slot).values())
            elif kind == "config":
                found.read.append(slot)
            elif slot.unprinted and slot.address not in whole:
                found.unprinted.append(slot)
            else:
                slot, _ = applied(slot, compose)
                (found.slots if slot.calibrated else found.uncalibrated).append(slot)
        asked = [address for address in following if address not in seen]
    return found


def _slots(addresses: Iterable[str], profile: str | None, papers: Path) -> list[Slot]:
    return [slot for selection in select(list(addresses), papers) for slot in selection.slots(profile)]
