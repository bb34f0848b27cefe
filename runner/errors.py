"""What bad input gets: one clear sentence with the cause and the mend, and the nearest valid name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class Misuse(Exception):
    """The user's input is wrong; the message says how, and what to do. Command lines print it and exit with 2."""


class RanksFailed(RuntimeError):
    """A rank was lost or has failed; the message says which and why, `details` has its traceback."""

    def __init__(self, message: str, details: str | None = None) -> None:
        super().__init__(message)
        self.details = details


def nearest(name: str, options: Iterable[str]) -> str:
    """ " Did you mean 'x'?" for the nearest of `options`, else a list of all of them (at most 60)."""
    options = sorted(set(options))
    if close := difflib.get_close_matches(name, options, n=1, cutoff=0.5):
        return f" Did you mean {close[0]!r}?"
    if not options:
        return " There are none."
    return " Valid: " + ", ".join(options[:60]) + (", ..." if len(options) > 60 else ".")
