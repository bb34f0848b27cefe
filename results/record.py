"""One run as its record tells it: read from a run directory or a packed file, and never trusted blindly."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from results import number
from runner import identity, records
from runner.records import SCHEMA

#: How a run's record may stand. The first three are finished; an interrupted run has no summary and no holder; a
#: blocked one could not begin when it was to, since its parent had no weights (runner.blocked).
STATUSES = ("completed", "diverged", "failed", "running", "interrupted", "blocked")
FINISHED = STATUSES[:3]

SEED_DIRECTORY = re.compile(r"seed(\d+)")
SEED_FILE = re.compile(r"seed(\d+)\.json")

# The C parser reads a config about ten times faster; both build plain data only.
_YamlLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, order=True)
class Problem:
    """Something in a record that cannot be used as it stands, in one sentence."""

    path: Path
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


class Unusable(Exception):
    """A record that cannot be used at all; the text says why."""


@dataclass(frozen=True)
class Record:
    """A run: what it was asked (`config`, `overrides`), where it ran, and what came out.

    `metrics` has one mapping an epoch, in order; `summary` is None until the run has finished.
    """

    path: Path
    packed: bool
    key: str
    seed: int
    status: str
    config: Mapping[str, Any]
    overrides: tuple[str, ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] | None = None
    metrics: tuple[Mapping[str, Any], ...] = ()

    @property
    def identity(self) -> tuple[str, int]:
        return self.key, self.seed

    def value(self, metric: str) -> float | None:
        """The last epoch's `metric`, or with `best:` before it the best epoch's; None when it was not recorded."""
        part, _, name = metric.rpartition(":")
        values = (self.summary or {}).get(part or "final")
        return number.read(values.get(name)) if isinstance(values, dict) else None


def read_directory(path: Path) -> tuple[Record, list[Problem]]:
    """The record in run directory `path`, and what had to be left out of it; raises Unusable."""
    problems: list[Problem] = []
    summary = _json(path / "summary.json") if (path / "summary.json").exists() else None
    config = _yaml(path / "config.yaml")
    status = _summary_status(summary) if summary is not None else "interrupted"
    # A finished run is only held for a moment; a failed one that is held is being tried again.
    if status not in ("completed", "diverged") and records.is_held(path):
        status, summary = "running", None
    key, seed = _checked_identity(config, summary, folder=path)
    metrics = _metric_lines(path / "metrics.jsonl", status in ("running", "blocked"), problems)
    overrides: tuple[str, ...] = ()
    environment: Mapping[str, Any] = {}
    for name in ("overrides", "environment"):
        file = path / f"{name}.json"
        try:
            content = _json(file, list if name == "overrides" else dict)
        except Unusable as error:
            problems.append(Problem(file, f"{error}; the run is used without it."))
            continue
        if name == "overrides":
            overrides = tuple(map(str, content))
        else:
            environment = content
    record = Record(path, False, key, seed, status, config, overrides, environment, summary, tuple(metrics))
    return record, problems


def read_packed(path: Path) -> tuple[Record, list[Problem]]:
    """The record in the single file that `pack` made; raises Unusable."""
    content = _json(path)
    if content.get("schema") != SCHEMA:
        raise Unusable(f"has schema {content.get('schema')!r}; this version reads schema {SCHEMA}")
    for name, kind in (
        ("config", dict),
        ("overrides", list),
        ("environment", dict),
        ("summary", dict),
        ("metrics", dict),
    ):
        if not isinstance(content.get(name), kind):
            raise Unusable(f"has no usable '{name}'")
    summary, columns = content["summary"], content["metrics"]
    lengths = {len(column) if isinstance(column, list) else -1 for column in columns.values()}
    if len(lengths) > 1 or -1 in lengths:
        raise Unusable("has metric columns of unequal lengths")
    status = _summary_status(summary)
    key, seed = _checked_identity(content["config"], summary, folder=path.with_suffix(""))
    metrics = tuple(
        {name: value for name, value in zip(columns, row, strict=True) if value is not None}
        for row in zip(*columns.values(), strict=True)
    )
    overrides = tuple(map(str, content["overrides"]))
    return Record(
        path, True, key, seed, status, content["config"], overrides, content["environment"], summary, metrics
    ), []


def _checked_identity(config: Mapping[str, Any], summary: Mapping[str, Any] | None, folder: Path) -> tuple[str, int]:
    """(key, seed) by the config alone; the folder's names and the summary must agree with it."""
    try:
        key = identity.key(dict(config))
    except Exception as error:  # a stored config is data from anywhere: whatever is wrong with it is the record's fault
        raise Unusable(f"stores a config that has no key ({type(error).__name__}: {error})") from error
    seed = config.get("seed")
    if type(seed) is not int:
        raise Unusable(f"stores a config with the seed {seed!r}")
    stored = {folder.parent.name} | ({summary.get("key")} if summary is not None else set())
    if stored != {key}:
        other = ", ".join(sorted(str(name) for name in stored - {key}))
        raise Unusable(f"stores a config whose key is {key}, not {other}; it is not used")
    seeds = {folder.name} | ({f"seed{summary.get('seed')}"} if summary is not None else set())
    if seeds != {f"seed{seed}"}:
        other = ", ".join(sorted(seeds - {f"seed{seed}"}))
        raise Unusable(f"stores a config whose seed is {seed}, not that of {other}; it is not used")
    return key, seed


def _summary_status(summary: Mapping[str, Any]) -> str:
    if summary.get("schema") != SCHEMA:
        raise Unusable(f"has a summary of schema {summary.get('schema')!r}; this version reads schema {SCHEMA}")
    if summary.get("status") not in (*FINISHED, "blocked"):
        raise Unusable(f"has a summary with the unknown status {summary.get('status')!r}")
    return str(summary["status"])


def _metric_lines(path: Path, unfinished: bool, problems: list[Problem]) -> list[dict[str, Any]]:
    """Every readable line. Only of a running or blocked run a missing file or half a line is no problem."""
    try:
        lines, unreadable = records.read_metrics(path)
    except OSError as error:
        problems.append(Problem(path, f"cannot be read ({error.strerror}); the run has no curves."))
        return []
    if not unfinished:
        problems += [Problem(path, sentence.removeprefix(str(path)).strip() + ".") for sentence in unreadable]
        if not path.exists():
            problems.append(Problem(path, "is not there; the run has no curves."))
    return lines


def _json(path: Path, kind: type = dict) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Unusable(f"cannot be read: {path.name}: {error.strerror}") from error
    except ValueError as error:  # json.JSONDecodeError and UnicodeDecodeError are both
        raise Unusable(f"is not valid JSON: {path.name}: {error}") from error
    if not isinstance(content, kind):
        raise Unusable(f"is not what it should be: {path.name} holds no {'list' if kind is list else 'object'}")
    return content


def _yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_YamlLoader)
    except FileNotFoundError as error:
        raise Unusable(f"has no {path.name}: the run has not begun, or was stopped before it did") from error
    except OSError as error:
        raise Unusable(f"cannot be read: {path.name}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Unusable(f"is not valid YAML: {path.name}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise Unusable(f"is not what it should be: {path.name} holds no mapping")
    return content
