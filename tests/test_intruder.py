"""An intruder's checkpoints, records, archives, tables and names, and accidents of the same kinds: a sentence each."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import re
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from data import imdb as imdb_module
from data.cifar_archive import LAYOUTS, read_archive
from data.imdb import imdb
from results import document, files
from results.address import select
from results.collect import collect, write_packed
from results.fill import fill
from results.integrity import report
from results.render import FORMATS
from runner import cache, checkpoint, environment, identity, untrusted
from runner.__main__ import main as train
from runner.build import locate
from runner.compose import compose
from runner.errors import Misuse
from runner.execute import execute
from runner.identity import run_dir
from runner.records import RunDirectory
from runner.submission import load
from scripts import make_tables, runs
from tests.conftest import TINY
from tests.test_data import TINY as CIFAR
from tests.test_data import archive_of, old_pickle
from tests.test_image_folder import members, read, write_folder
from tests.test_imdb import MINI, REVIEWS, everything, write
from tests.test_results_cells import SET90, write_table
from tests.test_results_records import SET, change_json, fake_compose, write_run

ROOT = Path(__file__).resolve().parents[1]
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command line in this process: (exit code, standard output, standard error)."""

    def run(main: Callable[[list[str]], int], *arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([*map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def contents(root: Path) -> dict[str, Any]:
    """What lies below `root`, links not followed."""
    return {
        str(path.relative_to(root)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in root.rglob("*")
        if path.is_symlink() or path.is_file()
    }


class Payload:
    """What a pickle makes of this is a call of os.system, which would leave a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


# Checkpoints


def payloads(mark: Path) -> Iterator[bytes]:
    """Files that torch.load could be given, each of which calls something when it is unpickled freely."""
    for protocol in range(6):
        yield pickle.dumps({"model": Payload(mark)}, protocol)
    for zipped in (True, False):
        buffer = io.BytesIO()
        torch.save({"model": {"w": Payload(mark)}}, buffer, _use_new_zipfile_serialization=zipped)
        yield buffer.getvalue()
    yield f"cos\nsystem\n(S'touch {mark}'\ntR.".encode()
    yield f"cbuiltins\neval\n(S'open({str(mark)!r}, chr(119))'\ntR.".encode()


def plant(folder: Path, payload: bytes) -> None:
    """A checkpoint whose digest is right."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / checkpoint.LAST).write_bytes(payload + hashlib.sha256(payload).digest())


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_checkpoint_calls_nothing_and_the_one_before_does_not_hide_it(tmp_path: Path) -> None:
    mark = tmp_path / "broken_in"
    count = 0
    for payload in payloads(mark):
        checkpoint.save({"step": 1}, tmp_path / "run")
        checkpoint.save({"step": 2}, tmp_path / "run")
        plant(tmp_path / "run", payload)
        with pytest.raises(Misuse, match=r"run/last\.pt is no checkpoint of ours: it .*; delete it\.$"):
            checkpoint.load(tmp_path / "run")
        count += 1
    assert count == 10 and not mark.exists()
    with pytest.raises(Misuse, match=r"it asks for \w+\.system, and nothing of it was run"):
        plant(tmp_path, pickle.dumps(Payload(mark), 2))
        checkpoint.load(tmp_path)
    with pytest.raises(Misuse, match="it holds a list; delete it"):
        buffer = io.BytesIO()
        torch.save([1], buffer)
        plant(tmp_path, buffer.getvalue())
        checkpoint.load(tmp_path)
    (tmp_path / checkpoint.LAST).unlink()
    (tmp_path / checkpoint.LAST).mkdir()
    with pytest.raises(Misuse, match=r"last\.pt cannot be read \(Is a directory\)"):
        checkpoint.load(tmp_path)


def test_a_lack_of_memory_is_not_the_checkpoints_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    checkpoint.save({"step": 1}, tmp_path)
    monkeypatch.setattr(torch, "load", full)
    with pytest.raises(torch.OutOfMemoryError):
        checkpoint.load(tmp_path)


def test_the_commands_refuse_it_too_and_lose_nothing(tmp_path: Path, call: Call) -> None:
    given = [*TINY, f"runs={tmp_path}/runs"]
    path = run_dir(f"{tmp_path}/runs", compose(given))
    assert call(train, *given)[0] == 0
    plant(path / "checkpoints", next(payloads(tmp_path / "broken_in")))
    before = contents(tmp_path)
    code, _, said = call(runs.main, "evaluate", path)
    assert (code, said.count("\n")) == (2, 1) and "is no checkpoint of ours" in said
    assert contents(tmp_path) == before
    (path / "summary.json").unlink()  # now the run would go on from it
    code, _, said = call(train, *given)
    assert (code, said.count("\n")) == (2, 1) and "is no checkpoint of ours" in said
    assert (path / "checkpoints/last.pt").read_bytes() == before[
        str((path / "checkpoints/last.pt").relative_to(tmp_path))
    ]
    assert (path / "metrics.jsonl").read_bytes() == before[str((path / "metrics.jsonl").relative_to(tmp_path))]
    assert not (tmp_path / "broken_in").exists()


# Configurations


def store(root: Path, config: dict[str, Any]) -> Path:
    """A run directory that is whole and at its key, whatever its configuration says."""
    path = run_dir(root, config)
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    (path / "overrides.json").write_text("[]")
    (path / "environment.json").write_text("{}")
    (path / "metrics.jsonl").write_text('{"epoch": 1, "step": 4}\n')
    summary = {"schema": 1, "status": "completed", "key": identity.key(config), "seed": 0, "epochs": 1, "steps": 4}
    (path / "summary.json").write_text(json.dumps({**summary, "final": {"epoch": 1, "step": 4}}))
    return path


@pytest.mark.parametrize("section", ["model", "dataset", "method", "task", "schedule.optimizer"])
def test_a_stored_target_is_data(tmp_path: Path, call: Call, section: str) -> None:
    config = compose([*TINY, f"runs={tmp_path}/runs"])
    outer, _, inner = section.partition(".")
    (config[outer][inner] if inner else config[outer]).update(
        _target_="os.system", command=f"touch {tmp_path}/broken_in"
    )
    path = store(tmp_path / "runs", config)
    before = contents(tmp_path)
    for arguments in (["list"], ["show", path], ["diff", path, path], ["check"]):
        assert call(runs.main, *arguments, "--runs", tmp_path / "runs")[0] == 0
    for arguments in (["evaluate", path], ["rerun", path], ["compact", path], ["export", path], ["engines", path]):
        code, _, said = call(runs.main, *arguments)
        assert (code, said.count("\n")) == (2, 1), arguments
        assert f"{section}._target_ = 'os.system' should name something in" in said
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "target",
    [
        *(
            "runner.checkpoint.load",
            "runner.leftovers.delete",
            "data.cache.pickle.loads",
            "runner.pool.subprocess.Popen",
        ),
        *("models.catalog.timm.create_model", "runner.build.importlib.import_module", "torch.optim.torch.load"),
        *(
            "torch.optim.lr_scheduler.warnings",
            "torch.optim.Optimizer.__class__",
            "methods.set",
            "data..",
            "runner.x\0y",
        ),
        "data.\ud800.x",
    ],
)
def test_what_our_packages_hold_besides_builders_is_no_target(target: str) -> None:
    with pytest.raises(Misuse, match="_target_ = "):
        locate(target, "model")


# Archives


EVIL_NAMES = (
    "../evil",
    "/tmp/regrow_evil",
    "aclImdb/../../evil",
    "aclImdb/train/../../../evil",
    "a\0b",
    "\x1b[2J",
    "..",
)


def add(
    archive: tarfile.TarFile, name: str, kind: bytes = tarfile.REGTYPE, link: str = "", text: bytes = b"evil"
) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, link, len(text) if kind == tarfile.REGTYPE else 0
    archive.addfile(member, io.BytesIO(text))


def test_an_archive_of_reviews_reaches_nothing_outside(tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    (tmp_path / "evil").mkdir()
    write(tmp_path / "good", "aclImdb_v1.tar.gz")
    with tarfile.open(tmp_path / "evil/aclImdb_v1.tar.gz", "w:gz") as archive:
        for name in EVIL_NAMES:
            add(archive, name)
            add(archive, f"{name}/9_9.txt")
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE):
            add(archive, "aclImdb/train/pos/9_9.txt", kind, "/etc/passwd")
            add(archive, "aclImdb/train/neg", kind, "../../..")
        for part, label, name, text in REVIEWS:
            add(archive, f"aclImdb/{part}/{label}/{name}", text=text.encode())
    before = contents(tmp_path)
    found = [everything(imdb(root=str(tmp_path / name), **MINI)) for name in ("good", "evil")]
    assert found[0] == found[1]
    assert contents(tmp_path) == before and not Path("/tmp/regrow_evil").exists()


def test_a_review_of_terabytes_is_not_unpacked(tmp_path: Path) -> None:
    """A sparse member: a kilobyte in the archive."""
    member = tarfile.TarInfo("aclImdb/train/pos/9_9.txt")
    member.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "0,4"}
    member.pax_headers |= {"GNU.sparse.size": str(2**42), "GNU.sparse.numblocks": "1"}
    member.size = 4
    with tarfile.open(tmp_path / "aclImdb_v1.tar.gz", "w:gz", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(member, io.BytesIO(b"evil"))
    with pytest.raises(ValueError, match=r"\(aclImdb/train/pos/9_9\.txt would unpack to 4,398,046,511,104 bytes\)"):
        imdb(root=str(tmp_path), **MINI)
    assert imdb_module.LARGEST > 14_000


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE])
@pytest.mark.parametrize("link", ["/etc/passwd", "../../../../etc/passwd", "cifar-10-batches-py/test_batch"])
def test_a_link_in_an_archive_of_images_reaches_nothing(kind: bytes, link: str) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, text in CIFAR.items():
            if name == "test_batch":
                add(archive, f"cifar-10-batches-py/{name}", kind, link)
            else:
                add(archive, f"cifar-10-batches-py/{name}", text=text)
    with pytest.raises(ValueError, match=r"test_batch|not readable"):
        read_archive(packed.getvalue(), LAYOUTS["cifar-10-python.tar.gz"])


def test_a_pickle_of_images_within_its_archive_can_call_nothing(tmp_path: Path) -> None:
    evil = {**CIFAR, "data_batch_4": old_pickle({"labels": [1]})[:-1] + f"cos\nmkdir\n(S'{tmp_path}/x'\ntR.".encode()}
    with pytest.raises(ValueError, match=r"a pickle of CIFAR-10 asks for os\.mkdir, which is no array"):
        read_archive(archive_of(evil), LAYOUTS["cifar-10-python.tar.gz"])
    assert not (tmp_path / "x").exists()


def test_a_zip_of_images_reaches_nothing_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "data"
    write_folder(root / "images", members())
    with zipfile.ZipFile(root / "images.zip", "w") as archive:
        for name in ("../evil.png", "/tmp/regrow_evil.png", "train/../../evil.png", "train/ant/../../../evil.png"):
            archive.writestr(name, b"evil")
        link = zipfile.ZipInfo("test/.hidden.png")
        link.external_attr = 0o120777 << 16  # a symbolic link
        archive.writestr(link, "/etc/passwd")
        for name, text in members().items():
            archive.writestr(name, text)
    before = contents(tmp_path)
    (one, _), (other, _) = (read(root, path) for path in ("images", "images.zip"))
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    assert contents(tmp_path) == before and not Path("/tmp/regrow_evil.png").exists()


# Records

DEEP, HUGE = "[" * 3000 + "]" * 3000, "9" * 5000
GIGABYTES = 2 * 10**9
METRICS = [{"epoch": e, "step": 10 * e, "test/accuracy": 50.0 + e} for e in (1, 2, 3)]


def fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def endless(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def sparse(path: Path) -> None:
    with path.open("ab") as file:
        file.truncate(GIGABYTES)


#: What no file of a record should be, and what is said of it.
ODD_FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "pipe": (fifo, "it is no regular file"),
    "folder": (folder, "Is a directory"),
    "endless": (endless, "it is no regular file"),
    "gigabytes": (sparse, "it has 2.0 GB, and at most 100 MB are read"),
}


@pytest.mark.parametrize("size", [0, 1000, GIGABYTES])
def test_reading_takes_the_memory_of_the_file(tmp_path: Path, size: int) -> None:
    path = write_run(tmp_path, SET)
    with (path / "metrics.jsonl").open("ab") as file:
        file.truncate(size)
    collect([tmp_path])
    tracemalloc.start()
    assert len(collect([tmp_path]).runs) == 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


@pytest.mark.parametrize("file", ["config.yaml", "summary.json", "metrics.jsonl", "environment.json", "overrides.json"])
@pytest.mark.parametrize("odd", ODD_FILES)
def test_odd_files_of_a_record_are_named(tmp_path: Path, call: Call, file: str, odd: str) -> None:
    good, path = write_run(tmp_path, SET), write_run(tmp_path, SET, seed=1)
    make, sentence = ODD_FILES[odd]
    make(path / file)
    code, out, err = call(runs.main, "check", "--runs", tmp_path)
    (finding,) = [line for line in out.splitlines() if line.startswith("Problem")]
    assert (code, err) == (1, "") and file in finding and sentence in finding and str(path) in finding
    code, out, err = call(runs.main, "list", "--runs", tmp_path)
    usable = file not in ("config.yaml", "summary.json")
    assert code == 0 and out.count("\n") == 2 + usable and sentence in err
    found = collect([tmp_path]).get(good.parent.name, 1)
    assert (found is not None) == usable and (found is None or found.value("test/accuracy") == 90.0)


@pytest.mark.parametrize("odd", ODD_FILES)
def test_odd_packed_records_tables_and_submissions_are_named(tmp_path: Path, odd: str) -> None:
    make, sentence = ODD_FILES[odd]
    kept = write_packed(write_run(tmp_path / "runs", SET), tmp_path / "kept")
    make(kept)
    if not kept.is_dir():
        (problem,) = collect([tmp_path / "kept"]).problems
        assert sentence in str(problem) and problem.kind == "unreadable"
    for name, reading in (("table.yaml", document.load), ("tasks.jsonl", load)):
        (tmp_path / name).touch()
        make(tmp_path / name)
        with pytest.raises(Misuse, match=re.escape(sentence)):
            reading(tmp_path / name)


@pytest.mark.parametrize("odd", ["pipe", "endless", "gigabytes"])
def test_a_run_whose_metrics_cannot_be_read_keeps_them(tmp_path: Path, odd: str) -> None:
    directory = RunDirectory(write_run(tmp_path, SET))
    ODD_FILES[odd][0](directory.metrics_path)
    before = os.lstat(directory.metrics_path)
    with pytest.raises(Misuse, match=r"metrics\.jsonl cannot be read \(it .*\); move it away to go on\."):
        directory.cut_metrics(2)
    after = os.lstat(directory.metrics_path)
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)


def test_a_lock_that_is_a_pipe_blocks_nobody(tmp_path: Path) -> None:
    path = write_run(tmp_path, SET, status=None)
    fifo(path / "lock")
    assert collect([tmp_path]).runs[path.parent.name, 0].status == "running"


NOISE = bytes(range(256)) * 40
#: A metrics file -> how many lines can be read, the kinds of findings.
METRICS_TEXTS: dict[str, tuple[bytes, int, list[str]]] = {
    "noise": (NOISE, 0, ["truncated"] * 21),
    "zeros": (bytes(100_000), 0, ["truncated"]),
    "constants": (b'{"epoch": 1, "a": NaN, "b": Infinity, "c": -Infinity, "d": 1e400}\n', 1, []),
    "spelt": (b'{"epoch": 1, "a": "nan", "b": "inf"}\n', 1, []),
    "deep": (f'{{"epoch": 1, "a": {DEEP}}}\n{{"epoch": 2}}\n'.encode(), 1, ["truncated"]),
    "deeper": (b"[" * 200_000 + b"\n", 0, ["truncated"]),
    "less deep": (f'{{"epoch": 1, "a": {"[" * 900 + "]" * 900}}}\n'.encode(), 0, ["truncated"]),
    "huge": (f'{{"epoch": 1, "a": {HUGE}}}\n'.encode(), 0, ["truncated"]),
    "large": (b'{"epoch": 1, "a": %d, "b": 1e-400}\n' % 10**400, 0, ["truncated"]),
    "lone surrogate": (b'{"epoch": 1, "\\ud800": 1}\n', 0, ["truncated"]),
    "pair": (b'{"epoch": 1, "\\ud83d\\ude00": 1}\n', 1, []),
    "twice": (b'{"epoch": 1, "a": 1, "a": 2}\n', 1, []),
    "others": (b'1\n"x"\nnull\n[]\n{}\n', 1, ["truncated"] * 4),
    "byte order mark": (b'\xef\xbb\xbf{"epoch": 1}\n', 0, ["truncated"]),
    "long line": (b'{"epoch": 1, "a": "%s"}\n' % (b"x" * 5_000_000), 1, []),
}


@pytest.mark.parametrize("name", METRICS_TEXTS)
def test_whatever_metrics_say_costs_their_lines_alone(tmp_path: Path, call: Call, name: str) -> None:
    text, count, kinds = METRICS_TEXTS[name]
    path = write_run(tmp_path, SET)
    (path / "metrics.jsonl").write_bytes(text)
    found = collect([tmp_path])
    (record,) = found.runs.values()
    assert record.value("test/accuracy") == 90.0 and len(record.metrics) == count
    assert [each.kind for each in report(found) if each.grave or each.kind == "truncated"] == kinds
    assert record.history("a") in ({}, {1: 2}) or name in ("constants", "spelt")
    for arguments in (["check"], ["list"], ["show", path], ["diff", path, path], ["show", path, "--json"]):
        assert call(runs.main, *arguments, "--runs", tmp_path)[0] == (1 if kinds and arguments == ["check"] else 0)


ODD_JSON = {
    "deep": DEEP,
    "less deep": "[" * 900 + "]" * 900,
    "huge": HUGE,
    "large": "9" * 400,
    "lone surrogate": '"\\ud800"',
    "not closed": '"',
    "nul": "\0",
}


@pytest.mark.parametrize("name", ODD_JSON)
@pytest.mark.parametrize("file", ["summary.json", "environment.json", "overrides.json"])
def test_odd_json_is_one_problem(tmp_path: Path, file: str, name: str) -> None:
    good, path = write_run(tmp_path, SET), write_run(tmp_path, SET, seed=1)
    whole = (path / file).read_text()
    value = ODD_JSON[name]
    (path / file).write_text(f"[{value}]" if file == "overrides.json" else f'{{"note": {value}, {whole[1:]}')
    found = collect([tmp_path])
    (problem,) = found.problems
    assert problem.kind == "truncated" and f"is not valid JSON: {file}: " in problem.what
    assert (good.parent.name, 0) in found.runs
    if file == "summary.json":
        with pytest.raises(Misuse, match=r"summary\.json is not readable \(.*\); move it away to run again\."):
            RunDirectory(path).summary()


@pytest.mark.parametrize("text", ["[]", "1", "null", "{}", '{"status": 1}', '{"status": ["completed"]}'])
def test_a_summary_without_a_status_is_no_summary(tmp_path: Path, text: str) -> None:
    """And nothing in its place: the run is not taken for one that has not begun."""
    directory = RunDirectory(tmp_path)
    directory.summary_path.write_text(text)
    with pytest.raises(Misuse, match=r"summary\.json tells no status; move it away to run again\."):
        directory.summary()


ODD_PARTS: list[dict[str, Any]] = [
    {"key": ["x"]},
    {"key": {"a": 1}},
    {"seed": [0]},
    {"final": [1, 2]},
    {"final": "x", "best": [1], "layers": [1], "series": 3},
    {"layers": {"a": {"shape": [2, 2, 2], "kept": "nan", "nonzero": None, "total": 1}}},
    {"layers": {"a": {"shape": [1, 1, 1], "kept": 2**70, "nonzero": 2**70, "total": 2**70}}},
    {"layers": {"a": {"shape": [1, 1, 1], "kept": 1, "nonzero": 1, "total": 2**70}}},
    {"layers": {"a": {"shape": "x", "kept": [], "nonzero": {}, "total": True}, "b": 3}},
    {"wall_s": "inf", "final": {"test/accuracy": 10**290, "epoch": "x", "step": {}}},
    {"wall_s": "nan", "series": {"test/accuracy": {"a": 1}}},
]


@pytest.mark.parametrize("parts", ODD_PARTS, ids=repr)
def test_odd_parts_of_a_summary_are_shown_or_told(tmp_path: Path, call: Call, parts: dict[str, Any]) -> None:
    path = write_run(tmp_path / "a", SET)
    twin = write_run(tmp_path / "b", SET)  # the same run once more: they are compared
    for each in (path, twin):
        change_json(each / "summary.json", **parts)
        for file in each.iterdir():
            os.utime(file, (1e9, 1e9))  # old enough for the index
    for _ in range(2):
        for arguments in (["check"], ["list"], ["list", "--json"]):
            code, _, err = call(runs.main, *arguments, "--runs", tmp_path)
            assert code in (0, 1) and "Traceback" not in err
    for record in collect([tmp_path]).runs.values():
        assert record.value("mask/kept_conv") in (None, float(2**70), 1.0)
    code, _, err = call(runs.main, "show", path)
    assert (code, err.count("\n")) in ((0, 0), (2, 1))
    assert (code == 2) == ("key" in parts or "seed" in parts)


# Configurations and tables of YAML

BILLION = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)
YAML_BOMBS: dict[str, tuple[str, str]] = {
    "a billion values": (BILLION + "model: *a9\n", "it repeats itself to more than 1,000,000 values"),
    "a billion merged": (
        "a0: &a0 {k: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 10)),
        "it repeats itself to more than 1,000,000 values",
    ),
    "a billion merged in blocks": (
        "a0: &a0\n  k: 1\n" + "".join(f"a{n}: &a{n}\n  <<: [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)),
        "it repeats itself to more than 1,000,000 values",
    ),
    "itself": ("model: &a [*a]\n", "the alias *a stands within what it repeats"),
    "deep": ("model: " + "[" * 100_000, "nested more than 64 deep"),
    "deep mappings": ("model: " + "{a: " * 100_000, "nested more than 64 deep"),
    "deep pairs": ("model: " + "[a: " * 40 + "]" * 40, "nested more than 64 deep"),
    "deep blocks": ("".join(" " * n + "a:\n" for n in range(70)) + " " * 70 + "b\n", "nested more than 64 deep"),
    "deep lists": ("model:\n" + "- " * 100_000 + "a\n", "nested more than 64 deep"),
    "deep keys": ("? " * 100_000 + "a\n", "nested more than 64 deep"),
    "deep by repetition": (
        "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 80)),
        "nested more than 64 deep",
    ),
    "digits": (f"model: {HUGE}\n", "a whole number has more than 300 digits"),
    "hexadecimal": (f"seed: 0x{'f' * 1000}\n", "a whole number has more than 300 digits"),
    "sexagesimal": (f"seed: 1{':59' * 1000}\n", "a whole number has more than 300 digits"),
    "python": ("model: !!python/object/apply:os.system [touch broken_in]\n", "could not determine a constructor"),
    "python name": ("model: !!python/name:os.system\n", "could not determine a constructor"),
    "python module": ("model: !!python/object/new:tuple [[1]]\n", "could not determine a constructor"),
    "no such date": ("model: 2020-13-45\n", "month must be in 1..12"),
    "no boolean": ("model: !!bool maybe\n", "a value is not of its type"),
    "no date": ("model: !!timestamp x\n", "a value is not of its type"),
    "no number": ("model: !!int ''\n", "a value is not of its type"),
    "a list as key": ("? [a]\n: 1\n", "unhashable"),
    "nul": ("model: \0\n", "control characters are not allowed"),
    "surrogate": ('model: "\\ud800"\n', "invalid Unicode character escape code"),
}


@pytest.mark.parametrize("name", YAML_BOMBS)
def test_a_yaml_bomb_is_one_sentence(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text, words = YAML_BOMBS[name]
    good, path = write_run(tmp_path / "runs", SET), write_run(tmp_path / "runs", SET, seed=1)
    for whole in (text, (path / "config.yaml").read_text() + text.replace("model", "zzz").replace("seed", "yyy")):
        (path / "config.yaml").write_text(whole)
        found = collect([tmp_path / "runs"], indexed=False)
        (problem,) = found.problems
        assert words in problem.what and "is not valid YAML: config.yaml: " in problem.what
        assert [*found.runs] == [(good.parent.name, 0)]
    table = tmp_path / "papers/toys/first.yaml"
    table.parent.mkdir(parents=True)
    table.write_text(text)
    with pytest.raises(Misuse) as caught:
        select(["toys"], tmp_path / "papers")
    assert words in str(caught.value) and f"{table} is not valid YAML: " in str(caught.value)
    assert not (tmp_path / "broken_in").exists()


def test_what_is_repeated_a_little_is_read(tmp_path: Path) -> None:
    text = "a: &a [1, 2]\nb: {c: *a, d: [*a, *a]}\ne: &e {f: 1}\ng: {<<: *e, h: 2}\n"
    (tmp_path / "x.yaml").write_text(text)
    found = files.yaml_file(tmp_path / "x.yaml").own()
    assert found == {"a": [1, 2], "b": {"c": [1, 2], "d": [[1, 2], [1, 2]]}, "e": {"f": 1}, "g": {"f": 1, "h": 2}}
    nested = "a: " + "[" * (untrusted.DEEPEST - 1) + "]" * (untrusted.DEEPEST - 1)
    assert untrusted.parse_yaml(nested, yaml.SafeLoader) == yaml.safe_load(nested)
    with pytest.raises(ValueError, match="nested more than 64 deep"):
        untrusted.parse_yaml(nested.replace("[]", "[[]]"), yaml.SafeLoader)
    deep = json.loads("[" * (untrusted.DEEPEST + 1) + "]" * (untrusted.DEEPEST + 1))
    untrusted.check_depth(deep[0])
    with pytest.raises(ValueError, match="nested more than 64 deep"):
        untrusted.check_depth([deep])


@pytest.mark.parametrize("value", ["2020-01-01", "!!set {a}", "!!binary aGk=", "{? [1, 2] : 3}"])
def test_a_config_holds_what_json_holds(tmp_path: Path, value: str) -> None:
    """Also where it is no science: all of it is shown."""
    path = write_run(tmp_path, SET)
    (path / "config.yaml").write_text((path / "config.yaml").read_text() + f"note: {value}\n")
    (problem,) = collect([tmp_path]).problems
    assert "stores a config that has no key" in problem.what or "unhashable" in problem.what


# Links


def test_links_lead_nowhere(tmp_path: Path, call: Call) -> None:
    root, elsewhere = tmp_path / "runs", tmp_path / "elsewhere"
    path, outside = write_run(root, SET), write_run(elsewhere, SET, seed=7)
    for file in ("last.pt", "previous.pt"):
        (outside / "checkpoints" / file).write_bytes(b"x")
    (root / "loop").symlink_to(root)
    (path.parent / "seed1").symlink_to(path)
    (path.parent / "seed7").symlink_to(outside)
    (path.parent / "seed2").symlink_to(path.parent)
    (path.parent / "seed3").symlink_to("seed3")
    (root / "gone").symlink_to("nowhere")
    other = write_run(root, SET, seed=9)
    (other / "environment.json").unlink()
    (other / "environment.json").symlink_to("environment.json")
    before = contents(tmp_path)
    found = collect([root])
    assert [*found.runs] == [(path.parent.name, 0)]
    assert [str(each) for each in found.problems] == [f"{other}: cannot be read (Too many levels of symbolic links)."]
    (path / "checkpoints").rmdir()
    (path / "checkpoints").symlink_to(outside / "checkpoints")
    for arguments in (["list"], ["check"], ["gc", "--yes"]):
        assert call(runs.main, *arguments, "--runs", root)[0] == (arguments == ["check"])
    (path / "checkpoints").unlink()
    (path / "checkpoints").mkdir()
    assert contents(tmp_path) == before


# Names and texts that others would obey

ESCAPES = "\x1b[2J\x1b]0;owned\x07\r\x9b31m\u202e\x08"
LINE_BREAKS = "a\nProblem: none\tb\u2028c"


def obeyed(text: str) -> set[str]:
    """The characters of a text that a terminal would obey, line breaks aside."""
    return {each for each in text if each != "\n" and (not each.isprintable())}


def hostile(root: Path) -> list[Path]:
    """Runs that are whole and at their keys, with texts of every sort in all that is shown."""
    made = []
    for number, text in enumerate((ESCAPES, LINE_BREAKS, "<script>alert(1)</script>", r"\input{/etc/passwd} $x$ & %")):
        config = fake_compose(SET90)
        config["method"]["name"] = f"set{text}"
        config["profile"]["name"] = config["dataset"]["note"] = text
        path = root / str(number) / identity.key(config) / "seed0"
        path.mkdir(parents=True)
        made.append(path)
        (path / "config.yaml").write_text(yaml.safe_dump(config))
        (path / "overrides.json").write_text(json.dumps([f"x={text}"]))
        facts = {"python": text, "packages": {text: text}, "git": {"commit": text, "dirty": True}, "device": text}
        (path / "environment.json").write_text(json.dumps(facts))
        (path / "metrics.jsonl").write_text(json.dumps({"epoch": 1, f"test/{text}": 1.0}) + "\n{\n")
        final = {f"test/{text}": "nan", "epoch": text}
        summary = {"schema": 1, "status": "completed", "reason": text, "key": identity.key(config), "seed": 0}
        layers = {text: {"shape": [text], "kept": 1, "nonzero": 1, "total": 2}}
        more = {"final": final, "best": final, "layers": layers, "started": text, "ended": text, "wall_s": 1}
        (path / "summary.json").write_text(json.dumps({**summary, **more}))
    return made


def test_terminals_obey_no_record(tmp_path: Path, call: Call) -> None:
    made = hostile(tmp_path / "runs")
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/runs/\xff\x1b[2J\n"))
    odd.mkdir()
    (odd / "seed0").mkdir()
    code, out, err = call(runs.main, "list", "--runs", tmp_path / "runs")
    assert code == 0 and len(out.splitlines()) == out.count("\n") == 1 + len(made)
    assert "\\x1b[2J\\x1b]0;owned\\x07\\r\\x9b31m\\u202e\\x08" in out and not obeyed(out + err)
    assert err.count("\n") == len(made) + 2  # a line of metrics of each, the odd folder, and the sum
    (out + err).encode()
    for arguments in (["check"], ["check", "--json"], ["list", "--json"], ["gc"]):
        _, out, err = call(runs.main, *arguments, "--runs", tmp_path / "runs")
        assert out and not obeyed(out + err) and len((out + err).splitlines()) == (out + err).count("\n")
        (out + err).encode()
    for path in made:
        for arguments in (["show", path], ["diff", path, made[0]], ["show", path, "--json"], ["evaluate", path]):
            _, out, err = call(runs.main, *arguments)
            assert not obeyed(out + err) and len((out + err).splitlines()) == (out + err).count("\n")
    write_run(tmp_path / "whole", SET)
    code, out, err = call(runs.main, "pack", "--runs", tmp_path / "whole", "--out", tmp_path / ESCAPES, "--allow-dirty")
    assert code == 0 and "\\x1b[2J" in out and not obeyed(out + err)
    code, _, err = call(runs.main, "show", f"\x1b[2J{LINE_BREAKS}")
    assert code == 2 and not obeyed(err) and err.count("\n") == 1


def test_training_shows_no_recorded_reason_as_it_is(tmp_path: Path, call: Call) -> None:
    given = [*TINY, f"runs={tmp_path}"]
    assert call(train, *given)[0] == 0
    change_json(run_dir(tmp_path, compose(given)) / "summary.json", reason=ESCAPES)
    code, out, err = call(train, *given)
    assert code == 0 and "\\x1b[2J" in out and not obeyed(out + err)


def test_tables_carry_no_markup_of_records(tmp_path: Path) -> None:
    for seed, text in enumerate((ESCAPES + LINE_BREAKS, "<img src=x>", r"\input{/etc/passwd}")):
        path = write_run(tmp_path / "runs", SET90, seed)
        (path / "environment.json").write_text(json.dumps({"python": text, "packages": {"torch": text}}))
    papers = write_table(tmp_path / "papers")
    (selection,) = select(["toys"], papers)
    sheet = fill(selection, collect([tmp_path / "runs"]), None, fake_compose, papers)
    for kind, render in FORMATS.items():
        text = render([sheet], True)
        assert not obeyed(text) and len(text.splitlines()) == text.count("\n"), kind
        if kind in ("md", "tex"):
            assert "different versions" in text and "<img" not in text and r"\input" not in text.replace("\\\\", "")


def test_tables_printed_to_a_terminal_are_text(tmp_path: Path, call: Call) -> None:
    made = hostile(tmp_path / "runs")
    for kind in ("md", "tex", "csv", "json"):
        code, out, err = call(make_tables.main, "demo/digits", "--format", kind, "--runs", tmp_path / "runs")
        assert code == 0 and out and not obeyed(out + err) and err.count("\n") == len(made)


# Secrets

SECRETS = {
    "WANDB_API_KEY": 40 * "a1",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
    "HF_TOKEN": "hf_AbCdEfGhIjKlMnOpQrStUvWxYz",
    "DB_PASSWORD": "correct horse battery",
}
REMOTE = "https://me:ghp_0123456789abcdef@github.com/me/it.git"


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, ...]]:
    """What must not be told, in the environment and in the address of a git remote."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "remote.origin.url")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", REMOTE)
    environment.git_state.cache_clear()
    yield (*SECRETS.values(), "ghp_0123456789abcdef")
    environment.git_state.cache_clear()


def check_nothing_told(root: Path, secrets: tuple[str, ...], *texts: str) -> None:
    everything = [*contents(root).values(), *(text.encode() for text in texts)]
    assert len(everything) > len(texts)
    for secret in secrets:
        assert not [text for text in everything if isinstance(text, bytes) and secret.encode() in text], secret


def test_no_record_or_log_tells_a_secret(tmp_path: Path, secrets: tuple[str, ...], call: Call) -> None:
    given = [*TINY, f"runs={tmp_path}/runs"]
    code, out, err = call(train, *given)
    assert code == 0
    path = run_dir(f"{tmp_path}/runs", compose(given))
    facts = json.loads((path / "environment.json").read_text())
    assert set(facts["git"]) == {"commit", "dirty"}
    code, *said = call(runs.main, "pack", path.name, "--runs", tmp_path / "runs", "--out", tmp_path, "--allow-dirty")
    assert code == 0
    check_nothing_told(tmp_path, secrets, out, err, *said)


def test_a_failure_hides_the_secrets_in_its_message(
    tmp_path: Path, secrets: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ConnectionError(f"401 for {REMOTE} with {SECRETS['HF_TOKEN']}")

    monkeypatch.setattr("runner.trainer.Trainer.fit", fail)
    given = [*TINY, f"runs={tmp_path}"]
    with pytest.raises(ConnectionError):
        execute(compose(given), given)
    path = run_dir(tmp_path, compose(given))
    assert json.loads((path / "summary.json").read_text())["reason"] == (
        "ConnectionError: 401 for https://(hidden)@github.com/me/it.git with (hidden)"
    )
    assert "ConnectionError: 401 for https://(hidden)@github.com" in (path / "log.txt").read_text()
    check_nothing_told(tmp_path, secrets)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["logger=wandb", "logger.entity=${oc.env:WANDB_API_KEY}"], "what the environment's WANDB_API_KEY holds"),
        (["logger=wandb", f"logger.project=x{SECRETS['HF_TOKEN']}"], "what the environment's HF_TOKEN holds"),
        (["data.root=https://me:pass@host/data"], "an address with a password"),
        (["data.root=s3://:pass@host/data"], "an address with a password"),
        (["start={parent:[method=dense,data.root='ftp://a:b@c']}"], "is not an override"),
        (["start={parent:['method=dense','data.root=ftp://a:b@c']}"], "an address with a password"),
        (["data.rot=https://me:pass@host/data"], "data.rot"),
    ],
)
def test_a_secret_in_an_override_is_refused_and_not_repeated(
    tmp_path: Path, secrets: tuple[str, ...], call: Call, overrides: list[str], words: str
) -> None:
    code, out, err = call(train, *TINY, f"runs={tmp_path}/runs", *overrides)
    assert (code, out, err.count("\n")) == (2, "", 1) and words in err
    assert not any(secret in err for secret in (*secrets, ":pass@", ":b@")) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text",
    [
        "data.root=/a:b@c",
        "x=https://me@host/a:b",
        "x=a://b/c:d@e",
        "y=http://h:80/",
        "z=https://datasets.example.org/a@b",
    ],
)
def test_what_is_no_password_may_be_said(secrets: tuple[str, ...], text: str) -> None:
    from runner import secrecy

    secrecy.check([text])
    assert secrecy.redacted(text) == text


def test_what_counts_as_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the name of its variable; not a path that is there, nor a word that only ends like one."""
    from runner import secrecy

    told = {
        "A_TOKEN": "abcdefghijkl",
        "B_TOKEN": "abcdefghijklSECRETTAIL",
        "WANDB_PWD": "correct'horse'battery",
        "GITHUB_PAT": "github_pat_1234567",
        "SLURM_JWT": "eyJhbGciOiJI",
    }
    for name, value in told.items():
        monkeypatch.setenv(name, value)
        with pytest.raises(Misuse, match="an override says what the environment's"):
            compose(["runs='" + value.replace("'", "\\'") + "'"])
    for value in told.values():
        assert secrecy.redacted(f"it was {value}.") == "it was (hidden)."
    assert secrecy.redacted("https://ghp_0123456789abcdefghij@github.com") == "https://(hidden)@github.com"
    monkeypatch.setenv("MONKEY", "classification")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path))
    compose(["task=classification", f"runs={tmp_path}"])


@pytest.mark.slow
def test_no_file_of_wandb_has_a_secret(tmp_path: Path, secrets: tuple[str, ...]) -> None:
    code = "import sys; from runner.__main__ import main; sys.exit(main(sys.argv[1:]))"
    given = [*TINY, f"runs={tmp_path}/runs", "logger=wandb"]
    folders = {
        name: str(tmp_path / "home") for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "HOME")
    }
    surroundings = {**os.environ, **folders, "PYTHONPATH": str(ROOT), "WANDB_BASE_URL": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-c", code, *given],
        cwd=tmp_path,
        env=surroundings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "runs").rglob("*.wandb"))
    check_nothing_told(tmp_path, secrets, done.stdout, done.stderr)


# The index


@pytest.mark.parametrize("lines", [[], [b""], [b"{}"], [b"[]"], [b"\xff", b"1"], [b'{"code": 1}', b"[" * 3000]])
def test_an_index_that_holds_something_else_is_made_anew(
    tmp_path: Path, lines: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGROW_CACHE", str(tmp_path / "cache"))
    path = write_run(tmp_path / "runs", SET)
    for file in path.iterdir():
        os.utime(file, (1e9, 1e9))
    for _ in range(2):
        assert len(collect([tmp_path / "runs"]).runs) == 1
        (name,) = cache.names("runs-")
        whole = (tmp_path / "cache" / name).read_bytes()
        assert cache.write(name, lines)
        assert len(collect([tmp_path / "runs"]).runs) == 1
        assert (tmp_path / "cache" / name).read_bytes() == whole
