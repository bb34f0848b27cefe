"""A worker process of a pool: it imports torch once and executes the tasks that it is given."""

from __future__ import annotations

import os
from multiprocessing.connection import Connection
from typing import Any

from runner.attempt import Stop, attempt

# After these a worker ends: it was told to stop, or an error nobody foresaw may have spoilt its memory or its GPU.
LAST = ("interrupted", "failed")


def work(connection: Connection, log: str) -> None:
    """A worker: takes (index, task, weights) from the connection, sends ("epoch", ...) and ("done", index, outcome)."""
    stop = Stop()
    with open(log, "a") as file:  # what libraries print would break the bar; a crash leaves its traceback here
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import runner.execute  # noqa: F401 (torch, once for all runs of this worker)

    try:
        connection.send(("ready",))
        while not stop.asked and (message := connection.recv()) is not None:
            index, task, weights = message

            def tell(line: dict[str, Any], index: int = index) -> None:
                _report(connection, stop, index, line)

            outcome = attempt(task, tell, weights, lambda: stop.asked)
            connection.send(("done", index, outcome))
            if outcome.status in LAST:
                return
    except (EOFError, OSError):
        return  # the pool is gone


def _report(connection: Connection, stop: Stop, index: int, line: dict[str, Any]) -> None:
    try:
        connection.send(("epoch", index, line["epoch"], line["time/epoch_s"]))
    except OSError:
        stop.asked = True  # without the pool nobody would stop this run: save it
