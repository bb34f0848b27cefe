"""The ranks of `trainer.devices=N`: processes of this machine, started, listened to, told to stop, named when lost."""

from __future__ import annotations

import logging
import os
import signal
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from runner.errors import Misuse, RanksFailed
from runner.identity import Config

if TYPE_CHECKING:
    from runner.trainer import Progress

_LISTEN_S = 0.2
_NOTICE_S = 5.0  # how long a rank that misses another one waits for the launching process to miss it, too


@dataclass
class _Failure:
    """What a rank says of its own failure. `missing`: it only misses another rank."""

    error: Exception | None
    text: str
    details: str
    missing: bool


@dataclass
class _Heard:
    """What the launching process has heard of the ranks."""

    processes: dict[int, int] = field(default_factory=dict)
    failures: dict[int, _Failure] = field(default_factory=dict)


def launch(
    config: Config, overrides: list[str], progress: Progress | None, weights: bool, stop: Callable[[], bool]
) -> dict[str, Any]:
    """Execute a run by `trainer.devices` ranks of this machine; the same results and errors as `execute`, its caller.

    RanksFailed when one of them is lost or fails. When `stop` says so, all are asked to save and stop.
    """
    from runner.trainer import Interrupted

    count = config["trainer"]["devices"]
    _check_devices(count, config["trainer"]["device"])
    pipes = [get_context("spawn").Pipe(duplex=False) for _ in range(count)]
    readers, writers = [reader for reader, _ in pipes], [writer for _, writer in pipes]
    heard = _Heard()
    # In a thread: in the main one torch would take the signals, and end the ranks at once.
    with TemporaryDirectory(prefix="regrow-ranks-") as logs, _quiet(), ThreadPoolExecutor(1) as thread:
        start = elastic_launch(_configuration(count, logs), _work)
        launched = thread.submit(start, config, overrides, weights, writers)
        _listen(launched, readers, heard, progress, stop)
        try:
            outcomes = launched.result()
        except ChildFailedError as error:
            if stop() and len(heard.processes) < count:
                raise Interrupted from None  # they were told before they could listen, and had not begun
            raise _blamed(error, heard) from None
    for each in (*readers, *writers):
        each.close()
    if outcomes[0] is None:
        raise Interrupted
    return outcomes[0]


def _check_devices(count: int, device: str) -> None:
    import torch

    if device != "cpu" and torch.cuda.is_available() and torch.cuda.device_count() < count:
        raise Misuse(
            f"trainer.devices = {count}, but this machine has {torch.cuda.device_count()} CUDA device(s); take no more "
            f"than that, or trainer.device=cpu."
        )


def _configuration(count: int, logs: str) -> LaunchConfig:
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="spawn",
        logs_specs=DefaultLogsSpecs(log_dir=logs),
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """torch's own account of what happens to ranks stays out of the way: ours is shorter."""
    loggers = [logging.getLogger(name) for name in ("torch.distributed.elastic", "torch.multiprocessing")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _listen(
    launched: Future[Any],
    readers: Sequence[Connection],
    heard: _Heard,
    progress: Progress | None,
    stop: Callable[[], bool],
) -> None:
    """Hear the ranks until they have ended, and tell them once when to stop."""
    told: set[int] = set()
    ended = False
    while not ended:
        ended = launched.done()  # and then there is nothing more to hear than what lies in the pipes
        while ready := wait(readers, 0 if ended else _LISTEN_S):
            for reader in ready:
                assert isinstance(reader, Connection)
                kind, message = reader.recv()
                if kind == "begun":
                    heard.processes[readers.index(reader)] = message
                elif kind == "epoch" and progress is not None:
                    progress(message)
                elif kind == "failed":
                    heard.failures[readers.index(reader)] = message
            if not ended:
                break
        if stop() and not ended:
            for rank in heard.processes.keys() - told:
                told.add(rank)
                with suppress(ProcessLookupError):
                    os.kill(heard.processes[rank], signal.SIGTERM)


def _work(config: Config, overrides: list[str], weights: bool, writers: Sequence[Connection]) -> dict[str, Any] | None:
    """One rank: executes the run; its summary, or None when it was saved and stopped."""
    from runner.attempt import Stop

    stop = Stop()  # a signal that arrives before the run listens for it counts, too
    writer = writers[int(os.environ["RANK"])]
    writer.send(("begun", os.getpid()))
    if os.environ["RANK"] != "0":
        logging.getLogger("regrow").addHandler(logging.NullHandler())  # rank 0 says the same
    from runner.execute import execute
    from runner.trainer import Interrupted
    from runner.world import join

    def tell(line: dict[str, Any]) -> None:
        writer.send(("epoch", line))

    try:
        return execute(config, overrides, tell, weights, lambda: stop.asked)
    except Interrupted:
        return None
    except Exception as error:
        missing = join().lost(error)
        ours = error if isinstance(error, Misuse) else None
        text = f"{type(error).__name__}: {error}"
        writer.send(("failed", _Failure(ours, text, traceback.format_exc(), missing)))
        deadline = time.monotonic() + _NOTICE_S
        while missing and not stop.asked and time.monotonic() < deadline:
            time.sleep(0.05)  # else the launching process might find this one dead first, and name it
        raise


def _blamed(error: ChildFailedError, heard: _Heard) -> Exception:
    """Of all that happened to the ranks, what made the run end."""
    own = {rank: failure for rank, failure in sorted(heard.failures.items()) if not failure.missing}
    for rank, failure in own.items():
        if failure.error is not None:
            return failure.error
        return RanksFailed(f"rank {rank}: {failure.text}", failure.details)
    rank, process = error.get_first_failure()
    how = f"killed by {process.signal_name()}" if process.exitcode < 0 else f"exit code {process.exitcode}"
    details = heard.failures[rank].details if rank in heard.failures else None
    return RanksFailed(f"rank {rank} was lost ({how}); what is recorded stays; run again to resume", details)
