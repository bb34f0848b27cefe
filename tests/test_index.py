"""The index of runs: what it remembers is what reading finds, and it is never believed where a file has changed."""

import fcntl
import json
import math
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from results import collect as collecting
from results import files, index
from results.collect import Collection, collect, write_packed
from results.integrity import report
from results.record import Record, examine_directory, read_directory
from runner import cache, records, untrusted
from runner.errors import Misuse
from tests.test_results_records import SET, change_json, fake_compose, write_run

HOUR_NS = 3600 * 10**9
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("REGROW_CACHE", str(path))
    return path


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """The files of records opened so far: by Python (an audit hook sees every way), with the lock's left out."""
    seen: list[Path] = []

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | os.PathLike) and not arguments[2] & os.O_WRONLY:
            path = Path(arguments[0])
            if path.name in index.FILES or path.name.startswith("seed"):
                seen.append(path)

    HEARERS.append(hear)
    yield seen
    HEARERS.remove(hear)


# An audit hook cannot be removed: one for all tests.
HEARERS: list[Callable[[str, tuple[Any, ...]], None]] = []
sys.addaudithook(lambda event, arguments: [hear(event, arguments) for hear in HEARERS] and None)


def age(root: Path, by_ns: int = HOUR_NS) -> None:
    """Make the files below look as old as records are: what was written just now is not indexed."""
    then = time.time_ns() - by_ns
    for folder, _, names in os.walk(root):
        for name in names:
            os.utime(Path(folder, name), ns=(then, then))


def told(collection: Collection) -> dict[str, Any]:
    """All that a collection says, in a form that compares; nan as text."""
    return {
        "runs": {name: facts(record) for name, record in collection.runs.items()},
        "problems": collection.problems,
        "duplicates": collection.duplicates,
        "remarks": collection.remarks,
        "sentences": collection.sentences(),
        "findings": report(collection),
    }


def facts(record: Record) -> str:
    metrics = ("test/accuracy", "best:test/accuracy", "dense:test/accuracy", "layers:fc1", "time/epoch_s", "worst:x")
    metrics += ("mask/kept_conv", "train/iterations_per_epoch")
    return repr(
        [
            *(record.path, record.packed, record.identity, record.status, record.parent),
            *(record.config, record.overrides, record.environment, record.summary, record.metrics),
            *(record.value(metric) for metric in metrics),
        ]
    )


def read_three_ways(*roots: Path) -> Collection:
    """Without an index, making one, and by it: all the same."""
    plain = told(collect(roots, indexed=False))
    making = told(collect(roots))
    indexed = collect(roots)
    assert told(indexed) == making == plain
    return indexed


LAYERS = {
    "fc1.weight": {"shape": [20, 16], "kept": 32, "nonzero": 30, "total": 320},
    "fc2.weight": {"shape": [10, 20], "kept": 200, "nonzero": 0, "total": 200},
}


def plant(root: Path, count: int) -> dict[str, int]:
    """`count` run directories, most of them sound, the others with a fault each; how many have which."""
    rng = random.Random(0)
    made: dict[str, int] = {}
    faults: dict[str, Callable[[Path], Any]] = {
        "no_summary": lambda path: (path / "summary.json").unlink(),
        "no_config": lambda path: (path / "config.yaml").unlink(),
        "no_metrics": lambda path: (path / "metrics.jsonl").unlink(),
        "no_environment": lambda path: (path / "environment.json").unlink(),
        "no_overrides": lambda path: (path / "overrides.json").unlink(),
        "nothing": lambda path: list(map(Path.unlink, filter(Path.is_file, path.iterdir()))),
        "cut_summary": lambda path: cut(path / "summary.json"),
        "cut_config": lambda path: (path / "config.yaml").write_text("model: ["),
        "cut_metrics": lambda path: cut(path / "metrics.jsonl"),
        "cut_environment": lambda path: cut(path / "environment.json"),
        "nan": lambda path: set_final(path, "test/accuracy", "nan"),
        "literal_nan": lambda path: set_final(path, "test/accuracy", math.nan),
        "huge": lambda path: set_final(path, "flops/training", 3 * 2**64 + 1),
        "zero": lambda path: set_final(path, "test/accuracy", 0.0),
        "no_accuracy": lambda path: set_final(path, "test/accuracy", None),
        "foreign_key": lambda path: path.parent.rename(path.parent.with_name(path.parent.name[::-1])),
        "foreign_seed": lambda path: change_json(path / "summary.json", seed=77),
        "other_seed": lambda path: path.rename(path.with_name("seed99")),
        "other_schema": lambda path: change_json(path / "summary.json", schema=2),
        "failed": lambda path: change_json(path / "summary.json", status="failed", reason="no memory", final=None),
        "diverged": lambda path: change_json(path / "summary.json", status="diverged"),
        "blocked": lambda path: change_json(path / "summary.json", status="blocked", final=None),
        "dirty": lambda path: change_json(path / "environment.json", git={"commit": "abc", "dirty": True}),
        "epochs": lambda path: change_json(path / "summary.json", epochs=4),
        "layers": lambda path: change_json(path / "summary.json", layers=LAYERS),
        "odd_layers": lambda path: change_json(path / "summary.json", layers={**LAYERS, "fc3": {"nonzero": 1}}),
        "series": lambda path: change_json(path / "summary.json", series={"mask/still_changing": [0.5, 0.25]}),
        "parts": lambda path: change_json(path / "summary.json", dense={"test/accuracy": 91.0}),
        "duplicate": lambda path: again(path, root / "copies"),
        "conflict": lambda path: set_final(again(path, root / "copies"), "test/accuracy", 1.0),
        "packed": lambda path: write_packed(path, root / "packed"),
    }
    names = sorted(faults)
    for number in range(count):
        overrides = (f"method={rng.choice('abc')}", f"method.sparsity={number / count:.6f}")
        path = write_run(root / "runs", overrides, seed=rng.randrange(5), accuracy=100 * rng.random())
        name = names[number // 3 % len(names)] if number % 3 == 0 else "sound"
        faults.get(name, lambda path: None)(path)
        made[name] = made.get(name, 0) + 1
    return made


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(0.9 * len(content))])


def set_final(path: Path, name: str, value: Any) -> None:
    summary = json.loads((path / "summary.json").read_text())
    final = {key: old for key, old in summary["final"].items() if key != name}
    change_json(path / "summary.json", final=final if value is None else {**final, name: value})


def again(path: Path, root: Path) -> Path:
    return Path(shutil.copytree(path, root / path.parent.name / path.name))


def test_planted_faults_are_told_the_same_with_and_without_an_index(tmp_path: Path, cache_folder: Path) -> None:
    made = plant(tmp_path, 1200)
    age(tmp_path)
    runs = read_three_ways(tmp_path)
    assert len(list(cache_folder.glob("runs-*"))) == 1
    kinds = [finding.kind for finding in report(runs)]
    assert kinds.count("conflict") == made["conflict"]
    assert kinds.count("duplicate") == made["duplicate"] + made["packed"]
    assert kinds.count("foreign_key") == made["foreign_key"]
    assert kinds.count("foreign_seed") == made["foreign_seed"] + made["other_seed"]
    assert kinds.count("truncated") == sum(
        made[f"cut_{name}"] for name in ("summary", "config", "metrics", "environment")
    )
    assert kinds.count("malformed") == made["other_schema"]
    assert kinds.count("missing_file") == (
        made["no_config"] + made["nothing"] + made["no_metrics"] + made["no_environment"] + made["no_overrides"]
    )
    assert kinds.count("not_a_number") == made["nan"] + made["literal_nan"]
    assert kinds.count("dirty_tree") == made["dirty"]
    assert kinds.count("epochs_disagree") == made["epochs"]
    assert kinds.count("interrupted") == made["no_summary"]
    statuses = [record.status for record in runs.runs.values()]
    assert (statuses.count("failed"), statuses.count("blocked")) == (made["failed"], made["blocked"])
    values = [record.value("test/accuracy") for record in runs.runs.values() if record.status == "completed"]
    assert values.count(0.0) == made["zero"] and values.count(None) == made["no_accuracy"]
    unusable = made["no_config"] + made["nothing"] + made["cut_summary"] + made["cut_config"] + made["other_schema"]
    unusable += made["foreign_key"] + made["foreign_seed"] + made["other_seed"]
    assert len(runs.runs) == 1200 - unusable


def test_the_second_time_no_record_is_opened(tmp_path: Path, opened: list[Path]) -> None:
    path = write_run(tmp_path, SET)
    write_run(tmp_path, SET, seed=1, status="diverged")
    write_run(tmp_path, SET, seed=2, status="failed")
    cut(write_run(tmp_path, SET, seed=3) / "summary.json")
    write_packed(path, tmp_path / "kept")
    age(tmp_path)
    collect([tmp_path])
    opened.clear()
    runs = collect([tmp_path])
    record = runs.get(path.parent.name, 0)
    assert record is not None and record.value("test/accuracy") == 90.0
    assert record.value("best:test/accuracy") == 91.5 and record.environment["python"] == "3.11"
    assert len(runs.runs) == 3 and len(runs.problems) == 1 and len(runs.duplicates) == 1 and report(runs)
    assert opened == []
    assert len(record.metrics) == 3
    assert opened == [path / "metrics.jsonl"]
    assert record.config["method"]["name"] == "set" and record.overrides[0] == "method=set"
    assert opened == [path / name for name in ("metrics.jsonl", "config.yaml", "overrides.json")]


def test_interrupted_and_running_runs_are_looked_at_each_time(tmp_path: Path, opened: list[Path]) -> None:
    path = write_run(tmp_path, SET, status=None)
    (path / "lock").touch()
    age(tmp_path)
    for _ in range(2):
        assert collect([tmp_path]).runs[path.parent.name, 0].status == "interrupted"
    with (path / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert collect([tmp_path]).runs[path.parent.name, 0].status == "running"
    assert opened.count(path / "config.yaml") == 3


@pytest.mark.parametrize("status", ["failed", "blocked"])
def test_a_run_that_is_tried_again_is_running_whatever_the_index_says(tmp_path: Path, status: str) -> None:
    path = write_run(tmp_path, SET, status=status)
    (path / "lock").touch()
    age(tmp_path)
    for _ in range(2):
        assert collect([tmp_path]).runs[path.parent.name, 0].status == status
    with (path / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert collect([tmp_path]).runs[path.parent.name, 0].status == "running"
    assert collect([tmp_path]).runs[path.parent.name, 0].status == status


CHANGES: dict[str, Callable[[Path], Any]] = {
    "config.yaml": lambda path: path.write_text(path.read_text().replace("momentum: 0.9", "momentum: 0.8")),
    "summary.json": lambda path: path.write_text(path.read_text().replace("90.0", "90.5")),
    "metrics.jsonl": lambda path: path.write_text(path.read_text()[:-3] + "  \n"),
    "environment.json": lambda path: path.write_text(path.read_text().replace("3.11", "3.12")),
    "overrides.json": lambda path: path.write_text(path.read_text().replace("method=set", "method=SET")),
}


@pytest.mark.parametrize("file", CHANGES)
@pytest.mark.parametrize("how", ["in place", "with its old time", "removed"])
def test_a_change_of_any_file_is_seen(tmp_path: Path, file: str, how: str) -> None:
    """The changes keep every size, so that only a time tells."""
    path = write_run(tmp_path, SET)
    age(tmp_path)
    before = told(collect([tmp_path]))
    assert told(collect([tmp_path])) == before
    old = (path / file).stat()
    if how == "removed":
        (path / file).unlink()
    else:
        CHANGES[file](path / file)
        assert (path / file).stat().st_size == old.st_size
        if how == "with its old time":
            os.utime(path / file, ns=(old.st_mtime_ns, old.st_mtime_ns))
    after = told(collect([tmp_path]))
    assert after == told(collect([tmp_path], indexed=False)) != before


def test_a_changed_packed_record_is_seen(tmp_path: Path) -> None:
    packed = write_packed(write_run(tmp_path / "runs", SET), tmp_path / "logged")
    age(tmp_path)
    logged = tmp_path / "logged"
    key = packed.parent.name
    assert collect([logged]).runs[key, 0].value("test/accuracy") == 90.0
    old = packed.stat()
    packed.write_text(packed.read_text().replace("90.0", "80.0"))
    os.utime(packed, ns=(old.st_mtime_ns, old.st_mtime_ns))
    assert collect([logged]).runs[key, 0].value("test/accuracy") == 80.0
    packed.unlink()
    assert collect([logged]).runs == {}


def test_a_record_that_appears_or_mends_itself_is_seen(tmp_path: Path) -> None:
    path = write_run(tmp_path, SET)
    whole = (path / "summary.json").read_bytes()
    cut(path / "summary.json")
    age(tmp_path)
    assert collect([tmp_path]).runs == {}
    (path / "summary.json").write_bytes(whole)
    write_run(tmp_path, SET, seed=1)
    assert sorted(collect([tmp_path]).runs) == [(path.parent.name, 0), (path.parent.name, 1)]


def test_a_file_written_just_now_is_not_indexed(tmp_path: Path, cache_folder: Path, opened: list[Path]) -> None:
    path = write_run(tmp_path, SET)
    age(tmp_path)
    now = time.time_ns() - 10**9
    os.utime(path / "summary.json", ns=(now, now))
    collect([tmp_path])
    assert list(cache_folder.iterdir()) == []
    os.utime(path / "summary.json", ns=(now - HOUR_NS, now - HOUR_NS))
    collect([tmp_path])
    opened.clear()
    collect([tmp_path])
    assert opened == []


def test_what_is_read_late_is_what_was_found(tmp_path: Path) -> None:
    path = write_run(tmp_path, SET)
    packed = write_packed(write_run(tmp_path / "other", SET, seed=1), tmp_path / "packed")
    age(tmp_path)
    runs = collect([tmp_path / "toy", tmp_path / "packed"])
    live, kept = runs.runs[path.parent.name, 0], runs.runs[path.parent.name, 1]
    for file, change in CHANGES.items():
        change(path / file)
    packed.write_text(packed.read_text() + " ")
    for record, names in ((live, ("config", "metrics", "overrides")), (kept, ("config", "metrics", "overrides"))):
        for name in names:
            with pytest.raises(Misuse, match="has changed since"):
                getattr(record, name)
    shutil.rmtree(path)
    with pytest.raises(Misuse, match="has changed since"):
        _ = live.metrics


def test_a_run_read_by_itself_is_in_memory(tmp_path: Path) -> None:
    path = write_run(tmp_path, SET)
    record, _ = read_directory(path)
    shutil.rmtree(path)
    assert len(record.metrics) == 3 and record.config["seed"] == 0 and record.overrides[-1] == "seed=0"


def test_records_share_nothing_that_can_be_changed(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path, SET, seed=seed)
    age(tmp_path)
    collect([tmp_path])
    one, other = collect([tmp_path]).runs.values()
    one.config["method"]["name"] = "changed"
    one.environment["packages"]["torch"] = "9"
    assert other.config["method"]["name"] == "set" and other.environment["packages"] == {}
    assert [record.config["method"]["name"] for record in collect([tmp_path], indexed=False).runs.values()] == [
        "set",
        "set",
    ]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[:-20],
    "longer": lambda content: content + b"\n",
    "no line": lambda content: b"x" * 100,
    "zeros": lambda content: bytes(len(content)),
    "a flipped digit": lambda content: content.replace(b"90.0", b"91.0"),
    "other format": lambda content: content.replace(b"cache 1", b"cache 2"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_index_is_not_believed(tmp_path: Path, cache_folder: Path, damage: str, opened: list[Path]) -> None:
    path = write_run(tmp_path, SET)
    age(tmp_path)
    collect([tmp_path])
    (file,) = cache_folder.iterdir()
    content = file.read_bytes()
    file.write_bytes(DAMAGES[damage](content))
    assert file.read_bytes() != content
    opened.clear()
    assert collect([tmp_path]).runs[path.parent.name, 0].value("test/accuracy") == 90.0
    assert len(opened) == len(index.FILES)
    assert file.read_bytes() == content  # mended


def test_an_index_made_by_other_code_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: list[Path]
) -> None:
    write_run(tmp_path, SET)
    age(tmp_path)
    collect([tmp_path])
    monkeypatch.setattr(index, "_code", lambda: "other")
    opened.clear()
    collect([tmp_path])
    assert len(opened) == len(index.FILES)


def test_an_index_of_another_user_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: list[Path]
) -> None:
    write_run(tmp_path, SET)
    age(tmp_path)
    collect([tmp_path])
    uid = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    opened.clear()
    collect([tmp_path])
    assert len(opened) == len(index.FILES)


@pytest.mark.parametrize("folder", ["", "a file", "/proc/nothing"])
def test_without_a_cache_folder_everything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, opened: list[Path]
) -> None:
    path = write_run(tmp_path / "runs", SET)
    age(tmp_path)
    (tmp_path / "a file").touch()
    monkeypatch.setenv("REGROW_CACHE", folder and str(tmp_path / folder))
    for count in (1, 2):
        assert collect([tmp_path / "runs"]).runs[path.parent.name, 0].value("test/accuracy") == 90.0
        assert len(opened) == count * len(index.FILES)


def test_nothing_is_written_beside_the_runs(tmp_path: Path) -> None:
    write_run(tmp_path, SET)
    age(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    collect([tmp_path])
    collect([tmp_path])
    assert sorted(tmp_path.rglob("*")) == before


def test_the_indexes_of_roots_that_are_gone_are_removed(tmp_path: Path, cache_folder: Path) -> None:
    for name in ("one", "two"):
        write_run(tmp_path / name, SET)
        age(tmp_path)
        collect([tmp_path / name])
    assert len(list(cache_folder.iterdir())) == 2
    (cache_folder / "runs-damaged").write_bytes(b"\xff\n\xff")
    shutil.rmtree(tmp_path / "one")
    write_run(tmp_path / "two", SET, seed=1)
    age(tmp_path)
    collect([tmp_path / "two"])
    assert len(list(cache_folder.iterdir())) == 1


def test_a_renamed_key_or_a_link_to_it_is_not_hidden_by_the_index(tmp_path: Path) -> None:
    path = write_run(tmp_path, SET)
    age(tmp_path)
    link = tmp_path / "named_otherwise"
    link.symlink_to(path.parent)
    for _ in range(2):
        assert len(collect([path.parent]).runs) == 1
        assert [problem.kind for problem in collect([link]).problems] == ["foreign_key"]
        assert len(collect([path]).runs) == 1
    link.unlink()
    collect([tmp_path])
    path.parent.rename(path.parent.with_name("abcabcabcabc"))
    assert [problem.kind for problem in collect([tmp_path]).problems] == ["foreign_key"]


def test_overlapping_roots_keep_their_indexes(tmp_path: Path, opened: list[Path]) -> None:
    path = write_run(tmp_path, SET)
    age(tmp_path)
    roots = [tmp_path / "toy", tmp_path]
    collect([tmp_path])
    collect(roots)
    opened.clear()
    runs = collect(roots)
    assert len(runs.runs) == 1 and runs.duplicates == ()
    assert len(collect([tmp_path]).runs) == 1
    assert opened == []
    shutil.rmtree(path.parent)
    assert collect(roots).runs == {}


def test_processes_that_write_at_once_do_no_harm(tmp_path: Path, cache_folder: Path) -> None:
    for seed in range(20):
        write_run(tmp_path, SET, seed=seed)
    age(tmp_path)
    code = f"from results.collect import collect; print(len(collect([{str(tmp_path)!r}]).runs))"
    running = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    assert [process.communicate()[0] for process in running] == ["20\n"] * 4
    assert len(collect([tmp_path]).runs) == 20
    assert [file.name[:5] for file in cache_folder.iterdir()] == ["runs-"]


def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read is filed under the signature from before the reading."""
    path = write_run(tmp_path, SET)
    age(tmp_path)
    examine = examine_directory

    def meanwhile(where: Path, whole: bool = False) -> Any:
        reading = examine(where, whole)
        set_final(path, "test/accuracy", 70.5)
        return reading

    monkeypatch.setattr(collecting, "examine_directory", meanwhile)
    assert collect([tmp_path]).runs[path.parent.name, 0].value("test/accuracy") == 90.0
    monkeypatch.undo()
    assert collect([tmp_path]).runs[path.parent.name, 0].value("test/accuracy") == 70.5


def test_names_and_numbers_that_json_cannot_hold_are_read_each_time(tmp_path: Path) -> None:
    path = write_run(tmp_path, SET)
    summary = json.loads((path / "summary.json").read_text())
    change_json(path / "summary.json", final={**summary["final"], "test/loss": math.inf, "flops/training": 2**70})
    write_run(tmp_path, SET, seed=2**70)
    odd = os.fsencode(tmp_path) + b"/\xff\xfe/\xff"
    os.makedirs(odd)
    shutil.copytree(path, os.path.join(os.fsdecode(odd), path.name))
    age(tmp_path)
    runs = read_three_ways(tmp_path)
    record = runs.runs[path.parent.name, 0]
    assert record.value("test/loss") == math.inf
    assert record.summary is not None and record.summary["final"]["flops/training"] == 2**70
    assert [problem.kind for problem in runs.problems] == ["foreign_key"]


def test_an_unreadable_record_is_tried_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the disk or of rights may pass without a change of any file."""
    good, path = write_run(tmp_path, SET), write_run(tmp_path, SET, seed=1)
    age(tmp_path)
    content = untrusted.content

    def failing(file: Path) -> bytes:
        if file == path / broken:
            raise OSError(5, "Input/output error")
        return content(file)

    for broken in ("config.yaml", "summary.json", "metrics.jsonl", "environment.json"):
        monkeypatch.setattr(untrusted, "content", failing)
        for _ in range(2):
            runs = collect([tmp_path])
            assert [problem.kind for problem in runs.problems] == ["unreadable"]
            assert "Input/output error" in runs.problems[0].what
            assert (good.parent.name, 0) in runs.runs
            assert ((path.parent.name, 1) in runs.runs) == (broken in ("metrics.jsonl", "environment.json"))
        monkeypatch.undo()
    assert collect([tmp_path], indexed=False).problems == ()


def test_a_folder_that_cannot_be_looked_into_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good, path = write_run(tmp_path, SET), write_run(tmp_path, SET, seed=1)
    age(tmp_path)
    stat = os.stat

    def refusing(file: Any, *arguments: Any, **more: Any) -> os.stat_result:
        if str(file).startswith(f"{path}/"):
            raise PermissionError(13, "Permission denied", str(file))
        return stat(file, *arguments, **more)

    monkeypatch.setattr(os, "stat", refusing)
    runs = collect([tmp_path])
    assert [record.path for record in runs.runs.values()] == [good]
    assert [(problem.path, problem.kind) for problem in runs.problems] == [(path, "unreadable")]


def test_the_quick_checks_of_metrics_say_what_the_thorough_ones_say(tmp_path: Path) -> None:
    line = '{"epoch": 1, "x": 0.5}'
    texts = [
        *("", "\n", line, line + "\n", f"{line}\n{line}\n", f"{line}\n\n{line}\n", f"{line}\r\n{line}\r\n"),
        *("[1]\n", "3\n", "{}\n", f"{line},\n", '{"a":[{}\n{}]}\n', f"{line[:9]}\r{line[9:]}\n", f"{line} \n"),
        *('{"x": NaN}\n', '{"x": "\u2028"}\n', '{"x": "é"}\n', "\x0c{}\n", f"{line}\x0b\n", '{"x": 1e999}\n'),
        *("null\n", f"{line}\n{line[:9]}", f"{line}\n{line}"),
    ]
    path = tmp_path / "metrics.jsonl"
    for content in [*(text.encode() for text in texts), b"\xff\n"]:
        path.write_bytes(content)
        lines, sentences = records.read_metrics(path)
        found = files.metric_lines(path)
        assert (found.count, len(found.complaints)) == (len(lines), len(sentences)), content
        assert repr(found.last.get("epoch")) == repr(lines[-1].get("epoch") if lines else None), content
        assert found.complete is (not content or content.endswith(b"\n"))


def test_cache_files_are_checked(cache_folder: Path) -> None:
    assert cache.read("x") is None
    for lines in ([b""], [b"", b""], [b"a", b"", b"b"], [b"x" * 5000]):
        assert cache.write("x", lines) and cache.read("x") == lines
    assert [file.name for file in cache_folder.iterdir()] == ["x"]
    assert cache.first_line("x") == b"x" * 5000 and cache.first_line("y") is None
    cache.remove(["x", "y"])
    assert cache.names("") == []


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache.folder() == Path(os.environ["REGROW_CACHE"])
    monkeypatch.setenv("REGROW_CACHE", "")
    assert cache.folder() is None and not cache.write("x", [b""]) and cache.names("") == []
    monkeypatch.delenv("REGROW_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.folder() == tmp_path / "xdg" / "regrow"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.folder() == tmp_path / "home" / ".cache" / "regrow"


@pytest.mark.slow
def test_ten_thousand_runs(tmp_path: Path, opened: list[Path]) -> None:
    """No verdict on the time, which depends on the machine: by the index, not one file of 10,000 runs is opened."""
    key_of: dict[str, str] = {}
    for number in range(3334):
        overrides = ("method=set", f"method.sparsity={number / 3334:.6f}")
        path = write_run(tmp_path, overrides)
        key_of[overrides[1]] = path.parent.name
        for seed in (1, 2):
            other = shutil.copytree(path, path.with_name(f"seed{seed}"))
            config = yaml.load((path / "config.yaml").read_text(), Loader=yaml.CSafeLoader)
            (other / "config.yaml").write_text(yaml.dump({**config, "seed": seed}, Dumper=yaml.CSafeDumper))
            change_json(other / "summary.json", seed=seed)
    age(tmp_path)
    opened.clear()
    began = time.perf_counter()
    fresh = collect([tmp_path])
    read = time.perf_counter()
    assert len(fresh.runs) == 10002 and fresh.problems == () and len(opened) == 10002 * len(index.FILES)
    opened.clear()
    again_began = time.perf_counter()
    indexed = collect([tmp_path])
    values = [record.value("test/accuracy") for record in indexed.runs.values()]
    print(f"10,002 runs: {read - began:.1f} s read, {time.perf_counter() - again_began:.2f} s by the index")
    assert opened == []
    assert values == [90.0] * 10002
    assert {key for key, _ in indexed.runs} == set(key_of.values())
    sample = random.Random(0).sample(list(fresh.runs), 100)
    assert [facts(fresh.runs[name]) for name in sample] == [facts(indexed.runs[name]) for name in sample]


def test_the_fake_configs_are_read_by_sections() -> None:
    """Otherwise these tests would only see the slow way of reading."""
    assert files._sections(yaml.safe_dump(fake_compose())) is not None
