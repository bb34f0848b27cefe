"""Small runs side by side: two processes of one thread each beside one process of two threads."""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from runner.bench.figures import Figure, spread
from runner.bench.steps import Case, Stepper

_state: dict[Any, Any] = {}  # of a worker process: a stepper by its number of threads, and the gate


def side_by_side(case: Case, rounds: int, steps: int) -> Figure:
    """Steps a second of two dense runs of one thread each, together, relative to those of one run of two threads; by
    the wall clock, in turn, on two cores.
    """
    ratios = []
    context = get_context("spawn")
    gate = context.Barrier(2)
    with ProcessPoolExecutor(2, context, _build, (case, steps, gate)) as pool:
        for _ in range(rounds):
            together = max(pool.map(_take, ((1, True),) * 2))
            alone = pool.submit(_take, (2, False)).result()
            ratios.append(2 * alone / together)
    name = f"{case.model}, batch {case.batch}: 2 processes of 1 thread, to 1 of 2"
    return spread("small runs, steps a second", name, ratios, "x", target=1.4, at_most=False)


def _build(case: Case, steps: int, gate: Any) -> None:
    for threads in (1, 2):
        _state[threads] = Stepper(case, "dense", case.batch, steps, more=[f"trainer.threads={threads}"])
        _state[threads].round()
    _state["gate"] = gate


def _take(asked: tuple[int, bool]) -> float:
    """Seconds that a round takes with so many threads; `together`: both processes begin at once."""
    threads, together = asked
    if together:
        _state["gate"].wait(60)
    began = time.perf_counter()
    _state[threads].round()
    return time.perf_counter() - began
