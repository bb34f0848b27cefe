"""Runs read back from Weights & Biases: the same records, tables and curves as from their run directories.

The slow tests go the whole way with W&B's own client in both directions: training, `wandb sync`, and `wandb.Api`
against a server on this machine's loopback. The others read what the logger says from a stand-in.
"""

import inspect
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml

from results import wandb as source
from results.address import select
from results.collect import Collection, collect
from results.figure import choose
from results.fill import fill
from results.record import Record, read_directory
from results.render import FORMATS
from results.series import plot
from runner import identity
from runner.compose import compose
from runner.errors import Misuse
from runner.execute import execute
from runner.loggers import ASKED, LINE, SUMMARY, Wandb
from runner.records import RunDirectory, read_metrics
from runner.trainer import Interrupted
from scripts import make_figures, make_tables
from scripts import runs as runs_cli
from tests.conftest import TINY
from tests.test_figures import CURVES, drawn, write_figure
from tests.test_loggers import Told
from tests.test_results_cells import SET90, write_table
from tests.test_results_records import change_json, fake_compose, write_run
from tests.wandb_server import ENTITY, Server, Stored

HERE = "wandb:me/toys"
SITE = ("runs", "data", "logger", "cluster")
SET = ("method=set", "method.sparsity=0.9")
_HANGS_S = 300


class Served:
    """Stands in for a `wandb.apis.public.Run`."""

    def __init__(self, told: Told, state: str | None = None) -> None:
        self.id = str(told.given["id"])
        ended = "running" if told.exit_code is None else "failed" if told.exit_code else "finished"
        self.state = ended if state is None else state
        self.config: dict[str, Any] = json.loads(json.dumps(told.given["config"]))
        self.summary = {**told.rows[-1], **told.summary} if told.rows else dict(told.summary)
        self.rows = [{**row, "_step": step} for step, row in enumerate(told.rows)]

    def scan_history(self, *, use_cache: bool = True) -> Iterator[dict[str, Any]]:
        return iter(self.rows)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Any:
    """(run directory, state) -> what W&B would hold of it."""
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    begun: list[Told] = []

    def init(**given: Any) -> Told:
        begun.append(Told(**given))
        return begun[-1]

    monkeypatch.setattr(wandb, "init", init)

    def log(path: Path, state: str | None = None) -> Served:
        logger = Wandb(config=yaml.safe_load((path / "config.yaml").read_text()), directory=path)
        for line in read_metrics(path / "metrics.jsonl")[0]:
            logger.epoch(line)
        if summary := RunDirectory(path).summary():
            logger.finish(summary)
        else:
            logger.close()
        return Served(begun[-1], state)

    return log


def only(runs: Collection) -> Record:
    assert runs.problems == () and len(runs.runs) == 1
    return next(iter(runs.runs.values()))


def same(record: Record, other: Record) -> None:
    """Two records of a run from different places: all but the place is equal, nan included."""
    for name in ("key", "seed", "status", "packed", "environment", "summary"):
        assert getattr(record, name) == getattr(other, name), name
    kept = [override for override in other.overrides if override.split("=")[0].split(".")[0] not in SITE]
    assert list(record.overrides) == kept
    spelt = [json.dumps([dict(line) for line in each.metrics], sort_keys=True) for each in (record, other)]
    assert spelt[0] == spelt[1]
    assert identity.science(dict(record.config)) == identity.science(dict(other.config))
    machine = [name for name in other.config if name not in (*identity.SCIENCE, *SITE)]
    assert {name: record.config.get(name) for name in machine} == {name: other.config[name] for name in machine}


def change(run: Served, **changes: Any) -> None:
    """Another asked-for content."""
    run.config[ASKED] = json.dumps({**json.loads(run.config[ASKED]), **changes})


# Records


@pytest.mark.parametrize("status", ["completed", "diverged", "failed", None])
@pytest.mark.parametrize("accuracy", [0.0, 97.123456789012345, "nan", "-inf"])
def test_a_record_is_that_of_the_run_directory(tmp_path: Path, serve: Any, status: str | None, accuracy: Any) -> None:
    lines = [{"epoch": e, "step": 10 * e, "test/accuracy": accuracy, "layers:a.b": 1 / 3 / e} for e in (1, 2, 3)]
    path = write_run(tmp_path, SET, seed=2, status=status, accuracy=accuracy, metrics=lines)
    found, _ = read_directory(path)
    runs = source.read(HERE, [serve(path)])
    record = only(runs)
    same(record, found)
    assert [(remark.kind, remark.what) for remark in runs.remarks] == [
        (remark.kind, remark.what) for remark in collect([tmp_path]).remarks
    ]
    assert str(record.path) == f"{HERE}/{record.key}-2" and record.status == (status or "interrupted")
    assert [line["layers:a.b"] for line in record.metrics] == [1 / 3, 1 / 6, 1 / 9]
    value, expected = record.value("test/accuracy"), found.value("test/accuracy")
    assert value == expected or (math.isnan(value or 0.0) and math.isnan(expected or 0.0))


@pytest.mark.parametrize(
    "status, state, seen",
    [
        (None, "running", "running"),
        (None, "pending", "running"),
        (None, "crashed", "interrupted"),
        (None, "killed", "interrupted"),
        (None, "failed", "interrupted"),
        (None, "finished", "interrupted"),
        ("failed", "running", "running"),  # it is being tried again
        ("failed", "crashed", "failed"),
        ("completed", "running", "completed"),
        ("completed", "crashed", "completed"),
        ("diverged", "failed", "diverged"),
        ("diverged", "running", "diverged"),
    ],
)
def test_the_status_is_the_record_s_own(tmp_path: Path, serve: Any, status: Any, state: str, seen: str) -> None:
    record = only(source.read(HERE, [serve(write_run(tmp_path, SET, status=status), state)]))
    assert record.status == seen
    assert (record.summary is None) == (seen in ("running", "interrupted"))


def test_a_stage_s_parent_is_in_its_record(tmp_path: Path, serve: Any) -> None:
    record = only(source.read(HERE, [serve(write_run(tmp_path, ["method=set", "stage=dense"]))]))
    parent = identity.parent_config(dict(record.config))
    assert parent is not None and identity.key(parent) == identity.key(fake_compose(["method=dense"]))


# Repeated lines


def row(attempt: str, epoch: int, step: int, **values: Any) -> dict[str, Any]:
    line = {"epoch": epoch, "test/accuracy": 50.0 + epoch, **values}
    return {**line, "_step": step, LINE: json.dumps({"attempt": attempt, "line": line})}


def test_the_last_attempt_counts_whatever_the_order(tmp_path: Path, serve: Any) -> None:
    path = write_run(tmp_path, SET)
    run = serve(path)
    first = [row("2026-01-01", epoch, epoch - 1, **{"test/accuracy": 0.0}) for epoch in (1, 2, 3, 4, 5)]
    last = [row("2026-01-02", epoch, epoch - 1) for epoch in (1, 2, 3)]
    again = row("2026-01-02", 3, 3)
    for run.rows in (first + last, last + first, [*last[::-1], *first, again], sorted(first + last, key=str)):
        record = only(source.read(HERE, [run]))
        assert [(line["epoch"], line["test/accuracy"]) for line in record.metrics] == [(1, 51.0), (2, 52.0), (3, 53.0)]


def test_of_an_epoch_told_twice_in_one_attempt_the_later_counts(tmp_path: Path, serve: Any) -> None:
    run = serve(write_run(tmp_path, SET))
    run.rows = [row("2026-01-01", 1, 0, **{"test/accuracy": 1.0}), row("2026-01-01", 1, 1), *run.rows[:0]]
    (record,) = source.read(HERE, [run]).runs.values()
    assert [line["test/accuracy"] for line in record.metrics] == [51.0]


def test_a_history_is_asked_for_by_who_looks_at_it_and_once(tmp_path: Path, serve: Any) -> None:
    run = serve(write_run(tmp_path, SET))
    asked = []
    scan = run.scan_history

    def ask(**options: Any) -> Any:
        asked.append(options)
        return scan(**options)

    run.scan_history = ask
    record = only(source.read(HERE, [run]))
    assert record.value("test/accuracy") == 90.0 and asked == []
    assert len(record.metrics) == 3 and record.metrics[-1]["epoch"] == 3 and record.metrics and asked == [
        {"use_cache": False}
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text, why",
    [
        (None, "has 2 of 3 epochs in its history"),
        ('{"attempt": "2026", "li', f"has a history that cannot be used: it is not valid JSON: {LINE}"),
        ("[]", f"it is not what it should be: {LINE} holds no object"),
        ('{"attempt": "2026", "line": {"test/loss": 1.0}}', f"it is not what it should be: {LINE} holds no line"),
        (7.0, f"it is not valid JSON: {LINE}"),
    ],
)
def test_what_is_wrong_with_a_history_is_said_and_costs_no_number(
    tmp_path: Path, serve: Any, text: Any, why: str
) -> None:
    path = write_run(tmp_path, SET)
    change_json(path / "summary.json", epochs=3)
    run = serve(path)
    run.rows[1][LINE] = text
    record = only(source.read(HERE, [run]))
    assert record.value("test/accuracy") == 90.0
    with pytest.raises(Misuse) as misuse:
        list(record.metrics)
    said = str(misuse.value)
    assert said.startswith(f"{HERE}/{run.id} has ") and why in said and "wandb sync" in said and "\n" not in said


# What is not used


def other_key(run: Served) -> None:
    change(run, key="0123456789ab")


def other_seed(run: Served) -> None:
    change(run, seed=7)


def tampered(run: Served) -> None:
    config = json.loads(run.config[ASKED])["config"]
    config["schedule"]["epochs"] = 300
    change(run, config=config)


def tampered_seed(run: Served) -> None:
    change(run, config={**json.loads(run.config[ASKED])["config"], "seed": 4}, seed=4)


def other_summary(run: Served) -> None:
    run.summary[SUMMARY] = json.dumps({**json.loads(run.summary[SUMMARY]), "key": "0123456789ab"})


def newer(run: Served) -> None:
    change(run, schema=2)


def newer_summary(run: Served) -> None:
    run.summary[SUMMARY] = json.dumps({**json.loads(run.summary[SUMMARY]), "schema": 2})


def cut(run: Served) -> None:
    run.config[ASKED] = run.config[ASKED][:-9]


def cut_summary(run: Served) -> None:
    run.summary[SUMMARY] = run.summary[SUMMARY][:-9]


def no_text(run: Served) -> None:
    run.config[ASKED] = {"schema": 1}


def a_list(run: Served) -> None:
    run.config[ASKED] = "[]"


def no_config(run: Served) -> None:
    change(run, config=None)


def odd_status(run: Served) -> None:
    run.summary[SUMMARY] = json.dumps({**json.loads(run.summary[SUMMARY]), "status": "great"})


@pytest.mark.parametrize(
    "spoil, why",
    [
        (other_key, "whose key is"),
        (other_seed, "not that of seed7"),
        (tampered, "whose key is"),
        (tampered_seed, "whose seed is 4"),
        (other_summary, "not 0123456789ab"),
        (newer, "has schema 2"),
        (newer_summary, "summary of schema 2"),
        (cut, f"not valid JSON: {ASKED}"),
        (cut_summary, f"not valid JSON: {SUMMARY}"),
        (no_text, f"not valid JSON: {ASKED}"),
        (a_list, f"{ASKED} holds no object"),
        (no_config, "no usable 'config'"),
        (odd_status, "unknown status 'great'"),
    ],
)
def test_an_unusable_record_is_named_and_the_others_are_read(tmp_path: Path, serve: Any, spoil: Any, why: str) -> None:
    good, bad = serve(write_run(tmp_path, SET)), serve(write_run(tmp_path, SET, seed=1))
    spoil(bad)
    runs = source.read(HERE, [bad, good])
    assert [str(record.path) for record in runs.runs.values()] == [f"{HERE}/{good.id}"]
    (problem,) = runs.problems
    assert str(problem).startswith(f"{HERE}/{bad.id}: ") and why in problem.what and "\n" not in problem.what


def test_w_and_b_s_own_copy_of_the_configuration_is_not_what_counts(tmp_path: Path, serve: Any) -> None:
    run = serve(write_run(tmp_path, SET))
    run.config["schedule"]["epochs"], run.summary["test/accuracy"] = 300, 99.9
    record = only(source.read(HERE, [run]))
    assert record.config["schedule"]["epochs"] == 3 and record.value("test/accuracy") == 90.0


def test_runs_of_something_else_are_counted_in_a_note(tmp_path: Path, serve: Any) -> None:
    mine, theirs = serve(write_run(tmp_path, SET)), serve(write_run(tmp_path, SET, seed=1))
    theirs.config = {"lr": 0.1, "key": identity.key(fake_compose(SET))}
    runs = source.read(HERE, [theirs, mine, theirs])
    assert only(runs).seed == 0
    assert runs.sentences() == [f"Note: 2 run(s) in {HERE} were logged by something else and are left out."]


def test_the_same_run_twice_counts_once(tmp_path: Path, serve: Any) -> None:
    paths = [write_run(tmp_path / str(n), SET, accuracy=accuracy) for n, accuracy in enumerate((90.0, 90.0, 91.0))]
    runs = [serve(path) for path in paths]
    for letter, run in zip("abc", runs, strict=True):
        run.id = letter
    found = source.read(HERE, runs)
    (record,) = found.runs.values()
    assert str(record.path) == f"{HERE}/a"
    assert [(str(each.other), each.agrees) for each in found.duplicates] == [(f"{HERE}/b", True), (f"{HERE}/c", False)]


# Tables and curves


def test_tables_and_curves_are_those_of_the_run_directories(tmp_path: Path, serve: Any) -> None:
    papers = write_table(tmp_path / "papers")
    states = ("completed", "completed", "diverged")
    paths = [write_run(tmp_path / "runs", SET90, seed, status, 90.0 + seed) for seed, status in enumerate(states)]
    paths += [write_run(tmp_path / "runs", ["method=dense"], seed, accuracy=0.0) for seed in (0, 1, 2)]
    paths += [write_run(tmp_path / "runs", ["method=set", "method.sparsity=0.8"], status=None)]
    here, there = collect([tmp_path / "runs"]), source.read(HERE, [serve(path) for path in paths])
    equal_tables(here, there, papers, fake_compose)
    series = [drawn(papers, CURVES, runs).series for runs in (here, there)]
    assert series[0] == series[1] and [len(each.x) for each in series[0]] == [3, 3]


def equal_tables(here: Collection, there: Collection, papers: Path, composer: Any = compose) -> list[dict[str, Any]]:
    """The table's cells, which must be the same from both; but for where the runs are."""
    tables = []
    for runs in (here, there):
        sheets = [fill(selection, runs, None, composer, papers) for selection in select((), papers)]
        cells = json.loads(FORMATS["json"](sheets, True))
        places = [place for cell in cells for place in cell["measured"].pop("runs")]
        assert places and all(place.startswith("wandb:") == (runs is there) for place in places)
        tables.append(cells)
    assert tables[0] == tables[1]
    return tables[0]


# The command lines


def finished(root: Path, overrides: Sequence[str], accuracy: float) -> Path:
    """The run directory of these overrides, as the trainer leaves it."""
    given = [*overrides, f"runs={root}"]
    config = compose(given)
    directory = RunDirectory(identity.run_dir(root, config))
    directory.begin(config, given, {"device": "cpu"})
    line = {"epoch": 1, "step": 10, "test/accuracy": accuracy}
    directory.append_metrics(line)
    frame = {"status": "completed", "reason": None, "key": identity.key(config), "seed": config["seed"]}
    directory.finish({**frame, "epochs": 1, "steps": 10, "final": line, "best": line, "layers": {}})
    return directory.path


@pytest.fixture
def shown(tmp_path: Path, serve: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """(main, arguments) -> what is printed as JSON. The demo's first cell has seed 0 at W&B and seed 1 in a folder."""
    dense = ["experiment=demo/digits", "method=dense"]
    run = serve(finished(tmp_path / "sent", [*dense, "seed=0"], 97.0))
    finished(tmp_path / "runs", [*dense, "seed=1"], 98.0)
    monkeypatch.setenv("REGROW_RUNS", str(tmp_path / "nowhere"))
    monkeypatch.setattr(source, "_runs", lambda address, entity, project: [run] if project == "toys" else [])

    def show(main: Any, *arguments: str) -> Any:
        assert main(arguments) == 0
        return json.loads(capsys.readouterr().out)

    return show


def test_a_table_is_made_from_a_project_and_from_folders_besides(tmp_path: Path, shown: Any) -> None:
    def measured(*arguments: str) -> tuple[Any, ...]:
        (cell,) = shown(make_tables.main, "demo/digits/dense/s80", "--format", "json", *arguments)
        found = cell["measured"]
        return found["values"], [place.startswith("wandb:") for place in found["runs"]]

    folder = str(tmp_path / "runs")
    assert measured("--from", HERE) == ([97.0], [True])
    assert measured("--runs", folder) == ([98.0], [False])
    assert measured("--from", HERE, "--runs", folder) == ([97.0, 98.0], [True, False])
    assert measured("--from", "wandb:me/other", "--from", HERE) == ([97.0], [True])
    assert measured("--from", "wandb:me/other") == ([], [])
    # A run directory is kept before what was sent of it.
    assert measured("--from", HERE, "--runs", str(tmp_path / "sent")) == ([97.0], [False])


def test_runs_are_listed_and_shown_from_a_project(shown: Any) -> None:
    (row,) = shown(runs_cli.main, "list", "--json", "--from", HERE)
    assert (row["method"], row["seed"], row["status"], row["value"]) == ("dense", 0, "completed", 97.0)
    assert row["path"] == f"{HERE}/{row['key']}-0"
    assert shown(runs_cli.main, "show", row["key"], "--json", "--from", HERE)["final"]["test/accuracy"] == 97.0
    assert shown(runs_cli.main, "list", "toys", "--json", "--from", HERE, "--from", HERE) == [row]
    assert shown(runs_cli.main, "check", "--json", "--from", HERE, "--from", HERE) == []


def test_what_a_project_holds_besides_is_said(
    shown: Any, serve: Any, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    theirs = serve(write_run(tmp_path, SET))
    theirs.config = {}
    monkeypatch.setattr(source, "_runs", lambda *address: [theirs])
    assert make_tables.main(["demo/digits", "--from", HERE]) == 0
    assert capsys.readouterr().err == f"Note: 1 run(s) in {HERE} were logged by something else and are left out.\n"


def test_figures_are_drawn_from_a_project(tmp_path: Path, shown: Any, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "figures"
    assert make_figures.main(["demo/digits_curves", "--from", HERE, "--out", str(out)]) == 0
    assert {file.suffix for file in out.iterdir()} == {".png", ".svg"}


@pytest.mark.parametrize(
    "main", [make_tables.main, make_figures.main, lambda arguments: runs_cli.main(["list", *arguments])]
)
def test_a_wrong_address_on_the_command_line(main: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--from", "me/toys"]) == 2
    assert capsys.readouterr().err == "'me/toys' is no address of runs; write wandb:ENTITY/PROJECT.\n"


# The address and the client


@pytest.mark.parametrize("text", ["me/toys", "wandb:toys", "wandb:", "wandb:me/", "wandb:/toys", "wandb:me/toys/run"])
def test_another_address_is_refused_with_the_right_form(text: str) -> None:
    with pytest.raises(Misuse, match=r"no address of runs; write wandb:ENTITY/PROJECT\.$"):
        source.collect(text)


def test_the_stand_in_is_like_the_real_client() -> None:
    from wandb.apis.public import Api, Run

    inspect.signature(Api).bind()
    inspect.signature(Api.runs).bind(None, "me/toys", per_page=100, lazy=False)
    inspect.signature(Run.scan_history).bind(None, use_cache=False)
    assert all(isinstance(getattr(Run, name), property) for name in ("id", "state", "config", "summary"))


def test_nothing_is_imported_before_it_is_needed() -> None:
    code = "import sys, results.wandb; print([name for name in ('torch', 'wandb') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


COLLECT = """
import sys
from results.wandb import collect
from runner.errors import Misuse
try:
    collect("wandb:me/toys")
except Misuse as misuse:
    print(misuse)
"""


def asked_from(tmp_path: Path, **environment: str) -> str:
    """What a user reads whose environment is this."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    private = {"HOME": str(tmp_path), "WANDB_DIR": str(tmp_path), "WANDB_ERROR_REPORTING": "false"}
    done = subprocess.run(
        [sys.executable, "-c", COLLECT],
        capture_output=True,
        text=True,
        env={**kept, **private, **environment},
        stdin=subprocess.DEVNULL,
        timeout=_HANGS_S,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.mark.slow
def test_who_is_not_logged_in_reads_one_sentence(tmp_path: Path) -> None:
    said = asked_from(tmp_path, WANDB_BASE_URL="http://127.0.0.1:9")
    assert said.startswith(f"{HERE} cannot be read: No API key configured") and said.count("\n") == 1
    assert said.endswith("check the network, and log in with `wandb login`.\n")


@pytest.mark.slow
def test_no_network_is_one_sentence(tmp_path: Path) -> None:
    said = asked_from(tmp_path, WANDB_BASE_URL="http://127.0.0.1:9", WANDB_API_KEY=40 * "a")
    assert said.startswith(f"{HERE} cannot be read: ") and "connection refused" in said and said.count("\n") == 1
    assert said.endswith("check the network, and log in with `wandb login`.\n")


@pytest.mark.slow
def test_a_project_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with Server() as server:
        said = asked_from(tmp_path, WANDB_BASE_URL=server.url, WANDB_API_KEY=40 * "a")
    assert said.startswith(f"{HERE} cannot be read: Could not find project toys; check the address")
    assert said.count("\n") == 1 and not server.unknown


# The whole way


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """Where W&B's client keeps what it keeps."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture
def server(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server of its own, and W&B's client in this process set to it."""
    with Server() as server:
        for name in list(os.environ):
            if name.startswith("WANDB"):
                monkeypatch.delenv(name)
        for name in ("HOME", "WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
            monkeypatch.setenv(name, str(home))
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", 40 * "a")
        monkeypatch.setenv("WANDB_ERROR_REPORTING", "true")  # so that what the logger sets is undone
        monkeypatch.delenv("WANDB_ERROR_REPORTING")
        wandb.teardown()
        yield server
        wandb.teardown()
    assert not server.unknown, f"the server in tests/wandb_server.py does not know {server.unknown}"


def given(root: Path, *overrides: str) -> list[str]:
    return [*TINY, *overrides, f"runs={root}", "logger=wandb", "logger.project=toys"]


def train(root: Path, *overrides: str) -> dict[str, Any]:
    asked = given(root, *overrides)
    return execute(compose(asked), asked)


def sync(root: Path) -> None:
    folders = sorted(map(str, root.rglob("wandb/offline-run-*")))
    subprocess.run([sys.executable, "-m", "wandb", "sync", *folders], check=True, capture_output=True, timeout=_HANGS_S)


def both(root: Path) -> tuple[Collection, Collection]:
    """The runs below `root` and those of the server, which must be the same."""
    here, there = collect([root]), source.collect(f"wandb:{ENTITY}/toys")
    assert here.problems == there.problems == () and here.runs.keys() == there.runs.keys()
    for name in here.runs:
        same(there.runs[name], here.runs[name])
    said = [sorted((remark.kind, remark.what) for remark in runs.remarks) for runs in (here, there)]
    assert said[0] == said[1]
    return here, there


PARENT = ["method=dense", "schedule.batch_size=10", "schedule.epochs=2"]  # it inherits no schedule
STAGE = ["method=static", "method.sparsity=0.5", f"start={{parent:{PARENT}}}"]
TABLE: dict[str, Any] = {
    "title": "Toys",
    "metric": "test/accuracy",
    "seeds": [0, 1],
    "overrides": list(TINY),
    "rows": [
        {"id": "dense", "title": "Dense", "overrides": ["method=dense"]},
        {"id": "static", "title": "Static", "overrides": ["method=static", "method.sparsity=0.5"]},
        {"id": "tuned", "title": "A stage", "overrides": STAGE},
        {"id": "broken", "title": "Diverges", "overrides": ["method=dense", "schedule.lr=1e30"]},
        {"id": "none", "title": "Not run", "overrides": ["method=set"]},
    ],
    "columns": [{"id": "accuracy", "title": "Accuracy"}, {"id": "loss", "title": "Loss", "metric": "best:test/loss"}],
}


@pytest.mark.slow
def test_offline_is_offline_usage_counts_included(tmp_path: Path, server: Server) -> None:
    asked = given(tmp_path, "method=static")
    code = f"""
from runner.compose import compose
from runner.execute import execute
execute(compose({asked}), {asked})
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=_HANGS_S)
    assert len(list(tmp_path.rglob("*.wandb"))) == 1 and not server.received


@pytest.mark.slow
def test_tables_and_curves_after_wandb_sync(tmp_path: Path, server: Server) -> None:
    """Two seeds, 0.0 accuracy, a diverged run with nan in its history, stages and their parents, a recorder."""
    papers, root = tmp_path / "papers", tmp_path / "runs"
    write_table(papers, **TABLE)
    curves = {"title": "Toys", "plot": "curves", "table": "toys/first", "columns": ["accuracy"]}
    for metric in ("mask/iou", "mask/still_changing"):  # from the epochs' lines, and from the summary
        own = {"metric": metric, "records": ["mask_dynamics"]}
        write_figure(papers, {**curves, **own}, metric.replace("/", "_"))
    write_figure(papers, curves, "accuracy")
    for line in TABLE["rows"][:4]:
        for seed in (0, 1):
            train(root, *line["overrides"], f"seed={seed}", "trainer.records=[mask_dynamics,layers]")
    assert not server.received
    sync(root)
    here, there = both(root)
    assert len(there.runs) == 8  # the parents are the dense row's
    cells = {(cell["row"], cell["column"]): cell["measured"] for cell in equal_tables(here, there, papers)}
    assert {row: cells[row, "accuracy"]["status"] for row, _ in cells} == dict(
        zip(("dense", "static", "tuned", "broken", "none"), ("ok", "ok", "ok", "diverged", "missing"), strict=True)
    )
    assert 0.0 in cells["dense", "accuracy"]["values"]
    broken = [record for record in there.runs.values() if record.status == "diverged"]
    assert len(broken) == 2 and all(math.isnan(record.metrics[-1]["train/loss"]) for record in broken)
    parent = identity.key(compose([*TINY, "method=dense"]))
    stages = [record for record in there.runs.values() if record.config["start"]]
    assert [dict(stage.summary or {})["parent"] for stage in sorted(stages, key=lambda stage: stage.seed)] == [
        {"key": parent, "seed": seed} for seed in (0, 1)
    ]
    for figure in choose(["toys"], papers):
        drawings = [plot(figure, runs, papers=papers) for runs in (here, there)]
        assert drawings[0] == drawings[1] and any(series.mean for series in drawings[0].series)
    no_place_is_in(server, tmp_path)


def no_place_is_in(server: Server, root: Path) -> None:
    sent = "".join(server.received)
    assert "test/accuracy" in sent
    for private in (str(root), str(Path(__file__).resolve().parents[1]), sys.prefix, "logger"):
        assert private not in sent


def killed(asked: Sequence[str], epoch: int) -> None:
    """Train in a process of its own that SIGKILLs itself, and W&B's with it, when it has recorded `epoch`."""
    code = f"""
import os, signal
from runner.compose import compose
from runner.execute import execute
def die(line):
    if line["epoch"] == {epoch}:
        os.killpg(0, signal.SIGKILL)
execute(compose({list(asked)!r}), {list(asked)!r}, die)
"""
    done = subprocess.run([sys.executable, "-c", code], start_new_session=True, capture_output=True, timeout=_HANGS_S)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["offline", "online"])
def test_a_killed_run_goes_on_under_its_id_and_no_epoch_is_lost_or_there_twice(
    tmp_path: Path, server: Server, mode: str
) -> None:
    root = tmp_path / "runs"
    overrides = ("method=static", "schedule.epochs=5", f"logger.mode={mode}", "trainer.checkpoint_seconds=0")
    killed(given(root, *overrides), epoch=3)
    (path,) = root.rglob("seed0")
    assert [line["epoch"] for line in read_metrics(path / "metrics.jsonl")[0]] == [1, 2, 3]
    train(root, *overrides)
    if mode == "offline":
        sync(root)
    _, there = both(root)
    assert [line["epoch"] for line in only(there).metrics] == [1, 2, 3, 4, 5] and len(server.runs) == 1


@pytest.mark.slow
def test_attempts_that_were_sent_one_by_one_are_one_run(tmp_path: Path, server: Server) -> None:
    """Interrupted and sent, failed and sent, completed and sent: W&B has numbered the steps of each from 0."""
    root, asked = tmp_path / "runs", given(tmp_path / "runs", "method=static", "schedule.epochs=5")

    def stop(line: dict[str, Any]) -> None:
        if line["epoch"] == 2:
            signal.raise_signal(signal.SIGTERM)

    def fail(line: dict[str, Any]) -> None:
        if line["epoch"] == 4:
            raise RuntimeError("no more")

    for progress, error, status, epochs in (
        (stop, Interrupted, "interrupted", 2),
        (fail, RuntimeError, "failed", 4),
        (None, None, "completed", 5),
    ):
        if error is None:
            execute(compose(asked), asked, progress)
        else:
            with pytest.raises(error):
                execute(compose(asked), asked, progress)
        sync(root)
        _, there = both(root)
        assert only(there).status == status and len(only(there).metrics) == epochs
    (run,) = server.runs.values()
    assert len(run.history) == 2 + 4 + 5 and sorted(run.steps) != list(range(11))


@pytest.mark.slow
def test_a_shared_project_is_read_page_by_page(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        server.runs["toys", f"other{number}"] = Stored("toys", f"other{number}", '{"lr": {"value": 0.1}}')
    for seed in (0, 1):
        train(tmp_path, "method=static", f"seed={seed}", "logger.mode=online")
    monkeypatch.setattr(source, "_PAGE", 3)
    _, there = both(tmp_path)
    assert there.sentences() == ["Note: 5 run(s) in wandb:me/toys were logged by something else and are left out."]
    assert server.operations.count("Runs") == 3
    no_place_is_in(server, tmp_path)
