"""scripts/runs.py: what it says of runs, whether their numbers repeat, what it deletes, and what it packs."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from results.collect import Collection
from results.record import read_packed
from runner import checkpoint, leftovers
from runner.compare import ABSENT, differences
from runner.compose import compose
from runner.execute import execute
from runner.identity import key, parent_config, run_dir
from runner.records import RunDirectory, write_json
from runner.repeat import first_difference, summary_differences
from runner.submission import Task, freeze
from scripts import runs as command
from tests.test_results_records import write_run

ROOT = Path(__file__).resolve().parents[1]
TINY = (
    "dataset=synthetic",
    "dataset.shape=[1,4,4]",
    "dataset.train_size=36",
    "dataset.test_size=12",
    "model.hidden=[20,10]",
    "schedule.batch_size=10",
    "schedule.epochs=3",
)
STAGE = ("method.iterations=2", "method.every_epochs=1")
MADE = {
    "set0": ("method=set", "seed=0"),
    "set1": ("method=set", "seed=1"),
    "set10": ("method=set", "seed=10"),
    "wide": ("method=set", "method.sparsity=0.5", "seed=1"),
    "child": ("method=compressed", *STAGE),
    "diverged": ("method=static", "schedule.lr=1e30", "trainer.checkpoint_seconds=0"),
}


def overrides(name: str) -> list[str]:
    return [*TINY, *MADE[name]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs root in which every run of MADE (and the parent of the child) has finished."""
    root = tmp_path_factory.mktemp("made")
    for name in MADE:
        given = [*overrides(name), f"runs={root}"]
        execute(compose(given), given)
    for file in root.rglob("environment.json"):
        content = json.loads(file.read_text())
        write_json(file, {**content, "git": {"commit": "0123456789abcdef", "dirty": False}})
        shutil.copy(file.parent / "checkpoints/last.pt", file.parent / "checkpoints/previous.pt")
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A copy of these runs for one test."""
    return Path(shutil.copytree(made, tmp_path / "runs"))


@pytest.fixture
def call(root: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command on these runs: (exit code, standard output, standard error)."""

    def run(*arguments: str | Path, runs: Path | None = root) -> tuple[int, str, str]:
        capsys.readouterr()
        code = command.main([*map(str, arguments), *(["--runs", str(runs)] if runs else [])])
        return code, *capsys.readouterr()

    return run


def directory(root: Path, name: str) -> Path:
    return run_dir(root, compose(overrides(name)))


def key_of(name: str) -> str:
    return key(compose(overrides(name)))


def change(path: Path, **values: Any) -> None:
    """Change fields of a JSON file; a dotted name reaches inside (one level)."""
    content = json.loads(path.read_text())
    for name, value in values.items():
        outer, _, inner = name.partition("__")
        (content[outer] if inner else content)[inner or outer] = value
    path.write_text(json.dumps(content))


def unfinish(path: Path) -> None:
    (path / "summary.json").unlink()


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


# list


def test_list_tells_of_every_run(root: Path, call: Callable[..., Any]) -> None:
    code, out, err = call("list", "--json")
    rows = {(row["method"], row["seed"], row["key"]): row for row in json.loads(out)}
    assert code == 0 and len(rows) == 7
    assert err == "7 run(s): 6 completed, 1 diverged.\n"
    path = directory(root, "set10")
    final = json.loads((path / "summary.json").read_text())["final"]
    row = rows["set", 10, key_of("set10")]
    wall = row.pop("wall_s")
    assert wall == json.loads((path / "summary.json").read_text())["wall_s"]
    assert row == {
        "dataset": "synthetic",
        "model": "lenet_300_100",
        "method": "set",
        "key": key_of("set10"),
        "seed": 10,
        "status": "completed",
        "epochs": 3,
        "of_epochs": 3,
        "metric": "test/accuracy",
        "value": final["test/accuracy"],
        "sparsity": final["mask/sparsity"],
        "effective_sparsity": final["effective/sparsity"],
        "commit": "0123456789abcdef",
        "dirty": False,
        "profile": "full",
        "packed": False,
        "path": str(path),
    }


def test_list_is_a_table_in_order(root: Path, call: Callable[..., Any]) -> None:
    change(directory(root, "set1") / "environment.json", git={"commit": "fedcba9876543210", "dirty": True})
    lines = call("list", f"set/{key_of('set0')}")[1].splitlines()
    titles = "dataset model method key seed status epochs test sparsity wall code"
    assert lines[0].split() == titles.split()
    assert [line.split()[4] for line in lines[1:]] == ["0", "1", "10"]
    final = json.loads((directory(root, "set0") / "summary.json").read_text())["final"]
    shown = ["3/3", "accuracy", f"{final['test/accuracy']:.6g}", f"{final['mask/sparsity']:.6g}"]
    assert lines[1].split()[6:10] == shown
    assert [line.split()[-1] for line in lines[1:]] == ["012345678", "fedcba987-dirty", "012345678"]


def test_list_filters_by_path_key_and_status(root: Path, call: Callable[..., Any]) -> None:
    def listed(*arguments: str) -> list[tuple[str, int]]:
        return [(row["method"], row["seed"]) for row in json.loads(call("list", "--json", *arguments)[1])]

    assert sorted(listed("set", "seed1")) == [("set", 1), ("set", 1), ("set", 10)]
    assert listed(key_of("child")) == [("compressed", 0)]
    assert listed("--status", "diverged") == [("static", 0)]
    assert listed("nowhere") == []
    code, out, err = call("list", "nowhere")
    assert (code, out, err) == (0, "", "0 run(s).\n")


def test_list_shows_what_is_not_finished(root: Path, call: Callable[..., Any]) -> None:
    unfinish(directory(root, "set0"))
    unfinish(directory(root, "set1"))
    lines = (directory(root, "set1") / "metrics.jsonl").read_text().splitlines()
    (directory(root, "set1") / "metrics.jsonl").write_text(lines[0] + "\n")
    change(directory(root, "set10") / "summary.json", status="failed")
    with RunDirectory(directory(root, "set0")).held():
        rows = {row["seed"]: row for row in json.loads(call("list", "--json", key_of("set0"))[1])}
    assert [rows[seed]["status"] for seed in (0, 1, 10)] == ["running", "interrupted", "failed"]
    assert [rows[seed]["epochs"] for seed in (0, 1, 10)] == [3, 1, 3]
    assert rows[1]["value"] == json.loads(lines[0])["test/accuracy"]
    assert rows[1]["wall_s"] is None
    assert "-" in call("list", key_of("set0"), "--status", "interrupted")[1].splitlines()[1].split()


def test_list_names_a_record_that_is_broken(root: Path, call: Callable[..., Any]) -> None:
    path = directory(root, "wide")
    (path / "config.yaml").write_text("seed: [")
    code, out, err = call("list", "--json")
    assert code == 0 and len(json.loads(out)) == 6
    assert f"Problem: {path}: is not valid YAML" in err


def test_list_marks_a_profile(tmp_path: Path, call: Callable[..., Any]) -> None:
    given = [*TINY, "method=static", "profile=short", f"runs={tmp_path}/short"]
    execute(compose(given), given)
    lines = call("list", runs=tmp_path / "short")[1].splitlines()
    assert lines[0].split()[6] == "profile" and lines[1].split()[6] == "short"


# show, and how a run is named


@pytest.mark.parametrize("spelling", ["directory", "key", "key and seed", "beginning", "name", "folder"])
def test_a_run_is_found_by_its_names(spelling: str, root: Path, call: Callable[..., Any]) -> None:
    path = directory(root, "wide")
    texts = {
        "directory": str(path),
        "key": key_of("wide"),
        "key and seed": f"{key_of('wide')}/seed1",
        "beginning": key_of("wide")[:7],
        "name": f"synthetic/lenet_300_100/set/{key_of('wide')}/",
        "folder": str(path.parent),
    }
    code, out, _ = call("show", texts[spelling], "--json")
    assert code == 0 and json.loads(out)["path"] == str(path)


def test_seed_1_is_not_seed_10(root: Path, call: Callable[..., Any]) -> None:
    assert json.loads(call("show", f"{key_of('set0')}/seed1", "--json")[1])["seed"] == 1


def test_an_ambiguous_name_lists_the_candidates(root: Path, call: Callable[..., Any]) -> None:
    code, out, err = call("show", key_of("set0"))
    assert (code, out) == (2, "")
    names = [f"synthetic/lenet_300_100/set/{key_of('set0')}/seed{seed}" for seed in (0, 1, 10)]
    assert err == f"'{key_of('set0')}' means 3 runs; name one of them: {', '.join(names)}.\n"


def test_an_unknown_name_gets_the_nearest(root: Path, call: Callable[..., Any]) -> None:
    wrong = key_of("wide")[1:]
    code, _, err = call("show", wrong)
    assert code == 2 and err == f"There is no run '{wrong}'. Did you mean '{key_of('wide')}'?\n"
    wrong = f"{key_of('set0')}/seed9"
    assert f"Did you mean '{key_of('set0')}/seed" in call("show", wrong)[2]


def test_show_is_the_whole_run(root: Path, call: Callable[..., Any]) -> None:
    path = directory(root, "child")
    summary = json.loads((path / "summary.json").read_text())
    code, out, _ = call("show", path, "--json")
    shown = json.loads(out)
    assert code == 0
    assert (shown["final"], shown["best"], shown["layers"]) == (summary["final"], summary["best"], summary["layers"])
    assert shown["config"] == yaml.safe_load((path / "config.yaml").read_text())
    assert shown["overrides"] == json.loads((path / "overrides.json").read_text())
    assert shown["environment"]["git"]["commit"] == "0123456789abcdef"
    parent = parent_config(shown["config"])
    assert parent is not None
    assert shown["parent"] == {
        "key": key(parent),
        "seed": 0,
        "take": "weights",
        "path": str(run_dir(root, parent)),
        "status": "completed",
    }


def test_show_prints_layers_and_configuration(root: Path, call: Callable[..., Any]) -> None:
    out = call("show", directory(root, "wide"))[1]
    layers = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.startswith(("fc", "all"))}
    assert layers["fc1.weight"] == ["20x16", "160", "320", "0.500000", layers["fc1.weight"][-1]]
    assert layers["all"][:3] == ["310", "620", "0.500000"]
    config = yaml.safe_load(out.partition("# config\n")[2])
    assert key(config) == key_of("wide")
    assert "parent:" not in out.partition("# environment")[0]


def test_show_names_the_cells_that_read_a_run(call: Callable[..., Any]) -> None:
    """Of its own profile and seeds; a parent of stages that no cell reads says so."""
    logged = ROOT / "results" / "logged" / "cifar10_jpeg" / "resnet20"
    snip = logged / "snip" / "ac1c524c9c0e" / "seed2.json"
    cells = json.loads(call("show", snip, "--json")[1])["cells"]
    assert {"dpf/narrow/snip/accuracy", "dpf/narrow/snip/sparsity", "dpf/narrow_precision/snip/bf16"} == set(cells)
    assert f"cells:      {' '.join(cells)}\n" in call("show", snip)[1]


def test_show_says_where_no_cell_reads_a_run(root: Path, call: Callable[..., Any]) -> None:
    assert "cells:      none of the tables reads it\n" in call("show", directory(root, "wide"))[1]


def test_show_a_parent_that_is_gone(root: Path, call: Callable[..., Any]) -> None:
    parent = parent_config(compose(overrides("child")))
    assert parent is not None
    shutil.rmtree(run_dir(root, parent))
    shown = json.loads(call("show", directory(root, "child"), "--json")[1])["parent"]
    assert (shown["key"], shown["path"]) == (key(parent), None)
    assert (
        f"parent:     {key(parent)}/seed0 gave its weights (not among these runs)"
        in call("show", directory(root, "child"))[1]
    )


def test_show_a_packed_record(root: Path, tmp_path: Path, call: Callable[..., Any]) -> None:
    call("pack", key_of("wide"), "--out", tmp_path / "logged")
    (path,) = (tmp_path / "logged").rglob("*.json")
    shown = json.loads(call("show", path, "--json")[1])
    assert shown["packed"] and shown["key"] == key_of("wide")
    assert shown["final"] == json.loads((directory(root, "wide") / "summary.json").read_text())["final"]


# diff


def test_diff_tells_science_from_machine(root: Path, call: Callable[..., Any]) -> None:
    change(directory(root, "wide") / "environment.json", device="elsewhere")
    code, out, _ = call("diff", f"{key_of('set0')}/seed0", key_of("wide"), "--json")
    found = json.loads(out)
    assert code == 0
    assert sorted(found["config"], key=lambda entry: entry["path"]) == [
        {"path": "method.sparsity", "a": 0.9, "b": 0.5, "science": True},
        {"path": "seed", "a": 0, "b": 1, "science": False},
    ]
    assert found["environment"] == [{"path": "device", "a": "cpu", "b": "elsewhere"}]
    finals = [json.loads((directory(root, n) / "summary.json").read_text())["final"] for n in ("set0", "wide")]
    assert {entry["metric"]: [entry["a"], entry["b"]] for entry in found["final"]} == {
        name: [final[name] for final in finals] for name in finals[0]
    }


def test_diff_prints_both_sides(root: Path, call: Callable[..., Any]) -> None:
    out = call("diff", f"{key_of('set0')}/seed0", key_of("wide"))[1]
    lines = [line.split() for line in out.splitlines()]
    assert ["method.sparsity", "0.9", "0.5"] in lines and ["seed", "0", "1"] in lines
    assert "# environment: the same" in out
    assert ["mask/sparsity", "0.9", "0.5", "-0.4"] in lines


def test_diff_of_a_run_with_itself_is_empty(root: Path, call: Callable[..., Any]) -> None:
    found = json.loads(call("diff", directory(root, "diverged"), directory(root, "diverged"), "--json")[1])
    assert found["config"] == found["environment"] == []
    assert {"metric": "train/loss", "a": "nan", "b": "nan"} in found["final"]


def test_a_parent_is_part_of_the_science_but_not_how_it_was_written(root: Path, call: Callable[..., Any]) -> None:
    path = directory(root, "child")
    config = yaml.safe_load((path / "config.yaml").read_text())
    config["start"]["overrides"] = ["method=dense"]
    copied = Path(shutil.copytree(path, root.parent / "other" / path.relative_to(root)))
    (copied / "config.yaml").write_text(yaml.safe_dump(config))
    (entry,) = json.loads(call("diff", path, copied, "--json")[1])["config"]
    assert (entry["path"], entry["science"]) == ("start.overrides", False)


def test_differences_of_nested_mappings() -> None:
    a = {"x": {"y": 1, "z": [1, 2]}, "n": math.nan, "t": True, "e": {}}
    b = {"x": {"y": 1.0, "z": [2, 1]}, "n": math.nan, "t": 1, "e": {"f": None}}
    assert list(differences(a, b)) == [
        ("x.z", [1, 2], [2, 1]),
        ("t", True, 1),
        ("e", {}, ABSENT),
        ("e.f", ABSENT, None),
    ]
    assert list(differences({"a": 0.1 + 0.2}, {"a": 0.3})) == [("a", 0.30000000000000004, 0.3)]
    assert list(differences({}, {})) == []


# evaluate


@pytest.mark.parametrize("name", ["wide", "child", "diverged"])
def test_evaluate_finds_the_recorded_numbers(name: str, root: Path, call: Callable[..., Any]) -> None:
    before = contents(root)
    code, out, err = call("evaluate", directory(root, name))
    assert (code, err) == (0, "")
    count = {"child": 8}.get(name, 4)  # those of the pair that a stage and its parent are
    assert out.endswith(f"All {count} metrics equal the recorded ones exactly.\n")
    assert ("pair:agreement" in out) == (name == "child")
    assert contents(root) == before
    final = json.loads((directory(root, name) / "summary.json").read_text())["final"]
    accuracy = next(line.split() for line in out.splitlines() if line.startswith("test/accuracy"))
    assert accuracy[1:] == [repr(final["test/accuracy"])] * 2 + ["equal"]


def test_evaluate_finds_a_number_that_was_changed(root: Path, call: Callable[..., Any]) -> None:
    path = directory(root, "wide")
    change(path / "summary.json", final__mask=0, **{"final__test/loss": 2.0})
    code, out, err = call("evaluate", path)
    assert code == 1
    assert [line.split()[-1] for line in out.splitlines()[1:]] == ["differs", "equal", "equal", "equal"]
    assert err.startswith("1 of 4 metrics are not the recorded ones; it was made by 012345678 on cpu, 1 thread(s)")


def test_evaluate_needs_the_last_checkpoint(root: Path, tmp_path: Path, call: Callable[..., Any]) -> None:
    path = directory(root, "wide")
    last = path / "checkpoints" / "last.pt"
    state = checkpoint.read(last)
    checkpoint.save({**state, "position": {**state["position"], "step": 11}}, last.parent)
    checkpoint.save(state, last.parent)
    last.write_bytes(last.read_bytes()[:-40])  # the one before is whole
    assert call("evaluate", path)[::2] == (
        2,
        f"the last good checkpoint in {path}/checkpoints is of step 11, not of the last one, 12; "
        "repeat the run with rerun.\n",
    )
    shutil.rmtree(path / "checkpoints")
    assert "has no readable checkpoint" in call("evaluate", path)[2]
    call("pack", key_of("set1"), "seed10", "--out", tmp_path / "logged")
    (packed,) = (tmp_path / "logged").rglob(f"*{key_of('set1')}/*.json")
    assert call("evaluate", packed)[::2] == (
        2,
        f"{packed} is a packed record, which has no checkpoint; repeat the run with rerun.\n",
    )
    unfinish(path)
    code, _, err = call("evaluate", path)
    assert code == 2 and "is interrupted; only a completed or diverged run has numbers" in err


def test_evaluate_refuses_a_summary_without_a_result(root: Path, call: Callable[..., Any]) -> None:
    path = directory(root, "wide")
    change(path / "summary.json", final=None)
    assert call("evaluate", path)[::2] == (2, f"{path} has a summary without final metrics; nothing can be compared.\n")


def test_evaluate_refuses_the_checkpoint_of_another_run(root: Path, call: Callable[..., Any]) -> None:
    own, other = (directory(root, name) / "checkpoints" / "last.pt" for name in ("wide", "set1"))
    shutil.copy(other, own)
    code, _, err = call("evaluate", directory(root, "wide"))
    assert code == 2 and f"belongs to run {key_of('set1')}, not to {key_of('wide')}" in err


@pytest.mark.parametrize("how", ["evaluate", "rerun"])
def test_a_stored_configuration_is_only_data(how: str, root: Path, tmp_path: Path, call: Callable[..., Any]) -> None:
    path = directory(root, "wide")
    config = yaml.safe_load((path / "config.yaml").read_text())
    config["model"] = {"name": "lenet_300_100", "_target_": "os.mkdir", "path": str(tmp_path / "broken_in")}
    forged = path.parent.with_name(key(config)) / path.name
    shutil.copytree(path, forged)
    (forged / "config.yaml").write_text(yaml.safe_dump(config))
    change(forged / "summary.json", key=key(config))
    code, _, err = call(how, forged)
    assert code == 2 and "model._target_ = 'os.mkdir' should name something in" in err
    assert not (tmp_path / "broken_in").exists()


def test_a_stored_configuration_without_a_section_is_refused(root: Path, call: Callable[..., Any]) -> None:
    path = directory(root, "wide")
    config = yaml.safe_load((path / "config.yaml").read_text())
    del config["trainer"]
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    code, _, err = call("evaluate", path)
    assert code == 2 and "has no section 'trainer'" in err


# rerun


@pytest.mark.parametrize("name", ["wide", "child", "diverged"])
def test_rerun_repeats_bit_for_bit(name: str, root: Path, call: Callable[..., Any]) -> None:
    path = directory(root, name)
    before = contents(root)
    code, out, _ = call("rerun", path)
    assert code == 0, out
    assert "epochs are equal bit for bit, and the summary bit for bit (times aside).\n" in out
    new = directory(root / "rerun", name)
    assert f"The repetition is in {new}.\n" in out
    assert json.loads((new / "summary.json").read_text())["key"] == key_of(name)
    after = contents(root)
    assert {name: after[name] for name in before} == before
    # Once more would compare the old repetition with the record.
    code, _, err = call("rerun", path)
    assert code == 2 and f"{new} holds an earlier repetition" in err
    assert call("rerun", path, "--out", root.parent / "again")[0] == 0


def test_rerun_names_the_first_epoch_and_field_that_differ(root: Path, call: Callable[..., Any]) -> None:
    path = directory(root, "wide")
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    was = lines[1]["train/loss"]
    lines[1]["train/loss"] = math.nextafter(was, 9.0)
    lines[2]["test/loss"] = 0.0
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, _, err = call("rerun", path)
    assert code == 1
    assert f"Epoch 2 is the first that differs: train/loss was {math.nextafter(was, 9.0)!r} and is {was!r} now" in err


def test_rerun_finds_a_summary_that_differs(root: Path, call: Callable[..., Any]) -> None:
    path = directory(root, "wide")
    change(path / "summary.json", layers={})
    code, _, err = call("rerun", path)
    assert code == 1 and "All epochs are equal, but in the summary layers was {} and is" in err


def test_rerun_of_a_packed_record(root: Path, tmp_path: Path, call: Callable[..., Any]) -> None:
    logged = tmp_path / "logged"
    call("pack", key_of("diverged"), "--out", logged)
    call("pack", key_of("wide"), "--out", logged)
    for name in ("wide", "diverged"):
        (packed,) = logged.rglob(f"*{key_of(name)}/*.json")
        code, out, _ = call("rerun", packed, "--out", tmp_path / "again", runs=logged)
        assert code == 0 and "are equal to the 6 digits of a packed record" in out
    content = json.loads(packed.read_text())
    content["metrics"]["test/accuracy"][-1] += 0.1
    packed.write_text(json.dumps(content))
    code, _, err = call("rerun", packed, "--out", tmp_path / "once_more", runs=logged)
    assert code == 1 and "the first that differs: test/accuracy" in err


def test_rerun_needs_a_result(root: Path, call: Callable[..., Any]) -> None:
    unfinish(directory(root, "wide"))
    code, _, err = call("rerun", directory(root, "wide"))
    assert code == 2 and "is interrupted" in err
    assert not (root / "rerun").exists()


def test_first_difference_by_hand() -> None:
    old: list[dict[str, Any]] = [
        {"epoch": 1, "a": 1.0, "time/x": 5.0, "n": math.nan},
        {"epoch": 2, "a": 2.0, "time/x": 5.0},
    ]
    same = [{**line, "time/x": 7.0} for line in old]
    assert first_difference(old, same) is None
    assert first_difference(old, [same[0], {**same[1], "a": 3.0}]) == (2, ("a", 2.0, 3.0))
    assert first_difference(old, [{**same[0], "b": 1}, same[1]]) == (1, ("b", ABSENT, 1))
    assert first_difference(old, same[:1]) == (2, ("epoch", 2, ABSENT))
    assert first_difference(same[:1], old) == (2, ("epoch", ABSENT, 2))


def test_summaries_differ_by_their_results_only() -> None:
    one = {"status": "completed", "final": {"a": 1.0, "time/x": 1.0}, "wall_s": 3.0, "started": "now"}
    assert summary_differences(one, {**one, "wall_s": 4.0, "started": "then", "final": {"a": 1.0}}) == []
    assert summary_differences(one, {**one, "final": {"a": 2.0}}) == [("final.a", 1.0, 2.0)]


# gc


@pytest.fixture
def no_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "select", list)


def checkpoints(path: Path) -> list[str]:
    return sorted(file.name for file in path.rglob("*.pt"))


def records_of(root: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(root).items() if not name.endswith(".pt")}


def test_gc_only_lists_what_it_would_delete(no_tables: None, root: Path, call: Callable[..., Any]) -> None:
    before = contents(root)
    code, out, err = call("gc")
    assert (code, err) == (0, "")
    assert contents(root) == before
    assert sorted(line.split()[2] for line in out.splitlines()[:-1]) == sorted(
        str(path) for path in root.rglob("checkpoints/*.pt")
    )
    assert out.splitlines()[-1].startswith("14 leftover(s), ") and "Nothing is deleted without --yes" in out


def test_gc_deletes_checkpoints_and_never_records(no_tables: None, root: Path, call: Callable[..., Any]) -> None:
    before = records_of(root)
    sizes = sum(path.stat().st_size for path in root.rglob("*.pt"))
    code, out, _ = call("gc", "--yes")
    assert code == 0
    assert out.splitlines()[-1].count(command._bytes(sizes)) == 2
    assert checkpoints(root) == [] and records_of(root) == before
    assert call("gc", "--yes")[1] == "There is nothing to delete.\n"
    assert len(json.loads(call("list", "--json")[1])) == 7


def test_gc_keeps_what_a_stage_still_needs(no_tables: None, root: Path, call: Callable[..., Any]) -> None:
    unfinish(directory(root, "child"))
    parent = parent_config(compose(overrides("child")))
    assert parent is not None
    call("gc", "--yes")
    assert checkpoints(run_dir(root, parent)) == ["last.pt"]
    assert checkpoints(directory(root, "child")) == ["last.pt", "previous.pt"]  # it has not finished
    assert checkpoints(directory(root, "wide")) == []


def test_gc_keeps_what_a_submission_still_needs(no_tables: None, root: Path, call: Callable[..., Any]) -> None:
    given = [*overrides("child"), "method.sparsity=0.7", f"runs={root}"]
    config = compose(given)
    parent = parent_config(config)
    assert parent is not None
    freeze(root / "submissions" / "one", [Task(config, tuple(given))], {})
    call("gc", "--yes")
    assert checkpoints(run_dir(root, parent)) == ["last.pt"]
    (root / "submissions" / "one" / "tasks.jsonl").write_text("{")
    code, _, err = call("gc", "--yes")
    assert code == 0 and "Last checkpoints are all kept" in err
    assert checkpoints(run_dir(root, parent)) == ["last.pt"]


def test_gc_keeps_what_a_table_still_needs(root: Path, call: Callable[..., Any], monkeypatch: Any) -> None:
    from results.address import Selection
    from results.table import load

    table = root.parent / "paper" / "small.yaml"
    table.parent.mkdir()
    rows = [{"id": "child", "title": "Child", "overrides": ["method=compressed", *STAGE]}]
    columns = [{"id": "s70", "title": "70 %", "overrides": ["method.sparsity=0.7"]}]
    text = {"title": "Small", "kind": "runs", "metric": "test/accuracy", "direction": "up", "seeds": [0]}
    table.write_text(yaml.safe_dump({**text, "overrides": list(TINY), "rows": rows, "columns": columns}))
    monkeypatch.setattr(command, "select", lambda: [Selection(load(table), frozenset({("child", "s70")}))])
    parent = parent_config(compose(overrides("child")))
    assert parent is not None
    call("gc", "--yes")
    assert checkpoints(run_dir(root, parent)) == ["last.pt"]
    # Once that stage has its result, nothing needs the parent's weights.
    given = [*TINY, "method=compressed", *STAGE, "method.sparsity=0.7", f"runs={root}"]
    execute(compose(given), given)
    call("gc", "--yes")
    assert checkpoints(root) == []


def test_a_chain_of_stages_needs_what_is_left_to_start_from() -> None:
    child = {**compose([*TINY, "method=compressed"]), "seed": 4}
    parent = parent_config(child)
    assert parent is not None
    grandchild = {**child, "start": {"parent": {**child}, "checkpoint": "last", "take": "weights"}}
    names = {"child": (key(child), 4), "parent": (key(parent), 4), "grandchild": (key(grandchild), 4)}
    assert leftovers.wanted([grandchild], set()) == {names["child"], names["parent"]}
    assert leftovers.wanted([grandchild], {names["child"]}) == {names["child"]}
    assert leftovers.wanted([grandchild], {names["parent"]}) == {names["child"], names["parent"]}
    assert leftovers.wanted([grandchild, parent], {names["grandchild"]}) == set()
    assert leftovers.wanted([child, grandchild], {names["grandchild"]}) == {names["parent"]}


def test_gc_never_touches_a_held_directory(no_tables: None, root: Path, call: Callable[..., Any]) -> None:
    path = directory(root, "wide")
    with RunDirectory(path).held():
        out = call("gc", "--yes")[1]
        assert str(path) not in out
    assert checkpoints(path) == ["last.pt", "previous.pt"]
    # Also one that is taken between the listing and the deletion.
    found = leftovers.leftovers(path, set())
    assert len(found) == 2
    with RunDirectory(path).held():
        assert leftovers.delete(found, set()) == 0
    assert leftovers.delete(found, None) == found[1].size and checkpoints(path) == ["last.pt"]


def test_gc_leaves_young_runs_alone(no_tables: None, root: Path, call: Callable[..., Any]) -> None:
    path = directory(root, "wide")
    for file in path.rglob("*"):
        os.utime(file, (time.time() - 3 * 86400,) * 2)
    assert call("gc", "--older-than", "4")[1] == "There is nothing to delete.\n"
    out = call("gc", "--older-than", "2.5")[1]
    assert out.splitlines()[-1].startswith("2 leftover(s)") and str(path) in out
    (path / "log.txt").touch()
    assert call("gc", "--older-than", "2.5")[1] == "There is nothing to delete.\n"


def test_gc_clears_cut_off_writes_and_empty_directories(no_tables: None, root: Path, call: Callable[..., Any]) -> None:
    path = directory(root, "wide")
    unfinish(path)
    temporary = [path / ".summary.json.4711", path / "checkpoints" / ".last.pt.4711"]
    for file in temporary:
        file.write_bytes(b"half")
    (path / ".hidden").write_text("somebody's")
    empty = path.parent.with_name("0" * 12) / "seed3"
    (empty / "checkpoints").mkdir(parents=True)
    (empty / "log.txt").touch()
    talks = path.parent.with_name("1" * 12) / "seed3"
    talks.mkdir(parents=True)
    (talks / "log.txt").write_text("no disk")
    before = records_of(root)
    call("gc", "--yes")
    assert not any(file.exists() for file in temporary) and not empty.parent.exists()
    assert checkpoints(path) == ["last.pt", "previous.pt"] and talks.exists()
    gone = {str(file.relative_to(root)) for file in (*temporary, empty / "log.txt")}
    assert {name for name in before if name not in records_of(root)} <= gone


def test_gc_says_which_summary_it_cannot_read(no_tables: None, root: Path, call: Callable[..., Any]) -> None:
    path = directory(root, "wide")
    (path / "summary.json").write_text("{")
    code, _, err = call("gc", "--yes")
    assert code == 0 and f"{path}/summary.json is not readable" in err
    assert checkpoints(path) == ["last.pt", "previous.pt"]


def test_gc_says_what_it_cannot_delete(
    no_tables: None, root: Path, call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = directory(root, "wide") / "checkpoints" / "last.pt"

    def refuse(file: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(Path, "unlink", refuse)
    code, _, err = call("gc", "--yes", runs=path.parents[1])
    assert (code, err) == (2, f"{path} cannot be deleted (Permission denied); what comes after it stays.\n")
    assert path.exists()


# pack


def test_pack_keeps_the_clean_runs(root: Path, tmp_path: Path, call: Callable[..., Any]) -> None:
    change(directory(root, "wide") / "environment.json", git={"commit": "fedc", "dirty": True})
    change(directory(root, "set0") / "environment.json", git={"commit": None, "dirty": None})
    unfinish(directory(root, "set10"))
    logged = tmp_path / "logged"
    code, out, err = call("pack", "set", "--out", logged)
    assert code == 1
    assert out.splitlines() == [f"{directory(logged, 'set1')}.json"]
    assert err.splitlines() == [
        "1 run(s) packed.",
        "2 run(s) refused: their code was not committed; --allow-dirty packs them too.",
        "1 run(s) left out: they have no result yet.",
    ]
    code, out, err = call("pack", "--out", logged, "--allow-dirty")
    assert code == 0 and len(out.splitlines()) == 6 and err.startswith("6 run(s) packed.\n")
    record, problems = read_packed(Path(f"{directory(logged, 'wide')}.json"))
    assert not problems and record.summary == json.loads((directory(root, "wide") / "summary.json").read_text())
    # Packed records are packed already.
    assert call("pack", "--out", tmp_path / "again", runs=logged)[2] == "0 run(s) packed.\n"


def test_pack_does_not_replace_another_result(root: Path, tmp_path: Path, call: Callable[..., Any]) -> None:
    logged = tmp_path / "logged"
    call("pack", key_of("wide"), "--out", logged)
    assert call("pack", key_of("wide"), "--out", logged)[0] == 0
    change(directory(root, "wide") / "summary.json", **{"final__test/accuracy": 100.0})
    code, _, err = call("pack", key_of("wide"), "--out", logged)
    assert code == 1 and "already holds another result of this run" in err


# Misuse, and what is imported


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["lst"], "invalid choice: 'lst'"),
        ([], "the following arguments are required: COMMAND"),
        (["list", "--status", "complete"], "There is no status 'complete'. Did you mean 'completed'?"),
        (["list", "--runs", "/nowhere"], "There is no folder '/nowhere'"),
        (["show"], "the following arguments are required: RUN"),
        (["diff", "one"], "the following arguments are required: B"),
        (["gc", "--older-than", "-1"], "should be a number of days, 0 or above"),
        (["gc", "--older-than", "nan"], "should be a number of days, 0 or above"),
        (["gc", "--older-than", "week"], "invalid float value: 'week'"),
        (["evaluate", "x", "--device", "tpu"], "invalid choice: 'tpu'"),
    ],
)
def test_misuse_is_one_sentence(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and sentence in err and err.endswith((".\n", "?\n"))


def test_only_computing_imports_torch(root: Path, tmp_path: Path) -> None:
    a, b = f"{key_of('set0')}/seed0", key_of("wide")
    commands = [
        ["list"],
        ["list", "--json"],
        ["show", b],
        ["diff", a, b],
        ["gc"],
        ["pack", "--out", str(tmp_path / "logged"), "--allow-dirty"],
    ]
    code = (
        "import sys\n"
        "sys.modules['torch'] = None  # any import of it fails\n"
        "from scripts import runs\n"
        "runs.select = list  # composing every table's cells takes seconds\n"
        f"codes = [runs.main([*arguments, '--runs', {str(root)!r}]) for arguments in {commands!r}]\n"
        "assert codes == [0] * 6, codes\n"
        "runs.main(['evaluate', '--help'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--device" in done.stdout


def test_nothing_at_all_is_an_empty_list(
    no_tables: None, tmp_path: Path, call: Callable[..., Any], monkeypatch: Any
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert call("list", "--json", runs=empty)[:2] == (0, "[]\n")
    assert call("gc", runs=empty)[1] == "There is nothing to delete.\n"
    code, _, err = call("show", "abc", runs=empty)
    assert code == 2 and err == "There is no run 'abc'. There are none.\n"
    # Without --runs: the runs root, which need not exist yet, and the logged records.
    monkeypatch.setenv("REGROW_RUNS", str(tmp_path / "none"))
    monkeypatch.setattr(command, "collect_runs", lambda roots: Collection({}) if roots is None else pytest.fail())
    assert call("gc", runs=None)[:2] == (0, "There is nothing to delete.\n")


# check


def test_check_names_every_fault_and_tells_grave_ones_from_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    sound = write_run(runs, ["method=set"], 0, accuracy=90.0)
    assert command.main(["check", "--runs", str(runs)]) == 0 and "0 finding(s)." in capsys.readouterr().out
    (sound / "environment.json").write_text(json.dumps({"git": {"commit": "abc", "dirty": True}}))
    assert command.main(["check", "--runs", str(runs)]) == 0
    assert f"Note: {sound}" in capsys.readouterr().out
    broken = write_run(runs, ["method=set"], 1)
    (broken / "summary.json").write_text('{"schema": 1, "stat')
    assert command.main(["check", "--json", "--runs", str(runs)]) == 1
    kinds = {entry["kind"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert kinds["truncated"]["grave"] and kinds["truncated"]["path"] == str(broken)
    assert not kinds["dirty_tree"]["grave"]
    assert command.main(["check", "seed1", "--runs", str(runs)]) == 1
    assert "dirty" not in capsys.readouterr().out


def test_tables_show_the_first_problems_and_where_the_rest_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from scripts.make_tables import main as make_tables

    for seed in range(30):
        (write_run(tmp_path, ["method=set"], seed) / "summary.json").write_text("{")
    assert make_tables(["demo/digits", "--runs", str(tmp_path)]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 21 and lines[-1] == "... and 10 more; python scripts/runs.py check lists all of them."
