"""What no record, log or logger is to hear: secrets of the environment, passwords in addresses. No torch here."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from runner.errors import Misuse

HIDDEN = "(hidden)"
_NAME = re.compile(
    r"(?:(?:^|_|API)KEY|TOKEN|SECRET|PASSWORD|PASSWD|(?:^|_)PWD|PASS|(?:^|_)PAT|(?:^|_)JWT|CREDENTIALS?)(?:_ID)?$",
    re.IGNORECASE,
)
_PLACES = ("PWD", "OLDPWD")  # of the shell: folders
_LEAST = 12  # characters of a secret; less may stand anywhere by chance
_PASSWORD = re.compile(r"(?<=://)[^\0\s/@:\"']*:[^\0\s/@\"']+(?=@)|(?<=://)[^\0\s/@:\"']{20,}(?=@)")


def check(texts: Iterable[str]) -> None:
    """Misuse when one of the texts that are to be recorded has a secret in it; the sentence does not tell it."""
    text = "\0".join(texts)  # which no variable of the environment can hold, and no address
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


def _secrets() -> list[tuple[str, str]]:
    """The longest first, since one may begin like another. What names a file or a folder is none: its path is known."""
    found = [
        (name, value)
        for name, value in os.environ.items()
        if len(value) >= _LEAST and _NAME.search(name) and name not in _PLACES and not os.path.exists(value)
    ]
    return sorted(found, key=lambda pair: -len(pair[1]))
