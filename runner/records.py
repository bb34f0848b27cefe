"""The run directory: what a run leaves behind, written so that a kill at any moment loses nothing. No torch here."""

from __future__ import annotations

import fcntl
import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from runner.errors import Misuse
from runner.identity import Config

SCHEMA = 1
_PATIENCE_S = 1.0  # whoever asks `is_held` has the lock for a moment


class Held(Misuse):
    """Another process holds the run directory."""


class RunDirectory:
    """Paths and files of one run.

    config.yaml, overrides.json, environment.json, metrics.jsonl (a line per epoch), summary.json (atomic, last),
    log.txt, lock, checkpoints/.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.metrics_path = self.path / "metrics.jsonl"
        self.summary_path = self.path / "summary.json"
        self.checkpoints = self.path / "checkpoints"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the directory for this process; Misuse when another one does. Released by the kernel on any death."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            self.path.mkdir(parents=True, exist_ok=True)
            with open(self.path / "lock", "a+") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if _same_file(lock.fileno(), self.path / "lock"):
                        yield
                        return
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise Held(
                            f"another process is running {self.path}; wait for it, or stop it, and run this again."
                        ) from None
                    time.sleep(0.05)

    def begin(self, config: Config, overrides: list[str], environment: dict[str, Any]) -> None:
        """Write what is known before the first step."""
        from omegaconf import OmegaConf  # slow to import, and whoever reads records does without it

        write_atomic(self.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
        write_json(self.path / "overrides.json", overrides)
        write_json(self.path / "environment.json", environment)

    def discard_unbegun(self) -> None:
        """Remove the directory of a run that failed before it began (its configuration was never written)."""
        if not (self.path / "config.yaml").exists():
            for name in ("lock", "log.txt"):
                (self.path / name).unlink(missing_ok=True)
            with suppress(OSError):  # something else lies there, or another key's or seed's run beside it
                self.path.rmdir()
                self.path.parent.rmdir()

    def append_metrics(self, line: dict[str, Any]) -> None:
        with open(self.metrics_path, "a") as file:
            file.write(json.dumps(spell(line)) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def cut_metrics(self, epoch: int) -> list[dict[str, Any]]:
        """Drop the lines of `epoch` and later (and a torn last line); returns the lines that stay.

        By epoch, not by step: a run killed between its epoch's line and its next checkpoint repeats that line.
        """
        lines, _ = read_metrics(self.metrics_path)
        kept = [line for line in lines if line["epoch"] < epoch]
        write_atomic(self.metrics_path, "".join(json.dumps(spell(line)) + "\n" for line in kept))
        return kept

    def summary(self) -> dict[str, Any] | None:
        """The summary, or None while there is none. Misuse when it cannot be read."""
        try:
            return json.loads(self.summary_path.read_text(), parse_constant=str)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise Misuse(f"{self.summary_path} is not readable ({error}); move it away to run again.") from None

    def finish(self, summary: dict[str, Any]) -> None:
        write_json(self.summary_path, {"schema": SCHEMA, **summary})


def _same_file(descriptor: int, path: Path) -> bool:
    """Whether the open file still lies at `path` (a discarded directory's lock may have been replaced)."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def is_held(path: str | Path) -> bool:
    """Whether some process holds the run directory (its run is going on)."""
    try:
        with open(Path(path) / "lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The readable lines of a metrics file as numbers, and one sentence per line that is not readable."""
    lines: list[dict[str, Any]] = []
    problems: list[str] = []
    if not path.exists():
        return lines, problems
    for number, text in enumerate(path.read_text(errors="replace").splitlines(), start=1):
        try:
            line = json.loads(text)
            lines.append({name: _number(value) for name, value in line.items()})
        except (ValueError, AttributeError):
            problems.append(f"{path} line {number} is truncated or not JSON and was left out")
    return lines, problems


def write_atomic(path: Path, text: str | bytes) -> None:
    """Write a whole file or leave the old one: temporary file, fsync, rename, fsync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(text.encode() if isinstance(text, str) else text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; numbers that are not finite become text."""
    write_atomic(path, json.dumps(spell(value), indent=1) + "\n")


def spell(value: Any) -> Any:
    """`value` with every non-finite float in it, however deep, spelt as text ("nan", "inf", "-inf"): strict JSON."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {name: spell(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [spell(item) for item in value]
    return value


def _number(value: Any) -> Any:
    return float(value) if value in ("nan", "inf", "-inf") else value
