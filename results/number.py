"""Numbers read from records, which spell nan and infinity as strings (`runner.records.spell`)."""

from __future__ import annotations

import math
from typing import Any

_SPELT = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def read(value: Any) -> float | None:
    """The float a record stores as a number or as "nan", "inf", "-inf"; None when it is no number at all."""
    if isinstance(value, str):
        return _SPELT.get(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value)


def rounded(value: Any) -> Any:
    """A float to 6 significant digits (an accuracy to 1e-4 %); anything else as it is."""
    return float(f"{value:.6g}") if isinstance(value, float) and math.isfinite(value) else value
