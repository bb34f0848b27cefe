"""Nearest valid names, for the sentence that answers a misspelt one."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: str, options: Iterable[str]) -> str:
    """A parenthesis for an error message: up to three `options` near `name` or continuing it, else the first twenty.

    Upper and lower case count as the same.
    """
    known = sorted(options)
    lower = {option.lower(): option for option in known}
    near = get_close_matches(name.lower(), lower, n=3, cutoff=0.6)
    near += [option for option in lower if name and option.startswith(name.lower()) and option not in near]
    if near:
        return "(did you mean " + " or ".join(repr(lower[match]) for match in near[:3]) + "?)"
    more = f" and {len(known) - 20} more" if len(known) > 20 else ""
    return f"(known: {', '.join(known[:20])}{more})" if known else "(there are none)"
