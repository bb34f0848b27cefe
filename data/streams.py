"""How a text is cut into parallel streams and their segments: the arithmetic alone. No torch here."""

from __future__ import annotations


def columns(tokens: int, rows: int) -> int:
    """Tokens of each of `rows` equally long streams; what is left over at the end of the text is left out."""
    return tokens // rows


def segments(tokens: int, rows: int, length: int) -> int:
    """Segments of a stream, each of `length` predictions but the last, which may have fewer.

    A stream of n tokens has n - 1 predictions: nothing comes before its first one.
    """
    return -(-max(columns(tokens, rows) - 1, 0) // length)


def used(tokens: int, length: int, train_subset: int | None) -> int:
    """Of a text of `tokens`, those at its beginning that so many samples (segments of `length`) need."""
    return tokens if train_subset is None else min(tokens, train_subset * length)
