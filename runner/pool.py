"""A pool of persistent worker processes that executes tasks on this machine. No torch in the pool itself."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from runner import blocked
from runner.attempt import Outcome
from runner.errors import Misuse
from runner.progress import Progress, duration
from runner.submission import Task, children
from runner.worker import LAST, work

ATTEMPTS = 2  # how often a run is begun when its worker dies
_POLL_S = 2.0  # between looks at a run directory that another process holds
_NUDGE_S = 1.0  # between requests to stop: the first may come before a worker listens
_GRACE_S = 60.0  # for workers to save when the pool itself breaks


@dataclass(eq=False)
class Worker:
    """A worker process as the pool sees it: the device it was given, whether it takes tasks, and the one it is at."""

    process: BaseProcess
    connection: Connection
    device: str | None
    ready: bool = False
    ending: bool = False
    index: int | None = None


class Pool:
    """Executes `tasks` on `size` workers; `devices` (CUDA's names for them) are given to the workers in turn.

    A task waits for its parents. A worker that dies is replaced and its task begun once more; it resumes by itself.
    `run` returns the outcome of every task that has one; after a signal, workers save and the others have none.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        size: int,
        progress: Progress,
        log: Path,
        devices: Sequence[str] = (),
    ) -> None:
        self.tasks = tasks
        self.size = min(size, len(tasks))
        self.progress = progress
        self.log = log
        self.devices = list(devices)
        self.outcomes: dict[int, Outcome] = {}
        self.waiting = list(range(len(tasks)))
        self.begun: Counter[int] = Counter()
        self.retry_at: dict[int, float] = {}  # tasks whose run directory another process holds
        self.workers: list[Worker] = []
        self.stillborn = 0  # workers that died while starting, since one was ready
        self.closing = False
        self.signals = 0  # a first one saves and stops, a second one kills
        self.threads = max(int(task.config["trainer"]["threads"]) for task in tasks)

    def run(self) -> dict[int, Outcome]:
        """Execute everything that can be; Misuse when no worker can be started."""
        with self._signals():
            try:
                for slot in range(self.size):
                    self._start(self.devices[slot % len(self.devices)] if self.devices else None)
                while not self.signals and self._assign():
                    self._listen(0.5)
            finally:
                self._shut_down()
        return self.outcomes

    @property
    def interrupted(self) -> bool:
        """Whether a signal ended it before everything was done."""
        return self.signals > 0 and len(self.outcomes) < len(self.tasks)

    # Handing out

    def _assign(self) -> bool:
        """Give the idle workers tasks; False when nothing is left to wait for."""
        for worker in self.workers:
            if not worker.ready or worker.ending or worker.index is not None or (index := self._next()) is None:
                continue
            self.begun[index] += 1
            worker.index = index
            with suppress(OSError):  # it has just died, which _listen will notice
                worker.connection.send((index, self.tasks[index], bool(children(self.tasks, index))))
        return bool(self.waiting) or any(worker.index is not None for worker in self.workers)

    def _next(self) -> int | None:
        """The first waiting task whose parents are completed; it waits no more. (Children of others are settled.)"""
        now = time.monotonic()
        for index in self.waiting:
            due = self.retry_at.get(index, 0.0) <= now
            if due and all(parent in self.outcomes for parent in self.tasks[index].after):
                self.waiting.remove(index)
                return index
        return None

    # What workers say

    def _listen(self, timeout: float) -> None:
        """Take what workers have to say; notice those that have died."""
        heard = wait([worker.connection for worker in self.workers], timeout)
        for worker in [worker for worker in self.workers if worker.connection in heard]:
            try:
                kind, *content = worker.connection.recv()
            except (EOFError, OSError):
                self._bury(worker)
                continue
            if kind == "ready":
                worker.ready, self.stillborn = True, 0
            elif kind == "epoch":
                self.progress.epoch(*content)
            else:
                worker.index = None
                worker.ending = content[1].status in LAST
                self._take(*content)

    def _take(self, index: int, outcome: Outcome) -> None:
        """The end of an attempt at a task."""
        if outcome.status == "interrupted":
            if not self.signals:
                self._again(index, f"{self.tasks[index].name} was interrupted by a signal to its worker, and saved")
        elif outcome.status == "held" and children(self.tasks, index):
            if index not in self.retry_at:
                self.progress.say(f"{self.tasks[index].name}: {outcome.reason}; its children wait for that.")
            self.retry_at[index] = time.monotonic() + _POLL_S
            self.begun[index] -= 1
            self.waiting.insert(0, index)
        else:
            self._settle(index, outcome)

    def _settle(self, index: int, outcome: Outcome) -> None:
        """A task's end; children of one that has no weights are blocked."""
        self.outcomes[index] = outcome
        task = self.tasks[index]
        parts = [task.name, outcome.metric, duration(outcome.seconds) if outcome.seconds else "", outcome.status]
        line = "  ".join(part for part in parts if part)
        self.progress.settle(index, line + (f" ({outcome.reason})" if outcome.reason else ""))
        if outcome.status == "blocked" and (problem := blocked.record(task, outcome.reason or "")):
            self.progress.say(problem)
        if outcome.status != "completed":
            for child in children(self.tasks, index):
                if child in self.waiting:
                    self.waiting.remove(child)
                    self._settle(child, Outcome("blocked", f"its parent {task.name} has {_VERBS[outcome.status]}"))

    # Death and birth

    def _bury(self, worker: Worker) -> None:
        """A worker's connection has closed: it was told to, or retired after a failure, or it died."""
        worker.connection.close()
        worker.process.join(_GRACE_S)
        if worker.process.is_alive():  # stuck on its way out
            worker.process.kill()
            worker.process.join()
        self.workers.remove(worker)
        if self.closing:
            return
        if worker.index is not None:
            how = _death(worker.process.exitcode)
            self._again(worker.index, f"{self.tasks[worker.index].name} was interrupted: its worker {how}")
        if not worker.ready:
            self.stillborn += 1
            if self.stillborn >= ATTEMPTS:
                raise Misuse(f"worker processes {_death(worker.process.exitcode)} while starting; see {self.log}.")
        if sum(other.index is None and not other.ending for other in self.workers) < len(self.waiting):
            self._start(worker.device)

    def _again(self, index: int, sentence: str) -> None:
        """Begin an interrupted task once more, or give it up."""
        if self.begun[index] < ATTEMPTS:
            self.progress.say(f"{sentence}; a new worker resumes it.")
            self.waiting.insert(0, index)
        else:
            reason = f"interrupted {ATTEMPTS} times, see {self.log}; the next submission resumes it"
            self._settle(index, Outcome("failed", reason))

    def _start(self, device: str | None) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, str(self.log)), name="regrow-worker")
        # The libraries read these when they are loaded, which is before any code of ours could set them.
        with environment(OMP_NUM_THREADS=str(self.threads), **({"CUDA_VISIBLE_DEVICES": device} if device else {})):
            process.start()
        theirs.close()  # so that the worker's death closes the connection
        self.workers.append(Worker(process, ours, device))

    # Stopping

    @contextmanager
    def _signals(self) -> Iterator[None]:
        kinds = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {kind: signal.signal(kind, self._on_signal) for kind in kinds}
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)

    def _on_signal(self, number: int, frame: object) -> None:
        self.signals += 1

    def _shut_down(self) -> None:
        """Let idle workers go and busy ones save; kill them upon a second signal, or late, if the pool has broken."""
        self.closing = True
        began, patient = time.monotonic(), self.signals > 0
        if self.signals and any(worker.index is not None for worker in self.workers):
            self.progress.say("Stopping: running runs are saved first. A second signal kills them.")
        idle = [worker for worker in self.workers if worker.index is None]
        for worker in idle:  # all of them before waiting for any
            worker.connection.close()
            if not worker.ready:
                _signal(worker.process, signal.SIGKILL)
        for worker in idle:
            self._bury(worker)
        while self.workers:
            late = not patient and time.monotonic() - began > _GRACE_S
            for worker in self.workers:
                _signal(worker.process, signal.SIGKILL if late or self.signals > 1 else signal.SIGTERM)
            self._listen(_NUDGE_S)


_VERBS = {"failed": "failed", "refused": "been refused", "blocked": "been blocked", "diverged": "diverged"}


def _death(code: int | None) -> str:
    return f"died of {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended with exit code {code}"


def _signal(process: BaseProcess, kind: signal.Signals) -> None:
    if process.is_alive() and process.pid is not None:
        os.kill(process.pid, kind)


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """These environment variables within the context: for processes that are started there."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
