"""How a cell compares with what its paper printed: agrees, near, off, or not comparable; and why, in a sentence."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from results.cell import Cell

AGREES, NEAR, OFF = "agrees", "near", "off"

#: In the order of a legend. A sign beside every colour: none of the three is told by its colour alone.
SIGNS = {AGREES: "✓", NEAR: "≈", OFF: "≠"}

#: A difference that small is `near` whatever the spread of the runs: points for values in %, else a share of the value.
NEAR_POINTS, NEAR_SHARE = 0.5, 0.01

MEANINGS = {
    AGREES: "the paper's value lies inside the 95 % interval of our mean, or ours rounds to the digits that it prints; "
    "a setting reads exactly as printed; a run that the paper says diverges has diverged",
    NEAR: f"not that, but at most two standard deviations away (the larger of ours and the paper's), or at most "
    f"{NEAR_POINTS:g} points for values in %, {100 * NEAR_SHARE:g} % of the value for others",
    OFF: "further away; a setting that reads otherwise; one of paper and runs diverged and the other did not",
}

_NUMBER = re.compile(r"[+−-]?\d[\d,]*(?:\.(\d+))?")


@dataclass(frozen=True)
class Verdict:
    """`name` is one of SIGNS, or None where there is nothing to compare; `why` is a sentence on it."""

    name: str | None
    why: str


def verdict(cell: Cell) -> Verdict:
    """The verdict on `cell`: on numbers by interval, printed digits and distance, on settings by their text."""
    printed = cell.published
    if printed is None or printed.mark in ("absent", "illegible"):
        return Verdict(None, "There is no printed value to compare with.")
    if cell.profile is not None:
        return Verdict(None, "Numbers of a profile are not comparable with the paper's.")
    if cell.text is not None and printed.mark is None:
        same = cell.text == printed.text
        return Verdict(
            AGREES if same else OFF, f"The configuration reads {'as' if same else 'otherwise than'} printed."
        )
    ours_diverged = cell.status == "diverged" and set(cell.states.values()) == {"diverged"}
    if printed.mark == "diverged" and (ours_diverged or cell.mean is not None):
        if ours_diverged:
            return Verdict(AGREES, "The paper says that training does not converge, and ours did not.")
        return Verdict(OFF, "The paper says that training does not converge; ours did.")
    if ours_diverged:
        return Verdict(OFF, "The paper prints a value; our runs diverged.")
    if cell.mean is None:
        return Verdict(None, "There is no value to compare yet.")
    if printed.mean is None or cell.difference is None:
        return Verdict(None, "The printed text is not a single number.")
    return _of_numbers(cell, printed.text, printed.mean, printed.std, cell.difference)


def _of_numbers(cell: Cell, text: str, mean: float, std: float | None, difference: float) -> Verdict:
    if not math.isfinite(difference):
        return Verdict(OFF, "Our mean is not a finite number.")
    interval = cell.interval
    if interval is not None and cell.inside:
        low, high = (f"{bound:.{cell.digits}f}" for bound in interval)
        return Verdict(AGREES, f"The paper's value lies inside the 95 % interval of our mean, {low} to {high}.")
    if abs(difference) <= half_unit(text) * (1 + 1e-9):
        return Verdict(AGREES, "Our mean rounds to the digits that the paper prints.")
    deviations = [value for value in (cell.std, std) if value is not None and math.isfinite(value)]
    floor, said = (
        (NEAR_POINTS, f"{NEAR_POINTS:g} points")
        if cell.unit == "%"
        else (NEAR_SHARE * abs(mean), f"{100 * NEAR_SHARE:g} % of the value")
    )
    reach = max([floor, *(2 * deviation for deviation in deviations)])
    limit = said if reach == floor else "two standard deviations"
    why = "" if interval is not None else " One run gives no interval."
    if abs(difference) <= reach:
        return Verdict(NEAR, f"The difference is at most {limit}.{why}")
    return Verdict(OFF, f"The difference is more than {limit}.{why}")


def half_unit(text: str) -> float:
    """Half a unit of the last digit printed: 0.005 for 76.30, 0.5 for 1,200; 0 where `text` has no number."""
    match = _NUMBER.search(text)
    if match is None:
        return 0.0
    return 0.5 * 10.0 ** -len(match[1] or "")
