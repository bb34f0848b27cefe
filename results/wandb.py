"""Runs that were logged to Weights & Biases (`logger=wandb`), read back through its public API. No torch here.

Only the JSON texts of `runner.loggers` are read; what else W&B holds of a run has lost something on its way.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from textwrap import shorten
from typing import Any, Protocol

from results import number
from results.collect import Collection, settled
from results.files import Config, Unusable
from results.record import SETTLED, Problem, Record, checked_identity, remarks_on, summary_status
from runner.errors import Misuse
from runner.loggers import ASKED, LINE, SUMMARY
from runner.records import SCHEMA
from runner.untrusted import parse_json

PREFIX = "wandb:"
_ADDRESS = re.compile(r"wandb:([^/:?#%\\\s]+)/([^/:?#%\\]+)")
_PARTS = {"config": dict, "overrides": list, "environment": dict}
_ALIVE = ("running", "pending")
_PAGE = 100  # runs per request
_TRIES, _PATIENCE_S = 3, 20  # of each request
_MEND = "send the run again (`wandb sync`), or read its run directory"


class Run(Protocol):
    """What is used of `wandb.apis.public.Run`."""

    @property
    def id(self) -> str: ...

    @property
    def state(self) -> str: ...

    @property
    def config(self) -> dict[str, Any]: ...

    @property
    def summary(self) -> Any: ...

    def scan_history(self, *, use_cache: bool) -> Iterable[dict[str, Any]]: ...


class NotLogged(Exception):
    """A run of something else in the same project."""


def collect(source: str) -> Collection:
    """Every run of a W&B project, `source` = wandb:ENTITY/PROJECT, by the rules of `results.collect`.

    Misuse for another address, or when W&B does not give the project out.
    """
    match = _ADDRESS.fullmatch(source)
    if match is None:
        raise Misuse(f"{source!r} is no address of runs; write {PREFIX}ENTITY/PROJECT.")
    return read(source, _runs(source, *match.groups()))


def read(source: str, runs: Iterable[Run]) -> Collection:
    """The records among a project's runs; a run that `logger=wandb` did not log is none, and no problem."""
    problems: list[Problem] = []
    remarks: list[Problem] = []
    records: list[Record] = []
    foreign = 0
    for run in runs:
        path = Path(f"{source}/{run.id}")
        try:
            record = read_run(path, run)
        except NotLogged:
            foreign += 1
        except Unusable as error:
            problems.append(Problem(path, f"{error}.", error.kind))
        else:
            records.append(record)
            remarks += remarks_on(path, record.status, record.summary, record.environment)
    notes = [f"{foreign} run(s) in {source} were logged by something else and are left out."] if foreign else []
    return settled(records, problems, remarks, notes)


def read_run(path: Path, run: Run) -> Record:
    """The record of one W&B run; raises NotLogged and Unusable."""
    if ASKED not in run.config:
        raise NotLogged
    asked = _json(run.config[ASKED], ASKED)
    if asked.get("schema") != SCHEMA:
        raise Unusable(f"has schema {asked.get('schema')!r}; this version reads schema {SCHEMA}")
    for name, kind in _PARTS.items():
        if not isinstance(asked.get(name), kind):
            raise Unusable(f"has no usable '{name}'")
    told = run.summary.get(SUMMARY)
    summary = None if told is None else _json(told, SUMMARY)
    status = summary_status(summary) if summary is not None else "interrupted"
    # Like a run directory that is held: a failed run that goes on is being tried again.
    if status not in SETTLED and run.state in _ALIVE:
        status, summary = "running", None
    named = Path(str(asked.get("key")), f"seed{asked.get('seed')}")
    key, parent, seed = checked_identity(Config(asked["config"]), summary, named)
    overrides = tuple(map(str, asked["overrides"]))
    content = Logged(asked["config"], overrides, asked["environment"], summary, path, run)
    return Record(str(path), False, key, seed, status, parent, content)


@dataclass(frozen=True)
class Logged:
    """The content of a W&B run's record. W&B is asked for the metrics when somebody looks at them: few tables do."""

    config: Mapping[str, Any]
    overrides: tuple[str, ...]
    environment: Mapping[str, Any]
    summary: Mapping[str, Any] | None
    path: Path
    run: Run

    def part(self, name: str) -> Any:
        """One part of the summary, None where it has none of that name."""
        return (self.summary or {}).get(name)

    @cached_property
    def metrics(self) -> tuple[Mapping[str, Any], ...]:
        return _lines(self.path, self.run, self.part("epochs"))


def _lines(path: Path, run: Run, epochs: Any) -> tuple[Mapping[str, Any], ...]:
    """The last attempt's lines, by epoch: every attempt tells those of the earlier ones again.

    Not by W&B's steps, which may begin anew with every attempt. Misuse when lines cannot be read, or are not those of
    as many epochs as the run's summary says.
    """
    attempts: dict[str, dict[int, dict[str, Any]]] = {}
    try:
        for text in _history(path, run):
            match _json(text, LINE):
                case {"attempt": str(attempt), "line": {"epoch": int(epoch)} as line}:
                    attempts.setdefault(attempt, {})[epoch] = {name: _value(value) for name, value in line.items()}
                case _:
                    raise Unusable(f"is not what it should be: {LINE} holds no line of metrics")
    except Unusable as error:
        raise Misuse(f"{path} has a history that cannot be used: it {error}; {_MEND}.") from error
    last = attempts[max(attempts)] if attempts else {}
    if isinstance(epochs, int) and sorted(last) != [*range(1, epochs + 1)]:
        raise Misuse(f"{path} has {len(last)} of {epochs} epochs in its history; {_MEND}.")
    return tuple(last[epoch] for epoch in sorted(last))


def _value(value: Any) -> Any:
    """Lines hold numbers; those that are not finite are spelt as text."""
    spelt = number.read(value) if isinstance(value, str) else None
    return value if spelt is None else spelt


def _json(text: Any, what: str) -> dict[str, Any]:
    try:
        content = parse_json(text)
    except (TypeError, ValueError) as error:
        raise Unusable(f"is not valid JSON: {what}: {error}", "truncated") from error
    if not isinstance(content, dict):
        raise Unusable(f"is not what it should be: {what} holds no object")
    return content


def _runs(source: str, entity: str, project: str) -> Iterator[Run]:
    with _reached(source):
        import wandb

        # Silent: it would tell where it has found a key. It tries less often than it likes to, but to the end: the
        # client's process may hang for minutes when it is told to give up.
        wandb.setup(
            wandb.Settings(silent=True, x_graphql_retry_max=_TRIES - 1, x_graphql_timeout_seconds=float(_PATIENCE_S))
        )
        yield from wandb.Api(timeout=2 * _TRIES * _PATIENCE_S).runs(f"{entity}/{project}", per_page=_PAGE, lazy=False)


def _history(path: Path, run: Run) -> Iterator[Any]:
    """The JSON texts in a run's history, from W&B itself: what it has cached may be older than the run's end."""
    with _reached(str(path)):
        for row in run.scan_history(use_cache=False):
            if row.get(LINE) is not None:
                yield row[LINE]


@contextmanager
def _reached(address: str) -> Iterator[None]:
    """Whatever W&B's client raises, in one sentence with the mend."""
    try:
        yield
    except Exception as error:
        what = shorten(str(error), 220, placeholder=" ...").rstrip(".") or type(error).__name__
        mend = "check the network, and log in with `wandb login`"
        if isinstance(error, ValueError):  # a project or run that is not there, or not for this account
            mend = "check the address, and that the account you log in with (`wandb login`) may see it"
        raise Misuse(f"{address} cannot be read: {what}; {mend}.") from error
