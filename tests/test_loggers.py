"""Loggers: what is told of a run, what never is, and that their troubles are not the run's."""

import inspect
import json
import logging
import math
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb

from runner.compose import compose
from runner.errors import Misuse
from runner.execute import execute
from runner.identity import key, parent_config, run_dir, science
from runner.loggers import ASKED, LINE, SUMMARY, Silent, Wandb, asked
from runner.records import RunDirectory, read_metrics
from runner.trainer import Interrupted
from tests.conftest import TINY

SECRET = ["runs=/home/me/runs", "data.root=/home/me/data", "cluster=slurm", "logger=wandb", "logger.entity=team"]


class Told:
    """Stands in for a `wandb.Run`: remembers what it is told."""

    def __init__(self, **given: Any) -> None:
        self.given = given
        self.rows: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.exit_code: int | None = None
        self.broken: Exception | None = None

    def define_metric(self, name: str, **options: Any) -> None:
        """Only for W&B's own pages."""

    def log(self, data: dict[str, Any]) -> None:
        if self.broken:
            raise self.broken
        assert self.exit_code is None
        self.rows.append(data)

    def finish(self, exit_code: int) -> None:
        if self.broken:
            raise self.broken
        assert self.exit_code is None
        self.exit_code = exit_code

    @property
    def epochs(self) -> list[int]:
        return [json.loads(row[LINE])["line"]["epoch"] for row in self.rows]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Told]:
    """Every W&B run that is begun, without W&B."""
    runs: list[Told] = []

    def init(**given: Any) -> Told:
        runs.append(Told(**given))
        return runs[-1]

    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setattr(wandb, "init", init)
    return runs


def train(root: Path, *overrides: str, progress: Any = None) -> tuple[dict[str, Any], Path]:
    given = [*TINY, "logger=wandb", *overrides, f"runs={root}"]
    config = compose(given)
    return execute(config, given, progress), run_dir(root, config)


def test_what_is_called_is_there() -> None:
    """The stand-in has the methods of the real one, which takes what it is given."""
    inspect.signature(wandb.Run.log).bind(None, {})
    inspect.signature(wandb.Run.finish).bind(None, exit_code=0)
    inspect.signature(wandb.Run.define_metric).bind(None, LINE, hidden=True, summary="none")
    inspect.signature(wandb.Run.define_metric).bind(None, "*", step_metric="epoch")


def test_it_hears_the_records_of_the_run_directory(tmp_path: Path, told: list[Told]) -> None:
    summary, path = train(tmp_path, "method=set", "seed=3")
    (run,) = told
    inspect.signature(wandb.init).bind(**run.given)
    assert (run.given["id"], run.given["group"]) == (f"{summary['key']}-3", summary["key"])
    content = json.loads(run.given["config"][ASKED])
    assert (
        (content["key"], content["seed"]) == (summary["key"], 3) == (key(content["config"]), content["config"]["seed"])
    )
    assert content["environment"] == json.loads((path / "environment.json").read_text())
    lines, _ = read_metrics(path / "metrics.jsonl")
    assert [json.loads(row[LINE])["line"] for row in run.rows] == lines
    assert [{name: row[name] for name in row if name != LINE} for row in run.rows] == lines
    assert json.loads(run.summary[SUMMARY]) == json.loads((path / "summary.json").read_text())
    assert run.exit_code == 0


def test_the_shown_configuration_is_the_science(tmp_path: Path, told: list[Told]) -> None:
    train(tmp_path, "method=set", "method.sparsity=0.5")
    config = compose([*TINY, "method=set", "method.sparsity=0.5"])
    shown = {name: value for name, value in told[0].given["config"].items() if name != ASKED}
    assert shown == {**science(config), "seed": 0}


@pytest.mark.parametrize("stage", [[], ["start={parent:['method=dense']}"], ["start={parent:['method=compressed']}"]])
def test_no_place_is_told(tmp_path: Path, stage: list[str]) -> None:
    given = [*TINY, "method=static", *SECRET, *stage]
    config = compose(given)
    directory = RunDirectory(tmp_path)
    directory.begin(config, given, {"device": "cpu"})
    content = asked(config, tmp_path)
    text = json.dumps(content)
    assert not [word for word in ("/home", "slurm", "team", "logger", "cluster", "runs=") if word in text]
    assert content["overrides"] == [*TINY, "method=static", *stage]
    assert key(content["config"]) == key(config)
    parents = [parent_config(each) for each in (content["config"], config)]
    assert [parent and key(parent) for parent in parents] == [parents[1] and key(parents[1])] * 2


def test_nothing_of_the_machine_is_asked_for(tmp_path: Path, told: list[Told]) -> None:
    train(tmp_path)
    settings = told[0].given["settings"]
    assert settings.x_disable_meta and settings.x_disable_machine_info and settings.x_disable_stats
    assert (settings.host, settings.program) == ("", "regrow") and settings.disable_git
    assert not settings.save_code and not settings.x_save_requirements and settings.console == "off"
    train(tmp_path, "seed=1", "logger.system_metrics=true", "logger.mode=online")
    assert not told[1].given["settings"].x_disable_stats
    assert [(run.given["mode"], run.given["resume"]) for run in told] == [("offline", None), ("online", "allow")]


def test_nan_and_infinity_are_told_as_text(tmp_path: Path, told: list[Told]) -> None:
    summary, _ = train(tmp_path, "schedule.lr=1e30")
    assert summary["status"] == "diverged" and math.isnan(summary["final"]["train/loss"])
    (run,) = told
    texts = [run.rows[-1][LINE], run.summary[SUMMARY]]
    line, whole = (json.loads(text, parse_constant=pytest.fail) for text in texts)
    assert line["line"]["train/loss"] == whole["final"]["train/loss"] == "nan"
    assert (whole["status"], run.exit_code) == ("diverged", 3)


def test_a_failed_run_is_told(tmp_path: Path, told: list[Told]) -> None:
    def fail(line: dict[str, Any]) -> None:
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        train(tmp_path, progress=fail)
    (run,) = told
    summary = json.loads(run.summary[SUMMARY])
    assert (summary["status"], summary["reason"], run.exit_code) == ("failed", "RuntimeError: no more", 1)
    assert run.epochs == [1]


def test_an_interrupted_run_is_told_whole_when_it_goes_on(tmp_path: Path, told: list[Told]) -> None:
    def stop(line: dict[str, Any]) -> None:
        if line["epoch"] == 2:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(tmp_path, "schedule.epochs=4", progress=stop)
    _, path = train(tmp_path, "schedule.epochs=4")
    first, second = told
    assert first.given["id"] == second.given["id"]
    assert (first.epochs, first.exit_code, SUMMARY in first.summary) == ([1, 2], 75, False)
    assert (second.epochs, second.exit_code) == ([1, 2, 3, 4], 0)
    (earlier,), (later,) = ({json.loads(row[LINE])["attempt"] for row in run.rows} for run in told)
    assert earlier < later
    assert [json.loads(row[LINE])["line"] for row in second.rows] == read_metrics(path / "metrics.jsonl")[0]


def test_a_run_that_had_only_its_summary_to_write_is_told_whole(tmp_path: Path, told: list[Told]) -> None:
    summary, path = train(tmp_path)
    (path / "summary.json").unlink()
    train(tmp_path)
    assert told[1].epochs == [1, 2] and json.loads(told[1].summary[SUMMARY])["final"] == summary["final"]


def test_earlier_offline_files_of_the_same_run_are_superseded(tmp_path: Path, told: list[Told]) -> None:
    config = compose([*TINY, f"runs={tmp_path}"])
    name = f"{key(config)}-0"
    folder = run_dir(tmp_path, config) / "wandb"
    for each in (f"offline-run-20260101_000000-{name}", f"run-20260101_000000-{name}", "offline-run-1-other"):
        (folder / each).mkdir(parents=True)
    train(tmp_path)
    assert sorted(each.name for each in folder.iterdir()) == ["offline-run-1-other", f"run-20260101_000000-{name}"]


def test_what_goes_wrong_at_wandb_ends_no_run(
    tmp_path: Path, told: list[Told], caplog: pytest.LogCaptureFixture
) -> None:
    def break_off(line: dict[str, Any]) -> None:
        told[0].broken = ConnectionResetError("connection lost")

    with caplog.at_level(logging.WARNING, "regrow"):
        summary, path = train(tmp_path, progress=break_off)
    assert summary["status"] == "completed" and told[0].epochs == [1]
    assert caplog.text.count("W&B hears no more of this run (ConnectionResetError: connection lost)") == 1
    assert "W&B hears no more" in (path / "log.txt").read_text()


@pytest.mark.parametrize("error", [wandb.errors.UsageError, wandb.errors.CommError, wandb.errors.AuthenticationError])
def test_who_is_not_logged_in_is_told_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Any) -> None:
    def init(**given: Any) -> None:
        raise error("No API key\nconfigured.")

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    with pytest.raises(Misuse, match=r"^logger=wandb: No API key configured; log in with `wandb login`.*offline"):
        train(tmp_path, "logger.mode=online")


def test_the_logger_is_no_part_of_the_key() -> None:
    assert key(compose([*TINY, "logger=wandb"])) == key(compose(TINY))


def test_every_logger_can_be_told_all_there_is(tmp_path: Path) -> None:
    silent = Silent(config={}, directory=tmp_path)
    silent.epoch({})
    silent.finish({})
    silent.close()
    assert {name for name in vars(Wandb) if not name.startswith("_")} == {"epoch", "finish", "close"}


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The real W&B without a network: its look-ups stay on this machine, where nobody answers."""
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.mark.slow
def test_offline_needs_no_account_and_leaves_one_file_in_the_run_directory(tmp_path: Path, offline: None) -> None:
    for seed in (0, 1, 0):
        summary, path = train(tmp_path / "runs", f"seed={seed}")
        (path / "summary.json").unlink()
        (folder,) = path.glob("wandb/offline-run-*")
        (file,) = folder.glob("*.wandb")
        assert file.stem == f"run-{summary['key']}-{seed}"
        content = file.read_bytes()
        assert content.count(b'\\"test/accuracy\\": ') >= 2 and SUMMARY.encode() in content
        for private in (str(tmp_path), str(Path.cwd()), str(Path.home()), inspect.getfile(wandb)):
            assert private.encode() not in content
        assert not [each for each in (folder / "files").rglob("*") if each.is_file()]
