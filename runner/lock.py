"""Who holds a run directory (or a submission), also when machines die, clocks differ or locks stay behind. No torch.

On one machine the kernel's flock tells the truth: it ends with its process. Between machines it may be seen by the
holder's alone, or stay behind when that machine dies. So the lock file names its holder, and its time of modification
is the holder's heartbeat. A holder on another machine that has been silent for `STALE_S` is taken to be dead and its
lock taken over. If it was only suspended, it notices before its next write (`Hold.check`).

Silence is measured by the file system's clock alone: a probe file beside the lock is touched, and the times compared.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import platform
import re
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import TracebackType

from runner.disk import writing
from runner.errors import Misuse

NAME = "lock"
BEAT_S = 20.0
STALE_S = 300.0
PATIENCE_S = 1.0  # whoever asks `is_held` has the lock for a moment
_TOKEN = re.compile(r"[0-9a-f]{16}")
log = logging.getLogger("regrow")


class Held(Misuse):
    """Another process holds the directory, or has taken it over."""


@cache
def machine() -> str:
    """What tells one boot of one machine from all others: processes that share it share their kernel's flock."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux
        return platform.node()


@dataclass(frozen=True)
class Holder:
    """Who holds a lock. `token`: 16 hexadecimal digits that no other hold has; the rest is for people to read."""

    token: str
    machine: str
    host: str
    pid: int
    since: str
    job: str | None = None

    @classmethod
    def here(cls) -> Holder:
        """This process."""
        job = next((found for name in ("SLURM_ARRAY_JOB_ID", "SLURM_JOB_ID") if (found := os.environ.get(name))), None)
        if job and (index := os.environ.get("SLURM_ARRAY_TASK_ID")):
            job = f"{job}_{index}"
        since = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(secrets.token_hex(8), machine(), platform.node(), os.getpid(), since, job)

    def __str__(self) -> str:
        job = f", SLURM job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}, since {self.since}"

    @property
    def elsewhere(self) -> bool:
        """Whether it is on another machine, whose death this one's kernel does not hear of."""
        return self.machine != machine()


class Hold:
    """A lock that is held until `release`, or the end of a `with`. `holder` is this process."""

    def __init__(self, folder: Path, descriptor: int, holder: Holder) -> None:
        self.folder, self.descriptor, self.holder = folder, descriptor, holder
        self.pulse = _Pulse(descriptor)

    def check(self) -> None:
        """To be called before every write. Held when another process has taken the directory over meanwhile."""
        found = _read_path(self.folder / NAME)
        if found is None or found.token != self.holder.token:
            who = f"was taken over by {found}" if found else f"has lost its {NAME} file"
            raise Held(
                f"{self.folder} {who}, while this process was suspended or its heartbeat could not be written; "
                "it has written nothing since, and stops."
            )

    def release(self) -> None:
        """Let others have it."""
        self.pulse.stop()
        with suppress(OSError):  # a record that stays behind is that of a dead process
            if (found := _read(self.descriptor)) is not None and found.token == self.holder.token:
                os.ftruncate(self.descriptor, 0)
        os.close(self.descriptor)

    def __enter__(self) -> Hold:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class _Pulse:
    """Touches a lock file every `BEAT_S` seconds, from a thread of its own."""

    def __init__(self, descriptor: int) -> None:
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._beat, args=(descriptor,), name="heartbeat", daemon=True)
        self.thread.start()

    def _beat(self, descriptor: int) -> None:
        while not self.stopped.wait(BEAT_S):
            with suppress(OSError):  # a server that does not answer for a while; `Hold.check` tells what it led to
                os.utime(descriptor)

    def stop(self) -> None:
        self.stopped.set()
        self.thread.join()


@contextmanager
def beating(folder: Path) -> Iterator[None]:
    """The heartbeat of a lock that this process holds by a descriptor opened elsewhere, if there is a lock."""
    try:
        descriptor = os.open(folder / NAME, os.O_RDWR)
    except FileNotFoundError:
        yield
        return
    pulse = _Pulse(descriptor)
    try:
        yield
    finally:
        pulse.stop()
        os.close(descriptor)


def take(folder: Path) -> Hold:
    """Hold a directory, which is made if it is not there. Held when another process does, Misuse when it cannot be."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        descriptor = _open(folder)
        try:
            hold = _seize(folder, descriptor, late=time.monotonic() > deadline)
        except BaseException:
            os.close(descriptor)
            raise
        if hold is not None:
            if hold.descriptor != descriptor:  # of a file that has taken the place of this one
                os.close(descriptor)
            return hold
        os.close(descriptor)
        time.sleep(0.05)


def _open(folder: Path) -> int:
    try:
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # removed meanwhile by whoever discarded it
                return os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise Misuse(
            f"{folder} cannot be written ({error.strerror}); give a runs root that can, with runs=DIR or REGROW_RUNS."
        ) from None


def _seize(folder: Path, descriptor: int, late: bool) -> Hold | None:
    """Take the lock if it is free or its holder dead; None to try again; Held, if it is `late`."""
    try:
        free = _flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        raise Misuse(
            f"{folder} cannot be locked ({error.strerror}): mount its file system with locks, or give another runs "
            "root with runs=DIR or REGROW_RUNS."
        ) from None
    if free and not _same_file(descriptor, folder / NAME):
        return None
    holder = _read(descriptor)
    if holder is not None and holder.elsewhere and (silent := _silence(folder, descriptor)) > STALE_S:
        return _take_over(folder, holder, silent)
    if free and (holder is None or not holder.elsewhere):
        return Hold(folder, descriptor, sign(folder, descriptor))
    if late:
        who = f" ({holder})" if holder else ""
        mend = "wait for it, or stop it, and run this again"
        if holder is not None and holder.elsewhere:
            mend += f"; if that machine has died, this is free {STALE_S / 60:.0f} minutes after its last heartbeat"
        raise Held(f"another process is running {folder}{who}; {mend}.")
    return None


def _take_over(folder: Path, dead: Holder, silent: float) -> Hold | None:
    """Put a lock file of our own in the place of a dead machine's, whose flock a server may still keep.

    One process alone may do so: the one that could make the file which claims it. None when another one was faster.
    """
    claim = folder / f".{NAME}.{dead.token}"
    try:
        os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        with suppress(OSError):
            if (_now(folder) - claim.stat().st_mtime_ns) / 1e9 > STALE_S:  # whoever claimed it has died in doing so
                claim.unlink()
        return None
    try:
        found = _read_path(folder / NAME)
        if found is None or found.token != dead.token:  # it was taken over since we looked
            return None
        ours = folder / f".{NAME}.{secrets.token_hex(8)}"
        descriptor = os.open(ours, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        try:
            _flock(descriptor, fcntl.LOCK_EX)
            holder = sign(folder, descriptor)
            os.replace(ours, folder / NAME)
        except BaseException:
            os.close(descriptor)
            ours.unlink(missing_ok=True)
            raise
    finally:
        claim.unlink(missing_ok=True)
    log.warning("%s taken over from %s: no heartbeat for %.0f minutes.", folder, dead, silent / 60)
    return Hold(folder, descriptor, holder)


def sign(folder: Path, descriptor: int) -> Holder:
    """Write into the locked lock file that this process holds it. Raises `runner.disk.Unwritable`."""
    holder = Holder.here()
    text = json.dumps(asdict(holder)).encode()
    with writing(folder / NAME, len(text)):
        os.pwrite(descriptor, text, 0)
        os.ftruncate(descriptor, len(text))
        os.fsync(descriptor)
    return holder


def is_held(folder: str | Path) -> bool:
    """Whether some living process holds the directory (its run is going on)."""
    try:
        descriptor = os.open(Path(folder) / NAME, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would block
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    try:
        free = _flock(descriptor, fcntl.LOCK_SH)
        holder = _read(descriptor)
        if holder is not None and holder.elsewhere:
            return _silence(Path(folder), descriptor) <= STALE_S
        return not free
    except OSError:
        return True
    finally:
        os.close(descriptor)


def _flock(descriptor: int, kind: int) -> bool:
    """Whether the lock could be had; another OSError when the file system has no locks."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(descriptor: int) -> Holder | None:
    """The holder that a lock file names; None when it is empty or not readable."""
    try:
        content = json.loads(os.pread(descriptor, 4096, 0))
        holder = Holder(**content)
    except (ValueError, TypeError, RecursionError):
        return None
    return holder if isinstance(holder.token, str) and _TOKEN.fullmatch(holder.token) else None


def _read_path(path: Path) -> Holder | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        return _read(descriptor)
    finally:
        os.close(descriptor)


def _silence(folder: Path, descriptor: int) -> float:
    """Seconds since the last heartbeat, by the file system's clock.

    One from the future (the clock was set back) is set to now: it counts as fresh from now on, not for ever.
    """
    now, beat = _now(folder), os.fstat(descriptor).st_mtime_ns
    if beat > now:
        with suppress(OSError):
            os.utime(descriptor)
    return max(0.0, (now - beat) / 1e9)


def _now(folder: Path) -> int:
    """The file system's time in nanoseconds. Where nothing can be written nothing can be taken: this machine's does."""
    probe = folder / f".{NAME}.{secrets.token_hex(8)}"
    try:
        descriptor = os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except OSError:
        return time.time_ns()
    try:
        os.utime(descriptor)
        return os.fstat(descriptor).st_mtime_ns
    finally:
        os.close(descriptor)
        probe.unlink(missing_ok=True)


def _same_file(descriptor: int, path: Path) -> bool:
    """Whether the open file still lies at `path` (a discarded directory's lock may have been replaced)."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
