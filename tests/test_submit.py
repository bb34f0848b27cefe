"""Submission: what is missing and what that needs, frozen configurations, exit codes, local pools and SLURM arrays."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from results import address, figure, wanted
from results.cell import Cell
from results.collect import collect, write_packed
from results.fill import fill
from results.render.plan import compact
from runner import attempt, blocked, local, submission
from runner.attempt import CODES
from runner.cluster import Slurm
from runner.compose import compose
from runner.environment import git_state
from runner.errors import Misuse
from runner.identity import SCIENCE, key, parent_config, run_dir
from runner.progress import duration
from runner.queue import queued
from runner.records import RunDirectory
from runner.slurm import array_script, arrays, devices, ranges
from runner.submission import Task, freeze, hold, levels, load, new_folder
from runner.world import World
from scripts import submit

ROOT = Path(__file__).resolve().parents[1]
# Milliseconds a run, whatever the experiment; a stage's parent does not inherit its child's schedule.
SIZES = ("dataset.shape=[1,4,4]", "dataset.train_size=36", "dataset.test_size=12", "model.hidden=[100,50]")
SMALL = ("dataset=synthetic", *SIZES)
CELLS = ("demo/digits/set", "--seeds", "0,1", "schedule.epochs=8", "schedule.lr=0.2", *SMALL)
CHILDREN = [f"dsr/lenet_mnist/compressed/{column}" for column in ("s80", "s90", "s95")]
STAGES = (*CHILDREN, "--seeds", "0", "--profile", "smoke", *SMALL)


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """The command line with an empty runs root and no packed records: (exit code, output, errors)."""
    monkeypatch.setattr(submit, "LOGGED", tmp_path / "logged")
    monkeypatch.setattr(submit, "git_state", lambda: {"commit": "c" * 40, "dirty": False})
    monkeypatch.setenv("REGROW_RUNS", str(tmp_path / "runs"))

    def call(*arguments: str) -> tuple[int, str, str]:
        code = submit.main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def handlers() -> Iterator[None]:
    """The process's signal handlers, put back afterwards."""
    kinds = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
    before = {kind: signal.getsignal(kind) for kind in kinds}
    yield
    for kind, handler in before.items():
        signal.signal(kind, handler)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH whose sbatch, squeue and scontrol note their arguments in a file and answer what stands in others."""
    folder = tmp_path / "site"
    folder.mkdir()
    for name in ("sbatch", "squeue", "scontrol"):
        command = folder / name
        command.write_text(
            "#!/bin/bash\n"
            f'echo "{name} $*" >> {folder}/calls\n'
            f'[ ! -e {folder}/{name}.fails ] || {{ echo "error: {name} fails" >&2; exit 1; }}\n'
            f'[ "{name}" != sbatch ] || echo $((700 + $(grep -c ^sbatch {folder}/calls)))\n'
            f"cat {folder}/{name}.answer 2>/dev/null\nexit 0\n"
        )
        command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def listed(output: str) -> list[str]:
    """The run directories that a dry run prints."""
    return [line.split()[0] for line in output.splitlines() if re.search(r"/seed\d+  ", line)]


def run(path: str | Path, overrides: Sequence[str]) -> RunDirectory:
    """Really execute a run; `path` is where it should be."""
    from runner.execute import execute

    config = compose(overrides)
    assert run_dir(config["runs"], config) == Path(path)
    assert execute(config, list(overrides))["status"] == "completed"
    return RunDirectory(path)


def overrides_of(output: str) -> list[list[str]]:
    """The overrides that a dry run prints, run by run."""
    return [shlex.split(line)[1:] for line in output.splitlines() if re.search(r"/seed\d+  ", line)]


# What is missing


def test_a_dry_run_lists_what_is_missing_and_writes_nothing(tmp_path: Path, site: Path) -> None:
    code = (
        "import sys; from scripts import submit; code = submit.main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules and 'pandas' not in sys.modules; sys.exit(code)"
    )
    arguments = ["demo/digits", "--dry-run", "--list", "--cluster", "slurm", "--runs", str(tmp_path / "a b")]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert all(line.startswith("WARNING: there are uncommitted changes") for line in done.stderr.splitlines())
    assert done.stdout.startswith("18 cell(s), 48 run(s): 48 to do.\n")
    assert "Level 1: 48 run(s), " in done.stdout and "Level 2" not in done.stdout
    assert "  9 x digits/lenet_300_100/set, seeds 0-2: demo/digits/set/{s80,s90,s95}\n" in done.stdout
    assert len(listed(done.stdout.replace("a b", "ab"))) == 48
    assert f"#SBATCH --output='{tmp_path}/a b/submissions/" in done.stdout
    assert f"job0=$(sbatch --parsable --array=0-47%16 '{tmp_path}/a b/submissions/" in done.stdout
    assert list(tmp_path.iterdir()) == [site]
    helped = subprocess.run(
        [sys.executable, "-c", code.replace("submit.main(sys.argv[1:])", "0; submit._parser().format_help()")],
        cwd=ROOT,
        check=False,
    )
    assert helped.returncode == 0


def test_only_what_is_missing_is_listed(call: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    code, output, _ = call(*CELLS, "--dry-run", "--list")
    paths, overrides = listed(output), overrides_of(output)
    assert code == 0 and len(paths) == 6 == len(set(paths))
    assert all(path.startswith(f"{tmp_path}/runs/synthetic/lenet_300_100/set/") for path in paths)
    assert "Note: these overrides make other runs than those of the cells" in output

    run(paths[0], overrides[0])  # completed
    RunDirectory(paths[1]).finish({"status": "diverged"})
    write_packed(run(paths[2], overrides[2]).path, tmp_path / "logged")
    shutil.rmtree(paths[2])  # of which only the packed record is left
    RunDirectory(paths[3]).finish({"status": "failed"})
    Path(paths[4], "checkpoints").mkdir(parents=True)
    with RunDirectory(paths[5]).held():
        code, output, _ = call(*CELLS, "--dry-run", "--list")
    assert listed(output) == paths[3:5]
    assert (
        "3 cell(s), 6 run(s): 2 complete, 1 diverged, 1 running, 2 to do (1 interrupted before, 1 failed before)."
        in (output)
    )
    assert listed(call(*CELLS, "--dry-run", "--list")[1]) == paths[3:]


def test_runs_of_a_submission_under_way_are_queued(
    call: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = call(*CELLS, "--dry-run", "--list")[1]
    tasks = [Task(compose(overrides), tuple(overrides)) for overrides in overrides_of(output)]
    folder = new_folder(tmp_path / "runs")
    with hold(folder):
        freeze(folder, tasks[:4], {})
        assert queued(tmp_path / "runs") == {task.identity for task in tasks[:4]}
        assert listed(call(*CELLS, "--dry-run", "--list")[1]) == [str(task.path) for task in tasks[4:]]
    assert queued(tmp_path / "runs") == set()


def test_a_damaged_summary_is_told_and_left_alone(call: Callable[..., tuple[int, str, str]]) -> None:
    path = Path(listed(call(*CELLS, "--dry-run", "--list")[1])[0])
    path.mkdir(parents=True)
    (path / "summary.json").write_text("{")
    code, output, errors = call(*CELLS, "--dry-run", "--list")
    assert code == 0 and len(listed(output)) == 5 and "1 blocked" in output
    assert errors.count(f"{path}/summary.json is not readable") == 1


def test_seeds_profile_and_limit_choose_runs(call: Callable[..., tuple[int, str, str]]) -> None:
    output = call("demo/digits/set", "--seeds", "7", "--profile", "smoke", "--dry-run", "--list", "--limit", "2")[1]
    assert [Path(path).name for path in listed(output)] == ["seed7", "seed7"]
    assert "3 cell(s), 3 run(s): 3 to do.\nOf these the first 2.\n" in output
    assert "Note" not in output
    assert all("profile=smoke" in overrides for overrides in overrides_of(output))


def test_a_parent_is_run_once_and_before_its_children(call: Callable[..., tuple[int, str, str]]) -> None:
    output = call(*STAGES, "--dry-run", "--list")[1]
    paths = listed(output)
    assert [Path(path).parents[1].name for path in paths] == ["dense", "compressed", "compressed", "compressed"]
    assert "1 run(s) more are parents of these" in output
    configs = [compose(overrides) for overrides in overrides_of(output)]
    for path, config in zip(paths, configs, strict=True):
        assert run_dir(config["runs"], config) == Path(path)
    parents = [parent_config(config) for config in configs]
    assert [parent and key(parent) for parent in parents] == [None, *[key(configs[0])] * 3]
    # A limit counts parents, and never cuts a child off its parent.
    assert listed(call(*STAGES, "--dry-run", "--list", "--limit", "2")[1]) == paths[:2]


def test_parents_must_have_weights(call: Callable[..., tuple[int, str, str]], tmp_path: Path, handlers: None) -> None:
    output = call(*STAGES, "--dry-run", "--list")[1]
    paths, overrides = listed(output), overrides_of(output)
    parent = run(paths[0], overrides[0])
    assert listed(call(*STAGES, "--dry-run", "--list")[1]) == paths[1:]

    shutil.rmtree(parent.checkpoints)
    assert listed(call(*STAGES, "--dry-run", "--list")[1]) == paths
    made = [Task(compose(each), tuple(each), (0,) * (number > 0)) for number, each in enumerate(overrides)]
    file = freeze(tmp_path, made, {})
    assert [attempt.main([str(file), index]) for index in "01"] == [0, 0]  # the parent is repeated
    assert listed(call(*STAGES, "--dry-run", "--list")[1]) == paths[2:]
    shutil.rmtree(made[1].path)

    write_packed(parent.path, tmp_path / "logged")
    shutil.rmtree(parent.path)
    assert listed(call(*STAGES, "--dry-run", "--list")[1]) == paths  # a packed record has no weights
    parent.finish({"status": "failed"})
    assert listed(call(*STAGES, "--dry-run", "--list")[1]) == paths

    parent.finish({"status": "diverged"})
    _, output, errors = call(*STAGES, "--dry-run", "--list")
    assert listed(output) == [] and f"its parent {parent.path} has diverged" in errors
    assert "3 run(s): 3 blocked, 0 to do." in output
    parent.summary_path.write_text("{")
    _, output, errors = call(*STAGES, "--dry-run", "--list")
    assert listed(output) == [] and f"its parent {parent.path} is not readable" in errors


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "say what to submit"),
        (["demo/digts"], "There is no table 'demo/digts'. Did you mean 'demo/digits'?"),
        (["demo/digits/set/s99"], "has no column 's99'"),
        (["demo/digits", "--cluster", "slrum"], "there is no cluster 'slrum'. Did you mean 'slurm'?"),
        (["demo/digits", "--seeds", "0,x"], "--seeds 0,x should be different whole numbers"),
        (["demo/digits", "--seeds", "1,1"], "--seeds 1,1 should be different whole numbers"),
        (["demo/digits", "--seeds=-1"], "--seeds -1 should be different whole numbers"),
        (["demo/digits", "--limit", "0"], "--limit 0 should be a whole number, 1 or above"),
        (["demo/digits", "--limit", "many"], "--limit many should be"),
        (["demo/digits", "--profile", "smok"], "There is no profile 'smok'. Did you mean 'smoke'?"),
        (["demo/digits", "seed=3"], "seed=3: use --seeds here"),
        (["demo/digits", "profile=smoke"], "profile=smoke: use --profile here"),
        (["demo/digits", "cluster.workers=0"], "cluster.workers = 0 should be in the range 1 <= x"),
        (["demo/digits", "--cluster", "slurm", "cluster.mem=8 G"], "cluster.mem = '8 G' should be one word"),
        (["demo/digits", "--cluster", "slurm", "--wait"], "--wait is for local runs"),
        (["demo/digits", "--fast"], "--fast"),
        (["demo/digits/set", "method.sparsty=0.5"], "there is no option 'method.sparsty'"),
        (["demo/digits/set", "method.sparsity=1.2"], "method.sparsity = 1.2 should be in the range 0 <= x < 1"),
    ],
)
def test_mistakes_get_one_sentence_and_start_nothing(
    arguments: list[str], sentence: str, call: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    code, _, errors = call(*arguments)
    assert code == 2
    assert sentence in errors and errors.count("\n") == 1 and "Traceback" not in errors
    assert not (tmp_path / "runs").exists()


def test_hyperparameter_tables_have_nothing_to_run(call: Callable[..., tuple[int, str, str]]) -> None:
    code, output, _ = call("dsr/table4")
    assert code == 0
    assert output == "57 cell(s) are read from the configurations: they have nothing to run.\nNothing to do.\n"


def test_a_runs_root_that_cannot_be_written_is_one_sentence(
    call: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    code, _, errors = call(*CELLS, "--runs", str(tmp_path / "file"))
    assert code == 2 and f"{tmp_path}/file is a file; the runs root is a folder." in errors
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "submissions").write_text("in the way")
    code, _, errors = call(*CELLS)
    assert code == 2 and "cannot be written: " in errors and errors.count("\n") == 1


# The plan

TOY: dict[str, Any] = {
    "title": "T",
    "metric": "test/accuracy",
    "direction": "up",
    "seeds": [0, 1],
    "overrides": ["experiment=demo/digits"],
    "rows": [
        {"id": "dense", "title": "Dense", "overrides": ["method=dense"], "without": ["method"]},
        {"id": "set", "title": "SET", "overrides": ["method=set"]},
        {"id": "later", "title": "Later", "overrides": ["method=unheard_of"], "needs": ["method=unheard_of"]},
        {"id": "knob", "title": "Knob", "overrides": ["method=set", "method.share=???"]},
    ],
    "columns": [
        {"id": "s80", "title": "80", "overrides": ["method.sparsity=0.8"]},
        {"id": "s90", "title": "90", "overrides": ["method.sparsity=0.9"], "needs": []},
        {"id": "gap", "title": "Gap", "kind": "derived", "derive": "{s90} - {s80}"},
        {"id": "lr", "title": "Rate", "kind": "config", "read": "schedule.lr", "overrides": ["method.sparsity=0.8"]},
    ],
    "published": {"dense": {"s80": "absent", "s90": "absent"}},
}
TOY["rows"][3]["target"] = {"metric": "effective/sparsity", "value": 0.8}


@pytest.fixture
def papers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of papers of its own with the table toy/table."""
    folder = tmp_path / "papers"
    (folder / "toy" / "figures").mkdir(parents=True)
    (folder / "toy" / "table.yaml").write_text(yaml.safe_dump(TOY))
    for function in (address.select, address.figures, wanted.wanted, figure.records):
        defaults = tuple(folder if value == address.PAPERS else value for value in function.__defaults__ or ())
        monkeypatch.setattr(function, "__defaults__", defaults)
    return folder


def test_cells_are_sorted_by_whether_they_can_be_planned(papers: Path) -> None:
    found = wanted.wanted(["toy/table"])
    assert [slot.address for slot in found.slots] == ["toy/table/set/s80", "toy/table/set/s90"]
    assert {slot.place for slot in found.needing} == {("later", column) for column in ("s80", "s90", "gap", "lr")}
    assert {slot.place for slot in found.uncalibrated} == {("knob", "s80"), ("knob", "s90")}
    assert {slot.place for slot in found.unprinted} == {("dense", "s80"), ("dense", "s90")}
    assert {slot.place for slot in found.read} == {(row, "lr") for row in ("dense", "set", "knob")}


def test_a_derived_cell_stands_for_its_operands(papers: Path) -> None:
    found = wanted.wanted(["toy/table/set/gap"])
    assert [slot.address for slot in found.slots] == ["toy/table/set/s80", "toy/table/set/s90"]
    assert wanted.wanted(["toy/table/dense/gap"]).slots == []


def test_what_the_paper_does_not_print_is_planned_when_it_is_addressed_in_full(papers: Path) -> None:
    assert [slot.address for slot in wanted.wanted(["toy/table/dense/s90"]).slots] == ["toy/table/dense/s90"]
    assert wanted.wanted(["toy/table/dense"]).slots == []


def test_rows_columns_and_patterns_are_addresses(papers: Path) -> None:
    places = {slot.place for slot in wanted.wanted(["toy/table/*/s90"]).slots}
    assert places == {("set", "s90")}
    assert len(wanted.wanted(["toy/table/set"]).slots) == 2


def test_a_figure_with_cells_of_its_own_is_planned(papers: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    fields = {**TOY, "plot": "points", "rows": TOY["rows"][1:2], "columns": TOY["columns"][:2], "published": {}}
    (papers / "toy" / "figures" / "own.yaml").write_text(yaml.safe_dump(fields))
    code, output, _ = call("toy/own", "--dry-run")
    assert code == 0 and "2 cell(s), 4 run(s): 4 to do." in output


def recorded(output: str) -> dict[float, list[str]]:
    """Sparsity -> what a dry run's runs record."""
    configs = [compose(overrides) for overrides in overrides_of(output)]
    return {config["method"]["sparsity"]: config["trainer"]["records"] for config in configs}


def test_runs_record_what_figures_draw(papers: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    drawn = {"title": "T", "plot": "layers", "table": "toy/table", "rows": ["set"], "columns": ["s90"]}
    (papers / "toy" / "figures" / "drawn.yaml").write_text(yaml.safe_dump({**drawn, "records": ["layers"]}))
    output = call("toy/table/set", "--seeds", "0", "--dry-run", "--list")[1]
    records = {
        config["method"]["sparsity"]: config["trainer"]["records"] for config in map(compose, overrides_of(output))
    }
    assert records == {0.8: [], 0.9: ["layers"]}
    output = call("toy/table/set", "--seeds", "0", "--dry-run", "--list", "trainer.records=[mask_dynamics]")[1]
    records = {
        config["method"]["sparsity"]: config["trainer"]["records"] for config in map(compose, overrides_of(output))
    }
    assert records == {0.8: ["mask_dynamics"], 0.9: ["mask_dynamics", "layers"]}


def test_the_plan_says_what_is_to_run_and_what_is_not_possible(
    papers: Path, call: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "parallel", lambda *given: 2)
    output = call("toy/table", "--dry-run", "trainer.device=cpu")[1]
    assert output.splitlines() == [
        "3 cell(s) are read from the configurations: they have nothing to run.",
        "2 cell(s), 4 run(s): 4 to do.",
        "Not planned: 4 cell(s) of toy/table need method=unheard_of",
        "Not planned: uncalibrated, method.share=??? is not known yet: 2 cell(s), toy/table/knob/{s80,s90}",
        "Not planned: absent from the paper; planned only if addressed in full: 2 cell(s), toy/table/dense/{s80,s90}",
        "Level 1: 4 run(s), time not known, 69 GFLOPs",
        "  4 x digits/lenet_300_100/set, seeds 0-1: toy/table/set/{s80,s90}",
        "      time not known, 69 GFLOPs (no throughput recorded yet)",
        "Estimated for 4 run(s): time not known, 69 GFLOPs.",
    ]
    arguments = ("toy/table/set", "--dry-run", "--list", "trainer.device=cpu")
    paths, overrides = listed(call(*arguments)[1]), overrides_of(call(*arguments)[1])
    final = {"epoch": 30, "test/accuracy": 90.0, "time/samples_per_s": 1437.0}
    for place in (0, 1):
        done = RunDirectory(paths[place])
        done.begin(compose(overrides[place]), overrides[place], {"device": "cpu", "threads": 1})
        identity = {"key": done.path.parent.name, "seed": int(done.path.name[4:])}
        done.finish({**identity, "status": "completed", "reason": None, "epochs": 30, "final": final, "wall_s": 60.0})
    with RunDirectory(paths[2]).held():
        output = call("toy/table/set", "--dry-run", "trainer.device=cpu")[1]
    assert "2 cell(s), 4 run(s): 2 complete, 1 running, 1 to do.\n" in output
    epochs = compose(overrides[3])["schedule"]["epochs"]
    assert f"      {duration(2.0 * epochs)}, 17 GFLOPs (recorded throughput on cpu)\n" in output
    assert "running: 1 x digits/lenet_300_100/set, seed 0: toy/table/set/s90\n" in output
    assert output.endswith(f"Estimated for 1 run(s): {duration(2.0 * epochs)}, 17 GFLOPs.\n")


def test_stages_are_a_level_of_their_own(call: Callable[..., tuple[int, str, str]]) -> None:
    output = call(*STAGES, "--dry-run")[1]
    assert "Level 1: 1 run(s), " in output and "parents of later levels only" in output
    assert "Level 2, after level 1: 3 run(s), " in output


def test_addresses_are_written_compactly() -> None:
    cells = [f"p/t/{row}/{column}" for row in "ab" for column in "xy"]
    assert compact(cells) == ["p/t/{a,b}/{x,y}"]
    assert compact([*cells, "p/t/c/x", "p/u/a/x"]) == ["p/t/{a,b}/{x,y}", "p/t/c/x", "p/u/a/x"]
    assert compact(f"p/t/r{number}/x" for number in range(20)) == ["p/t/{r0,r1,r2,r3,r4,r5,r6, 13 more}/x"]


def test_a_plan_composes_every_configuration_once(
    papers: Path, call: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []

    def counting(overrides: Sequence[str] = ()) -> dict[str, Any]:
        asked.append(tuple(overrides))
        return compose(overrides)

    monkeypatch.setattr(submit, "compose", counting)
    drawn = {"title": "T", "plot": "layers", "table": "toy/table", "rows": ["set"], "columns": ["s80", "s90"]}
    (papers / "toy" / "figures" / "drawn.yaml").write_text(yaml.safe_dump({**drawn, "records": ["layers"]}))
    assert call("toy/table", "--seeds", "0,1,2,3", "--dry-run")[0] == 0
    cells = [overrides for overrides in asked if "experiment=demo/digits" in overrides]
    assert len(cells) == len(set(cells)) == 2


def test_uncommitted_changes_are_said_loudly(
    call: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(*CELLS, "--dry-run")[2] == ""
    monkeypatch.setattr(submit, "git_state", lambda: {"commit": "d" * 40, "dirty": True})
    errors = call(*CELLS, "--dry-run")[2]
    assert errors.startswith("WARNING: there are uncommitted changes in conf, ") and "commit dddddddddddd" in errors


# Frozen submissions


def test_tasks_come_back_as_they_were_frozen(tiny: list[str], tmp_path: Path) -> None:
    tasks = [Task(compose([*tiny, f"seed={seed}"]), (*tiny, f"seed={seed}"), (0,) * seed) for seed in (0, 1)]
    file = freeze(new_folder(tmp_path), tasks, {"cluster": {"name": "local"}})
    assert load(file) == tasks
    told = submission.facts(file.parent)
    assert told["tasks"] == 2 and told["cluster"] == {"name": "local"} and "commit" in told["git"]
    assert submission.moved(file.parent) is None
    told["git"]["commit"] = "0" * 40
    (file.parent / "submission.json").write_text(json.dumps(told))
    moved = submission.moved(file.parent)
    assert (moved is None) == (git_state()["commit"] is None)
    assert moved is None or moved.startswith("The code has moved from commit 000000000000 to ")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda line: line[: len(line) // 2], "line 1 is not a whole task"),
        (lambda line: line.replace('"overrides"', '"overides"'), "line 1 is not a whole task"),
        (lambda line: line.replace('"batch_size": 10', '"batch_size": 11'), "its configuration is run"),
        (lambda line: line.replace('"after": []', '"after": [0]'), "which are not earlier ones"),
        (lambda line: "", "holds no tasks"),
    ],
)
def test_a_tasks_file_that_is_not_whole_is_refused(
    damage: Callable[[str], str], sentence: str, tiny: list[str], tmp_path: Path
) -> None:
    file = freeze(tmp_path, [Task(compose(tiny), tuple(tiny))], {})
    text = damage(file.read_text())
    assert text != file.read_text()
    file.write_text(text)
    with pytest.raises(Misuse, match=sentence):
        load(file)
    with pytest.raises(Misuse, match="cannot be read"):
        load(tmp_path / "nowhere")


def test_a_task_names_only_what_a_configuration_may(
    tiny: list[str], tmp_path: Path, handlers: None, capsys: pytest.CaptureFixture[str]
) -> None:
    config = compose([*tiny, f"runs={tmp_path}/runs"])
    config["model"]["_target_"] = "os.system"
    file = freeze(tmp_path, [Task(config, ())], {})
    assert attempt.main([str(file), "0"]) == 2
    assert "model._target_ = 'os.system' should name something in" in capsys.readouterr().out


def signalled_at_its_beginning(patch: pytest.MonkeyPatch) -> None:
    """The next run gets a SIGTERM before its training loop listens."""
    from runner import execute

    original = execute.execute

    def signalled(*arguments: Any) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    patch.setattr(execute, "execute", signalled)


def test_exit_codes_of_one_task(
    tiny: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    handlers: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All from the frozen file: the overrides in it are nonsense, and composing anything is an error."""
    parts: list[list[str]] = [[], ["schedule.lr=1e30"], ["seed=1"], ["dataset=mnist"], ["seed=2"]]
    parts[3] += [f"data.root={tmp_path}/nowhere"]
    tiny = [*tiny, f"runs={tmp_path}/runs"]
    tasks = [
        Task(compose([*(tiny[7:] if part[:1] == ["dataset=mnist"] else tiny), *part]), ("no=thing",)) for part in parts
    ]
    (tasks[2].path / "config.yaml").mkdir(parents=True)  # in the way
    file = freeze(tmp_path, tasks, {})
    monkeypatch.setattr("runner.compose.compose", lambda overrides: pytest.fail("composed anew"))
    codes = [attempt.main([str(file), str(index)]) for index in range(4)]
    assert codes == [0, 3, 1, 2]
    assert RunDirectory(tasks[0].path).summary() is not None
    assert json.loads((tasks[0].path / "overrides.json").read_text()) == ["no=thing"]

    # A signal that comes while no loop listens reaches the run all the same: saved, and finished the next time.
    with monkeypatch.context() as patch:
        signalled_at_its_beginning(patch)
        assert attempt.main([str(file), "4"]) == 75
    assert RunDirectory(tasks[4].path).summary() is None
    assert attempt.main([str(file), "4"]) == 0
    said = capsys.readouterr().out
    assert "  epoch   1: train/loss" in said and "  completed test/accuracy" in said
    for wrong in ([str(file)], [str(file), "5"], [str(file), "x"], [str(tmp_path / "nowhere"), "0"]):
        assert attempt.main(wrong) == 2
    assert capsys.readouterr().err.count("regrow: ") == 4


def test_a_task_waits_for_whoever_runs_it(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handlers: None, capsys: pytest.CaptureFixture[str]
) -> None:
    task = Task(compose([*tiny, f"runs={tmp_path}/runs"]), tuple(tiny))
    file = freeze(tmp_path, [task], {})
    holder = RunDirectory(task.path).held()
    holder.__enter__()
    monkeypatch.setattr(time, "sleep", lambda seconds: holder.__exit__(None, None, None))
    assert attempt.main([str(file), "0"]) == 0
    assert f"another process is running {task.path}; waiting for it" in capsys.readouterr().out


# Stages under SLURM


@pytest.fixture
def stages(tiny: list[str], tmp_path: Path, site: Path, handlers: None) -> tuple[Path, list[Task]]:
    """A frozen submission of a parent, its child and its grandchild, as SLURM's arrays 701, 702 and 703."""
    overrides = [*tiny, f"runs={tmp_path}/runs"]
    tasks = [Task(compose(overrides), tuple(overrides))]
    for level in (1, 2):
        parent = {name: tasks[-1].config[name] for name in SCIENCE}
        start = {"parent": parent, "checkpoint": "last", "take": "weights", "overrides": overrides}
        config = {**tasks[-1].config, "start": start, "schedule": {**tasks[-1].config["schedule"], "lr": 0.01 * level}}
        tasks.append(Task(config, (f"level={level}",), (level - 1,)))
    folder = new_folder(tmp_path / "runs")
    jobs = [{"id": f"70{level + 1}", "level": level, "tasks": {str(level): [level]}} for level in range(3)]
    return freeze(folder, tasks, {"jobs": jobs}), tasks


def summary(task: Task) -> dict[str, Any]:
    """What the run left; {} for nothing."""
    return RunDirectory(task.path).summary() or {}


@pytest.mark.parametrize(
    ("status", "why"),
    [
        ("failed", "has failed (it broke)"),
        ("diverged", "has diverged (it broke)"),
        (None, "has not ended and is not queued any more: cancelled, or lost with its node"),
        ("not JSON", "is not readable"),
    ],
)
def test_a_child_without_its_parents_weights_ends_as_blocked(
    status: str | None, why: str, stages: tuple[Path, list[Task]], site: Path
) -> None:
    file, tasks = stages
    parent = RunDirectory(tasks[0].path)
    if status == "not JSON":
        parent.path.mkdir(parents=True)
        parent.summary_path.write_text("{")
    elif status is not None:
        parent.finish({"status": status, "reason": "it broke"})
    assert [attempt.main([str(file), index]) for index in "12"] == [CODES["blocked"]] * 2
    child, grandchild = summary(tasks[1]), summary(tasks[2])
    assert child["status"] == grandchild["status"] == "blocked"
    assert str(tasks[0].path) in child["reason"] and why in child["reason"]
    assert child["parent"] == {"key": tasks[0].identity[0], "seed": 0} and child["key"] == tasks[1].identity[0]
    assert f"its parent {tasks[1].path} was blocked" in grandchild["reason"]
    assert not (tasks[0].path / "metrics.jsonl").exists()  # nobody ran the parent in its child's place
    assert not (tasks[1].path / "metrics.jsonl").exists()


@pytest.mark.parametrize("answer", ["waits", "fails"])
def test_a_child_whose_parent_is_still_queued_goes_back_into_the_queue(
    answer: str, stages: tuple[Path, list[Task]], site: Path, tmp_path: Path
) -> None:
    file, tasks = stages
    (tasks[0].path / "checkpoints").mkdir(parents=True)  # interrupted and queued again
    if answer == "fails":
        (site / "squeue.fails").touch()
    else:
        (site / "squeue.answer").write_text("701 0\n702 1\n")
    done = run_script(file.parent, tmp_path, 1)
    assert done.returncode == CODES["interrupted"]
    assert f"interrupted: its parent {tasks[0].path} " in done.stdout and "queued again, too" in done.stdout
    assert "scontrol requeue 9_1" in (site / "calls").read_text()
    assert not tasks[1].path.exists() and not (tasks[0].path / "metrics.jsonl").exists()


def test_a_child_waits_for_whoever_runs_its_parent(
    stages: tuple[Path, list[Task]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from runner.execute import execute

    file, tasks = stages
    holder = RunDirectory(tasks[0].path).held()
    holder.__enter__()

    def sleep(seconds: float) -> None:
        holder.__exit__(None, None, None)
        execute(tasks[0].config, [])

    monkeypatch.setattr(time, "sleep", sleep)
    assert attempt.main([str(file), "1"]) == 0
    assert f"another process is running {tasks[0].path}; waiting for it" in capsys.readouterr().out
    assert summary(tasks[1])["status"] == "completed"


def test_a_blocked_run_is_run_once_its_parent_has_weights(
    stages: tuple[Path, list[Task]], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, tasks = stages
    assert attempt.main([str(file), "1"]) == CODES["blocked"]
    assert attempt.main([str(file), "0"]) == 0
    with monkeypatch.context() as patch:  # broken off in its first step: interrupted, and blocked no more
        signalled_at_its_beginning(patch)
        assert attempt.main([str(file), "1"]) == CODES["interrupted"]
    assert summary(tasks[1]) == {} and (tasks[1].path / "checkpoints").is_dir()
    assert attempt.main([str(file), "1"]) == 0
    assert summary(tasks[1])["status"] == "completed"
    # A run that has ended needs no parent any more.
    shutil.rmtree(tasks[0].path)
    assert attempt.main([str(file), "1"]) == 0


def test_a_blocked_record_never_replaces_a_result(stages: tuple[Path, list[Task]]) -> None:
    _, tasks = stages
    directory = RunDirectory(tasks[1].path)
    directory.finish({"status": "diverged"})
    assert blocked.record(tasks[1], "too late") is None
    assert summary(tasks[1])["status"] == "diverged"
    with RunDirectory(tasks[2].path).held():
        assert f"that {tasks[2].name} is blocked could not be recorded" in str(blocked.record(tasks[2], "held"))


def test_what_was_blocked_is_to_do_when_its_parent_can_be_made(
    call: Callable[..., tuple[int, str, str]], handlers: None
) -> None:
    output = call(*STAGES, "--dry-run", "--list")[1]
    paths, overrides = listed(output), overrides_of(output)
    made = [Task(compose(each), tuple(each), (0,) * (number > 0)) for number, each in enumerate(overrides)]
    assert blocked.record(made[1], "its parent was cancelled") is None
    assert listed(call(*STAGES, "--dry-run", "--list")[1]) == paths


def test_tables_show_what_is_blocked_and_why(
    call: Callable[..., tuple[int, str, str]], tmp_path: Path, handlers: None
) -> None:
    output = call(*STAGES, "--dry-run", "--list")[1]
    paths, overrides = listed(output), overrides_of(output)
    (selection,) = address.select(CHILDREN[:1])

    def cell() -> Cell:
        sheet = fill(selection, collect([tmp_path / "runs"]), "smoke", lambda given: compose([*given, *SMALL]))
        return next(iter(sheet.cells.values()))

    assert cell().states[0] == "missing"
    assert blocked.record(Task(compose(overrides[1]), tuple(overrides[1])), "its parent was cancelled") is None
    assert (cell().states[0], cell().status) == ("blocked", "blocked")
    assert cell().problems == (f"{paths[1]}: its parent was cancelled.",)
    run(paths[0], overrides[0])
    assert (cell().states[0], cell().problems) == ("missing", ())
    RunDirectory(paths[0]).finish({**(RunDirectory(paths[0]).summary() or {}), "status": "failed"})
    assert cell().states[0] == "blocked"


# Local pools


def test_a_local_submission_goes_on_by_itself(call: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    """Detached: a parent and its three children; a second submission adds nothing, a third finds them complete."""
    began = time.monotonic()
    code, output, errors = call(*STAGES, "cluster.workers=1")
    assert (code, errors) == (0, "")
    assert "4 run(s) have begun on 1 worker(s), process " in output
    (folder,) = (tmp_path / "runs" / "submissions").iterdir()
    again = call(*STAGES)[1]
    assert again.endswith("Nothing to do.\n") and listed(again) == []
    log = folder / "pool.log"
    while "run(s) in" not in log.read_text() and time.monotonic() < began + 240:
        time.sleep(0.2)
    assert "4 run(s) in" in log.read_text() and ": 4 completed." in log.read_text(), log.read_text()
    while queued(tmp_path / "runs") and time.monotonic() < began + 240:
        time.sleep(0.1)
    assert "3 run(s): 3 complete, 0 to do." in call(*STAGES)[1]
    summaries = sorted((tmp_path / "runs").rglob("summary.json"))
    assert len(summaries) == 4
    assert {json.loads(path.read_text())["status"] for path in summaries} == {"completed"}


def test_wait_hands_the_frozen_tasks_to_the_pool(
    call: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def execute_all(file: Path, size: int, devices: Sequence[str]) -> int:
        seen.extend([load(file), size, queued(tmp_path / "runs") == {task.identity for task in load(file)}])
        return 75

    monkeypatch.setattr(local, "execute_all", execute_all)
    code, _, _ = call(*STAGES, "--wait", "cluster.workers=3", "trainer.device=cpu")
    tasks, size, under_way = seen
    assert (code, size, under_way) == (75, 3, True)
    assert [task.after for task in tasks] == [(), (0,), (0,), (0,)]
    assert queued(tmp_path / "runs") == set()


# SLURM


def test_a_slurm_submission_is_an_array_of_parents_and_one_of_children(
    call: Callable[..., tuple[int, str, str]], tmp_path: Path, site: Path
) -> None:
    options = ["cluster.time=01:00:00", "cluster.partition=gpu", "cluster.gpus_per_task=1", "cluster.max_parallel=3"]
    code, output, errors = call(*STAGES, "--cluster", "slurm", *options, "cluster.setup=[module load python]")
    assert (code, errors) == (0, "")
    assert "Job 701: 1 run(s).\nJob 702: 3 run(s), after job 701.\n" in output
    (folder,) = (tmp_path / "runs" / "submissions").iterdir()
    assert [line for line in (site / "calls").read_text().splitlines() if line.startswith("sbatch")] == [
        f"sbatch --parsable --array=0%3 {folder}/array.sh",
        f"sbatch --parsable --dependency=afterany:701 --array=1-3%3 {folder}/array.sh",
    ]
    script = (folder / "array.sh").read_text().splitlines()
    for line in ("time=01:00:00", "partition=gpu", "gpus-per-task=1", "mem=8G", "cpus-per-task=4", "signal=B:USR1@90"):
        assert f"#SBATCH --{line}" in script
    assert script[0] == "#!/bin/bash" and "#SBATCH --requeue" in script and "module load python" in script
    assert not any("account" in line for line in script)
    assert 'export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"' in "\n".join(script)
    jobs = submission.facts(folder)["jobs"]
    assert jobs == [
        {"id": "701", "level": 0, "tasks": {"0": [0]}},
        {"id": "702", "level": 1, "tasks": {"1": [1], "2": [2], "3": [3]}},
    ]

    # While SLURM lists them they are not submitted again; then they are.
    (site / "squeue.answer").write_text("701 0\n702 1\n702 2\n702 3\n44 N/A\n")
    assert call(*STAGES, "--cluster", "slurm")[1].endswith("Nothing to do.\n")
    (site / "squeue.answer").write_text("702 1\n702 3\n")
    output = call(*STAGES, "--cluster", "slurm", "--dry-run", "--list")[1]
    assert [Path(path).parents[1].name for path in listed(output)] == ["dense", "compressed"]
    (site / "squeue.fails").touch()
    assert len(listed(call(*STAGES, "--cluster", "slurm", "--dry-run", "--list")[1])) == 4


def test_what_sbatch_refuses_is_one_sentence(
    call: Callable[..., tuple[int, str, str]], site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (site / "sbatch.fails").touch()
    code, _, errors = call(*STAGES, "--cluster", "slurm")
    assert code == 2 and "array.sh: error: sbatch fails." in errors and errors.count("\n") == 1


def test_without_sbatch_nothing_is_written(
    call: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, errors = call(*STAGES, "--cluster", "slurm")
    assert code == 2 and "there is no sbatch on this machine" in errors
    assert not (tmp_path / "runs").exists()


def test_the_array_script_executes_its_task(tiny: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "sub mission"
    tasks = [Task(compose([*tiny, "runs=runs", f"seed={seed}"]), tuple(tiny)) for seed in (0, 1)]
    freeze(folder, tasks, {})
    done = run_script(folder, tmp_path, 1)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / tasks[1].path / "summary.json").exists()  # relative to where it was submitted
    assert not (tmp_path / tasks[0].path).exists()
    assert done.stdout.startswith(f"{tasks[1].name}: runs/")
    assert "cpus 4" in done.stdout


def run_script(folder: Path, cwd: Path, index: int, offset: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run the array script as SLURM would run the array's task `index`."""
    slurm = Slurm(time=1, cpus_per_task=4, max_parallel=1, setup=["trap 'echo cpus $SRUN_CPUS_PER_TASK' EXIT"])
    script = folder / "array.sh"
    script.write_text(array_script(folder, slurm, cwd))
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": str(index), "SLURM_ARRAY_JOB_ID": "9"}
    environment |= {"SLURM_CPUS_PER_TASK": "4", "SLURM_JOB_ID": "12"}
    command = ["bash", str(script), *([] if offset is None else [str(offset)])]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("kind", "code", "requeued"),
    [("USR1", 75, True), ("USR1", 138, True), ("TERM", 75, False), ("USR1", 0, False), ("none", 3, False)],
)
@pytest.mark.parametrize("state", ["RUNNING", "COMPLETING"])
def test_the_array_script_forwards_signals_and_queues_again(
    kind: str, code: int, requeued: bool, state: str, tmp_path: Path, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for Python that signals its parent, the script, and takes a while to save."""
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/bash\n"
        f"trap 'echo got USR1; sleep 0.3; exit {code}' USR1\ntrap 'echo got TERM; sleep 0.3; exit {code}' TERM\n"
        f"[ {kind} != none ] || exit {code}\n"
        f"kill -{kind} $PPID\nfor i in {{1..400}}; do sleep 0.05; done\nexit 99\n"
    )
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    (site / "squeue.answer").write_text(f"{state}\n")
    done = run_script(tmp_path, tmp_path, 3)
    assert done.returncode == code
    assert (f"got {kind}" in done.stdout) == (kind != "none")
    calls = (site / "calls").read_text().splitlines() if (site / "calls").exists() else []
    asked = ["squeue --noheader --jobs=12 --format=%T"]
    assert calls == (asked if requeued else []) + (["scontrol requeue 9_3"] if requeued and state == "RUNNING" else [])


def test_arrays_reach_beyond_slurms_indices(tmp_path: Path) -> None:
    """2,500 runs, of which all but the first 1,200 are stages: each array's own indices end at 1,000."""
    config = compose()
    tasks = [Task({**config, "seed": seed}, (), (0,) * (seed >= 1200)) for seed in range(2500)]
    made = arrays(tasks, Slurm(time=1, cpus_per_task=1, max_parallel=8))
    assert [index for array in made for pack in array.tasks.values() for index in pack] == list(range(2500))
    assert all(max(array.tasks) <= 1000 for array in made)
    assert [(array.level, array.offset, len(array.tasks), array.parallel) for array in made] == [
        (0, 0, 1001, 4),
        (0, 1001, 199, 4),
        (1, 1200, 1001, 4),
        (1, 2201, 299, 4),
    ]
    assert made[1].command(tmp_path, []) == ["sbatch", "--parsable", "--array=0-198%4", f"{tmp_path}/array.sh", "1001"]
    assert "--dependency=afterany:7:8" in made[2].command(tmp_path, ["7", "8"])


def test_the_queue_knows_tasks_beyond_slurms_indices(tiny: list[str], tmp_path: Path, site: Path) -> None:
    tasks = [Task(compose([*tiny, f"seed={seed}"]), ()) for seed in range(3)]
    folder = new_folder(tmp_path)
    freeze(folder, tasks, {"jobs": [{"id": "5", "level": 0, "tasks": {"0": [1], "1": [2]}}]})
    (site / "squeue.answer").write_text("5 1\n")
    assert queued(tmp_path) == {tasks[2].identity}


def test_the_queue_knows_submissions_from_before_there_were_packs(tiny: list[str], tmp_path: Path, site: Path) -> None:
    tasks = [Task(compose([*tiny, f"seed={seed}"]), ()) for seed in range(3)]
    freeze(new_folder(tmp_path), tasks, {"jobs": [{"id": "5", "level": 0, "offset": 1, "tasks": [1, 2]}]})
    (site / "squeue.answer").write_text("5 0\n")
    assert queued(tmp_path) == {tasks[1].identity}


def test_the_array_script_adds_its_offset(tiny: list[str], tmp_path: Path) -> None:
    tasks = [Task(compose([*tiny, f"runs={tmp_path}/runs", f"seed={seed}"]), ()) for seed in (0, 1)]
    freeze(tmp_path, tasks, {})
    assert run_script(tmp_path, tmp_path, 0, 1).returncode == 0
    assert tasks[1].path.exists() and not tasks[0].path.exists()


def test_levels_and_ranges() -> None:
    config = compose()
    tasks = [Task({**config, "seed": seed}, (), after) for seed, after in enumerate([(), (0,), (), (1, 2), (2,)])]
    assert levels(tasks) == [[0, 2], [1, 4], [3]]
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"
    assert ranges([4]) == "4"
    assert CODES["interrupted"] == 75


# Runs of several processes


def several(devices: int = 1, **options: Any) -> str:
    """The batch script of runs of so many processes a node."""
    return array_script(Path("/s"), Slurm(time=1, cpus_per_task=2, max_parallel=1, **options), "/", devices)


def test_a_run_of_several_processes_is_one_step() -> None:
    script = several(4, nodes=2, gpus_per_task=1)
    for line in ("nodes=2", "ntasks-per-node=4", "cpus-per-task=2", "gpus-per-task=1"):
        assert f"\n#SBATCH --{line}\n" in script
    assert "--ntasks=" not in script
    assert f"\nsrun --kill-on-bad-exit=1 {sys.executable} -m runner.attempt /s/tasks.jsonl " in script
    assert script.index("export MASTER_ADDR=") < script.index("\nsrun")
    assert "srun --kill" in several(2) and "srun --kill" in several(nodes=2)
    alone = several()
    assert "\n#SBATCH --ntasks=1\n" in alone and "nodes" not in alone
    assert "srun --kill" not in alone and "MASTER_ADDR" not in alone


def test_the_ranks_meet_where_slurm_reaches_their_first_node(site: Path) -> None:
    (site / "scontrol.answer").write_text("NodeName=n7 Arch=x86_64 NodeAddr=10.1.2.3 NodeHostName=a7 Port=6818\n")
    (line,) = [line for line in several(2).splitlines() if "MASTER_ADDR" in line]
    environment = {**os.environ, "SLURMD_NODENAME": "n7"}
    command = ["bash", "-c", f'{line}\necho "$MASTER_ADDR"']
    assert subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout == "10.1.2.3\n"
    assert (site / "calls").read_text() == "scontrol --oneliner show node n7\n"


def test_runs_of_different_numbers_of_processes_are_submitted_apart(tiny: list[str]) -> None:
    tasks = [Task(compose([*tiny, f"trainer.devices={count}"]), ()) for count in (1, 2)]
    slurm = Slurm(time=1, cpus_per_task=1, max_parallel=1)
    assert [devices(tasks[:1], slurm), devices(tasks[1:], slurm)] == [1, 2]
    with pytest.raises(Misuse, match=r"trainer\.devices differs between these runs \(1, 2\); submit them apart"):
        devices(tasks, slurm)


def test_rank_0_speaks_records_and_has_the_exit_code(
    tiny: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    handlers: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A run that is blocked. Rank 1 does not look: it is told of the commit, and then of the obstacle."""
    task = Task(compose([*tiny, f"runs={tmp_path}/runs"]), tuple(tiny))
    file = freeze(tmp_path, [task], {})
    told = [None, attempt.Outcome("blocked", "its parent was cancelled")]
    second = World(rank=1, size=2)
    monkeypatch.setattr(second, "lead", lambda act: told.pop(0))
    monkeypatch.setattr(attempt, "join", lambda: second)
    assert attempt.main([str(file), "0"]) == 0
    assert told == [] and not task.path.exists() and capsys.readouterr().out == ""

    monkeypatch.setattr(attempt, "join", lambda: World(rank=0, size=2))
    monkeypatch.setattr(attempt, "hindrance", lambda *given: attempt.Outcome("blocked", "its parent was cancelled"))
    assert attempt.main([str(file), "0"]) == 1
    assert summary(task)["status"] == "blocked"
    assert f"{task.name}: {task.path} (2 ranks)\n" in capsys.readouterr().out
