"""Why a run has failed, in one sentence: what is known to go wrong is said with its mend. No torch here."""

from __future__ import annotations

import re

from data.unreadable import Unreadable
from runner.disk import Unwritable, refused
from runner.errors import RanksFailed
from runner.secrecy import redacted

# CUDA's and the CPU allocator's words; torch.OutOfMemoryError is a RuntimeError, too.
_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|Cannot allocate memory", re.IGNORECASE)


def foreseen(error: BaseException) -> str | None:
    """The sentence for an error whose cause and mend are known; None for any other."""
    if isinstance(error, Unwritable | Unreadable | RanksFailed):
        return f"{error}."
    if isinstance(error, OSError) and error.filename is not None and (why := refused(error)):
        return f"{why}."
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error))):
        first = str(error).strip().split("\n")[0] or type(error).__name__
        return (
            f"out of memory ({first}): schedule.accumulate=2 (or more) halves what a step needs, and a smaller "
            "schedule.batch_size does, but each makes it another run, with a key of its own; more processes "
            "(trainer.devices=N) share the batch, and a smaller trainer.eval_batch_size evaluates in less, in the same "
            "run. What was recorded stays."
        )
    return None


def reason(error: BaseException) -> str:
    """What a failed run's summary says of the error, secrets left out."""
    return redacted(foreseen(error) or f"{type(error).__name__}: {error}")
