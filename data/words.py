"""Text as tokens, and tokens as ids."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from data.padding import WORDS

_BREAK = re.compile(r"<br\s*/?>")
# A word, or one of the marks that are tokens of their own. Quotation marks, colons and semicolons only separate.
_TOKEN = re.compile(r"[^\s\"';:.,()!?]+|[.,()!?']")


def tokens(text: str) -> list[str]:
    """Lower-case words and punctuation marks, as torchtext's "basic_english" splits a text.

    "It's <br />FINE, isn't it?" -> it ' s fine , isn ' t it ?
    """
    return _TOKEN.findall(_BREAK.sub(" ", text.lower()))


def frequencies(texts: Iterable[Iterable[str]]) -> dict[str, int]:
    """Word -> id of every word of tokenised texts, from `data.padding.WORDS` on: by falling count, then by alphabet."""
    counts: Counter[str] = Counter()
    for words in texts:
        counts.update(words)
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return {word: number for number, (word, _) in enumerate(ranked, start=WORDS)}
