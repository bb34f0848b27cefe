"""The readers of what others may have written, on changed values and damaged bytes: what is there, or one sentence."""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import json
import os
import pickle
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from data.cifar_archive import read_pickle
from results import figure, ledger, table, wandb
from results.collect import collect, pack
from results.integrity import KINDS, report
from results.record import TIMES_FILE, Unusable
from results.render import ledger as words
from runner import cache, checkpoint, identity, lock, submission
from runner.errors import Misuse
from runner.loggers import ASKED, SUMMARY
from runner.records import RunDirectory, spell
from runner.untrusted import printable
from tests.test_results_cells import TABLE
from tests.test_results_records import SET, fake_compose, write_run

CASES = 300  # of each reader
SLOW_CASES = 1000


# Cases: a value with other values in it, or its text with damage to its bytes

NAMES = st.sampled_from(
    [
        *("epoch", "step", "status", "seed", "key", "final", "layers", "series", "best", "kept", "total", "shape"),
        *("nonzero", "test/accuracy", "mask/sparsity", "method", "name", "schema", "\x1b[2J", "a\nb", "<b>", "nan", ""),
    ]
)
NUMBERS = st.one_of(
    st.integers(-2, 5),
    st.sampled_from([2**63, 2**64, -(2**64), 10**299, 10**400, 1e308, -0.0, 5e-324]),
    st.floats(),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, NAMES, st.text(max_size=5), st.sampled_from(["inf", "\ud800"]))
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=8
)
SNIPPETS = st.sampled_from(
    [
        *(b"[" * 3000, b"{" * 70, b'{"a":' * 70, b"- " * 70, b"9" * 5000, b"0x" + b"f" * 5000, b"1e400", b"-Infinity"),
        *(b"\0", b"\xff", b"\x1b[2J", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b'"\\ud800"', b"\\", b'"', b"\n", b"\r"),
        *(b"&a ", b"*a", b"<<: ", b"!!python/name:os.system ", b"!!int x", b"? ", b": ", b"%", b"2020-13-45"),
        *(b"!!bool maybe", b"NaN"),
    ]
)
DAMAGE = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 0.2), SNIPPETS | st.binary(max_size=4)), max_size=3)


@pytest.fixture(scope="module", autouse=True)
def no_cells() -> Iterator[None]:
    """All tables are read for the cells that read a run: of one record in ten thousand that would take hours."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("results.ledger.cells", lambda record: [])
        yield


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value within `value`."""
    yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in inner:
        yield from places(item, (*at, name))


def with_other(value: Any, at: tuple[Any, ...], other: Any) -> Any:
    """`value` with another one at a place."""
    if not at:
        return other
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[at[0]] = with_other(copy[at[0]], at[1:], other)
    return copy


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """The value with one to three others somewhere within it."""
    for _ in range(draw(st.integers(1, 3))):
        value = with_other(value, draw(st.sampled_from(list(places(value)))), draw(VALUES))
    return value


def damage(text: bytes, pieces: list[tuple[float, float, bytes]]) -> bytes:
    """The text with shares of it replaced."""
    for start, length, snippet in pieces:
        at = int(start * len(text))
        text = text[:at] + snippet + text[at + int(length * len(text)) :]
    return text


def damaged(text: bytes) -> st.SearchStrategy[bytes]:
    return DAMAGE.map(lambda pieces: damage(text, pieces))


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def as_lines(value: Any) -> bytes:
    return b"".join(as_json(line) + b"\n" for line in (value if isinstance(value, list) else [value]))


def as_yaml(value: Any) -> bytes:
    try:
        return yaml.safe_dump(value, sort_keys=False).encode(errors="surrogatepass")
    except ValueError:  # an integer of too many digits
        return b"a: 1\n"


def json_of(value: Any) -> st.SearchStrategy[bytes]:
    return changed(value).map(as_json) | damaged(as_json(value))


def yaml_of(value: Any) -> st.SearchStrategy[bytes]:
    return changed(value).map(as_yaml) | damaged(as_yaml(value))


# Runs

CONFIG = fake_compose([*SET, "stage=dense"])
LAYERS = {"fc1.weight": {"shape": [20, 16, 3], "kept": 32, "nonzero": 30, "total": 320}}
LINES = [{"epoch": e, "step": 10 * e, "test/accuracy": 50.0 + e, "mask/sparsity": 0.5} for e in (1, 2, 3)]
SUMMARY_OF: dict[str, Any] = {
    "schema": 1,
    "status": "completed",
    "reason": None,
    "key": identity.key(CONFIG),
    "seed": 0,
    "epochs": 3,
    "steps": 30,
    "wall_s": 1.5,
    "started": "2026",
    "final": LINES[-1],
    "best": LINES[0],
    "layers": LAYERS,
    "series": {"mask/iou": [0.5, "nan"]},
}
ENVIRONMENT = {"python": "3.11", "packages": {"torch": "2"}, "git": {"commit": "abc", "dirty": True}, "device": "cpu"}
TIMES = {"schema": 1, "key": SUMMARY_OF["key"], "seed": 0, "times": {"a": {"b": {"ms": 1.5}}}}
FILES: dict[str, bytes] = {
    "config.yaml": as_yaml(CONFIG),
    "summary.json": as_json(SUMMARY_OF),
    "metrics.jsonl": b"".join(as_json(line) + b"\n" for line in LINES),
    "environment.json": as_json(ENVIRONMENT),
    "overrides.json": as_json([*SET, "stage=dense"]),
    TIMES_FILE: as_json(TIMES),
}
PACKED = {
    "schema": 1,
    "config": CONFIG,
    "overrides": [*SET],
    "environment": ENVIRONMENT,
    "summary": SUMMARY_OF,
    "metrics": {name: [line[name] for line in LINES] for name in LINES[0]},
}
NUMBER = itertools.count()


def check_run(root: Path, **changes: bytes) -> None:
    """A run directory with one other file, at the key and seed that its configuration has if that can be said."""
    content = FILES | changes
    key, seed = identity.key(CONFIG), 0
    if "config.yaml" in changes:
        root = root / str(next(NUMBER))
        try:
            config = yaml.load(content["config.yaml"], Loader=yaml.CSafeLoader)
            key, seed = identity.key(config), config["seed"]
            content["summary.json"] = as_json({**SUMMARY_OF, "key": key, "seed": seed})
        except Exception:  # then it has none
            pass
    path = root / key / f"seed{seed if type(seed) is int and abs(seed) < 1e9 else 0}"
    path.mkdir(parents=True, exist_ok=True)
    for name, text in content.items():
        if name in changes or not (path / name).exists():
            put(path / name, text)
    use(root)


def put(path: Path, text: bytes) -> None:
    """Anew: many a file system takes milliseconds to shorten a file."""
    path.unlink(missing_ok=True)
    path.write_bytes(text)


def check_packed(root: Path, text: bytes) -> None:
    path = root / identity.key(CONFIG) / "seed0.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    put(path, text)
    use(root)


def use(root: Path) -> None:
    """All that looks at records, first reading them, then by their index: findings of known kinds, text for anybody."""
    then = time.time() - 3600
    for file in root.rglob("*.*"):
        os.utime(file, (then, then))  # what was written just now is not indexed
    told = []
    for _ in range(2):
        runs = collect([root])
        findings = report(runs)
        assert all(each.kind in KINDS for each in findings)
        told.append([*map(str, findings), *runs.sentences(), *(repr(ledger.row(each)) for each in runs.runs.values())])
    assert told[0] == told[1]
    for text in (*told[0], *(shown(record, runs) for record in runs.runs.values())):
        printable(text).encode()


def shown(record: Any, runs: Any) -> str:
    """What the command lines say of a record."""
    for metric in ("test/accuracy", "best:test/accuracy", "layers:fc1", "epoch2:test/accuracy", "engines:a/b/ms"):
        assert isinstance(record.value(metric), float | None), metric
    for metric in ("mask/kept_conv", "effective/zeroed_layers", "train/iterations_per_epoch"):
        assert isinstance(record.value(metric), float | None), metric
    assert all(isinstance(value, float) for value in record.history("dense_phases:test/accuracy").values())
    row, whole = ledger.row(record), ledger.whole(record, runs)
    listed = words.listed([row])
    assert listed.count("\n") == 2
    as_text = listed + words.whole(whole) + words.difference(ledger.difference(record, record))
    if not record.packed:
        try:
            as_text += json.dumps(spell(pack(record.path)), allow_nan=False)
        except Misuse as misuse:
            as_text += str(misuse)
    return as_text + json.dumps(spell([row, whole]), allow_nan=False)


def check_directory(root: Path, text: bytes) -> None:
    """What a run that goes on reads of its own directory: nothing, or a dictionary with a status."""
    directory = RunDirectory(root)
    put(directory.summary_path, text)
    try:
        found = directory.summary()
        assert found is not None and isinstance(found["status"], str)
        json.dumps(found, allow_nan=False)
    except Misuse as misuse:
        assert str(directory.summary_path) in str(misuse)
    put(directory.metrics_path, text)
    lines = directory.cut_metrics(2)
    assert directory.cut_metrics(2) == lines or "nan" in repr(lines)


@functools.cache
def indexed_root() -> tuple[Path, Path, bytes]:
    """A root with runs, its index and what that holds."""
    root = Path(os.environ["REGROW_CACHE"]).with_name("indexed")
    for seed in (0, 1, 2):
        write_run(root, SET, seed=seed)
    before = set(cache.names("runs-"))
    for file in root.rglob("*.*"):
        os.utime(file, (1e9, 1e9))
    collect([root])
    (name,) = set(cache.names("runs-")) - before
    index = Path(os.environ["REGROW_CACHE"], name)
    return root, index, index.read_bytes()


def check_index(root: Path, pieces: list[tuple[float, float, bytes]]) -> None:
    """What is not what was written is not used."""
    runs, index, text = indexed_root()
    put(index, damage(text, pieces))
    found = collect([runs])
    assert len(found.runs) == 3 and not report(found)


# Tables, submissions, locks, W&B, checkpoints, pickles

FIGURE = {"title": "T", "plot": "points", "table": "toys/first", "xlabel": "x", "ylabel": "y", "x": "method.sparsity"}


def check_table(root: Path, text: bytes) -> None:
    path = root / "toys" / "first.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    put(path, text)
    try:
        found = table.load(path)
    except Misuse as misuse:
        assert str(path) in str(misuse) and "\n" not in printable(str(misuse))
    else:
        assert found.slots() and found.title


def check_figure(root: Path, text: bytes) -> None:
    path = root / "toys" / "figures" / "one.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    put(path, text)
    put(root / "toys" / "first.yaml", as_yaml(TABLE))
    try:
        assert figure.load(path, root).title
    except Misuse as misuse:
        assert str(misuse)


TASK = {"key": identity.key(CONFIG), "seed": 0, "after": [], "overrides": [*SET], "config": CONFIG}


def check_submission(root: Path, text: bytes) -> None:
    put(root / submission.TASKS, text + b"\n" + as_json(TASK) + b"\n")
    put(root / submission.FACTS, text)
    assert isinstance(submission.facts(root), dict)
    try:
        assert all(task.identity[0] for task in submission.load(root / submission.TASKS))
    except Misuse as misuse:
        assert "submit again" in str(misuse)


HOLDER = {"token": "0" * 16, "machine": "m", "host": "h", "pid": 1, "since": "2026", "job": None}


def check_lock(root: Path, text: bytes) -> None:
    put(root / lock.NAME, text)
    assert lock.is_held(root) in (True, False)


class Logged:
    """A run at W&B."""

    def __init__(self, asked: Any, told: Any) -> None:
        self.id, self.state, self.config, self.summary = "x", "finished", {ASKED: asked}, {SUMMARY: told}


def check_wandb(root: Path, texts: tuple[bytes, bytes]) -> None:
    asked, told = (text.decode(errors="replace") for text in texts)
    try:
        record = wandb.read_run(Path("wandb:a/b/x"), Logged(asked, told))  # type: ignore[arg-type]
    except Unusable as error:
        assert error.kind in KINDS
    else:
        assert record.identity == (identity.key(CONFIG), 0)


ASKED_OF = {"schema": 1, "key": identity.key(CONFIG), "seed": 0, "config": CONFIG, "overrides": [], "environment": {}}


def saved(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def check_checkpoint(root: Path, payload: bytes) -> None:
    put(root / checkpoint.LAST, payload + hashlib.sha256(payload).digest())
    try:
        assert isinstance(checkpoint.load(root), dict)
    except Misuse as misuse:
        assert str(root / checkpoint.LAST) in str(misuse)


def check_pickle(root: Path, text: bytes) -> None:
    try:
        read_pickle(text, "CIFAR-10")
    except ValueError as error:
        assert str(error)


BATCH = {b"data": np.arange(24, dtype=np.uint8).reshape(2, 12), b"labels": [1, 2], b"filenames": [b"a", b"b"]}
PICKLES = [pickle.dumps(BATCH, protocol) for protocol in range(6)]

#: Reader -> its cases, and what must hold of each.
READERS: dict[str, tuple[st.SearchStrategy[Any], Callable[[Path, Any], None]]] = {
    "config": (yaml_of(CONFIG), lambda root, text: check_run(root, **{"config.yaml": text})),
    "summary": (json_of(SUMMARY_OF), lambda root, text: check_run(root, **{"summary.json": text})),
    "final metrics": (
        changed({"final": LINES[-1], "best": LINES[0], "layers": LAYERS, "series": SUMMARY_OF["series"]}).filter(
            lambda parts: isinstance(parts, dict)
        ),
        lambda root, parts: check_run(root, **{"summary.json": as_json({**SUMMARY_OF, **parts})}),
    ),
    "metrics": (
        changed(LINES).map(as_lines) | damaged(FILES["metrics.jsonl"]),
        lambda root, text: check_run(root, **{"metrics.jsonl": text}),
    ),
    "environment": (json_of(ENVIRONMENT), lambda root, text: check_run(root, **{"environment.json": text})),
    "overrides": (json_of([*SET]), lambda root, text: check_run(root, **{"overrides.json": text})),
    "times": (json_of(TIMES), lambda root, text: check_run(root, **{TIMES_FILE: text})),
    "packed record": (json_of(PACKED), check_packed),
    "run that goes on": (json_of(SUMMARY_OF), check_directory),
    "index": (DAMAGE.filter(bool), check_index),
    "table": (yaml_of(TABLE), check_table),
    "figure": (yaml_of(FIGURE), check_figure),
    "submission": (json_of(TASK), check_submission),
    "lock": (json_of(HOLDER), check_lock),
    "W&B run": (st.tuples(json_of(ASKED_OF), json_of(SUMMARY_OF)), check_wandb),
    "checkpoint": (damaged(saved({"a": torch.arange(3), "b": {"c": [1, "x"]}})), check_checkpoint),
    "pickle": (st.sampled_from(PICKLES).flatmap(damaged), check_pickle),
}


def fuzz(reader: str, folder: Path, cases: int) -> None:
    strategy, check = READERS[reader]

    @settings(max_examples=cases)
    @given(strategy)
    def every_case(case: Any) -> None:
        check(folder, case)

    every_case()


@pytest.mark.parametrize("reader", READERS)
def test_a_reader_gives_what_is_there_or_one_sentence(tmp_path: Path, reader: str) -> None:
    fuzz(reader, tmp_path, CASES)


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_a_reader_gives_what_is_there_or_one_sentence_in_thousands_of_cases(tmp_path: Path, reader: str) -> None:
    fuzz(reader, tmp_path, SLOW_CASES)
