"""What no record, log or logger is to hear: secrets of the environment, passwords in addresses. No torch here."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from runner.errors import Misuse

HIDDEN = "(hidden)"
_NAME = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(?:_ID)?$", re.IGNORECASE)
_LEAST = 12  # characters of a secret; less may stand anywhere by chance
_PASSWORD = re.compile(r"(?<=://)[^\s/@:\"']*:[^\s/@\"']+(?=@)")


def check(text: str) -> None:
    """Misuse when a text that is to be recorded has a secret in it; the sentence does not tell it."""
    for name, value in _secrets():
        if value in text:
            raise Misuse(f"an override says what the environment's {name} holds, and records keep it; leave it out.")
    if _PASSWORD.search(text):
        raise Misuse("an override has an address with a password (//user:password@); records keep it: leave it out.")


def redacted(text: str) -> str:
    """`text` with every secret in it hidden."""
    for _, value in _secrets():
        text = text.replace(value, HIDDEN)
    return _PASSWORD.sub(HIDDEN, text)


def _secrets() -> Iterator[tuple[str, str]]:
    return ((name, value) for name, value in os.environ.items() if len(value) >= _LEAST and _NAME.search(name))
