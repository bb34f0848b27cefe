"""Calibration records: which value of a knob reaches the target of an uncalibrated cell, and how that was found.

A cell whose overrides hold `method.x=???` has no runs until a record under results/calibrations/ answers its question.
The answer becomes an ordinary override, and so part of the key. The target is a value, which `scripts/calibrate.py`
searches for, or the best, which the grid of `runner.sweeper` finds. No torch here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from results.settings import Target
from results.table import Slot
from runner import identity, records, untrusted
from runner.errors import Misuse

CALIBRATIONS = Path(__file__).resolve().parent / "calibrations"
SCHEMA = 1


@dataclass(frozen=True)
class Question:
    """What an uncalibrated cell asks: the value of `knob` at which `metric` comes out as `target`, or is the best.

    `id` is a hash of the science without the knob, of the metric and of the target.
    """

    id: str
    knob: str  #: the option's path, method.final_threshold
    metric: str
    target: float | str  #: highest or lowest: the best there is
    overrides: tuple[str, ...]  #: without the knob
    folder: str  #: <dataset>/<model>/<method>

    def overrides_at(self, value: float, others: Sequence[str] = ()) -> tuple[str, ...]:
        """The overrides of a run with the knob at `value`, and with these `others`."""
        return (*self.overrides, *others, f"{self.knob}={spelt(value)}")


def spelt(value: float) -> str:
    """A knob's value as an override holds it: six significant digits, so that the same value makes the same key."""
    return str(value) if isinstance(value, int) else repr(float(f"{value:.6g}"))


def question(slot: Slot, compose: Callable[[Sequence[str]], dict[str, Any]]) -> Question:
    """The question of a cell that is not calibrated. Misuse names the cell when its configuration does not compose."""
    assert slot.knob is not None and slot.settings.target is not None  # results.table checks it
    overrides = tuple(override for override in slot.overrides if override != slot.knob)
    try:
        return ask(overrides, slot.knob.split("=")[0], slot.settings.target, compose)
    except Misuse as error:
        raise Misuse(f"{slot.address}: {error}") from error


def ask(
    overrides: tuple[str, ...], knob: str, target: Target, compose: Callable[[Sequence[str]], dict[str, Any]]
) -> Question:
    """The question which value of the option `knob` makes these overrides reach the target."""
    config = compose([*overrides, f"{knob}=null"])
    asked = [identity.key(config), knob, target.metric, target.value]
    digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:12]
    groups = (str(config[group]["name"]).replace("/", "_") for group in ("dataset", "model", "method"))
    return Question(digest, knob, target.metric, target.value, overrides, "/".join(groups))


def path_of(asked: Question, root: Path = CALIBRATIONS) -> Path:
    """Where the record of a question lies."""
    return root / asked.folder / f"{asked.id}.json"


def read(path: Path) -> dict[str, Any]:
    """The record in `path`; Misuse when it cannot be used."""
    try:
        content = untrusted.parse_json(untrusted.content(path).decode())
    except (OSError, ValueError) as error:
        raise Misuse(f"{path} is no readable calibration record ({error}); restore it, or remove it.") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA or "value" not in content:
        raise Misuse(f"{path} is no calibration record of schema {SCHEMA}; remove it, or calibrate again.")
    return content


def write(path: Path, record: Mapping[str, Any]) -> None:
    """The record, whole or not at all; Misuse when the disk does not take it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        records.write_atomic(path, json.dumps(records.spell({"schema": SCHEMA, **record}), indent=1) + "\n")
    except OSError as error:
        raise Misuse(f"{path} cannot be written: {error.strerror}.") from error


def applied(
    slot: Slot, compose: Callable[[Sequence[str]], dict[str, Any]], root: Path = CALIBRATIONS
) -> tuple[Slot, tuple[str, ...]]:
    """(the slot with its knob's value where a record gives one, footnotes on how well it hits).

    A slot without an open knob, or whose configuration needs what is not there yet, comes back as it is.
    """
    if slot.knob is None or slot.needs or slot.settings.target is None or not root.is_dir():
        return slot, ()
    asked = question(slot, compose)
    path = path_of(asked, root)
    if not path.exists():
        return slot, ()
    record = read(path)
    if record["value"] is None:
        return slot, ()
    tuned = tuple(record.get("with", ()))  # what else was chosen: the optimizer, say
    note = " ".join((*tuned, f"{asked.knob} = {spelt(record['value'])}"))
    if isinstance(asked.target, str):
        note += f" by a grid: the {asked.target} {asked.metric} found, {record['reached']:.4g}"
    else:
        note += f" by calibration, which reached {record['reached']:.4g} of {asked.metric}"
        note += f" where {asked.target:g} was asked for"
    return replace(slot, overrides=asked.overrides_at(record["value"], tuned)), (note,)
