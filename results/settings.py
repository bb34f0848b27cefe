"""How a cell is read. Each setting may stand at the table, a column, a row or a cell; the nearest to the cell wins."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any

from results import document
from runner.errors import Misuse, nearest

#: runs: a reduction over training runs; config: read from the composed configuration; derived: made of other cells.
KINDS = ("runs", "config", "derived")
DIRECTIONS = ("up", "down")
#: std: the sample standard deviation; interval: half of the mean's 95 % interval (Student's t).
SPREADS = ("std", "interval")
#: What is looked for, by the direction of the metric, where a knob is tuned.
BEST = {"up": "highest", "down": "lowest"}


@dataclass(frozen=True)
class Target:
    """The value a metric should reach, for a method that hits it only through a knob: an override `method.x=???`.

    `highest` or `lowest`: the knob is tuned for the best, by the grid of `runner.sweeper`.
    """

    metric: str
    value: float | str


@dataclass(frozen=True)
class Settings:
    """None: not said here. See the module's docstring for what stands above what."""

    kind: str | None = None
    metric: str | None = None  #: runs: a name in the summary's final metrics; `best:` reads the best epoch's
    direction: str | None = None  #: runs, derived: up or down, which way is better
    unit: str | None = None
    digits: int | None = None  #: runs, derived: decimals printed
    scale: float | None = None  #: runs: what the metric is multiplied by, 100 for a fraction shown in percent
    seeds: tuple[int, ...] | None = None
    read: str | None = None  #: config: a path in the composed config, arithmetic over paths, or a template with {...}
    number: str | None = None  #: config: how the paper prints the number, see results.hyperparameters
    words: Mapping[str, str] | None = (
        None  #: config: what the paper calls what is read, as in {cosine: Cosine annealing}
    )
    given: Mapping[str, Any] | None = None  #: config: what else must hold for the printed cell to be true
    derive: str | None = (
        None  #: derived: arithmetic over {column}, {row/column} or {table/row/column}, see `results.fill`
    )
    at: float | None = None  #: derived: the number that `at` stands for in `derive`; an x of a figure
    spread: str | None = None  #: runs, derived: what is printed behind the ±
    target: Target | None = None

    def over(self, other: Settings) -> Settings:
        """These settings, with the gaps filled from `other`."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        return replace(other, **given) if given else other


SETTINGS = tuple(f.name for f in fields(Settings))
_EMPTY: Mapping[str, Any] = MappingProxyType({})
DEFAULTS = Settings(
    kind="runs", unit="", digits=2, scale=1.0, number="plain", words=_EMPTY, given=_EMPTY, spread=SPREADS[0]
)
#: What a cell of each kind cannot do without.
NEEDED = {"runs": ("metric", "direction", "seeds"), "config": ("read",), "derived": ("derive", "direction")}

_LIST = re.compile(r"\{([^{}]*/)?([^{}/]*,[^{}/]*)\}")
_EXPECTED = {
    "digits": "it is a whole number of decimals",
    "seeds": "it is a list of whole numbers, like [0, 1, 2]",
    "direction": "it is up or down",
    "scale": "it is a number other than 0",
    "at": "it is a number",
    "spread": "it is std or interval",
    "words": "it is a mapping of texts to texts",
    "given": "it is a mapping of config paths to values",
}


def parse(entry: Mapping[str, Any], where: str) -> Settings:
    """The settings among the fields of `entry`; Misuse names the one that is not what it should be."""
    values = {name: entry[name] for name in SETTINGS if name in entry}
    for name, value in values.items():
        good = {
            "kind": isinstance(value, str),
            "digits": type(value) is int and value >= 0,
            "seeds": isinstance(value, list) and bool(value) and all(type(seed) is int and seed >= 0 for seed in value),
            "direction": value in DIRECTIONS,
            "scale": _is_number(value) and value != 0,
            "at": _is_number(value),
            "spread": value in SPREADS,
            "words": isinstance(value, dict) and all(isinstance(text, str) for pair in value.items() for text in pair),
            "given": isinstance(value, dict) and all(isinstance(path, str) for path in value),
            "target": True,  # checked below
        }.get(name, isinstance(value, str))
        if not good:
            raise Misuse(f"{where} has {name}: {value!r}; {_EXPECTED.get(name, 'it is a text')}.")
    if values.get("kind", "runs") not in KINDS:
        raise Misuse(f"{where} has the unknown kind '{values['kind']}'.{nearest(values['kind'], KINDS)}")
    if "seeds" in values:
        if len(set(values["seeds"])) != len(values["seeds"]):
            raise Misuse(f"{where} names a seed twice in {values['seeds']}.")
        values["seeds"] = tuple(values["seeds"])
    if "derive" in values:
        values["derive"] = _LIST.sub(_one_by_one, values["derive"])
    if "target" in values:
        values["target"] = _target(values["target"], f"{where}: target")
    return Settings(**values)


def _one_by_one(operands: re.Match[str]) -> str:
    """{row/a,b} as {row/a}, {row/b}."""
    return ", ".join(f"{{{operands[1] or ''}{column}}}" for column in operands[2].replace(" ", "").split(","))


def _target(entry: object, where: str) -> Target:
    fields_ = document.check_fields(entry, where, ("metric", "value"), required=("metric", "value"))
    value = fields_["value"]
    if not _is_number(value) and value not in BEST.values():
        raise Misuse(f"{where} has the value {value!r}; it is a number, or one of {', '.join(BEST.values())}.")
    metric = document.text(fields_["metric"], f"{where}: metric")
    return Target(metric, value if isinstance(value, str) else float(value))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
