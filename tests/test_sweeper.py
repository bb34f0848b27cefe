"""`-m hydra/sweeper=lr_grid`: whole sweeps with real runs, their records, what a second command repeats, mistakes."""

import functools
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from killing import die_in, end_of, forked

from results import address
from results.calibration import applied
from results.collect import collect
from results.fill import fill
from results.record import read_directory
from runner import launcher, sweeper
from runner.__main__ import main
from runner.build import build
from runner.compose import compose
from runner.experiment import validate
from runner.identity import key
from runner.launcher import prepared
from runner.optim import Schedule
from scripts import calibrate

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
GRID = ["-m", "hydra/sweeper=lr_grid"]
DIGITS = ["dataset.train_subset=256", "model.hidden=[16]", "schedule.epochs=2", "method=set", "method.sparsity=0.5"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Commands run in an empty folder, with runs/ below it."""
    monkeypatch.delenv("REGROW_RUNS", raising=False)
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield
    assert {path.name for path in folder.iterdir()} <= {"runs", "other"}  # no outputs/, no multirun/, no log


def record(root: str = "runs") -> dict[str, Any]:
    (path,) = Path(root).glob("sweeps/**/*.json")
    return json.loads(path.read_text())


def finished(root: str = "runs") -> dict[str, int]:
    """Run directory -> when its summary was written."""
    return {str(path.parent.relative_to(root)): path.stat().st_mtime_ns for path in Path(root).rglob("summary.json")}


@pytest.mark.slow
def test_a_sweep_on_the_digits_is_what_its_runs_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*GRID, *DIGITS, "seed=0,1", "hydra.sweeper.values=[0.01,0.05,3000]"]) == 0
    said = capsys.readouterr().out.splitlines()
    found = record()
    (grid,) = found["grids"]
    values = {trial["value"]: trial for trial in grid["tried"]}
    assert grid["ended"] == "the best lies inside the grid" and found["hit"] is True and found["seeds"] == [0, 1]
    assert min(values) < found["value"] < max(values)
    assert values[3000]["reached"] == "nan" and values[3000]["runs"][0]["status"] == "diverged"
    means = {}
    for value, trial in values.items():
        reached = []
        for run in trial["runs"]:
            config = compose([*found["overrides"], f"schedule.lr={value}", f"seed={run['seed']}"])
            assert run["key"] == key(config)
            (path,) = Path("runs").glob(f"**/{run['key']}/seed{run['seed']}")
            measured = read_directory(path)[0]
            reached.append(measured.value("test/accuracy") if measured.status == "completed" else math.nan)
            assert run["reached"] == (reached[-1] if math.isfinite(reached[-1]) else "nan")
        means[value] = sum(reached) / 2
    assert found["reached"] == max(mean for mean in means.values() if math.isfinite(mean)) == means[found["value"]]
    assert len(finished()) == 2 * len(values)
    (best,) = [line for line in said if line.endswith("<- best")]
    assert best.split()[:2] == [repr(found["value"]), f"{found['reached']:.4f}"]
    assert any(line.split() == ["3000", "diverged"] for line in said)
    assert said[-1].startswith(f"schedule.lr={found['value']} gives the highest test/accuracy of {len(values)} values")


def test_the_same_command_repeats_nothing_and_another_metric_reads_the_same_runs(
    tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*GRID, *tiny, "hydra.sweeper.metric=train/loss", "hydra.sweeper.max_values=5"]
    assert main(command) == 1  # the loss falls with the rate, as far as the grid goes
    said, before = capsys.readouterr().out, finished()
    assert "Nothing is chosen: schedule.lr=0.25 gives the lowest train/loss of 5 values" in said
    assert "the best lies at an edge still, and max_values = 5 is reached; raise hydra.sweeper.max_values." in said
    assert record()["value"] is None and record()["hit"] is False and len(before) == 5
    assert main(command) == 1
    assert finished() == before and "run(s): " not in capsys.readouterr().out
    assert main([*command[:-1], "hydra.sweeper.max_values=6"]) == 1
    assert "1 run(s): schedule.lr = 0.3\n" in capsys.readouterr().out


def test_other_swept_options_have_a_grid_each(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*GRID, *tiny, "method=set,static", "hydra.sweeper.values=[0.1,0.2,1e30]", "seed=3"]) in (0, 1)
    records = [json.loads(path.read_text()) for path in Path("runs/sweeps").rglob("*.json")]
    assert sorted(each["overrides"][-1] for each in records) == ["method=set", "method=static"]
    assert all(each["seeds"] == [3] for each in records)


@pytest.mark.slow
def test_a_sweep_that_was_killed_goes_on_where_it_was(tiny: list[str]) -> None:
    command = [*GRID, *tiny, "method=set", "hydra.sweeper.metric=train/loss", "hydra.sweeper.max_values=6"]
    assert main([*command, "runs=other"]) == 1
    whole = finished("other")
    for at in (11, 20):  # steps: eight a run, so within the second run, and after a resumption in a later one

        def begin(at: int = at) -> None:
            die_in("before a step", at)
            main([*command, "runs=runs"])

        before = finished()
        assert end_of(forked(begin)) == -9
        assert before.items() < finished().items() and not Path("runs/sweeps").exists()
    before = finished()
    assert main([*command, "runs=runs"]) == 1
    assert finished().items() > before.items(), "those that were complete are not repeated"
    assert finished().keys() == whole.keys()
    assert record() == record("other")


def test_an_interruption_ends_the_sweep_and_not_only_its_run(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from runner.trainer import Trainer

    step, signals = Trainer.step, []

    def interrupted(*arguments: Any) -> None:
        step(*arguments)
        if not signals:
            signals.append(os.kill(os.getpid(), 15))

    monkeypatch.setattr(Trainer, "step", interrupted)
    assert main([*GRID, *tiny]) == 75
    assert "The same command goes on from there." in capsys.readouterr().out.splitlines()[-1]
    assert finished() == {} and len(list(Path("runs").rglob("config.yaml"))) == 1
    assert main([*GRID, *tiny]) in (0, 1) and len(finished()) >= 4


def test_a_run_that_fails_ends_the_sweep_in_one_sentence(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from runner.trainer import Trainer

    step = Trainer.step

    def broken(self: Trainer, *arguments: Any) -> None:
        if self.e.schedule.lr == 0.15:
            raise MemoryError("no room")
        step(self, *arguments)

    monkeypatch.setattr(Trainer, "step", broken)
    assert main([*GRID, *tiny]) == 1
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("1 of 4 run(s) have not ended well, such as runs/") and "nothing is chosen" in said
    assert not Path("runs/sweeps").exists()
    monkeypatch.setattr(Trainer, "step", step)
    assert main([*GRID, *tiny]) in (0, 1)
    assert "1 run(s): " in capsys.readouterr().out


def test_variants_have_grids_of_their_own_and_the_best_of_all_is_chosen(
    tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*GRID[:1], "hydra/sweeper=lr_grid_optimizer", *tiny, "hydra.sweeper.max_values=4"]
    assert main([*command, "hydra.sweeper.metric=train/loss"]) in (0, 1)
    found = record()
    assert [grid["name"] for grid in found["grids"]] == ["sgd", "adam"]
    assert [[trial["value"] for trial in grid["tried"]] for grid in found["grids"]] == [
        [0.05, 0.1, 0.15, 0.2],
        [0.0005, 0.001, 0.0015, 0.002],
    ]
    reached = [trial["reached"] for grid in found["grids"] for trial in grid["tried"]]
    assert found["reached"] == min(value for value in reached if value != "nan")
    assert len(finished()) == 8
    (path,) = Path("runs").glob(f"**/{found['grids'][1]['tried'][0]['runs'][0]['key']}/seed0/config.yaml")
    optimizer = yaml.safe_load(path.read_text())["schedule"]["optimizer"]
    assert optimizer["_target_"] == "torch.optim.Adam" and optimizer["momentum"] is None


@pytest.mark.parametrize("overrides", [[], ["experiment=dpf/cifar10", "method=dpf_finetuned"]])
def test_the_optimizers_of_the_paper_can_be_built(overrides: list[str]) -> None:
    with prepared(["hydra/sweeper=lr_grid_optimizer"], "runs") as (_, settings):
        made = build(sweeper._section(settings), "hydra.sweeper")
    (sgd, first), (adam, second) = made.spacings.values()
    assert list(first.values) == [0.05, 0.1, 0.15, 0.2] and second.max_values == first.max_values == 12
    assert first.low == second.low == 0.0
    for also, target, momentum in ((sgd, "torch.optim.SGD", 0.9), (adam, "torch.optim.Adam", None)):
        schedule: Schedule = validate(compose([*overrides, *also, "schedule.lr=0.01"]))[1]
        assert schedule.optimizer["_target_"] == target and schedule.optimizer.get("momentum") == momentum


# Other launchers


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pool", "submitit_local"])
def test_other_launchers_find_the_same(name: str, tiny: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    if name != "pool" and not launcher._installed():
        pytest.skip("hydra-submitit-launcher is not installed")
    grid = ["hydra.sweeper.values=[0.3,0.4]", "hydra.sweeper.metric=train/loss", "hydra.sweeper.max_values=3"]
    command = [*GRID, *tiny, *grid, "method=set"]
    assert main([*command, "runs=other"]) == 1
    assert main([*command, f"hydra/launcher={name}"]) == 1
    assert record() == record("other") and finished().keys() == finished("other").keys()
    capfd.readouterr()
    assert main(command) == 1
    assert "run(s): " not in capfd.readouterr().out


@pytest.mark.slow
def test_the_pool_executes_any_sweep_and_a_parent_once(capfd: pytest.CaptureFixture[str]) -> None:
    tiny = ["dataset=synthetic", "dataset.train_size=36", "dataset.test_size=12", "schedule.batch_size=10"]
    stage = [
        *tiny,
        "model.hidden=[20,10]",
        "method.sparsity=0.3",
        "method=oneshot",
        "schedule.epochs=2",
        "schedule.lr=0.01,0.02,1e30",
    ]
    pool = ["-m", "hydra/launcher=pool", "cluster.workers=2"]
    assert main([*pool, *stage]) == 3
    said = capfd.readouterr().out
    assert [line[-1] for line in said.splitlines() if ": exit code " in line] == ["0", "0", "3"]
    assert "4 run(s) in" in said and len(finished()) == 4, "three stages and one parent"
    before = finished()
    assert main([*pool, *stage]) == 3 and finished() == before
    assert main([*pool[:2], *stage, "cluster=slurm"]) == 2
    assert "hydra/launcher=pool is this machine's; cluster=slurm is not." in capfd.readouterr().err


# Cells


def test_a_cell_with_an_open_rate_becomes_runnable(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    papers, root = tmp_path / "papers", tmp_path / "calibrations"
    content = {
        "title": "Tiny",
        "metric": "train/accuracy",
        "direction": "up",
        "seeds": [0, 1],
        "overrides": [*tiny, "schedule.lr=???"],
        "target": {"metric": "train/loss", "value": "lowest"},
        "rows": [{"id": "set", "title": "SET", "overrides": ["method=set"]}],
        "columns": [{"id": "s50", "title": "50 %", "overrides": ["method.sparsity=0.5"]}],
    }
    (papers / "own").mkdir(parents=True)
    (papers / "own" / "tiny.yaml").write_text(yaml.safe_dump(content))
    find = functools.partial(address.find_slot, papers=papers)
    monkeypatch.setattr(address, "find_slot", find)
    monkeypatch.setattr(sweeper, "find_slot", find)
    monkeypatch.setattr(sweeper, "CALIBRATIONS", root)
    (selection,) = address.select(["own"], papers)

    def cell() -> Any:
        found = fill(selection, collect([Path("runs")]), papers=papers, calibrations=root)
        return found.cells["set", "s50"]

    assert cell().status == "uncalibrated"
    assert main(["cell=own/tiny/set/s50"]) == 2
    asked = "hydra/sweeper=lr_grid hydra.sweeper.parameter=schedule.lr cell=own/tiny/set/s50 finds its value"
    assert asked in capsys.readouterr().err
    assert calibrate.main(["own"], papers, root) == 0
    assert "own/tiny/set/s50 asks for the lowest train/loss: python -m runner -m hydra/" in capsys.readouterr().out
    # The grid is one whose upper part diverges, so that the best lies inside.
    command = [*GRID, "cell=own/tiny/set/s50", "hydra.sweeper.values=[0.05,0.1,0.2,1e30]"]
    assert main(command) == 0
    (path,) = root.rglob("*.json")
    found = json.loads(path.read_text())
    assert (found["knob"], found["metric"], found["target"]) == ("schedule.lr", "train/loss", "lowest")
    assert found["seeds"] == [0, 1] and found["hit"]
    assert cell().status == "ok" and f"schedule.lr={found['value']}" in cell().overrides
    assert "by a grid: the lowest train/loss found" in cell().footnotes[0]
    path.write_text(json.dumps(found | {"with": ["schedule.gamma=0.5"]}))
    slot, notes = applied(find("own/tiny/set/s50"), compose, root)
    assert slot.overrides[-2:] == ("schedule.gamma=0.5", f"schedule.lr={found['value']}")
    assert notes[0].startswith(f"schedule.gamma=0.5 schedule.lr = {found['value']} by a grid")


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["hydra.sweeper.values=[]"], "hydra.sweeper.values = [] is an empty grid"),
        (["hydra.sweeper.values=[a]"], "hydra.sweeper.values = ['a'] should be a list of which each is a number"),
        (["hydra.sweeper.values=0.1"], "hydra.sweeper.values = 0.1 should be a list"),
        (["hydra.sweeper.step=0"], "hydra.sweeper.step = 0 should be above 0"),
        (["hydra.sweeper.step=-0.05"], "hydra.sweeper.step = -0.05 should be above 0"),
        (["hydra.sweeper.max_values=3"], "hydra.sweeper.max_values = 3 is less than the 4 first values"),
        (["hydra.sweeper.max_values=0"], "hydra.sweeper.max_values = 0 should be in the range 1 <= x"),
        (["hydra.sweeper.stepp=1"], "'hydra.sweeper.stepp'"),
        (["hydra.sweeper.direction=max"], "hydra.sweeper.direction = 'max' should be one of up, down or null"),
        (["hydra.sweeper.metric=test/f1"], "say hydra.sweeper.direction=up or down"),
        (["hydra.sweeper.parameter=schedule.decay"], "schedule.decay = 'none' is no number"),
        (["hydra.sweeper.parameter=trainer.compile"], "trainer.compile = False is no number"),
        (["hydra.sweeper.parameter=schedule.rl"], "there is no option 'schedule.rl'"),
        (["hydra.sweeper.parameter=method.sparsity", "method=set", "hydra.sweeper.values=[0.5,1.5]"],
         "method.sparsity = 1.5: method.sparsity = 1.5 should be in the range"),
        (["experiment=demo/digits"], "schedule.lr = '1:20 -> 0.05, 21:30 -> 0.01, 31:40 -> 0.002' is no number here"),
        (["schedule.lr=0.1,0.2"], "schedule.lr is what is tuned; its values are hydra.sweeper.values."),
        (["method=sett"], "there is no method 'sett'"),
        (["hydra.sweeper.variants={a: {value: [1]}}"], "hydra.sweeper.variants.a.value'. Did you mean 'values'?"),
        (["hydra.sweeper.variants={a: {overrides: [1]}}"], "hydra.sweeper.variants.a.overrides = [1] should be a list"),
        (["hydra.sweeper.variants={a: {step: 0}}"], "hydra.sweeper.variants.a.step = 0 should be above 0"),
        (["hydra.sweeper.variants={a: 1}"], "hydra.sweeper.variants.a = 1 should be a section"),
        (["hydra.sweeper.variants={a: {overrides: ['schedule.x=1']}}"], "there is no option 'schedule.x'"),
        (["hydra/launcher=basik"], "there is no hydra/launcher 'basik'"),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence_before_anything_runs(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*GRID, *arguments]) == 2
    errors = capsys.readouterr().err
    assert sentence in errors and errors.count("\n") == 1
    assert list(Path().iterdir()) == []


def test_it_is_for_sweeps_and_its_settings_are_nobody_elses(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, sentence in (
        (GRID[1:], "hydra/sweeper=lr_grid is for sweeps; add -m."),
        (
            ["-m", "hydra.sweeper.step=1"],
            "hydra.sweeper.* are settings of a sweeper; choose one, hydra/sweeper=lr_grid.",
        ),
    ):
        assert main(arguments) == 2
        assert sentence in capsys.readouterr().err


def test_a_metric_that_no_run_has_is_said_with_the_nearest(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*GRID, *tiny, "hydra.sweeper.metric=valid/accuracy"]) == 2
    assert "has no metric 'valid/accuracy'. Did you mean 'train/accuracy'?" in capsys.readouterr().err


def test_data_that_are_not_there_are_missed_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*GRID, "dataset=mnist", "data.root=/nowhere"]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("python scripts/fetch_data.py mnist --root /nowhere") == 1
    assert "4 of 4 run(s) have not ended well" in printed.out


def test_epoch_ranges_give_way_to_a_number_on_the_command_line() -> None:
    found: dict[str, sweeper.Search] = {}
    made = sweeper.GridSweeper(parameter="schedule.lr", values=[0.1, 0.2])
    made._add(found, ["experiment=demo/digits", "schedule.lr=0.1", "seed=5"], None)
    (search,) = found.values()
    assert search.question.overrides == ("experiment=demo/digits",) and search.seeds == (5,)
    assert search.overrides(search.variants[0], 0.2, 5) == ["experiment=demo/digits", "schedule.lr=0.2", "seed=5"]
