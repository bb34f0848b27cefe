"""From table files and records to cells: seeds, statuses, means by hand, published values, nothing guessed."""

import fcntl
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from results.address import find_slot, select
from results.collect import collect
from results.fill import Sheet, fill
from results.plan import plan
from results.published import parse
from results.statistics import mean, sample_std
from runner import identity
from runner.errors import Misuse
from tests.test_results_records import fake_compose, write_run

TABLE: dict[str, Any] = {
    "title": "A toy",
    "metric": "test/accuracy",
    "direction": "up",
    "unit": "%",
    "seeds": [0, 1, 2],
    "rows": [
        {"id": "dense", "title": "Dense", "overrides": ["method=dense"], "across": True},
        {"id": "set", "title": "SET", "overrides": ["method=set"]},
    ],
    "columns": [
        {"id": "s80", "title": "80 %", "overrides": ["method.sparsity=0.8"]},
        {"id": "s90", "title": "90 %", "overrides": ["method.sparsity=0.9"]},
    ],
}
SET90 = ["method=set", "method.sparsity=0.9"]


def write_table(papers: Path, name: str = "toys/first", **changes: Any) -> Path:
    path = papers / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({**TABLE, **changes}, sort_keys=False))
    return papers


def filled(tmp_path: Path, *addresses: str, profile: str | None = None, **changes: Any) -> Sheet:
    """The toy table with `changes`, filled from the runs below tmp_path/runs."""
    papers = write_table(tmp_path / "papers", **changes)
    (selection,) = select(addresses or ["toys"], papers)
    return fill(selection, collect([tmp_path / "runs"]), profile, fake_compose, papers)


# Numbers


def test_mean_and_sample_std_by_hand() -> None:
    # (2 + 4 + 9) / 3 = 5; squares of -3, -1, 4 sum to 26; 26 / (3 - 1) = 13
    assert mean([2.0, 4.0, 9.0]) == 5.0
    assert sample_std([2.0, 4.0, 9.0]) == pytest.approx(math.sqrt(13.0), rel=1e-15)
    assert (mean([0.0, 0.0]), sample_std([0.0, 0.0])) == (0.0, 0.0)
    assert (mean([7.5]), sample_std([7.5])) == (7.5, None)
    assert (mean([]), sample_std([])) == (None, None)


@pytest.mark.parametrize("values", [[math.nan, 1.0], [math.inf, 1.0], [math.inf, -math.inf]])
def test_what_is_not_finite_is_not_hidden(values: list[float]) -> None:
    assert not math.isfinite(mean(values) or 0.0)
    assert math.isnan(sample_std(values) or 0.0)


# Cells from runs


def test_a_complete_cell(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    paths = [write_run(runs, SET90, seed, accuracy=accuracy) for seed, accuracy in enumerate((98.0, 97.0, 99.5))]
    cell = filled(tmp_path, published={"set": {"s90": "98.5 +- 0.2"}}).cells["set", "s90"]
    assert (cell.status, cell.n, cell.values) == ("ok", 3, {0: 98.0, 1: 97.0, 2: 99.5})
    assert cell.mean == pytest.approx(294.5 / 3)
    assert cell.std == pytest.approx(math.sqrt((1 / 36 + 49 / 36 + 64 / 36) / 2))  # deviations -1/6, -7/6, 8/6
    assert list(cell.runs.values()) == paths
    assert cell.key == identity.key(fake_compose(SET90))
    assert cell.difference == pytest.approx(294.5 / 3 - 98.5)
    assert cell.address == "toys/first/set/s90" and cell.overrides == tuple(SET90)


def test_zero_is_a_value_and_nan_is_not_zero(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        write_run(tmp_path / "runs", SET90, seed, accuracy=0.0)
        write_run(tmp_path / "runs", ["method=set", "method.sparsity=0.8"], seed, accuracy="nan" if seed else 50.0)
    cells = filled(tmp_path).cells
    assert (cells["set", "s90"].status, cells["set", "s90"].mean, cells["set", "s90"].std) == ("ok", 0.0, 0.0)
    cell = cells["set", "s80"]
    assert (cell.status, cell.n) == ("ok", 3) and cell.mean is not None and math.isnan(cell.mean)


def test_a_partial_cell(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", SET90, seed=0, accuracy=90.0)
    write_run(tmp_path / "runs", SET90, seed=2, accuracy=92.0)
    write_run(tmp_path / "runs", SET90, seed=7, accuracy=10.0)  # a seed that the table does not name
    cell = filled(tmp_path).cells["set", "s90"]
    assert (cell.status, cell.n, cell.mean) == ("partial", 2, 91.0)
    assert cell.states == {0: "completed", 1: "missing", 2: "completed"}


@pytest.mark.parametrize(
    "statuses, status",
    [
        ([], "missing"),
        ([None], "missing"),  # broken off
        (["diverged"], "diverged"),
        (["failed", "diverged"], "failed"),
        (["completed", "diverged", "failed"], "partial"),
    ],
)
def test_the_status_of_a_cell(tmp_path: Path, statuses: list[str | None], status: str) -> None:
    for seed, of_run in enumerate(statuses):
        write_run(tmp_path / "runs", SET90, seed, status=of_run)
    cell = filled(tmp_path).cells["set", "s90"]
    assert cell.status == status
    assert cell.settled is False
    assert cell.n == statuses.count("completed")


def test_a_running_cell(tmp_path: Path) -> None:
    path = write_run(tmp_path / "runs", SET90, status=None)
    with (path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        cell = filled(tmp_path).cells["set", "s90"]
    assert (cell.status, cell.mean, cell.states[0]) == ("running", None, "running")


@pytest.mark.parametrize(
    "parent_status, state", [("failed", "blocked"), ("diverged", "blocked"), ("completed", "missing")]
)
def test_a_cell_whose_parent_has_failed_is_blocked(tmp_path: Path, parent_status: str, state: str) -> None:
    write_run(tmp_path / "runs", ["method=dense"], seed=1, status=parent_status)
    rows = [{"id": "stage", "title": "Stage", "overrides": ["method=gmp", "stage=dense"]}]
    cell = filled(tmp_path, rows=rows).cells["stage", "s90"]
    assert cell.states == {0: "missing", 1: state, 2: "missing"}
    assert cell.status == state
    write_run(tmp_path / "runs", ["method=gmp", "stage=dense", "method.sparsity=0.9"], seed=1, accuracy=80.0)
    assert filled(tmp_path, rows=rows).cells["stage", "s90"].states[1] == "completed"  # what ran, ran


def test_a_metric_that_was_not_recorded_is_named_and_not_replaced(tmp_path: Path) -> None:
    path = write_run(tmp_path / "runs", SET90)
    cell = filled(tmp_path, metric="test/accuracy_top5").cells["set", "s90"]
    assert (cell.status, cell.n, cell.states[0]) == ("missing", 0, "missing")
    assert len(cell.problems) == 1 and str(path) in cell.problems[0] and "test/accuracy_top5" in cell.problems[0]


def test_the_best_epoch_can_be_asked_for(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", SET90)
    assert filled(tmp_path, metric="best:test/accuracy").cells["set", "s90"].mean == 91.5


def test_an_unknown_knob_is_uncalibrated_and_not_composed(tmp_path: Path) -> None:
    row = {"id": "str", "title": "STR", "overrides": ["method=str", "method.unheard_of=???"]}
    target = {"metric": "effective/sparsity", "value": 0.9}
    cell = filled(tmp_path, rows=[{**row, "target": target}]).cells["str", "s90"]
    assert (cell.status, cell.key, cell.settled) == ("uncalibrated", None, False)
    with pytest.raises(Misuse, match=r"has the open knob method.unheard_of=.*but no target"):
        filled(tmp_path, rows=[row])


def test_an_across_row_has_one_run_for_all_columns(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", ["method=dense"], accuracy=99.0)
    cells = filled(tmp_path).cells
    assert cells["dense", "s80"].key == cells["dense", "s90"].key == identity.key(fake_compose(["method=dense"]))
    assert cells["dense", "s80"].mean == cells["dense", "s90"].mean == 99.0


def test_settings_nearest_to_the_cell_win(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", SET90)
    rows = [TABLE["rows"][0], {**TABLE["rows"][1], "seeds": [5], "unit": "of the row"}]
    columns = [TABLE["columns"][0], {**TABLE["columns"][1], "unit": "of the column", "digits": 0}]
    cells = filled(tmp_path, rows=rows, columns=columns, cells={"set": {"s90": {"digits": 4}}}).cells
    assert (cells["set", "s90"].seeds, cells["set", "s90"].unit, cells["set", "s90"].digits) == ((5,), "of the row", 4)
    assert (cells["dense", "s90"].seeds, cells["dense", "s90"].unit) == ((0, 1, 2), "of the column")
    assert (cells["dense", "s90"].digits, cells["dense", "s80"].digits) == (0, 2)


def test_a_profile_titles_the_table_and_never_mixes(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        write_run(tmp_path / "runs", SET90, seed, accuracy=98.0)
        write_run(tmp_path / "runs", [*SET90, "profile=short"], seed, accuracy=60.0)
    published = {"set": {"s90": "98.5"}}
    full, short = filled(tmp_path, published=published), filled(tmp_path, profile="short", published=published)
    assert full.title == "A toy"
    assert short.title == "A toy (profile short: 20 epochs, bf16, channels last, 20,000 training samples)"
    assert (full.cells["set", "s90"].mean, short.cells["set", "s90"].mean) == (98.0, 60.0)
    assert full.cells["set", "s90"].key != short.cells["set", "s90"].key
    assert full.cells["set", "s90"].difference == -0.5 and short.cells["set", "s90"].difference is None
    assert short.cells["set", "s90"].overrides == (*SET90, "profile=short")
    same = filled(tmp_path, profile="full", published=published)
    assert (same.title, same.cells["set", "s90"].overrides) == (full.title, full.cells["set", "s90"].overrides)


def test_diverged_as_the_paper_says_is_settled(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        write_run(tmp_path / "runs", SET90, seed, status="diverged")
    assert filled(tmp_path, published={"set": {"s90": "diverged"}}).cells["set", "s90"].settled is True
    assert filled(tmp_path, published={"set": {"s90": "90.0"}}).cells["set", "s90"].settled is False


# Planning


def test_plan_has_each_run_once_with_all_its_cells(tmp_path: Path) -> None:
    (selection,) = select(["toys"], write_table(tmp_path))
    runs = plan(selection.slots(), fake_compose)
    assert len(runs) == 3 + 2 * 3 and len({(run.key, run.seed) for run in runs}) == len(runs)
    assert runs[0].overrides == ("method=dense", "seed=0") and runs[0].parent is None
    assert runs[0].cells == ("toys/first/dense/s80", "toys/first/dense/s90")
    assert runs[-1].overrides == (*SET90, "seed=2")
    for run in runs:
        config = fake_compose(run.overrides)
        assert (identity.key(config), config["seed"]) == (run.key, run.seed)


def test_plan_takes_the_profile_and_knows_parents_and_leaves_out_the_uncalibrated(tmp_path: Path) -> None:
    rows = [
        {"id": "stage", "title": "Stage", "overrides": ["method=gmp", "stage=dense"]},
        {"id": "str", "title": "STR", "overrides": ["method=???"], "target": {"metric": "m", "value": 1}},
        {"id": "dpf", "title": "DPF", "overrides": ["method=unheard_of"], "needs": ["method=unheard_of"]},
        {"id": "echo", "title": "Echo", "overrides": ["method=gmp"], "kind": "config", "read": "method.name"},
    ]
    (selection,) = select(["toys"], write_table(tmp_path, rows=rows, seeds=[4]))
    runs = plan(selection.slots("short"), fake_compose)
    assert [run.overrides[-2:] for run in runs] == [("profile=short", "seed=4")] * 2
    parent = fake_compose(["method=dense", "profile=short"])
    assert runs[0].parent == identity.key(parent)


def test_a_cell_that_does_not_compose_is_named(tmp_path: Path) -> None:
    (selection,) = select(["toys"], write_table(tmp_path, overrides=["modle=net"]))
    with pytest.raises(Misuse, match=r"toys/first/dense/s80.*'modle'"):
        plan(selection.slots(), fake_compose)


# Addresses


def test_addresses_select_papers_tables_rows_and_cells(tmp_path: Path) -> None:
    papers = write_table(write_table(write_table(tmp_path), "toys/second"), "works/first")
    (papers / "toys" / "figures").mkdir()
    (papers / "toys" / "figures" / "first.yaml").write_text("title: no table")

    def places(*addresses: str) -> dict[str, set[tuple[str, str]]]:
        return {s.table.address: set(s.places) for s in select(addresses, papers)}

    everything = {(row, column) for row in ("dense", "set") for column in ("s80", "s90")}
    assert places() == dict.fromkeys(["toys/first", "toys/second", "works/first"], everything)
    assert places("toys") == dict.fromkeys(["toys/first", "toys/second"], everything)
    assert places("works/first/set") == {"works/first": {("set", "s80"), ("set", "s90")}}
    assert places("works/first/set/s90", "works/first/dense/s80") == {"works/first": {("set", "s90"), ("dense", "s80")}}
    (selection,) = select(["toys/second/set/s90"], papers)
    assert [line.id for line in (*selection.rows, *selection.columns)] == ["set", "s90"]
    assert find_slot("toys/second/set/s90", papers=papers).overrides == tuple(SET90)
    with pytest.raises(Misuse, match="is not one cell"):
        find_slot("toys/second/set", papers=papers)


@pytest.mark.parametrize(
    "address, sentence",
    [
        ("tosy", "There is no paper 'tosy'. Did you mean 'toys'?"),
        ("toys/frist", "There is no table 'toys/frist'. Did you mean 'toys/first'?"),
        ("toys/first/sets", "'toys/first/sets': table toys/first has no row 'sets'. Did you mean 'set'?"),
        ("toys/first/set/s09", "'toys/first/set/s09': table toys/first has no column 's09'. Did you mean 's90'?"),
        ("toys/first/set/s90/3", "'toys/first/set/s90/3' is not an address"),
        ("toys//set", "'toys//set' is not an address"),
    ],
)
def test_a_wrong_address_gets_the_nearest_name(tmp_path: Path, address: str, sentence: str) -> None:
    with pytest.raises(Misuse) as caught:
        select([address], write_table(tmp_path))
    assert str(caught.value).startswith(sentence)


# Table files


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"colums": []}, "has the unknown field 'colums'. Did you mean 'columns'?"),
        ({"kind": "run"}, "has the unknown kind 'run'. Did you mean 'runs'?"),
        ({"rows": []}, "rows must be a list of at least one row"),
        ({"rows": [TABLE["rows"][1], TABLE["rows"][1]]}, "has two rows with the id 'set'"),
        ({"rows": [{"id": "a/b", "title": "x"}]}, "has the id 'a/b'"),
        ({"rows": [{"id": "a"}]}, "lacks the field 'title'"),
        ({"rows": [{"id": "a", "title": "x", "acros": True}]}, "unknown field 'acros'. Did you mean 'across'?"),
        ({"columns": [{"id": "a", "title": "x", "section": "s"}]}, "unknown field 'section'"),
        ({"needs": ["dpf"]}, "needs 'dpf'; write what is missing as in method=dpf"),
        ({"kind": "derived"}, "has no derive"),
        ({"kind": "derived", "derive": "{s80} - {s70}"}, "is derived from {s70}, which is no cell"),
        ({"kind": "config"}, "has no read"),
        ({"scale": 0}, "it is a number other than 0"),
        ({"target": {"metric": "m"}}, "lacks the field 'value'"),
        ({"target": {"metric": "m", "value": "high"}}, "it is a number"),
        ({"metric": None}, "has metric: None"),
        ({"direction": "left"}, "it is up or down"),
        ({"at": "90 %"}, "has at: '90 %'; it is a number"),
        ({"spread": "ci"}, "it is std or interval"),
        ({"seeds": []}, "it is a list of whole numbers"),
        ({"seeds": [0, True]}, "it is a list of whole numbers"),
        ({"seeds": [1, 1]}, "names a seed twice"),
        ({"overrides": "method=set"}, "must be a list of texts"),
        ({"published": {"sets": {}}}, "unknown field 'sets'. Did you mean 'set'?"),
        ({"published": {"set": {"s99": "1.0"}}}, "unknown field 's99'"),
        ({"published": {"set": {"s90": 73.30}}}, "bare number 73.3; put it in quotes"),
        ({"groups": {"all": ["dense", "set"]}}, "must be a mapping of fields"),
        ({"groups": {"a": {"compare": "cells", "among": ["set"]}}}, "it is rows or columns"),
        ({"groups": {"a": {"compare": "rows", "among": ["dens"]}}}, "unknown line 'dens'. Did you mean 'dense'?"),
        ({"groups": {"a": {"compare": "rows", "among": ["set"]}}}, "compares one line with nothing"),
        (
            {"groups": {"a": {"compare": "columns", "among": ["s80", "s90"], "within": ["sets"]}}},
            "unknown line 'sets'. Did you mean 'set'?",
        ),
        ({"cells": {"set": {"s90": {"metrc": "x"}}}}, "unknown field 'metrc'. Did you mean 'metric'?"),
    ],
)
def test_a_mistake_in_a_table_file_is_named(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Misuse) as caught:
        select([], write_table(tmp_path, **changes))
    assert sentence in str(caught.value) and "first.yaml" in str(caught.value)


def test_every_cell_needs_its_metric(tmp_path: Path) -> None:
    changes = {name: value for name, value in TABLE.items() if name != "metric"}
    (tmp_path / "toys").mkdir()
    (tmp_path / "toys" / "first.yaml").write_text(yaml.safe_dump(changes))
    with pytest.raises(Misuse, match="the cell dense/s80 has no metric"):
        select([], tmp_path)


@pytest.mark.parametrize("text", ["title: a\ntitle: b\n", "rows: [", "- a\n", "published: {set: {s80: '1', s80: '2'}}"])
def test_broken_or_doubled_yaml_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "toys").mkdir()
    (tmp_path / "toys" / "first.yaml").write_text(text)
    with pytest.raises(Misuse, match=r"first\.yaml"):
        select([], tmp_path)


@pytest.mark.parametrize(
    "entry, mean, std, text, mark",
    [
        ("73.30", 73.3, None, "73.30", None),
        ("98.1 +- 0.1", 98.1, 0.1, "98.1 +- 0.1", None),
        ("98.1 ± 0.10", 98.1, 0.1, "98.1 ± 0.10", None),
        ("-1.60", -1.6, None, "-1.60", None),
        ("20,000", 20000.0, None, "20,000", None),
        ("1:25, 100; 26:50, 200", None, None, "1:25, 100; 26:50, 200", None),
        ({"mean": 0, "std": 0.5, "text": "0"}, 0, 0.5, "0", None),
        ("diverged", None, None, "", "diverged"),
        ("absent", None, None, "", "absent"),
        ("illegible", None, None, "", "illegible"),
    ],
)
def test_published_texts(entry: Any, mean: float | None, std: float | None, text: str, mark: str | None) -> None:
    published = parse(entry, "here")
    assert (published.mean, published.std, published.text, published.mark) == (mean, std, text, mark)


@pytest.mark.parametrize(
    "entry", ["", 73, True, None, {"mean": "1", "text": "1"}, {"mean": 1.0}, {"mean": 1, "text": 1}]
)
def test_published_mistakes(entry: Any) -> None:
    with pytest.raises(Misuse, match="here"):
        parse(entry, "here")
