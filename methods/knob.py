"""A knob: the hyperparameter by which a method that hits its sparsity only indirectly is calibrated. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Knob:
    """`option` of the method's section, searched in [low, high] from `guess` on.

    `increasing`: a larger value makes more weights zero. A log scale is that of the magnitude; the range lies on one
    side of 0.
    """

    option: str
    low: float
    high: float
    guess: float
    scale: Literal["log", "linear"] = "log"
    increasing: bool = True

    def __post_init__(self) -> None:
        if not self.low <= self.guess <= self.high or (self.scale == "log" and self.low <= 0 <= self.high):
            raise ValueError(f"the knob {self.option} starts at {self.guess} in [{self.low}, {self.high}]")


def share(option: str = "sparsity") -> tuple[Knob, ...]:
    """The one knob of a method that is told a share of its weights, where another share is the target."""
    return (Knob(option=option, low=0.0, high=0.9999, guess=0.9, scale="linear"),)
