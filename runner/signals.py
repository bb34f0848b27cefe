"""Signals that ask a run to stop: SIGTERM, SIGUSR1 and SIGINT mean: finish the step, save, end. No torch here."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STOP = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@contextmanager
def heard() -> Iterator[Callable[[], bool]]:
    """Listen to them within the context, if this is the main thread; yields the question whether one came."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {kind: signal.signal(kind, lambda number, frame: received.append(number)) for kind in STOP}
    try:
        yield lambda: bool(received)
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
