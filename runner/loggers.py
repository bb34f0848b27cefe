"""Loggers: who else hears of a run's metrics, beside its own run directory. No torch here."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from runner.build import build
from runner.errors import Misuse
from runner.identity import SCIENCE, Config, key, science
from runner.records import SCHEMA, RunDirectory, read_metrics, spell

log = logging.getLogger("regrow")

# W&B changes what it is told: it drops empty mappings, makes 1.0 into 1, null of a nan inside a mapping and two levels
# of a name with a dot. What `results.wandb` reads back is therefore told as JSON text, under these names in a run's
# configuration, history and summary; everything else that is told is for W&B's own pages.
ASKED = "regrow_run"
LINE = "regrow_epoch"
SUMMARY = "regrow_summary"

# Never where something lies, nor where it is logged or submitted to.
_SENT = (*SCIENCE, "seed", "profile", "trainer")
_SENT_OVERRIDES = (*_SENT, "experiment")
_EXIT = {"completed": 0, "failed": 1, "diverged": 3}
_INTERRUPTED = 75


class Logger(Protocol):
    """Hears every epoch's metrics, the summary, and last that there is no more to come."""

    def epoch(self, line: Mapping[str, Any]) -> None: ...

    def finish(self, summary: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class Silent:
    """Nobody else hears."""

    def __init__(self, *, config: Config, directory: Path) -> None:
        pass

    def epoch(self, line: Mapping[str, Any]) -> None:
        """Nothing."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Wandb:
    """Weights & Biases hears what the run directory holds, without any path; `results.wandb` reads it back.

    `mode` offline needs no account and no network: everything stays in the run directory until `wandb sync`. A resumed
    run goes on under the same id, made of its key and seed. W&B loses what a killed process had not sent yet, and drops
    a step that it has passed, so that every attempt tells all epochs again from the run directory's metrics; of several
    attempts the last one counts. Misuse when W&B cannot be reached or does not know the user.
    """

    def __init__(
        self,
        *,
        config: Config,
        directory: Path,
        project: str = "regrow",
        entity: str | None = None,
        mode: Literal["offline", "online"] = "offline",
        system_metrics: bool = False,
    ) -> None:
        # Else usage counts (in offline mode, too) and crash reports, which name paths, go to W&B's makers.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self.metrics_path = RunDirectory(directory).metrics_path
        self.attempt = datetime.now(UTC).isoformat()
        self.behind = True  # the epochs of earlier attempts are not told yet
        name = f"{key(config)}-{config['seed']}"
        if mode == "offline":
            # This attempt tells all that they do, and `wandb sync` refuses a file that a killed process left empty.
            for superseded in directory.glob(f"wandb/offline-run-*-{name}"):
                shutil.rmtree(superseded)
        try:
            self.run: Any = wandb.init(
                project=project,
                entity=entity,
                mode=mode,
                dir=str(directory),
                id=name,
                name=f"{config['method']['name']}-{name}",
                group=key(config),
                config={**science(config), "seed": config["seed"], ASKED: json.dumps(spell(asked(config, directory)))},
                resume="allow" if mode == "online" else None,
                reinit="finish_previous",
                settings=wandb.Settings(
                    silent=True,
                    console="off",
                    save_code=False,
                    disable_git=True,
                    host="",
                    program="regrow",
                    x_disable_meta=True,
                    x_disable_machine_info=True,
                    x_save_requirements=False,
                    x_disable_stats=not system_metrics,
                ),
            )
        except wandb.Error as error:
            if mode == "offline":
                raise
            raise Misuse(
                f"logger=wandb: {' '.join(str(error).split()).rstrip('.')}; log in with `wandb login` and check the "
                f"network and the project, or set logger.mode=offline and send the run later with `wandb sync`."
            ) from error
        self.run.define_metric("epoch")
        self.run.define_metric("*", step_metric="epoch")
        self.run.define_metric(LINE, hidden=True, summary="none")

    def epoch(self, line: Mapping[str, Any]) -> None:
        """One point per epoch; before the first one, those that earlier attempts have recorded."""

        def tell() -> None:
            self._catch_up(before=line["epoch"])
            self._log(line)

        self._safely(tell)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """The summary, whatever the run's status."""

        def tell() -> None:
            self._catch_up()
            whole = {"schema": SCHEMA, **summary}
            self.run.summary.update({"status": summary["status"], SUMMARY: json.dumps(spell(whole))})
            self.run.finish(exit_code=_EXIT[summary["status"]])

        self._safely(tell)
        self.run = None

    def close(self) -> None:
        """A run without a summary was interrupted; it is resumed under the same id."""
        self._safely(lambda: self.run.finish(exit_code=_INTERRUPTED))
        self.run = None

    def _catch_up(self, before: int | None = None) -> None:
        if self.behind:
            self.behind = False
            lines, _ = read_metrics(self.metrics_path)
            for line in lines:
                if before is None or line["epoch"] < before:
                    self._log(line)

    def _log(self, line: Mapping[str, Any]) -> None:
        text = json.dumps(spell({"attempt": self.attempt, "line": dict(line)}))
        self.run.log({**line, LINE: text})

    def _safely(self, tell: Callable[[], None]) -> None:
        """W&B's troubles end no training: they are a line in the run's log."""
        if self.run is None:
            return
        try:
            tell()
        except Exception as error:
            log.warning(
                "W&B hears no more of this run (%s: %s); its run directory has everything", type(error).__name__, error
            )
            self.run = None


def asked(config: Config, directory: Path) -> dict[str, Any]:
    """What is told of a run that has begun in `directory`: everything but its metrics, paths and secrets left out."""
    overrides = json.loads((directory / "overrides.json").read_text())
    return {
        "schema": SCHEMA,
        "key": key(config),
        "seed": config["seed"],
        "config": _sent(config),
        "overrides": _sent_overrides(overrides),
        "environment": json.loads((directory / "environment.json").read_text()),
    }


def _sent(config: Config) -> Config:
    """The part of a configuration that may be sent; it has the same key."""
    part = {name: config[name] for name in _SENT if name in config}
    if start := part.get("start"):
        part["start"] = {**start, "parent": _sent(start["parent"])}
        if "overrides" in start:
            part["start"]["overrides"] = _sent_overrides(start["overrides"])
    return part


def _sent_overrides(overrides: list[str]) -> list[str]:
    return [override for override in overrides if re.split("[.=]", override)[0] in _SENT_OVERRIDES]


def make_logger(config: Config, directory: Path) -> Logger:
    """The logger that `conf/logger` names, of a run that has begun in `directory`."""
    logger: Logger = build(config["logger"], "logger", config=config, directory=directory)
    return logger
