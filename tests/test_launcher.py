"""Sweeps by Hydra's launchers: jobs and their exit codes, what is left behind, what mistakes get."""

import importlib.util
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner import launcher
from runner.__main__ import main
from runner.launcher import _without_repeated_choices

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
INSTALLED = launcher._installed()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Commands run in an empty folder, with runs/ below it."""
    monkeypatch.delenv("REGROW_RUNS", raising=False)
    monkeypatch.chdir(tmp_path)
    yield
    assert {path.name for path in tmp_path.iterdir()} <= {"runs"}  # no outputs/, no multirun/, no log


def summaries(tmp_path: Path) -> list[str]:
    return sorted(json.loads(path.read_text())["status"] for path in tmp_path.rglob("summary.json"))


def test_the_basic_launcher_is_a_sweep(tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-m", "hydra/launcher=basic", *tiny, "schedule.lr=0.2,1e30", "method=set,dsr"]) == 3
    assert summaries(tmp_path) == ["completed", "completed", "diverged", "diverged"]
    said = capsys.readouterr().out
    assert said.startswith("4 job(s) by hydra/launcher=basic\n")
    assert [line[-1] for line in said.splitlines() if ": exit code " in line] == ["0", "0", "3", "3"]
    assert main(["-m", "hydra/launcher=basic", *tiny, "method=set", "schedule.lr=0.2"]) == 0
    assert len(summaries(tmp_path)) == 4  # the same runs as any other way


def test_a_diverged_run_is_told_as_often_as_it_is_asked_for(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its record spells what is not finite as text."""
    for _ in range(2):
        assert main(["-m", *tiny, "schedule.lr=0.2,1e30"]) == 3
    assert "train/loss nan" in capsys.readouterr().out.splitlines()[-3]
    assert summaries(tmp_path) == ["completed", "diverged"]


def test_a_cell_is_a_sweep_over_its_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cell = ["cell=demo/digits/set/s90", "profile=tenth", "method=dsr"]
    assert main(["-m", "hydra/launcher=basic", *cell]) == 0
    assert len(list(tmp_path.glob("runs/digits/lenet_300_100/dsr/*/seed[012]/summary.json"))) == 3


def test_an_interruption_ends_the_basic_launchers_sweep(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its jobs share the process that has been asked to stop."""
    from runner.trainer import Trainer

    step, signals = Trainer.step, []

    def interrupted(*arguments: object) -> None:
        step(*arguments)  # type: ignore[arg-type]
        if not signals:
            signals.append(os.kill(os.getpid(), signal.SIGTERM))

    monkeypatch.setattr(Trainer, "step", interrupted)
    assert main(["-m", "hydra/launcher=basic", *tiny, "seed=0,1"]) == 75
    assert summaries(tmp_path) == [] and len(list(tmp_path.rglob("config.yaml"))) == 1


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="hydra-submitit-launcher is not installed")
def test_submitits_local_launcher(tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A process each; a job that has failed does not keep the others from their end."""
    arguments = ["-m", "hydra/launcher=submitit_local", *tiny, "method=set,dsr", "schedule.lr=0.2"]
    blocked = tmp_path / "runs" / "synthetic" / "lenet_300_100" / "dsr"
    blocked.parent.mkdir(parents=True)
    blocked.write_text("in the way")
    assert main(arguments) in (1, 2)
    assert summaries(tmp_path) == ["completed"]
    blocked.unlink()
    assert main(arguments) == 0
    assert summaries(tmp_path) == ["completed"] * 2
    assert list(tmp_path.glob("runs/submissions/submitit/*/*_result.pkl"))
    capsys.readouterr()
    assert main(["-m", "method=set,dsr", *tiny, "schedule.lr=0.2"]) == 0
    assert "epoch" not in capsys.readouterr().out  # the plain sweep finds the same runs, complete


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-m", "hydra/launcher=basik"], "there is no hydra/launcher 'basik'. Did you mean 'basic'?"),
        (["-m", "hydra/launcher=basic", "hydra.launcher.partition=x"], "'hydra.launcher.partition'"),
        (["-m", "hydra/launcher=basic", "hydra/sweeper=optuna"], "there is no hydra/sweeper 'optuna'. Valid: lr_grid"),
        (["-m", "hydra/launcher=basic", "hydra.job.name=x"], "hydra.job.name: of Hydra's own settings only"),
        (["-m", "hydra/launcher=basic", "method=set,dsrr"], "there is no method 'dsrr'"),
        (["-m", "hydra/launcher=basic", "method=set", "method.sparsity=0.5,1.5"], "method.sparsity = 1.5 should be"),
        (["hydra/launcher=basic"], "hydra/launcher=basic is for sweeps; add -m."),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    errors = capsys.readouterr().err
    assert sentence in errors and errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_without_the_plugin_the_way_to_it_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> object:
        return None if name == "submitit" else original(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    assert main(["-m", "hydra/launcher=submitit_slurm", "method=set,dsr"]) == 2
    assert "pip install hydra-submitit-launcher submitit\n" in capsys.readouterr().err


def test_a_launcher_that_fails_is_one_sentence(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Away:
        def launch(self, *arguments: object, **more: object) -> None:
            raise RuntimeError("the scheduler\nis away")

    monkeypatch.setattr(launcher, "make_launcher", lambda *given: Away())
    assert main(["-m", "hydra/launcher=basic", *tiny]) == 1
    assert capsys.readouterr().err == "regrow: hydra/launcher=basic has failed: the scheduler ... is away\n"


def test_the_launcher_is_loaded_when_it_is_asked_for(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "runner.launcher")
    assert main(["-m", *tiny, "seed=0,1"]) == 0
    assert "runner.launcher" not in sys.modules


def test_of_two_choices_for_a_group_the_last_counts() -> None:
    overrides = ["experiment=a", "method=set", "method.sparsity=0.5", "method=dsr", "method.sparsity=0.9"]
    assert _without_repeated_choices(overrides) == ["experiment=a", "method.sparsity=0.5", *overrides[3:]]
