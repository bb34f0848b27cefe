"""What a paper printed in one cell: its text to the digit, and the numbers in that text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from results.document import check_fields
from runner.errors import Misuse

#: diverged: the paper says the run did not converge; absent: the paper prints no value; illegible: our copy is damaged.
MARKS = ("diverged", "absent", "illegible")

_NUMBER = r"[+−-]?\d+(?:,\d{3})*(?:\.\d+)?"
#: What may follow a printed number without making it another number: 73.57%, 0.29×, 6.79 M, 97.10 ms, 6253.69 (secs).
_UNIT = r"\s*(?:%|×|x|[KMGE]|ms|s|secs|\(secs\))"
_MEAN_STD = re.compile(rf"({_NUMBER})(?:\s*(?:\+-|±)\s*({_NUMBER}))?(?:{_UNIT})?")


@dataclass(frozen=True)
class Published:
    """`mean` and `std` are None where the text is not a number; `mark` is one of MARKS or None."""

    text: str
    mean: float | None = None
    std: float | None = None
    mark: str | None = None

    def as_json(self) -> dict[str, Any]:
        return {"mean": self.mean, "std": self.std, "text": self.text, "mark": self.mark}


def parse(entry: object, where: str) -> Published:
    """A published cell: one of MARKS, the printed text in quotes, or {mean, std, text}.

    A bare YAML number is refused, because 73.30 would lose the last digit that the paper printed.
    """
    if isinstance(entry, str):
        if entry in MARKS:
            return Published(text="", mark=entry)
        if not entry.strip():
            raise Misuse(f"{where} is an empty text; write absent where the paper prints nothing.")
        mean, std = numbers(entry)
        return Published(text=entry.strip(), mean=mean, std=std)
    if isinstance(entry, int | float):
        raise Misuse(f"{where} is the bare number {entry}; put it in quotes, so that its printed digits stay.")
    fields = check_fields(entry, where, ("mean", "std", "text"), required=("mean", "text"))
    for name in ("mean", "std"):
        value = fields.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise Misuse(f"{where} has {name} {value!r}, which is not a number.")
    if not isinstance(fields["text"], str):
        raise Misuse(f"{where} has the text {fields['text']!r}; put it in quotes, so that its printed digits stay.")
    return Published(text=fields["text"], mean=fields["mean"], std=fields.get("std"))


def numbers(text: str) -> tuple[float | None, float | None]:
    """(mean, std) as a printed text says them, its unit left aside; (None, None) where it is no single number."""
    match = _MEAN_STD.fullmatch(text.strip())
    mean, std = match.groups() if match else (None, None)
    return _float(mean), _float(std)


def _float(text: str | None) -> float | None:
    return None if text is None else float(text.replace(",", "").replace("−", "-"))
