"""Loggers: who else hears of a run's metrics, beside its own run directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from runner.build import build
from runner.identity import Config, key, science


class Logger(Protocol):
    """Hears every epoch's metrics and the summary."""

    def epoch(self, line: Mapping[str, Any]) -> None: ...

    def finish(self, summary: Mapping[str, Any]) -> None: ...


class Silent:
    """Nobody else hears."""

    def __init__(self, *, config: Config, directory: Path) -> None:
        pass

    def epoch(self, line: Mapping[str, Any]) -> None:
        """Nothing."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Nothing."""


class Wandb:
    """Weights & Biases. A resumed run continues under the same id, which is made of its key and seed.

    Only the science configuration is sent, no paths; `mode` offline keeps everything in the run directory.
    """

    def __init__(
        self,
        *,
        config: Config,
        directory: Path,
        project: str = "regrow",
        entity: str | None = None,
        mode: Literal["offline", "online"] = "offline",
    ) -> None:
        import wandb

        self.run = wandb.init(
            project=project,
            entity=entity,
            mode=mode,
            dir=str(directory),
            id=f"{key(config)}-{config['seed']}",
            name=f"{config['method']['name']}-{key(config)}-{config['seed']}",
            group=key(config),
            config={**science(config), "seed": config["seed"]},
            resume="allow" if mode == "online" else None,
            reinit="finish_previous",  # an interrupted run in this process leaves its own open
            settings=wandb.Settings(silent=True, console="off"),
        )

    def epoch(self, line: Mapping[str, Any]) -> None:
        """One point per epoch."""
        self.run.log(dict(line), step=line["epoch"])

    def finish(self, summary: Mapping[str, Any]) -> None:
        """The final metrics become the run's summary."""
        self.run.summary.update({"status": summary["status"], **summary["final"]})
        self.run.finish(exit_code=0 if summary["status"] == "completed" else 3)


def make_logger(config: Config, directory: Path) -> Logger:
    """The logger that `conf/logger` names."""
    logger: Logger = build(config["logger"], "logger", config=config, directory=directory)
    return logger
