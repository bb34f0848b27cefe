"""Where two nested mappings (configurations, environments, metrics, summaries) differ. No torch here."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

#: Stands for an entry that one of the two lacks.
ABSENT = "(absent)"


class Difference(NamedTuple):
    """An entry by its dotted path, as it is in the one and in the other."""

    path: str
    a: Any
    b: Any


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Difference]:
    """The entries that are not equal, to the last bit of a number; a nan equals a nan. Lists are compared whole."""
    flat_a, flat_b = dict(_flat(a)), dict(_flat(b))
    for path in dict.fromkeys((*flat_a, *flat_b)):
        difference = Difference(path, flat_a.get(path, ABSENT), flat_b.get(path, ABSENT))
        if not _same(difference.a, difference.b):
            yield difference


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of every leaf; an empty mapping is one."""
    if isinstance(value, Mapping) and (value or not path):
        for part, item in value.items():
            yield from _flat(item, f"{path}.{part}" if path else str(part))
    else:
        yield path, value


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b):
        return True
    return a == b and isinstance(a, bool) == isinstance(b, bool)
