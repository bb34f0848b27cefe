"""Run records: reading them whatever state they are in, each run once, and packing."""

import copy
import fcntl
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from results import files
from results.collect import collect, pack, write_packed
from results.integrity import KINDS, report
from results.record import Problem, examine_directory, examine_packed, read_directory, read_packed
from runner import identity
from runner.errors import Misuse


def fake_compose(overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A config of the real shape, without Hydra: method=, method.sparsity=, profile=, seed= and stage=METHOD."""
    config: dict[str, Any] = {
        "model": {"name": "net", "revision": 1},
        "dataset": {"name": "toy", "revision": 1},
        "method": {"name": "dense", "revision": 1},
        "schedule": {"name": "sgd", "epochs": 3, "lr": "1:2 -> 0.1, 3:3 -> 0.02", "momentum": 0.9},
        "task": {"name": "classification", "revision": 1},
        "precision": "fp32",
        "seed": 0,
        "start": None,
        "runs": "runs",
        "profile": {"name": "full"},
    }
    for override in overrides:
        name, value = override.split("=", 1)
        if name == "method":
            config["method"]["name"] = value
        elif name == "method.sparsity":
            config["method"]["sparsity"] = float(value)
        elif name == "profile":
            config["profile"]["name"] = value
            config["schedule"]["epochs"] = 1
        elif name == "seed":
            config["seed"] = int(value)
        elif name == "stage":
            parent = fake_compose([o for o in overrides if not o.startswith(("stage", "method"))] + [f"method={value}"])
            config["start"] = {"parent": identity.science(parent), "checkpoint": "last", "take": "weights"}
        else:
            raise Misuse(f"there is no option {name!r}")
    return config


def write_run(
    root: Path,
    overrides: Sequence[str],
    seed: int = 0,
    status: str | None = "completed",
    accuracy: Any = 90.0,
    metrics: Sequence[dict[str, Any]] = (),
) -> Path:
    """A run directory as the trainer leaves it; status None: the run was broken off."""
    config = fake_compose([*overrides, f"seed={seed}"])
    path = identity.run_dir(root, config)
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    (path / "overrides.json").write_text(json.dumps([*overrides, f"seed={seed}"]))
    (path / "environment.json").write_text(json.dumps({"python": "3.11", "packages": {}}))
    lines = list(metrics) or [{"epoch": e, "step": 10 * e, "test/accuracy": 50.0 + e} for e in (1, 2, 3)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "checkpoints").mkdir()
    if status is not None:
        final = {"epoch": 3, "test/accuracy": accuracy, "time/epoch_s": 1.5}
        summary = {"schema": 1, "status": status, "reason": None, "key": identity.key(config), "seed": seed}
        (path / "summary.json").write_text(json.dumps({**summary, "final": final, "best": {"test/accuracy": 91.5}}))
    return path


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


SET = ("method=set", "method.sparsity=0.9")


def test_reads_a_run_directory(tmp_path: Path) -> None:
    path = write_run(tmp_path, SET, seed=2, accuracy=88.25)
    record, problems = read_directory(path)
    assert problems == []
    assert (record.status, record.seed, record.packed, record.path) == ("completed", 2, False, path)
    assert record.key == identity.key(fake_compose(SET)) == path.parent.name
    assert record.value("test/accuracy") == 88.25
    assert record.value("best:test/accuracy") == 91.5
    assert record.value("test/nothing") is None and record.value("worst:test/accuracy") is None
    assert [line["test/accuracy"] for line in record.metrics] == [51.0, 52.0, 53.0]


def test_values_of_other_parts_of_the_summary(tmp_path: Path) -> None:
    path = write_run(tmp_path, SET)
    change_json(
        path / "summary.json",
        final={"test/accuracy": 90.0, "layers:fc1": 0.25},
        best={"layers:fc1": 0.5},
        dense={"test/accuracy": 91.25, "test/loss": "nan"},
        layers={
            "fc1.weight": {"shape": [2, 4], "kept": 4, "nonzero": 3, "total": 8},
            "mask": {"nonzero": 0, "total": 8},
            "whole.weight": {"nonzero": 8, "total": 8},
            "empty.weight": {"nonzero": 0, "total": 0},
            "odd.weight": {"nonzero": "many", "total": 8},
            "none.weight": None,
        },
        wall_s=3.5,
    )
    record, _ = read_directory(path)
    values = {
        "dense:test/accuracy": 91.25,
        "layers:fc1": 0.625,  # not what the last epoch's line has under this name
        "layers:mask": 1.0,
        "layers:whole": 0.0,
        "best:layers:fc1": 0.5,
        "final:test/accuracy": 90.0,
        "final:layers:fc1": 0.25,
    }
    assert {name: record.value(name) for name in values} == values
    assert math.isnan(record.value("dense:test/loss") or 0.0)
    for absent in ("layers:fc2", "layers:empty", "layers:odd", "layers:none", "wall_s:x", "wall_s", "", ":", "dense:"):
        assert record.value(absent) is None, absent


def test_zeroed_layers_are_counted(tmp_path: Path) -> None:
    path = write_run(tmp_path, SET)
    layers = {name: {"nonzero": n, "total": 8} for name, n in (("a.weight", 0), ("b.weight", 1), ("c.weight", 0))}
    for broken, count in ((None, 2.0), ({"nonzero": "many", "total": 8}, None)):
        change_json(path / "summary.json", layers={**layers, **({} if broken is None else {"d.weight": broken})})
        record, _ = read_directory(path)
        assert record.value("effective/zeroed_layers") == count
    change_json(path / "summary.json", layers={})
    record, _ = read_directory(path)
    assert record.value("effective/zeroed_layers") is None


def test_kept_weights_of_convolutions_are_counted(tmp_path: Path) -> None:
    path = write_run(tmp_path, SET)
    layers = {
        "a.weight": {"shape": [4, 3, 3, 3], "kept": 50, "nonzero": 7, "total": 108},
        "b.weight": {"shape": [4, 2, 5], "kept": 8, "nonzero": 8, "total": 40},
        "fc.weight": {"shape": [4, 2], "kept": 3, "nonzero": 3, "total": 8},
    }
    for broken, count in (({}, 58.0), ({"c.weight": {"kept": 2}}, None), ({"c.weight": {"shape": [1, 1, 1]}}, None)):
        change_json(path / "summary.json", layers={**layers, **broken})
        assert read_directory(path)[0].value("mask/kept_conv") == count
    change_json(path / "summary.json", layers={})
    assert read_directory(path)[0].value("mask/kept_conv") is None


def test_iterations_of_an_epoch_are_counted(tmp_path: Path) -> None:
    path = write_run(tmp_path, SET)
    final = json.loads((path / "summary.json").read_text())["final"]
    for told, count in (({"step": 1053}, 351.0), ({"step": None}, None), ({"step": 5, "epoch": None}, None)):
        change_json(path / "summary.json", final={**final, "epoch": 3, **told})
        assert read_directory(path)[0].value("train/iterations_per_epoch") == count


@pytest.mark.parametrize("stored, value", [(0.0, 0.0), (0, 0.0), ("inf", math.inf), ("-inf", -math.inf)])
def test_a_value_is_what_was_stored(tmp_path: Path, stored: Any, value: float) -> None:
    record, _ = read_directory(write_run(tmp_path, SET, accuracy=stored))
    assert record.value("test/accuracy") == value


def test_nan_stays_nan_and_text_is_no_value(tmp_path: Path) -> None:
    record, _ = read_directory(write_run(tmp_path, SET, accuracy="nan"))
    assert math.isnan(record.value("test/accuracy") or 0.0)
    record, _ = read_directory(write_run(tmp_path, SET, seed=1, accuracy="high"))
    assert record.value("test/accuracy") is None
    record, _ = read_directory(write_run(tmp_path, SET, seed=2, accuracy=True))
    assert record.value("test/accuracy") is None


def test_a_cut_last_metrics_line_is_reported_and_the_rest_is_kept(tmp_path: Path) -> None:
    path = write_run(tmp_path, SET)
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "test/acc')
    runs = collect([tmp_path])
    record = runs.get(path.parent.name, 0)
    assert record is not None and [line["epoch"] for line in record.metrics] == [1, 2, 3]
    assert [problem.path for problem in runs.problems] == [path / "metrics.jsonl"]
    assert "line 4" in runs.problems[0].what
    assert len(runs.sentences()) == 1 and str(path) in runs.sentences()[0]


def test_a_bad_line_in_the_middle_is_reported(tmp_path: Path) -> None:
    path = write_run(tmp_path, SET)
    lines = (path / "metrics.jsonl").read_text().splitlines()
    (path / "metrics.jsonl").write_text("\n".join([lines[0], "[1, 2]", lines[2]]) + "\n")
    record, problems = read_directory(path)
    assert [line["epoch"] for line in record.metrics] == [1, 3]
    assert len(problems) == 1 and "line 2" in problems[0].what


@pytest.mark.parametrize(
    "file, content, why",
    [
        ("config.yaml", "model: [", "not valid YAML"),
        ("config.yaml", "a text", "no mapping"),
        ("config.yaml", None, "no config.yaml"),
        ("config.yaml", b"\xff\xfe\x00", "not valid YAML"),
        ("summary.json", '{"schema": 1, "stat', "not valid JSON"),
        ("summary.json", "[]", "no object"),
        ("summary.json", '{"schema": 99, "status": "completed"}', "schema 99"),
        ("summary.json", '{"schema": 1, "status": "great"}', "unknown status 'great'"),
    ],
)
def test_an_unusable_record_is_named_and_the_others_are_read(
    tmp_path: Path, file: str, content: str | bytes | None, why: str
) -> None:
    good = write_run(tmp_path, SET)
    bad = write_run(tmp_path, SET, seed=1)
    (bad / file).unlink()
    if content is not None:
        (bad / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    runs = collect([tmp_path])
    assert [record.path for record in runs.runs.values()] == [good]
    assert [problem.path for problem in runs.problems] == [bad]
    assert why in runs.problems[0].what and "\n" not in runs.problems[0].what


@pytest.mark.parametrize(
    "file, content, kind",
    [
        ("config.yaml", "model: [", "truncated"),
        ("config.yaml", "day: 2020-13-45", "truncated"),
        ("config.yaml", "a text", "malformed"),
        ("config.yaml", None, "missing_file"),
        ("summary.json", '{"schema": 1, "stat', "truncated"),
        ("summary.json", "[]", "malformed"),
        ("environment.json", "{", "truncated"),
        ("environment.json", None, "missing_file"),
        ("overrides.json", "{}", "malformed"),
        ("metrics.jsonl", None, "missing_file"),
        ("metrics.jsonl", '{"epoch": 1}\n{"epo', "truncated"),
    ],
)
def test_problems_have_kinds(tmp_path: Path, file: str, content: str | None, kind: str) -> None:
    path = write_run(tmp_path, SET)
    (path / file).unlink()
    if content is not None:
        (path / file).write_text(content)
    runs = collect([tmp_path])
    assert [problem.kind for problem in runs.problems] == [kind]
    assert [finding.kind for finding in report(runs)] == [kind]


def test_what_a_reader_should_know_leaves_the_record_usable(tmp_path: Path) -> None:
    path = write_run(tmp_path, SET)
    change_json(path / "environment.json", git={"commit": "abc", "dirty": True})
    final = {"epoch": 3, "test/accuracy": 90.0, "test/loss": "nan", "train/loss": "-inf"}
    change_json(path / "summary.json", epochs=4, final=final)
    metrics = path / "metrics.jsonl"
    metrics.write_text(metrics.read_text().rstrip("\n"))
    runs = collect([tmp_path])
    assert runs.problems == () and runs.sentences() == []
    assert set(runs.remarks) == {
        Problem(path, "has completed with test/loss = nan, train/loss = -inf.", "not_a_number"),
        Problem(path, "was run from a tree with uncommitted changes, on commit abc.", "dirty_tree"),
        Problem(metrics, "does not end with a line break; its last line may be cut short.", "truncated"),
        Problem(
            metrics,
            "has 3 line(s), the last of epoch 3, but its summary tells of 4 epoch(s).",
            "epochs_disagree",
        ),
    }
    assert runs.runs[path.parent.name, 0].value("test/accuracy") == 90.0


@pytest.mark.parametrize("epochs, agrees", [(3, True), (2, False), (4, False), (None, True)])
def test_the_epochs_of_live_and_packed_records_are_compared(tmp_path: Path, epochs: Any, agrees: bool) -> None:
    path = write_run(tmp_path / "runs", SET)
    change_json(path / "summary.json", epochs=epochs)
    packed = write_packed(path, tmp_path / "logged")
    for reading in (examine_directory(path), examine_packed(packed)):
        assert [remark.kind for remark in reading.remarks] == ([] if agrees else ["epochs_disagree"])


def test_a_diverged_run_may_end_in_nan(tmp_path: Path) -> None:
    path = write_run(tmp_path, SET, status="diverged", accuracy="nan")
    assert examine_directory(path).remarks == ()


def test_a_blocked_run_never_began(tmp_path: Path) -> None:
    path = write_run(tmp_path, SET, status="blocked")
    (path / "metrics.jsonl").unlink()
    runs = collect([tmp_path])
    assert runs.runs[path.parent.name, 0].status == "blocked" and runs.problems == ()
    with pytest.raises(Misuse, match="blocked"):
        pack(path)
    write_run(tmp_path / "other", SET, status="failed")
    assert [record.status for record in collect([tmp_path, tmp_path / "other"]).runs.values()] == ["failed"]


def test_the_report_lists_everything_the_gravest_first(tmp_path: Path) -> None:
    path = write_run(tmp_path / "a", SET)
    write_run(tmp_path / "b", SET, accuracy=91.0)
    write_run(tmp_path / "c", SET)
    broken_off = write_run(tmp_path / "a", SET, seed=1, status=None)
    (write_run(tmp_path / "a", SET, seed=2, status=None) / "metrics.jsonl").write_text("")
    change_json(write_run(tmp_path / "a", SET, seed=3) / "summary.json", seed=4)
    write_run(tmp_path / "a", SET, seed=5, accuracy="inf")
    found = report(collect([tmp_path / name for name in "abc"]))
    assert [finding.kind for finding in found] == [
        *("conflict", "foreign_seed", "not_a_number", "interrupted", "interrupted", "duplicate")
    ]
    assert [KINDS.index(finding.kind) for finding in found] == sorted(KINDS.index(finding.kind) for finding in found)
    assert str(path) in found[0].sentence and str(found[0].path) in str(found[0])
    assert found[3].path == broken_off and "after epoch 3" in found[3].sentence
    assert "before its first epoch" in found[4].sentence
    assert report(collect([])) == []


def test_a_parent_is_named_by_its_key(tmp_path: Path) -> None:
    stage = ("method=set", "stage=dense")
    path = write_run(tmp_path / "runs", stage)
    key = identity.key(fake_compose(("method=dense",)))
    assert read_directory(path)[0].parent == key
    assert read_packed(write_packed(path, tmp_path / "logged"))[0].parent == key
    assert read_directory(write_run(tmp_path, ("method=dense",)))[0].parent is None


YAML_TEXTS = [
    "a: 1\nb: 2\n",
    "a:\n  b: 1\n  c: [1, 2]\nd:\n- 1\n- x: 2\n  y: 3\n-\n",
    "a: |\n  one\n\n  two\n\nb: >-\n  three\n",
    "a: 'one\n\n  two'\nb: 3\n",
    "a: 'one\nb: two'\nc: 3\n",
    "a: {b: 1,\nc: 2}\nd: 3\n",
    "a: &x {b: 1}\nc: *x\n",
    "a: &x {b: 1}\nc: &x {b: 2}\nd: *x\n",
    "a: 1\na: 2\nb: 3\n",
    "yes: 1\nno: 2\nnull: 3\n",
    "a: 1\n# a comment\nb: 2\n",
    "a: 1 # a comment\nb: 2\n",
    "---\na: 1\n...\n",
    "a: 1\n---\nb: 2\n",
    "? a\n: 1\n",
    "<<: {a: 1}\nb: 2\n",
    "a:1\nb: 2\n",
    "a : 1\n",
    "a: 1",
    "a: 1\r\nb: 2\r\n",
    "a: 1\rb: 2\n",
    "a: \u2028 b\n",
    "é: 1\n",
    "a: é\n",
    "a:\tb\n",
    "a: 1\n\tb\n",
    "a: text\n- 1\n",
    "a: text\n  more\n",
    "a:\n\n\nb:\n",
    "a: 0x1F\nb: 1e-3\nc: 1_000\nd: 12:30:00\ne: 2020-01-01\n",
    "a: !!python/object/apply:os.system [ls]\n",
    "a: 'x\n",
    "- a\n- b\n",
    "text\n",
    "",
    "\n",
    "a: [\n]\nb: 1\n",
    "a: - b\n",
    "1: 2\n",
    "a: |+\n  one\n\n\nb: 1\n",
    'a: "one\\\n  two"\nb: 1\n',
]


def check_yaml(path: Path, text: str) -> None:
    """Reading by sections gives what reading the whole gives, types included, or leaves it to that."""
    path.write_bytes(text.encode())
    try:
        expected: Any = yaml.load(text, Loader=files._loader())
    except (yaml.YAMLError, ValueError):
        expected = None
    try:
        found: Any = files.yaml_file(path)
    except files.Unusable:
        assert not isinstance(expected, dict), text
    else:
        assert repr(found.own()) == repr(expected), text


def test_reading_by_sections_is_reading(tmp_path: Path) -> None:
    for text in YAML_TEXTS:
        check_yaml(tmp_path / "config.yaml", text)


LINES = [line + "\n" for text in YAML_TEXTS for line in text.split("\n")]


@settings(max_examples=1000)
@given(st.lists(st.sampled_from(sorted(set(LINES))), max_size=6).map("".join))
def test_reading_any_lines_by_sections_is_reading(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    check_yaml(tmp_path_factory.getbasetemp() / "config.yaml", text)


def test_what_two_runs_have_in_common_is_not_shared_with_their_readers(tmp_path: Path) -> None:
    one, _ = read_directory(write_run(tmp_path, SET))
    other, _ = read_directory(write_run(tmp_path, SET, seed=1))
    one.config["method"]["name"] = "changed"
    assert other.config["method"]["name"] == "set"


@pytest.mark.parametrize("file, what", [("overrides.json", "{}"), ("environment.json", None)])
def test_what_a_number_does_not_need_is_missed_but_does_not_cost_it(
    tmp_path: Path, file: str, what: str | None
) -> None:
    path = write_run(tmp_path, SET)
    (path / file).unlink()
    if what is not None:
        (path / file).write_text(what)
    record, problems = read_directory(path)
    assert record.value("test/accuracy") == 90.0
    assert [problem.path.name for problem in problems] == [file]


def test_a_config_that_does_not_hash_to_its_key_is_not_used(tmp_path: Path) -> None:
    path = write_run(tmp_path, SET)
    config = yaml.safe_load((path / "config.yaml").read_text())
    config["schedule"]["epochs"] = 300
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    runs = collect([tmp_path])
    assert runs.runs == {}
    assert identity.key(config) in runs.problems[0].what and path.parent.name in runs.problems[0].what


def test_a_record_under_another_key_or_seed_is_not_used(tmp_path: Path) -> None:
    path = write_run(tmp_path, SET)
    shutil.copytree(path, path.with_name("seed1"))
    shutil.copytree(path, path.parent.with_name("0123456789ab") / "seed0")
    other = write_run(tmp_path, SET, seed=5)
    change_json(other / "summary.json", seed=6)
    runs = collect([tmp_path])
    assert [record.path for record in runs.runs.values()] == [path]
    assert {problem.path for problem in runs.problems} == {
        path.with_name("seed1"),
        path.parent.with_name("0123456789ab") / "seed0",
        other,
    }


def test_running_and_interrupted_are_told_apart_by_the_lock(tmp_path: Path) -> None:
    path = write_run(tmp_path, SET, status=None)
    (path / "lock").touch()
    assert read_directory(path)[0].status == "interrupted"
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch"')  # being written just now
    with (path / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        record, problems = read_directory(path)
    assert record.status == "running" and problems == []
    assert read_directory(path)[0].status == "interrupted"


def test_a_failed_run_that_is_tried_again_is_running(tmp_path: Path) -> None:
    path = write_run(tmp_path, SET, status="failed")
    assert read_directory(path)[0].status == "failed"
    with (path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        record, _ = read_directory(path)
    assert record.status == "running" and record.value("test/accuracy") is None


def test_packing_keeps_all_and_rounds_only_the_metric_columns(tmp_path: Path) -> None:
    lines = [
        {"epoch": 1, "test/accuracy": 12.3456789, "test/loss": "nan"},
        {"epoch": 2, "test/accuracy": 0.0, "test/loss": "inf", "mask/sparsity": 0.9},
    ]
    path = write_run(tmp_path / "runs", SET, seed=1, accuracy=97.123456789, metrics=lines)
    packed_path = write_packed(path, tmp_path / "logged")
    assert packed_path == tmp_path / "logged" / "toy" / "net" / "set" / path.parent.name / "seed1.json"
    strict = json.loads(packed_path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert strict["metrics"] == {
        "epoch": [1, 2],
        "test/accuracy": [12.3457, 0.0],
        "test/loss": ["nan", "inf"],
        "mask/sparsity": [None, 0.9],
    }
    live, _ = read_directory(path)
    packed, problems = read_packed(packed_path)
    assert problems == [] and packed.packed
    for name in ("key", "seed", "status", "overrides", "environment", "summary"):
        assert getattr(packed, name) == getattr(live, name), name
    assert packed.config == {name: section for name, section in live.config.items() if name != "runs"}
    assert packed.value("test/accuracy") == 97.123456789
    assert "mask/sparsity" not in packed.metrics[0] and packed.metrics[1]["mask/sparsity"] == 0.9
    assert write_packed(path, tmp_path / "logged") == packed_path  # the same result again changes nothing
    assert [file.name for file in packed_path.parent.iterdir()] == ["seed1.json"]


def test_no_folder_of_this_machine_is_packed(tmp_path: Path) -> None:
    path = write_run(tmp_path / "runs", [*SET, "stage=dense"])
    config = {**yaml.safe_load((path / "config.yaml").read_text()), "runs": "/home/me", "data": {"root": "/home/me"}}
    config["start"]["overrides"] = ["runs=/home/me", "method=dense"]
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    (path / "overrides.json").write_text(json.dumps(["runs=/home/me", "data.root=/home/me", "dataset.x=1", *SET]))
    packed = write_packed(path, tmp_path / "logged")
    assert "/home/me" not in packed.read_text()
    record, _ = read_packed(packed)
    assert record.overrides == ("dataset.x=1", *SET) and record.config["start"]["overrides"] == ["method=dense"]


def test_only_finished_whole_runs_are_packed(tmp_path: Path) -> None:
    broken_off = write_run(tmp_path, SET, status=None)
    with pytest.raises(Misuse, match="interrupted"):
        pack(broken_off)
    cut = write_run(tmp_path, SET, seed=1)
    (cut / "metrics.jsonl").write_text('{"epoch": 1}\n{"epo')
    with pytest.raises(Misuse, match="line 2"):
        pack(cut)
    with pytest.raises(Misuse, match="cannot be packed"):
        write_packed(tmp_path / "nowhere" / "seed0", tmp_path / "logged")
    assert not (tmp_path / "logged").exists()
    for seed, status in ((2, "failed"), (3, "diverged")):
        assert pack(write_run(tmp_path, SET, seed=seed, status=status))["summary"]["status"] == status


def test_another_result_is_never_overwritten(tmp_path: Path) -> None:
    first = write_packed(write_run(tmp_path / "a", SET, accuracy=90.0), tmp_path / "logged")
    before = first.read_bytes()
    with pytest.raises(Misuse, match="another result"):
        write_packed(write_run(tmp_path / "b", SET, accuracy=91.0), tmp_path / "logged")
    assert first.read_bytes() == before


@pytest.mark.parametrize(
    "changes, why",
    [
        ({"schema": 7}, "schema 7"),
        ({"summary": None}, "no usable 'summary'"),
        ({"metrics": {"epoch": [1, 2], "test/loss": [1.0]}}, "unequal lengths"),
        ({"config": {"seed": 0}}, "whose key is"),
    ],
)
def test_an_unusable_packed_record_is_named(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    path = write_packed(write_run(tmp_path / "runs", SET), tmp_path / "logged")
    change_json(path, **changes)
    runs = collect([tmp_path / "logged"])
    assert runs.runs == {} and [problem.path for problem in runs.problems] == [path]
    assert why in runs.problems[0].what


def test_of_equal_records_the_live_one_counts_and_the_other_is_noted(tmp_path: Path) -> None:
    path = write_run(tmp_path / "runs", SET)
    packed = write_packed(path, tmp_path / "logged")
    runs = collect([tmp_path / "logged", tmp_path / "runs"])
    assert [record.path for record in runs.runs.values()] == [path]
    assert [(d.kept, d.other, d.agrees) for d in runs.duplicates] == [(path, packed, True)]
    assert runs.sentences() == [
        "Note: 1 further record(s) of runs already found agree with them; each run counts once."
    ]


def test_records_that_disagree_are_a_problem_and_never_merged(tmp_path: Path) -> None:
    packed = write_packed(write_run(tmp_path / "old", SET, accuracy=80.0), tmp_path / "logged")
    path = write_run(tmp_path / "runs", SET, accuracy=90.0)
    runs = collect([tmp_path / "runs", tmp_path / "logged"])
    record = runs.get(path.parent.name, 0)
    assert record is not None and record.value("test/accuracy") == 90.0
    assert [duplicate.agrees for duplicate in runs.duplicates] == [False]
    assert str(packed) in runs.sentences()[0] and str(path) in runs.sentences()[0]


@pytest.mark.parametrize("status", [None, "failed", "diverged"])
def test_a_completed_packed_record_counts_before_an_unfinished_live_one(tmp_path: Path, status: str | None) -> None:
    packed = write_packed(write_run(tmp_path / "old", SET), tmp_path / "logged")
    write_run(tmp_path / "runs", SET, status=status)
    runs = collect([tmp_path / "runs", tmp_path / "logged"])
    assert [record.path for record in runs.runs.values()] == [packed]
    assert len(runs.duplicates) == 1 and runs.duplicates[0].agrees is (status is None)


def test_times_alone_make_no_disagreement(tmp_path: Path) -> None:
    path = write_run(tmp_path / "a", SET)
    twin = write_run(tmp_path / "b", SET)
    final = copy.deepcopy(json.loads((twin / "summary.json").read_text())["final"])
    change_json(twin / "summary.json", final={**final, "time/epoch_s": 99.0}, wall_s=1e6)
    runs = collect([tmp_path / "a", tmp_path / "b"])
    assert [(d.kept, d.agrees) for d in runs.duplicates] == [(path, True)]


def test_overlapping_roots_and_foreign_files_change_nothing(tmp_path: Path) -> None:
    path = write_run(tmp_path, SET)
    (tmp_path / "notes.json").write_text("not a record")
    (path / "checkpoints" / "seed7.json").write_text("not a record either")
    runs = collect([tmp_path, tmp_path / "toy", path, tmp_path / "nowhere"])
    assert [record.path for record in runs.runs.values()] == [path]
    assert runs.duplicates == () and [p.path for p in runs.problems] == [tmp_path / "nowhere"]


def test_a_metric_at_the_ends_of_phases_by_hand(tmp_path: Path) -> None:
    sparsities = [0.0, 0.0, 0.9, 0.9, 0.0, 0.9, 0.9, 0.9]
    lines = [{"epoch": e, "mask/sparsity": s, "cost": 10.0 * e} for e, s in enumerate(sparsities, start=1)]
    del lines[3]["cost"]  # a phase's end without it has none, and no other epoch stands for it
    record, _ = read_directory(write_run(tmp_path, SET, metrics=lines))
    assert record.history("dense_phases:cost") == {2: 20.0, 5: 50.0}
    assert record.history("sparse_phases:cost") == {8: 80.0}
    assert record.history("sparse_phases:mask/sparsity") == {4: 0.9, 8: 0.9}
    assert record.history("sparse_phases:nothing") == {}
    bare, _ = read_directory(write_run(tmp_path / "bare", SET))
    assert bare.history("dense_phases:test/accuracy") == {}, "without sparsities nobody knows the phases"
