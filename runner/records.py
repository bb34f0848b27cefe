"""The run directory: what a run leaves behind, written so that a kill at any moment loses nothing. No torch here."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from runner import untrusted
from runner.disk import Unwritable, append, write_atomic
from runner.errors import Misuse
from runner.identity import Config
from runner.lock import Held, Hold, is_held, take

__all__ = ["SCHEMA", "Held", "RunDirectory", "is_held", "read_metrics", "spell", "write_atomic", "write_json"]

SCHEMA = 1
_TOLD = 20  # bad lines of a metrics file, one by one


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
        self._hold: Hold | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the directory for this process; Held when another one does, Misuse when it cannot be written."""
        with take(self.path) as self._hold:
            try:
                yield
            finally:
                self._hold = None

    def check_hold(self) -> None:
        """Held when the directory was held and another process has taken it over: whoever writes asks before."""
        if self._hold is not None:
            self._hold.check()

    def begin(self, config: Config, overrides: list[str], environment: dict[str, Any]) -> None:
        """Write what is known before the first step."""
        from omegaconf import OmegaConf  # slow to import, and whoever reads records does without it

        self.check_hold()
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
        """Add a line, or raise `runner.disk.Unwritable` and add nothing."""
        self.check_hold()
        append(self.metrics_path, f"{json.dumps(spell(line))}\n".encode())

    def cut_metrics(self, epoch: int) -> list[dict[str, Any]]:
        """Drop the lines of `epoch` and later (and a torn last line); returns the lines that stay.

        By epoch, not by step: a run killed between its epoch's line and its next checkpoint repeats that line.
        Misuse when the file cannot be read.
        """
        try:
            lines, problems = read_metrics(self.metrics_path)
        except OSError as error:
            raise Misuse(f"{self.metrics_path} cannot be read ({error.strerror}); move it away to go on.") from None
        kept = [line for line in lines if isinstance(line.get("epoch"), int) and line["epoch"] < epoch]
        if len(kept) == len(lines) and not problems and self.metrics_path.exists():
            return kept
        self.check_hold()
        write_atomic(self.metrics_path, "".join(json.dumps(spell(line)) + "\n" for line in kept))
        return kept

    def summary(self) -> dict[str, Any] | None:
        """The summary, or None while there is none; "nan" and "inf" are text in it. Misuse when it cannot be read."""
        try:
            found = untrusted.parse_json(untrusted.content(self.summary_path).decode())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise Misuse(f"{self.summary_path} is not readable ({why}); move it away to run again.") from None
        if not isinstance(found, dict) or not isinstance(found.get("status"), str):
            raise Misuse(f"{self.summary_path} tells no status; move it away to run again.")
        return spell(found)

    def finish(self, summary: dict[str, Any]) -> None:
        self.check_hold()
        write_json(self.summary_path, {"schema": SCHEMA, **summary})

    def finish_if_possible(self, summary: dict[str, Any]) -> None:
        """`finish`, but a disk that refuses is no error: the run ends with another, which may have its cause there."""
        with suppress(Unwritable):
            self.finish(summary)


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The readable lines of a metrics file as numbers, and a sentence for each that is not, or for all after twenty.

    Raises OSError.
    """
    lines: list[dict[str, Any]] = []
    problems: list[str] = []
    more = 0
    if not path.exists():
        return lines, problems
    for number, text in enumerate(untrusted.content(path).decode(errors="replace").splitlines(), start=1):
        try:
            line = untrusted.parse_json(text)
            lines.append({name: _number(value) for name, value in line.items()})
        except (ValueError, AttributeError):
            if len(problems) < _TOLD:
                problems.append(f"{path} line {number} is truncated or not JSON and was left out")
            else:
                more += 1
    if more:
        problems.append(f"{path} has {more} more lines that are truncated or not JSON and were left out")
    return lines, problems


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
