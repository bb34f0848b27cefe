"""The error for a sample that cannot be read. No torch here."""

from __future__ import annotations


class Unreadable(ValueError):
    """A file of the data cannot be read, or nobody is left to read it. The message names it and the mend."""
