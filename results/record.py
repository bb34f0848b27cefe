"""One run as its record tells it: read from a run directory or a packed file, and never trusted blindly."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from results import files, number
from results.files import Unusable as Unusable  # part of this module's surface
from runner import records
from runner.records import SCHEMA

_EPOCH = re.compile(r"epoch(\d+)")
_PHASES = re.compile(r"(dense|sparse)_phases:(.+)")
#: How a run's record may stand. The first three are finished; an interrupted run has no summary and no holder; a
#: blocked one could not begin when it was to, since its parent had no weights (runner.blocked).
STATUSES = ("completed", "diverged", "failed", "running", "interrupted", "blocked")
FINISHED = STATUSES[:3]
SETTLED = ("completed", "diverged")

SEED_DIRECTORY = re.compile(r"seed(\d+)")
SEED_FILE = re.compile(r"seed(\d+)\.json")
#: A run's times of inference, measured afterwards (`runs.py engines`), in its directory or beside its packed record.
TIMES_FILE, TIMES_SCHEMA = "engines.json", 1


@dataclass(frozen=True, order=True)
class Problem:
    """Something in a record that cannot be used as it stands, or that its reader should know, in one sentence."""

    path: Path
    what: str
    kind: str = "malformed"  #: one of results.integrity.KINDS

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


class Content(Protocol):
    """What a record holds beside its name and its status: all of it in memory, or read when it is asked for."""

    @property
    def config(self) -> Mapping[str, Any]: ...
    @property
    def overrides(self) -> tuple[str, ...]: ...
    @property
    def environment(self) -> Mapping[str, Any]: ...
    @property
    def summary(self) -> Mapping[str, Any] | None: ...
    @property
    def metrics(self) -> tuple[Mapping[str, Any], ...]: ...
    def part(self, name: str) -> Any:
        """One part of the summary, None where it has none of that name."""


@dataclass(frozen=True)
class Whole:
    """A record's content in memory."""

    config: Mapping[str, Any]
    overrides: tuple[str, ...]
    environment: Mapping[str, Any]
    summary: Mapping[str, Any] | None
    metrics: tuple[Mapping[str, Any], ...]

    def part(self, name: str) -> Any:
        """One part of the summary, None where it has none of that name."""
        return (self.summary or {}).get(name)


@dataclass(frozen=True, eq=False)
class Record:
    """A run: what it was asked (`config`, `overrides`), where it ran, and what came out.

    `parent` is the key of the run that a stage starts from; `metrics` has one mapping an epoch, in order; `summary` is
    None until the run has finished. What a record does not hold in memory is read when it is asked for; Misuse when
    its file has changed since the record was found.
    """

    place: str
    packed: bool
    key: str
    seed: int
    status: str
    parent: str | None
    content: Content = field(repr=False)

    @cached_property
    def path(self) -> Path:
        """Where it lies; made when it is asked for, since of ten thousand records few are."""
        return Path(self.place)

    @property
    def identity(self) -> tuple[str, int]:
        return self.key, self.seed

    @property
    def config(self) -> Mapping[str, Any]:
        return self.content.config

    @property
    def overrides(self) -> tuple[str, ...]:
        return self.content.overrides

    @property
    def environment(self) -> Mapping[str, Any]:
        return self.content.environment

    @property
    def summary(self) -> Mapping[str, Any] | None:
        return self.content.summary

    @property
    def metrics(self) -> tuple[Mapping[str, Any], ...]:
        return self.content.metrics

    def value(self, metric: str) -> float | None:
        """The last epoch's `metric`; with `best:`, `dense:` ... before it that of the summary's part of this name.

        `epochN:METRIC`: that of epoch N. `layers:NAME`: the share of zeros among the effective weights NAME.weight (or
        NAME) at the end, 0 to 1. `engines:ENGINE/SETTING/ms`: a time of inference. What follows from the rest of the
        record is in `COUNTED`. None when it was not recorded.
        """
        if metric in COUNTED:
            return COUNTED[metric](self.content)
        part, separator, name = metric.partition(":")
        if not separator:
            part, name = "final", metric
        if part == "engines":
            return number.read(self._time(name))
        if of_epoch := _EPOCH.fullmatch(part):
            return self.history(name).get(int(of_epoch[1]))
        values = self.content.part(part)
        if not isinstance(values, Mapping):
            return None
        if part == "layers":
            return _sparsity(values.get(f"{name}.weight", values.get(name)))
        return number.read(values.get(name))

    def _time(self, name: str) -> Any:
        """The entry ENGINE/SETTING/FIELD of the run's times; None without them, and when they are another run's."""
        try:
            value = files.json_file(self.path.with_name(TIMES_FILE) if self.packed else self.path / TIMES_FILE)
        except Unusable:
            return None
        if (value.get("schema"), value.get("key"), value.get("seed")) != (TIMES_SCHEMA, self.key, self.seed):
            return None
        value = value.get("times")
        for part in name.split("/"):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    def history(self, metric: str) -> dict[int, float]:
        """Epoch -> `metric`, from the lines of metrics or from the summary's series; empty when it was not recorded.

        `dense_phases:METRIC`: in the last epoch of every dense phase alone, one whose masks keep everything;
        `sparse_phases:METRIC`: of every other phase.
        """
        if of_phases := _PHASES.fullmatch(metric):
            dense = {epoch: sparsity == 0 for epoch, sparsity in self.history("mask/sparsity").items()}
            ends = {epoch for epoch, now in dense.items() if dense.get(epoch + 1) != now}
            asked = of_phases[1] == "dense"
            values = self.history(of_phases[2]).items()
            return {epoch: value for epoch, value in values if epoch in ends and dense[epoch] == asked}
        history = {}
        for line in self.metrics:
            value = number.read(line.get(metric))
            if value is not None and isinstance(line.get("epoch"), int):
                history[line["epoch"]] = value
        series = self.content.part("series")
        listed = series.get(metric) if isinstance(series, Mapping) else None
        for epoch, entry in enumerate(listed if isinstance(listed, list) else (), start=1):
            if (value := number.read(entry)) is not None:
                history[epoch] = value
        return history


def _sparsity(layer: Any) -> float | None:
    """1 - nonzero / total of a layer's counts."""
    if not isinstance(layer, Mapping):
        return None
    nonzero, total = number.read(layer.get("nonzero")), number.read(layer.get("total"))
    return None if nonzero is None or not total else 1 - nonzero / total


def _zeroed_layers(content: Content) -> float | None:
    layers = content.part("layers")
    sparsities = [_sparsity(layer) for layer in layers.values()] if isinstance(layers, Mapping) else []
    return None if None in sparsities or not sparsities else float(sparsities.count(1.0))


def _kept_conv(content: Content) -> float | None:
    layers = content.part("layers")
    whole = isinstance(layers, Mapping) and all(
        isinstance(layer, Mapping) and isinstance(layer.get("shape"), list) and isinstance(layer.get("kept"), int)
        for layer in layers.values()
    )
    if not whole or not layers:
        return None
    return float(sum(layer["kept"] for layer in layers.values() if len(layer["shape"]) > 2))


def _iterations_per_epoch(content: Content) -> float | None:
    final = content.part("final")
    steps, epochs = (number.read(final.get(name)) if isinstance(final, Mapping) else None for name in ("step", "epoch"))
    return None if steps is None or not epochs else steps / epochs


#: Metrics that follow from what every record has. effective/zeroed_layers: how many prunable layers have no other
#: weights than zeros at the end. mask/kept_conv: how many weights of prunable convolutions the mask keeps at the end.
#: train/iterations_per_epoch: optimizer steps.
COUNTED: Mapping[str, Callable[[Content], float | None]] = {
    "effective/zeroed_layers": _zeroed_layers,
    "mask/kept_conv": _kept_conv,
    "train/iterations_per_epoch": _iterations_per_epoch,
}


@dataclass(frozen=True)
class Reading:
    """A record as found. `problems`: what had to be left out; `remarks`: what its reader should know.

    `lasting`: it would be found the same again as long as no file of it changes.
    """

    record: Record
    problems: tuple[Problem, ...]
    remarks: tuple[Problem, ...]
    lasting: bool


def read_directory(path: Path) -> tuple[Record, list[Problem]]:
    """The record in run directory `path`, whole, and what had to be left out of it; raises Unusable."""
    reading = examine_directory(path, whole=True)
    return reading.record, list(reading.problems)


def read_packed(path: Path) -> tuple[Record, list[Problem]]:
    """The record in the single file that `pack` made, whole; raises Unusable."""
    return examine_packed(path, whole=True).record, []


def examine_directory(path: Path, whole: bool = False) -> Reading:
    """Reads every file of run directory `path` and checks them against each other; raises Unusable.

    Unless `whole`, a lasting record comes without its config and its metrics, which are checked nevertheless.
    """
    problems: list[Problem] = []
    remarks: list[Problem] = []
    try:
        has_summary = (path / "summary.json").exists()
    except OSError as error:
        raise Unusable(f"cannot be read ({error.strerror})", "unreadable") from error
    summary = files.json_file(path / "summary.json") if has_summary else None
    config = files.yaml_file(path / "config.yaml")
    status = summary_status(summary) if summary is not None else "interrupted"
    # A settled run is only held for a moment; a failed one that is held is being tried again.
    if status not in SETTLED and records.is_held(path):
        status, summary = "running", None
    key, parent, seed = checked_identity(config, summary, folder=path)
    _check_metrics(path / "metrics.jsonl", status, summary, problems, remarks)
    overrides: tuple[str, ...] = ()
    environment: Mapping[str, Any] = {}
    for name in ("overrides", "environment"):
        file = path / f"{name}.json"
        try:
            found = files.json_file(file, list if name == "overrides" else dict)
        except Unusable as error:
            problems.append(Problem(file, f"{error}; the run is used without it.", error.kind))
            continue
        if name == "overrides":
            overrides = tuple(map(str, found))
        else:
            environment = found
    remarks += remarks_on(path, status, summary, environment)
    lasting = summary is not None and not any(problem.kind == "unreadable" for problem in problems)
    content = Whole({}, overrides, environment, summary, ())
    if whole or not lasting:
        content = replace(content, config=config.own(), metrics=_lines(path / "metrics.jsonl"))
    record = Record(str(path), False, key, seed, status, parent, content)
    return Reading(record, tuple(problems), tuple(remarks), lasting)


def examine_packed(path: Path, whole: bool = False) -> Reading:
    """Reads a packed file and checks it; raises Unusable. Unless `whole`, the record has no config and no metrics."""
    stored = packed_content(path)
    summary, columns = stored["summary"], stored["metrics"]
    lengths = {len(column) if isinstance(column, list) else -1 for column in columns.values()}
    if len(lengths) > 1 or -1 in lengths:
        raise Unusable("has metric columns of unequal lengths")
    status = summary_status(summary)
    config = files.Config(stored["config"])
    key, parent, seed = checked_identity(config, summary, folder=path.with_suffix(""))
    last = (columns.get("epoch") or [None])[-1]
    remarks = _epochs(path, status, summary, count=max(lengths, default=0), last=last)
    remarks += remarks_on(path, status, summary, stored["environment"])
    overrides = tuple(map(str, stored["overrides"]))
    content = Whole({}, overrides, stored["environment"], summary, ())
    if whole:
        content = replace(content, config=stored["config"], metrics=packed_lines(columns))
    return Reading(Record(str(path), True, key, seed, status, parent, content), (), tuple(remarks), lasting=True)


def packed_content(path: Path) -> dict[str, Any]:
    """The fields of a packed file; raises Unusable."""
    stored: dict[str, Any] = files.json_file(path)
    if stored.get("schema") != SCHEMA:
        raise Unusable(f"has schema {stored.get('schema')!r}; this version reads schema {SCHEMA}")
    for name, kind in (
        ("config", dict),
        ("overrides", list),
        ("environment", dict),
        ("summary", dict),
        ("metrics", dict),
    ):
        if not isinstance(stored.get(name), kind):
            raise Unusable(f"has no usable '{name}'")
    return stored


def packed_lines(columns: Mapping[str, list[Any]]) -> tuple[Mapping[str, Any], ...]:
    """A packed record's columns as one mapping an epoch."""
    return tuple(
        {name: value for name, value in zip(columns, row, strict=True) if value is not None}
        for row in zip(*columns.values(), strict=True)
    )


def checked_identity(
    config: files.Config, summary: Mapping[str, Any] | None, folder: Path
) -> tuple[str, str | None, int]:
    """(key, the parent's key, seed) by the config alone; the folder's names and the summary must agree with it."""
    try:
        key, parent = config.keys()
        json.dumps(config.shared)  # what is no science is shown, too: no dates, no sets
    except Exception as error:  # a stored config is data from anywhere: whatever is wrong with it is the record's fault
        raise Unusable(f"stores a config that has no key ({type(error).__name__}: {error})") from error
    seed = config.shared.get("seed")
    if type(seed) is not int:
        raise Unusable(f"stores a config with the seed {seed!r}")
    stored = {folder.parent.name} | ({str(summary.get("key"))} if summary is not None else set())
    if stored != {key}:
        other = ", ".join(sorted(stored - {key}))
        raise Unusable(f"stores a config whose key is {key}, not {other}; it is not used", "foreign_key")
    seeds = {folder.name} | ({f"seed{summary.get('seed')}"} if summary is not None else set())
    if seeds != {f"seed{seed}"}:
        other = ", ".join(sorted(seeds - {f"seed{seed}"}))
        raise Unusable(f"stores a config whose seed is {seed}, not that of {other}; it is not used", "foreign_seed")
    return key, parent, seed


def summary_status(summary: Mapping[str, Any]) -> str:
    """The status that a summary tells; raises Unusable for one of another schema, or with another status."""
    if summary.get("schema") != SCHEMA:
        raise Unusable(f"has a summary of schema {summary.get('schema')!r}; this version reads schema {SCHEMA}")
    if summary.get("status") not in (*FINISHED, "blocked"):
        raise Unusable(f"has a summary with the unknown status {summary.get('status')!r}")
    return str(summary["status"])


def _check_metrics(
    path: Path, status: str, summary: Mapping[str, Any] | None, problems: list[Problem], remarks: list[Problem]
) -> None:
    """Only of a running or blocked run a missing file or half a line is no problem."""
    try:
        lines = files.metric_lines(path)
    except FileNotFoundError:
        if status not in ("running", "blocked"):
            problems.append(Problem(path, "is not there; the run has no curves.", "missing_file"))
        return
    except OSError as error:
        problems.append(Problem(path, f"cannot be read ({error.strerror}); the run has no curves.", "unreadable"))
        return
    if status in ("running", "blocked"):
        return
    problems += [Problem(path, sentence, "truncated") for sentence in lines.complaints]
    if not lines.complete and not lines.complaints:
        remarks.append(Problem(path, "does not end with a line break; its last line may be cut short.", "truncated"))
    if not lines.complaints:
        remarks += _epochs(path, status, summary, lines.count, lines.last.get("epoch"))


def _epochs(path: Path, status: str, summary: Mapping[str, Any] | None, count: int, last: Any) -> list[Problem]:
    """Of a settled run: the summary must tell of as many epochs as there are lines, and of the last one's number."""
    epochs = (summary or {}).get("epochs")
    if status not in SETTLED or type(epochs) is not int or count == last == epochs:
        return []
    what = f"has {count} line(s), the last of epoch {last}, but its summary tells of {epochs} epoch(s)."
    return [Problem(path, what, "epochs_disagree")]


def remarks_on(
    path: Path, status: str, summary: Mapping[str, Any] | None, environment: Mapping[str, Any]
) -> list[Problem]:
    """What the reader of a record that can be used should know of it."""
    found = []
    final = (summary or {}).get("final")
    if status == "completed" and isinstance(final, dict):
        values = {name: number.read(value) for name, value in final.items()}
        odd = [f"{name} = {value}" for name, value in values.items() if value is not None and not math.isfinite(value)]
        if odd:
            found.append(Problem(path, f"has completed with {', '.join(odd)}.", "not_a_number"))
    git = environment.get("git")
    if isinstance(git, dict) and git.get("dirty"):
        what = f"was run from a tree with uncommitted changes, on commit {git.get('commit')}."
        found.append(Problem(path, what, "dirty_tree"))
    for name, tree in extensions(environment).items():
        if tree.get("dirty"):
            what = f"was run with uncommitted changes of {name}, on its commit {tree.get('commit')}."
            found.append(Problem(path, what, "dirty_tree"))
    return found


def extensions(environment: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What a run says of the user's packages that were allowed in it, by name: version, commit, dirty, digest."""
    told = environment.get("extensions")
    every = told.items() if isinstance(told, Mapping) else ()
    return {name: tree for name, tree in every if isinstance(tree, Mapping)}


def _lines(path: Path) -> tuple[Mapping[str, Any], ...]:
    """The readable lines of a metrics file; what is wrong with the others has been said."""
    try:
        return tuple(records.read_metrics(path)[0])
    except OSError:
        return ()
