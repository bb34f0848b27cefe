"""One measured figure beside what it should reach, and how figures are shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """A ratio or a time: the median of several rounds, with the range of the rounds.

    `target`: what it should reach, at most (or with `at_most` false at least); None where nothing was set. `wall`: the
    same by the wall clock, where `value` is processor time.
    """

    section: str
    name: str
    value: float
    unit: str
    least: float | None = None
    greatest: float | None = None
    target: float | None = None
    at_most: bool = True
    wall: float | None = None
    note: str = ""

    @property
    def missed(self) -> bool:
        """Whether there is a target and it is not reached."""
        if self.target is None:
            return False
        return self.value > self.target if self.at_most else self.value < self.target

    def as_json(self) -> dict[str, Any]:
        """For a record: numbers in four digits, what is not known left out."""
        told = {name: value for name, value in asdict(self).items() if value not in (None, "")}
        if self.target is None:
            told.pop("at_most")
        else:
            told["missed"] = self.missed
        return {name: _digits(value) if isinstance(value, float) else value for name, value in told.items()}


def spread(section: str, name: str, values: Sequence[float], unit: str, **more: Any) -> Figure:
    """The figure of several rounds' values."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    median = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    return Figure(section, name, median, unit, ordered[0], ordered[-1], **more)


def shown(figures: Sequence[Figure]) -> str:
    """A table of all figures, and a last line that names those that miss their targets."""
    lines: list[str] = []
    section = None
    width = max((len(figure.name) for figure in figures), default=0)
    for figure in figures:
        if figure.section != section:
            section = figure.section
            lines += ["", section]
        lines.append("  " + _line(figure, width))
    missed = [f"{figure.section}: {figure.name}" for figure in figures if figure.missed]
    wanted = sum(figure.target is not None for figure in figures)
    lines += ["", f"{wanted - len(missed)} of {wanted} targets are reached." + (" Missed:" if missed else "")]
    return "\n".join([*lines, *(f"  {each}" for each in missed)]).lstrip("\n") + "\n"


def _line(figure: Figure, width: int) -> str:
    told = f"{figure.name:<{width}}  {number(figure.value)} {figure.unit}"
    if figure.least is not None and figure.greatest is not None:
        told += f"  [{number(figure.least)}, {number(figure.greatest)}]"
    if figure.wall is not None:
        told += f"  wall {number(figure.wall)}"
    if figure.target is not None:
        told += f"  {'<=' if figure.at_most else '>='} {number(figure.target)}{'  MISSED' if figure.missed else ''}"
    return told + (f"  {figure.note}" if figure.note else "")


def number(value: float) -> str:
    """A figure as it is shown: three decimals, one from ten on, none from a thousand on."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _digits(value: float) -> float:
    return float(f"{value:.4g}")
