"""Nearest valid names, for the sentence that answers a misspelt one."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: str, options: Iterable[str]) -> str:
    """The end of an error message: up to three names near `name`, or up to twenty of the `options` where none is."""
    known = sorted(options)
    near = get_close_matches(name, known, n=3, cutoff=0.6)
    if near:
        return " Did you mean " + " or ".join(repr(match) for match in near) + "?"
    more = f" and {len(known) - 20} more" if len(known) > 20 else ""
    return f" Known: {', '.join(known[:20])}{more}." if known else " None is known."
