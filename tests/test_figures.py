"""Figures: the numbers behind every mark, what is left out and named, and files that can be looked at."""

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from matplotlib.colors import to_hex
from matplotlib.figure import Figure as Canvas

from results import document, draw
from results.address import PAPERS, figures, select
from results.collect import Collection, collect
from results.figure import KINDS, Figure, Grid, NotDrawn, Plotted, Series, choose, recorder_of, records
from results.plan import plan
from results.series import plot
from runner import identity
from runner.compose import compose
from runner.errors import Misuse
from runner.execute import execute
from runner.recorders import RECORDERS
from scripts import make_figures
from tests.test_results_cells import SET90, TABLE, write_table
from tests.test_results_records import change_json, fake_compose, write_run
from tests.test_trainer import TINY

POINTS = {"title": "Toys", "plot": "points", "table": "toys/first", "ylabel": "accuracy", "xscale": "density"}
CURVES = {"title": "Toys", "plot": "curves", "table": "toys/first", "columns": ["s90"]}
LAYERS = {"title": "Toys", "plot": "layers", "table": "toys/first", "rows": ["set"]}
HEATMAP = {"title": "Toys", "plot": "heatmap", "table": "toys/first"}
SET80 = ["method=set", "method.sparsity=0.8"]
DENSE = ["method=dense"]
PUBLISHED = {"dense": {"s80": "99.9", "s90": "99.9"}, "set": {"s80": "absent", "s90": "98.5 ± 0.2"}}


def write_figure(papers: Path, fields: dict[str, Any], name: str = "one") -> Path:
    path = papers / "toys" / "figures" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(fields, sort_keys=False))
    return papers


def own(**changes: Any) -> dict[str, Any]:
    """A figure with the toy table's cells as its own."""
    return {**TABLE, "title": "Toys", "plot": "points", **changes}


def drawn(papers: Path, fields: dict[str, Any], runs: Path | Collection, profile: str | None = None) -> Plotted:
    """The figure with these fields, drawn from the runs below a folder."""
    (figure,) = choose(["toys/one"], write_figure(papers, fields))
    return plot(figure, runs if isinstance(runs, Collection) else collect([runs]), profile, fake_compose, papers)


@pytest.fixture
def papers(tmp_path: Path) -> Path:
    return write_table(tmp_path / "papers")


def some_runs(root: Path) -> Collection:
    for seed, accuracy in enumerate((97.0, 98.0, 99.0)):
        write_run(root, SET90, seed, accuracy=accuracy)
        write_run(root, DENSE, seed, accuracy=99.0 + 0.5 * seed)
    write_run(root, SET80, seed=1, accuracy=0.0)
    return collect([root])


def recorded(root: Path, overrides: Sequence[str], seed: int = 0, **parts: Any) -> Path:
    """A run whose summary has further parts; those of `final` join what is there."""
    path = write_run(root, overrides, seed)
    final = json.loads((path / "summary.json").read_text())["final"]
    change_json(path / "summary.json", **{**parts, "final": {**final, **parts.get("final", {})}})
    return path


# Points


def test_series_over_the_columns_by_hand(papers: Path, tmp_path: Path) -> None:
    plotted = drawn(papers, POINTS, some_runs(tmp_path / "runs"))
    dense, sparse = plotted.series
    assert (dense.title, dense.flat, dense.reference, dense.mean, dense.std) == ("Dense", True, True, (99.5,), (0.5,))
    assert (sparse.title, sparse.flat, sparse.reference, sparse.x) == ("SET", False, False, (0.8, 0.9))
    assert (sparse.mean, sparse.std) == ((0.0, 98.0), (None, 1.0))
    assert plotted.remarks == ("toys/one: drawn from fewer runs than the table asks for: set/s80 (n=1).",)


def test_missing_and_non_finite_cells_are_left_out_and_named(papers: Path, tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        write_run(tmp_path / "runs", SET90, seed, accuracy="nan")
        write_run(tmp_path / "runs", SET80, seed)
    plotted = drawn(papers, POINTS, tmp_path / "runs")
    assert [(series.title, series.x) for series in plotted.series] == [("SET", (0.8,))]
    assert plotted.remarks == ("toys/one: not drawn: dense/s80 (missing), set/s90 (nan).",)


def test_x_is_an_expression_over_the_configuration(papers: Path, tmp_path: Path) -> None:
    runs = some_runs(tmp_path / "runs")
    _, sparse = drawn(
        papers, {**POINTS, "x": "100 * method.sparsity - schedule.epochs", "xscale": "linear"}, runs
    ).series
    assert sparse.x == pytest.approx((77, 87))
    with pytest.raises(Misuse, match=r"^toys/first/set/s80: The composed config has no 'method.sparsty'"):
        drawn(papers, {**POINTS, "x": "method.sparsty"}, runs)
    with pytest.raises(Misuse, match=r"^toys/first/set/s80: schedule.lr is '1:2 .*', which is no place on an axis\.$"):
        drawn(papers, {**POINTS, "x": "schedule.lr"}, runs)


def test_x_can_be_read_from_the_runs(papers: Path, tmp_path: Path) -> None:
    for seed, sparsity in enumerate((0.91, 0.95)):
        recorded(tmp_path / "runs", SET90, seed, final={"effective/sparsity": sparsity})
    write_run(tmp_path / "runs", SET90, 2, status="failed")
    write_run(tmp_path / "runs", SET80)
    plotted = drawn(papers, {**POINTS, "x": {"metric": "effective/sparsity", "scale": 100}}, tmp_path / "runs")
    (sparse,) = plotted.series
    assert sparse.x == pytest.approx((93.0,)) and sparse.mean == (90.0,)
    assert plotted.remarks[0] == "toys/one: not drawn: dense/s80 (missing), set/s80 (no effective/sparsity)."
    assert plotted.figure.xlabel == "effective/sparsity"


def test_a_series_per_column(papers: Path, tmp_path: Path) -> None:
    """As in a table with a row per sparsity and a column per method, dense ones without any."""
    rows = [
        {"id": f"{net}{s}", "title": f"{net}, {s} %", "section": net, "overrides": [f"method.sparsity=0.{s}"]}
        for net in ("A", "B")
        for s in (80, 90)
    ]
    for row in rows[2:]:
        row["overrides"] = [*row["overrides"], "profile=B"]  # stands for another network
    columns = [
        {"id": "dense", "title": "Dense", "overrides": DENSE, "without": ["method"]},
        {"id": "set", "title": "SET", "overrides": ["method=set"]},
    ]
    write_table(
        papers, rows=rows, columns=columns, seeds=[0], published={"A80": {"dense": "99.0"}, "A90": {"dense": "99.0"}}
    )
    runs = tmp_path / "runs"
    for overrides, accuracy in ((DENSE, 99.0), (SET80, 97.0), (SET90, 95.0), ([*SET90, "profile=B"], 96.0)):
        write_run(runs, overrides, accuracy=accuracy)
    fields = {**POINTS, "series": "columns"}
    plotted = drawn(papers, {**fields, "rows": ["A80", "A90"]}, runs)
    dense, sparse = plotted.series
    assert (dense.title, dense.flat, dense.reference, dense.mean) == ("Dense", True, True, (99.0,))
    assert len(dense.published) == 1 and dense.published[0][1:] == (99.0, None)
    assert (sparse.title, sparse.x, sparse.mean, sparse.flat) == ("SET", (0.8, 0.9), (97.0, 95.0), False)
    plotted = drawn(papers, fields, runs)
    assert [each.title for each in plotted.series] == ["Dense, A", "SET, A", "SET, B"]
    assert plotted.series[2].mean == (96.0,) and len({each.place for each in plotted.series[1:]}) == 2
    plotted = drawn(papers, {**fields, "columns": ["set"]}, runs)
    assert [each.title for each in plotted.series] == ["A", "B"]


def test_rows_of_the_same_title_are_told_apart_by_their_sections(papers: Path, tmp_path: Path) -> None:
    rows = [{**row, "section": net, "id": f"{net}_{row['id']}"} for net in "AB" for row in TABLE["rows"][1:]]
    write_table(papers, rows=rows)
    write_run(tmp_path / "runs", SET90)
    assert [each.title for each in drawn(papers, POINTS, tmp_path / "runs").series] == ["A: SET", "B: SET"]


def test_a_run_that_stands_in_several_columns_is_one_point(papers: Path, tmp_path: Path) -> None:
    columns = [*TABLE["columns"], {"id": "again", "title": "90 %", "overrides": ["method.sparsity=0.9"]}]
    write_table(papers, columns=columns, seeds=[0])
    for overrides in (SET80, SET90):
        write_run(tmp_path / "runs", overrides)
    assert drawn(papers, {**POINTS, "rows": ["set"]}, tmp_path / "runs").series[0].x == (0.8, 0.9)


def test_cells_read_from_configurations_and_derived_ones_are_points_too(papers: Path, tmp_path: Path) -> None:
    read = {"kind": "config", "read": "{100 - 100 * method.sparsity:g}%"}
    rows = [
        {"id": "set", "title": "SET", "overrides": ["method=set"]},
        {"id": "kept", "title": "kept", "overrides": ["method=set"], **read},
        {"id": "half", "title": "half", "overrides": ["method=set"], "kind": "derived", "derive": "{set/s90} / 2"},
    ]
    write_table(papers, rows=rows, columns=TABLE["columns"][1:], seeds=[0])
    write_run(tmp_path / "runs", SET90, accuracy=90.0)
    plotted = drawn(papers, POINTS, tmp_path / "runs")
    assert [(each.x, each.mean) for each in plotted.series] == [((0.9,), (90.0,)), ((0.9,), (10.0,)), ((0.9,), (45.0,))]
    assert plotted.remarks == ()


def test_derived_cells_stand_at_their_own_number_with_their_own_bars(papers: Path, tmp_path: Path) -> None:
    rows = [{"id": f"z{at}", "title": "x", "kind": "derived", "at": at, "spread": "interval"} for at in (70, 90)]
    columns = [{"id": "d", "title": "Difference", "derive": "{other/set/s90} - at"}]
    write_table(papers, "toys/other")
    write_table(papers, rows=rows, columns=columns)
    runs = some_runs(tmp_path / "runs")
    fields = {**POINTS, "xscale": "linear", "x": "at", "series": "columns"}
    (series,) = drawn(papers, fields, runs).series
    # 97, 98 and 99 less 70 and 90: a deviation of 1, Student's 4.303 / sqrt(3)
    assert (series.x, series.mean, series.flat) == ((70, 90), (28, 8), False)
    assert series.std == pytest.approx((2.4841, 2.4841), abs=1e-4)
    write_table(papers, "toys/first")
    with pytest.raises(Misuse, match="has no `at`, which toys/one takes for its x"):
        drawn(papers, {**POINTS, "x": "at"}, runs)


# What the paper prints


def test_published_cells_of_the_table_are_points(papers: Path, tmp_path: Path) -> None:
    write_table(papers, published=PUBLISHED)
    write_run(tmp_path / "runs", SET80)
    dense, sparse = drawn(papers, POINTS, tmp_path / "runs").series
    assert not dense.mean and [point[1:] for point in dense.published] == [(99.9, None)]
    assert sparse.published == ((0.9, 98.5, 0.2),) and sparse.x == (0.8,)  # printed and not run, and the reverse


def test_published_cells_of_the_figures_own(papers: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "runs", SET90)
    plotted = drawn(papers, own(published=PUBLISHED), tmp_path / "runs")
    assert plotted.figure.table == "toys/one" and plotted.series[1].published == ((0.9, 98.5, 0.2),)


def test_a_profile_or_another_metric_is_not_compared_with_the_paper(papers: Path, tmp_path: Path) -> None:
    write_table(papers, published=PUBLISHED)
    write_run(tmp_path / "runs", [*SET90, "profile=short"])
    recorded(tmp_path / "runs", SET90, final={"test/loss": 0.25})
    assert not any(each.published for each in drawn(papers, POINTS, tmp_path / "runs", "short").series)
    other = drawn(papers, {**POINTS, "metric": "test/loss", "scale": 2}, tmp_path / "runs")
    assert other.series[0].mean == (0.5,) and not any(each.published for each in other.series)


def test_a_printed_value_stands_at_the_paper_s_x_or_nowhere(papers: Path, tmp_path: Path) -> None:
    """Where x is measured, ours says nothing about theirs: only a target does."""
    recorded(tmp_path / "runs", SET80, final={"effective/sparsity": 0.81})
    recorded(tmp_path / "runs", SET90, final={"effective/sparsity": 0.91})
    cells = {"set": {"s90": {"target": {"metric": "effective/sparsity", "value": 0.88}}}}
    published = {"set": {"s80": "97.5", "s90": "96.5 ± 0.5"}}
    fields = own(
        published=published, cells=cells, x={"metric": "effective/sparsity", "scale": 100}, rows=TABLE["rows"][1:]
    )
    plotted = drawn(papers, fields, tmp_path / "runs")
    assert plotted.series[0].x == pytest.approx((81, 91)) and plotted.series[0].published == ((88.0, 96.5, 0.5),)
    assert plotted.remarks[-1] == (
        "toys/one: 1 printed value(s) are left out: the paper's effective/sparsity is unknown."
    )


def test_what_only_the_paper_has_is_no_figure(papers: Path, tmp_path: Path) -> None:
    with pytest.raises(NotDrawn, match="would be empty"):
        drawn(papers, own(published=PUBLISHED), Collection({}))


# Curves


def test_curves_by_hand(papers: Path, tmp_path: Path) -> None:
    accuracies = {0: [10.0, 20.0, 40.0], 1: [30.0, "nan"]}  # epoch 3 is not shared
    for seed, values in accuracies.items():
        lines = [{"epoch": epoch, "test/accuracy": value} for epoch, value in enumerate(values, start=1)]
        write_run(tmp_path / "runs", SET90, seed, metrics=lines)
    write_run(tmp_path / "runs", SET90, 2, status="failed")
    plotted = drawn(papers, CURVES, tmp_path / "runs")
    (series,) = plotted.series
    assert series.x == (1.0, 2.0)
    assert series.mean[0] == 20.0 and math.isnan(series.mean[1])
    assert series.std[0] == pytest.approx(math.sqrt(200.0))  # (-10)^2 + 10^2 over n - 1 = 1
    assert plotted.remarks == (
        "toys/one: not drawn: dense/s90 (missing).",
        "toys/one: drawn from fewer runs than the table asks for: set/s90 (n=2).",
    )


def test_a_curve_per_cell_is_named_by_what_varies(papers: Path, tmp_path: Path) -> None:
    runs = some_runs(tmp_path / "runs")
    both = drawn(papers, {**CURVES, "columns": ["s80", "s90"]}, runs)
    assert [each.title for each in both.series] == ["Dense", "SET, 80 %", "SET, 90 %"]
    assert [each.reference for each in both.series] == [True, False, False]
    one_row = drawn(papers, {**CURVES, "rows": ["set"], "columns": ["s80", "s90"]}, runs)
    assert [(each.title, each.place) for each in one_row.series] == [("80 %", 0), ("90 %", 1)]
    turned = drawn(papers, {**CURVES, "columns": ["s80", "s90"], "series": "columns"}, runs)
    assert [each.title for each in turned.series] == ["Dense", "SET, 80 %", "SET, 90 %"]


def test_a_curve_can_come_from_the_series_of_the_summary(papers: Path, tmp_path: Path) -> None:
    for seed, values in enumerate(([0.5, 0.25, 0.0], [0.3, 0.15, 0.0])):
        recorded(tmp_path / "runs", SET90, seed, records=["mask_dynamics"], series={"mask/still_changing": values})
    fields = {**CURVES, "rows": ["set"], "metric": "mask/still_changing", "scale": 100, "records": ["mask_dynamics"]}
    (series,) = drawn(papers, fields, tmp_path / "runs").series
    assert series.x == (1.0, 2.0, 3.0) and series.mean == pytest.approx((40.0, 20.0, 0.0))
    fields["yscale"] = "log"
    remarks = drawn(papers, fields, tmp_path / "runs").remarks
    assert "toys/one: 1 value(s) of 0 or below do not show on a logarithmic axis." in remarks


def test_a_complete_run_without_its_record_is_named_with_the_mend(papers: Path, tmp_path: Path) -> None:
    lines = [{"epoch": epoch, "mask/iou": 0.5 * epoch} for epoch in (1, 2)]
    write_run(tmp_path / "runs", SET90, 0, metrics=lines)
    paths = [write_run(tmp_path / "runs", SET90, seed) for seed in (1, 2)]
    dense = recorded(tmp_path / "runs", DENSE, 0, records=["mask_dynamics"], series={})  # it has no masks
    fields = {**CURVES, "metric": "mask/iou", "records": ["mask_dynamics"]}
    plotted = drawn(papers, fields, tmp_path / "runs")
    assert [(each.title, each.mean) for each in plotted.series] == [("SET", (0.5, 1.0))]
    left_out, fewer, unrecorded = plotted.remarks
    assert left_out == "toys/one: not drawn: dense/s90 (no mask/iou by epoch)."
    assert fewer == "toys/one: drawn from fewer runs than the table asks for: set/s90 (n=1)."
    assert unrecorded == (
        f"toys/one: 2 complete run(s) have not recorded mask/iou: {paths[0]}, {paths[1]}. What is recorded is settled "
        "when a run begins: move them away and submit toys/first again, or repeat them with "
        "trainer.records=[mask_dynamics] into another runs root and name that first in --runs."
    )
    assert str(dense) not in " ".join(plotted.remarks)
    with pytest.raises(
        NotDrawn, match=r"would be empty: .* 1 complete run\(s\) have not recorded mask/iou: .*records="
    ):
        write_run(tmp_path / "more", SET90)
        drawn(papers, fields, tmp_path / "more")


def test_a_metric_without_history_is_named(papers: Path, tmp_path: Path) -> None:
    fields = {**CURVES, "metric": "test/loss", "rows": ["set"]}
    with pytest.raises(NotDrawn, match=r"^toys/one would be empty: toys/first has no run with a value for it yet\.$"):
        drawn(papers, fields, some_runs(tmp_path / "runs"))


# Layers and heatmaps


def test_layers_by_hand(papers: Path, tmp_path: Path) -> None:
    def layers(**nonzero: int) -> dict[str, Any]:
        return {f"{name}.weight": {"kept": 1, "nonzero": n, "total": 4} for name, n in nonzero.items()}

    recorded(tmp_path / "runs", SET80, 0, layers=layers(fc1=4, fc2=2))
    recorded(tmp_path / "runs", SET80, 1, layers=layers(fc1=2, fc2=2))
    recorded(tmp_path / "runs", SET90, 0, layers=layers(fc2=1, fc3=0))
    plotted = drawn(papers, {**LAYERS, "scale": 100}, tmp_path / "runs")
    assert plotted.names == ("fc1", "fc2", "fc3")
    s80, s90 = plotted.series
    assert (s80.title, s80.x, s80.mean) == ("80 %", (0.0, 1.0), (25.0, 50.0))
    assert s80.std == (pytest.approx(math.sqrt(1250)), 0.0)  # 0 and 50 %
    assert (s90.title, s90.x, s90.mean, s90.std) == ("90 %", (1.0, 2.0), (75.0, 100.0), (None, None))
    assert plotted.remarks == (
        "toys/one: drawn from fewer runs than the table asks for: set/s80 (n=2), set/s90 (n=1).",
    )
    fractions = drawn(papers, LAYERS, tmp_path / "runs").series[0]
    assert fractions.mean == (0.25, 0.5)


def test_a_heatmap_by_hand(papers: Path, tmp_path: Path) -> None:
    write_table(papers, published=PUBLISHED)
    plotted = drawn(papers, HEATMAP, some_runs(tmp_path / "runs"))
    assert plotted.grid == Grid(
        ("Dense", "SET"),
        ("80 %", "90 %"),
        ((99.5, 99.5), (0.0, 98.0)),
        (("99.50\n(99.9)", "99.50\n(99.9)"), ("0.00", "98.00\n(98.5 ± 0.2)")),
        "test/accuracy, %",
    )
    rows = drawn(papers, {**HEATMAP, "rows": ["set"]}, collect([tmp_path / "runs" / "toy" / "net" / "set"]))
    assert rows.remarks == ("toys/one: drawn from fewer runs than the table asks for: set/s80 (n=1).",)


def test_a_heatmap_says_why_a_place_is_empty(papers: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "runs", SET90)
    write_run(tmp_path / "runs", SET80, status="diverged")
    plotted = drawn(papers, {**HEATMAP, "rows": ["set"]}, tmp_path / "runs")
    assert plotted.grid is not None and plotted.grid.texts == (("diverged", "90.00"),)
    assert math.isnan(plotted.grid.values[0][0])
    assert "toys/one: not drawn: set/s80 (diverged)." in plotted.remarks


# Schedules


SCHEDULES = {
    "title": "Toys",
    "plot": "schedule",
    "kind": "config",
    "read": "method.final_threshold",
    "overrides": ["schedule.epochs=4", "schedule.lr='1:2 -> 0.2, 3:4 -> 0.1'", "method.final_threshold=2"],
    "rows": [
        {"id": "linear", "title": "Linear", "overrides": ["method=stds", "method.scheduler=linear"]},
        {"id": "lats", "title": "LATS", "overrides": ["method=lats", "method.learning_rate=run"]},
    ],
    "columns": [{"id": "d", "title": "d"}],
}


def test_schedules_by_hand(papers: Path) -> None:
    """From the configurations alone: 400 steps, of which the first 200 have twice the learning rate of the others."""

    def series(fields: dict[str, Any]) -> tuple[Series, ...]:
        (figure,) = choose(["toys/one"], write_figure(papers, fields))
        return plot(figure, Collection({}), None, compose, papers).series

    linear, lats = series(SCHEDULES)
    assert (linear.title, lats.title) == ("Linear", "LATS")
    assert linear.x == lats.x == pytest.approx([t / 400 for t in range(401)])
    assert linear.mean == pytest.approx([t / 200 for t in range(401)])
    assert [lats.mean[t] for t in (0, 100, 200, 300, 400)] == pytest.approx([0, 2 / 3, 4 / 3, 5 / 3, 2])
    linear, lats = series({**SCHEDULES, "quantity": "l1_penalty"})
    assert lats.mean == pytest.approx([1.0] * 400)
    assert linear.mean == pytest.approx([0.75] * 200 + [1.5] * 200)
    waiting = {**SCHEDULES["rows"][1], "needs": ["method=x"]}
    assert [each.title for each in series({**SCHEDULES, "rows": [SCHEDULES["rows"][0], waiting]})] == ["Linear"]
    with pytest.raises(Misuse, match=r"^toys/one/str/d: str has no threshold schedule; it cannot be drawn\.$"):
        rows = [{"id": "str", "title": "STR", "overrides": ["method=str"]}]
        series({**SCHEDULES, "read": "method.s_init", "rows": rows, "overrides": []})
    with pytest.raises(Misuse, match=r"unknown quantity 'threshhold'\. Did you mean 'threshold'"):
        series({**SCHEDULES, "quantity": "threshhold"})


def test_schedules_are_drawn_without_runs_and_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys, scripts.make_figures as f\n"
        f"assert f.main(['lats/figure1', '--runs', {str(tmp_path)!r}, '--out', {str(tmp_path)!r}]) == 0\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"lats_figure1.png", "lats_figure1.svg"}


# What is not there yet


@pytest.mark.parametrize("fields", [POINTS, CURVES, LAYERS, HEATMAP], ids=lambda fields: fields["plot"])
def test_an_empty_figure_is_a_sentence(papers: Path, fields: dict[str, Any]) -> None:
    with pytest.raises(NotDrawn, match=r"^toys/one would be empty: toys/first has no run with a value for it yet\.$"):
        drawn(papers, fields, Collection({}))


def test_a_figure_that_needs_something_says_what(papers: Path, tmp_path: Path) -> None:
    runs = some_runs(tmp_path / "runs")
    with pytest.raises(NotDrawn, match=r"^toys/one: needs: metric=a/b\.$"):
        drawn(papers, {**POINTS, "needs": ["metric=a/b"]}, runs)
    with pytest.raises(NotDrawn, match=r"^toys/one: needs: plot=strange\.$"):
        drawn(papers, {**POINTS, "needs": ["plot=strange"]}, runs)
    rows = [{**row, "needs": ["method=x"]} for row in TABLE["rows"]]
    with pytest.raises(NotDrawn, match=r"^toys/one: needs: model=y, method=x\.$"):
        drawn(papers, own(rows=rows, needs=["model=y"]), runs)
    with pytest.raises(NotDrawn, match=r"^toys/one: needs: method=x\.$"):
        drawn(papers, own(rows=rows), runs)
    plotted = drawn(papers, own(rows=[TABLE["rows"][0], rows[1]]), runs)
    assert [each.title for each in plotted.series] == ["Dense"]
    assert plotted.remarks == ("toys/one: not drawn: set/s80 (needs method=x), set/s90 (needs method=x).",)


def test_derived_cells_wait_for_what_they_are_made_of(papers: Path) -> None:
    rows = [
        {**TABLE["rows"][1], "needs": ["method=x"]},
        {"id": "half", "title": "half", "kind": "derived", "derive": "{set/s90} / 2"},
    ]
    write_table(papers, rows=rows)
    with pytest.raises(NotDrawn, match=r"^toys/one: needs: method=x\.$"):
        drawn(papers, {**POINTS, "rows": ["half"]}, Collection({}))


# What runs must record


def test_records_by_key_over_all_figures(papers: Path) -> None:
    iou = {**CURVES, "rows": ["set"], "metric": "mask/iou", "records": ["mask_dynamics"]}
    write_figure(papers, iou, "masks")
    write_figure(papers, own(plot="layers", rows=TABLE["rows"][1:], records=["layers"]), "layers")  # both columns
    write_figure(papers, {**iou, "needs": ["record=x"], "records": ["x", "mask_dynamics"], "columns": ["s80"]}, "later")
    write_figure(papers, POINTS, "points")
    (selection,) = select(["toys/first"], papers)

    def asked(*overrides: str, profile: str | None = None) -> dict[str, tuple[str, ...]]:
        slots = [replace(slot, overrides=(*slot.overrides, *overrides)) for slot in selection.slots(profile)]
        return records(slots, fake_compose, profile, papers)

    def key(*overrides: str) -> str:
        return identity.key(fake_compose(overrides))

    assert asked() == {key(*SET90): ("mask_dynamics", "layers"), key(*SET80): ("layers",)}
    short = asked(profile="short")
    assert short == {
        key(*SET90, "profile=short"): ("mask_dynamics", "layers"), key(*SET80, "profile=short"): ("layers",),
    }  # fmt: skip
    assert asked("method.sparsity=0.7") == {}  # other runs than the figures'
    only = [slot for slot in selection.slots() if slot.row.id == "dense"]
    assert records(only, fake_compose, None, papers) == {}
    runs = plan(selection.slots(), fake_compose)
    assert {run.key for run in runs} >= set(asked())


def test_no_figure_that_records_means_no_composing(papers: Path) -> None:
    write_figure(papers, POINTS)
    (selection,) = select(["toys/first"], papers)

    def never(overrides: Sequence[str]) -> dict[str, Any]:
        raise AssertionError("composed for nothing")

    assert records(selection.slots(), never, None, papers) == {}


def test_the_demos_runs_record_what_its_figures_draw() -> None:
    (selection,) = select(["demo/digits"])
    asked = records(selection.slots())
    set90 = ["experiment=demo/digits", "method=set", "method.sparsity=0.9"]
    assert asked[identity.key(compose(set90))] == ("mask_dynamics",)
    assert identity.key(compose([*set90[:2], "method.sparsity=0.8"])) not in asked
    assert identity.key(compose(["experiment=demo/digits", "method=dense"])) not in asked


def test_who_gives_which_metric() -> None:
    assert recorder_of("mask/iou") == recorder_of("mask/still_changing") == "mask_dynamics"
    assert recorder_of("layers:fc1") == recorder_of("mask_layers:fc1") == "layers"
    assert recorder_of("mask/sparsity") is None and recorder_of("test/accuracy") is None


def test_a_recorded_run_is_drawn(tmp_path: Path) -> None:
    """From the trainer's recorders to the series, through a real run."""
    given = [*TINY, "method=set", "method.count=40", "method.period=3"]
    config = compose([*given, "trainer.records=[mask_dynamics,layers]", f"runs={tmp_path / 'runs'}"])
    summary = execute(config, given)
    line = {"id": "set", "title": "SET", "overrides": given}
    cells = {"rows": [line], "columns": [{"id": "run", "title": "run"}], "seeds": [0], "direction": "up"}
    shown = {
        "iou": {"plot": "curves", "metric": "mask/iou", "records": ["mask_dynamics"]},
        "still": {"plot": "curves", "metric": "mask/still_changing", "records": ["mask_dynamics"]},
        "layer": {"plot": "curves", "metric": "layers:fc1", "records": ["layers"]},
        "layers": {"plot": "layers", "metric": "effective/sparsity"},
    }
    write_table(tmp_path / "papers")
    for name, fields in shown.items():
        write_figure(tmp_path / "papers", {"title": name, **cells, **fields}, name)
    runs = collect([tmp_path / "runs"])
    found = {
        figure.title: plot(figure, runs, papers=tmp_path / "papers").series[0]
        for figure in choose(["toys"], tmp_path / "papers")
    }
    assert found["iou"].x == found["still"].x == (1.0, 2.0, 3.0, 4.0)
    assert found["iou"].mean[-1] == summary["final"]["mask/iou"] < 1
    assert found["still"].mean == tuple(summary["series"]["mask/still_changing"]) and found["still"].mean[0] > 0
    assert found["layer"].mean[-1] == found["layers"].mean[0] == summary["final"]["layers:fc1"]
    assert len(found["layers"].mean) == 3


# Pictures


ALL = {"points": POINTS, "curves": CURVES, "layers": {**LAYERS, "rows": ["dense", "set"]}, "heatmap": HEATMAP}


def all_runs(root: Path) -> Path:
    some_runs(root)
    for path in root.rglob("summary.json"):
        change_json(path, layers={"a.weight": {"nonzero": 1, "total": 4}, "b.weight": {"nonzero": 4, "total": 4}})
    return root


@pytest.mark.parametrize("fields", ALL.values(), ids=ALL)
def test_files_are_written_and_the_same_runs_give_the_same_bytes(
    papers: Path, tmp_path: Path, fields: dict[str, Any]
) -> None:
    plotted = drawn(papers, {**fields, "title": "A <title> & more"}, all_runs(tmp_path / "runs"))
    first, second = draw.save(plotted, tmp_path / "a"), draw.save(plotted, tmp_path / "b")
    assert [path.name for path in first] == ["toys_one.png", "toys_one.svg"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert first[0].read_bytes().startswith(b"\x89PNG")
    svg = first[1].read_text()
    for text in ("A &lt;title&gt; &amp; more", "Dense", "SET"):
        assert text in svg


def test_what_is_drawn_is_what_was_measured(papers: Path, tmp_path: Path) -> None:
    axes = draw.draw(drawn(papers, POINTS, some_runs(tmp_path / "runs"))).axes[0]
    container = axes.containers[0]
    assert list(container.lines[0].get_ydata()) == [0.0, 98.0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["80 %", "90 %"]
    (bars,) = container.lines[2]
    alone, three = bars.get_segments()
    assert len(alone) == 0 and three[:, 1].tolist() == [97.0, 99.0]  # no bar for one run; mean - std, mean + std
    assert any(list(line.get_ydata()) == [99.5, 99.5] for line in axes.lines)


def test_the_paper_s_points_are_hollow_and_in_the_row_s_colour(papers: Path, tmp_path: Path) -> None:
    write_table(papers, published={"set": {"s80": "97.5", "s90": "96.5 ± 0.5"}})
    canvas = draw.draw(drawn(papers, {**POINTS, "rows": ["set"]}, some_runs(tmp_path / "runs")))
    measured, printed = canvas.axes[0].containers
    assert list(printed.lines[0].get_ydata()) == [97.5, 96.5]
    assert list(printed.lines[0].get_xdata()) == pytest.approx([0.8, 0.9])
    assert printed.lines[0].get_markerfacecolor() == "none" and printed.lines[0].get_linestyle() == "None"
    assert printed.lines[0].get_color() == measured.lines[0].get_color()
    assert [text.get_text() for text in canvas.legends[0].get_texts()] == ["SET", "paper"]


def test_references_are_black_and_the_legend_is_in_the_rows_order(papers: Path, tmp_path: Path) -> None:
    canvas = draw.draw(drawn(papers, CURVES, some_runs(tmp_path / "runs")))
    colours = {line.get_label(): to_hex(line.get_color()) for line in canvas.axes[0].lines}
    assert colours["Dense"] == "#000000" != colours["SET"]
    assert [text.get_text() for text in canvas.legends[0].get_texts()] == ["Dense", "SET"]


def test_a_heatmap_prints_its_values_the_first_row_above(papers: Path, tmp_path: Path) -> None:
    canvas = draw.draw(drawn(papers, HEATMAP, some_runs(tmp_path / "runs")))
    axes = canvas.axes[0]
    texts = {text.get_text(): text.get_position() for text in axes.texts}
    assert texts["0.00"] == (0.5, 1.5) and texts["98.00"] == (1.5, 1.5)
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["Dense", "SET"]
    assert np.array_equal(axes.collections[0].get_array().reshape(2, 2), [[99.5, 99.5], [0.0, 98.0]])


def plotted_by_hand(kind: str, series: Sequence[Series], **fields: Any) -> Plotted:
    names = fields.pop("names", ())
    (selection,) = select(["demo/digits"])
    of_figure = {
        "title": "t", "x": "x", "xlabel": "x", "ylabel": "y", "xscale": "linear", "yscale": "linear", "series": "rows",
        "records": (), "needs": (), "notes": (),
    } | fields  # fmt: skip
    figure = Figure(address="toys/one", kind=kind, selection=selection, **of_figure)
    return Plotted(figure, figure.title, None, tuple(series), names=names)


def series(x: Sequence[float], y: Sequence[float], title: str = "a", place: int = 0) -> Series:
    return Series(title, tuple(x), tuple(y), (None,) * len(x), place)


def test_a_density_axis_is_logarithmic_in_one_less_x() -> None:
    (axes,) = draw.draw(plotted_by_hand("points", [series((0.5, 0.75, 0.875), (1, 2, 3))], xscale="density")).axes
    heights = [float(axes.xaxis.get_transform().transform(x)) for x in (0.5, 0.75, 0.875)]
    assert [b - a for a, b in pairwise(heights)] == pytest.approx([math.log10(2)] * 2)
    many = [series([0.5 + 0.0499 * i for i in range(10)], range(10))]
    (axes,) = draw.draw(plotted_by_hand("points", many, xscale="density")).axes
    assert [label.get_text() for label in axes.get_xticklabels()][:3] == ["50 %", "60 %", "70 %"]


@pytest.mark.parametrize(
    "scale, x, sentence",
    [("density", 1.0, "a sparsity axis"), ("density", -0.1, "a sparsity"), ("log", 0.0, "a logarithmic axis")],
)
def test_an_x_that_an_axis_cannot_show_is_named(scale: str, x: float, sentence: str) -> None:
    with pytest.raises(Misuse, match=f"toys/one: x = {x:g} cannot be drawn on {sentence}"):
        draw.draw(plotted_by_hand("points", [series((0.5, x), (1, 2))], xscale=scale))


def test_a_log_axis_marks_few_positions_themselves() -> None:
    (axes,) = draw.draw(plotted_by_hand("points", [series((1, 30, 300, 3000), (1, 2, 3, 4))], xscale="log")).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "30", "300", "3000"]
    assert axes.get_xscale() == "log"


def test_a_logarithmic_y_begins_below_its_smallest_value() -> None:
    curve = [series(range(1, 5), (0.5, 0.25, 0.1, 0.0))]
    (axes,) = draw.draw(plotted_by_hand("curves", curve, yscale="log")).axes
    assert axes.get_yscale() == "log" and axes.get_ylim()[0] == pytest.approx(0.07)


def test_a_shortfall_axis_is_logarithmic_in_the_distance_to_100_percent(papers: Path, tmp_path: Path) -> None:
    plotted = drawn(papers, POINTS | {"yscale": "shortfall"}, some_runs(tmp_path / "runs"))
    (axes,) = draw.draw(plotted).axes
    forward = axes.yaxis.get_transform().transform
    heights = [float(forward(accuracy)) for accuracy in (80.0, 90.0, 95.0, 97.5)]
    gaps = [b - a for a, b in pairwise(heights)]
    assert gaps == pytest.approx([math.log(2)] * 3)
    assert set(axes.get_yticks()) <= set(draw._ACCURACIES)
    low, high = axes.get_ylim()
    assert low <= 0.0 and 99.5 <= high < 100


def test_names_of_layers_are_thinned_when_they_are_too_many() -> None:
    for count, shown in ((5, 5), (54, 54), (130, 65)):
        names = tuple(f"block{i}.conv" for i in range(count))
        (axes,) = draw.draw(plotted_by_hand("layers", [series(range(count), range(count))], names=names)).axes
        labels = axes.get_xticklabels()
        assert [label.get_text() for label in labels] == list(names[:: count // shown])
        assert labels[0].get_rotation() == (0 if count == 5 else 90)


def test_no_text_is_cut_and_the_legend_fits() -> None:
    lines = [series((1, 2), (1, 2), f"a rather long title of row {i}", i) for i in range(40)]
    plotted = plotted_by_hand("curves", lines, title="words " * 40, ylabel="quantity " * 30, xlabel="position " * 30)
    canvas = draw.draw(plotted)
    canvas.draw_without_rendering()
    (axes,), (legend,) = canvas.axes, canvas.legends
    box = legend.get_window_extent()
    for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
        assert text.get_text().count("\n") >= 1
        extent = text.get_window_extent()
        assert canvas.bbox.y0 <= extent.y0 and extent.y1 <= canvas.bbox.y1 and extent.x1 < box.x0
    assert axes._left_title.get_window_extent().x1 < box.x0
    assert canvas.bbox.y0 <= box.y0 and box.x1 <= canvas.bbox.x1


def test_a_profile_is_in_the_title_and_in_the_file_name(papers: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "runs", [*SET90, "profile=short"])
    plotted = drawn(papers, POINTS, tmp_path / "runs", "short")
    assert plotted.title.startswith("Toys (profile short: 20 epochs, bf16, ")
    assert [path.name for path in draw.save(plotted, tmp_path)] == ["toys_one.short.png", "toys_one.short.svg"]


def test_a_row_looks_the_same_whatever_else_is_drawn(papers: Path, tmp_path: Path) -> None:
    rows = [*TABLE["rows"], {"id": "static", "title": "Static", "overrides": ["method=static"]}]
    write_table(papers, rows=rows)
    for overrides in (["method=static", "method.sparsity=0.9"], SET90, DENSE):
        write_run(tmp_path / "runs", overrides)
    runs = collect([tmp_path / "runs"])
    places = {
        (each.title, each.place)
        for fields in (POINTS, {**POINTS, "rows": ["static"]}, CURVES, {**CURVES, "rows": ["dense", "static"]})
        for each in drawn(papers, fields, runs).series
    }
    assert places == {("Dense", 0), ("SET", 0), ("Static", 1)}


# Mistakes


@pytest.mark.parametrize(
    "fields, sentence",
    [
        ({**POINTS, "plot": "pie"}, "unknown plot 'pie'"),
        ({**POINTS, "plot": "point"}, "unknown plot 'point'. Did you mean 'points'?"),
        ({"title": "x", "table": "toys/first"}, "lacks the field 'plot'"),
        ({**POINTS, "tabel": "x"}, "unknown field 'tabel'. Did you mean 'table'?"),
        ({**POINTS, "table": "toys/frist"}, "There is no table 'toys/frist'. Did you mean 'toys/first'?"),
        ({**POINTS, "table": "toys/first/set"}, "it is an address PAPER/TABLE"),
        ({**POINTS, "rows": ["sett"]}, "toys/first has no row 'sett'. Did you mean 'set'?"),
        ({**POINTS, "columns": ["s91"]}, "toys/first has no column 's91'. Did you mean 's90'?"),
        ({**POINTS, "rows": "set"}, "rows must be a list of texts"),
        ({**POINTS, "rows": []}, "leave it out to draw them all"),
        ({**POINTS, "overrides": ["method=set"]}, "unknown field 'overrides'"),
        ({**POINTS, "scale": 100}, "has a scale but no metric that it belongs to"),
        ({**POINTS, "x": {"metrc": "a"}}, "unknown field 'metrc'. Did you mean 'metric'?"),
        ({**POINTS, "yscale": "shortfal"}, "unknown yscale 'shortfal'. Did you mean 'shortfall'?"),
        ({**POINTS, "xscale": "densty"}, "unknown xscale 'densty'. Did you mean 'density'?"),
        ({**POINTS, "series": "lines"}, "unknown series 'lines'"),
        ({**CURVES, "xscale": "density"}, "unknown xscale 'density'"),
        ({**CURVES, "x": "method.sparsity"}, "unknown field 'x'"),
        ({**LAYERS, "metric": "a/b"}, "unknown field 'metric'"),
        ({**CURVES, "records": ["mask_dynamic"]}, "unknown record 'mask_dynamic'. Did you mean 'mask_dynamics'?"),
        ({**CURVES, "metric": "mask/iou"}, "draws mask/iou by epoch; add records: [mask_dynamics]."),
        ({**CURVES, "metric": "layers:fc1", "records": ["mask_dynamics"]}, "add records: [layers]."),
        (own(metric=None), "has metric: None"),
        ({**own(), "rows": [{"id": "a"}]}, "lacks the field 'title'"),
        ({key: value for key, value in own().items() if key != "columns"}, "lacks the field 'columns'"),
        (own(plot="curves", kind="config", read="method.sparsity"), "is not made of runs; it has no curve"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_figure_file_is_named(papers: Path, fields: dict[str, Any], sentence: str) -> None:
    write_figure(papers, fields)
    with pytest.raises(Misuse) as caught:
        choose([], papers)
    assert sentence in str(caught.value)


def test_a_record_that_does_not_exist_yet_is_one_that_the_figure_needs(papers: Path) -> None:
    (figure,) = choose([], write_figure(papers, {**CURVES, "records": ["distance"], "needs": ["record=distance"]}))
    assert figure.records == ("distance",) and figure.needs == ("record=distance",)


# The project's own


def test_the_projects_figures_load() -> None:
    addresses = {figure.address for figure in choose()}
    demo = {f"demo/{name}" for name in ("digits", "digits_curves", "digits_masks", "digits_layers")}
    assert addresses >= {*demo, "dsr/lenet_mnist", "dsr/lenet_mnist_curves"}
    assert [figure.address for figure in choose(["demo/digits", "demo/digits"])] == ["demo/digits"]


@pytest.mark.parametrize("address", figures(), ids=str)
def test_no_figure_waits_for_what_is_there(address: str) -> None:
    """Plots, records and their metrics that have landed must be taken out of `needs`, or it is never drawn."""
    drawable = {f"plot={kind}" for kind in KINDS}
    for need in document.load(figures(PAPERS)[address]).get("needs", ()):
        assert need not in drawable | {f"record={name}" for name in RECORDERS}, need
        assert not need.startswith("metric=") or recorder_of(need.removeprefix("metric=")) is None, need


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs").mkdir()
    arguments = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    assert make_figures.main(["demo/digtis", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err == "There is no figure 'demo/digtis'. Did you mean 'demo/digits'?\n"
    assert make_figures.main(["demo/digits", *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "demo/digits would be empty: demo/digits has no run with a value for it yet.\n"
    assert make_figures.main(["dsr", "demo", *arguments]) == 0  # asked for all, those without runs are only named
    captured = capsys.readouterr()
    mine = [name for name in figures() if name.startswith(("dsr/", "demo/"))]
    assert captured.out == "" and len(captured.err.splitlines()) == len(mine) > 4
    assert not (tmp_path / "out").exists()


def test_of_all_figures_the_undrawn_ones_are_only_named(
    papers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_figure(papers, POINTS, "full")
    write_figure(papers, {**POINTS, "columns": ["s80"], "rows": ["dense"]}, "empty")
    write_figure(papers, {**POINTS, "needs": ["metric=a/b"]}, "later")
    write_run(tmp_path / "runs", SET90)
    monkeypatch.setattr(make_figures, "choose", lambda addresses: choose(addresses, papers))
    monkeypatch.setattr(
        make_figures, "plot", lambda figure, runs, profile: plot(figure, runs, profile, fake_compose, papers)
    )
    arguments = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    assert make_figures.main(arguments) == 0
    captured = capsys.readouterr()
    assert [Path(line).name for line in captured.out.splitlines()] == ["toys_full.png", "toys_full.svg"]
    assert "toys/empty would be empty" in captured.err and "set/s80 (missing)" in captured.err
    assert "toys/later: needs: metric=a/b.\n" in captured.err
    assert make_figures.main(["toys", *arguments]) == 0
    assert make_figures.main(["toys/full", *arguments]) == 0
    assert make_figures.main(["toys/full", "toys/later", *arguments]) == 1
    assert make_figures.main(["toys/empty", *arguments]) == 1
    write_figure(papers, {**POINTS, "x": "method.sparsty"}, "wrong")
    assert make_figures.main(arguments) == 2  # a mistake is a mistake; the others are drawn all the same
    captured = capsys.readouterr()
    assert "no 'method.sparsty'" in captured.err and "toys_full.png" in captured.out


def test_matplotlib_and_torch_are_not_loaded_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    arguments = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    code = (
        "import sys, scripts.make_figures as f\n"
        f"assert f.main(['demo', *{arguments!r}]) == 0\n"
        "print({'matplotlib', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "set()\n", done.stderr


@pytest.mark.parametrize(("xs", "own"), [([1.0, 10.0, 30.0], True), ([0.0, 53.6207, 85.3829], False)])
def test_positions_are_labelled_where_they_are_choices_not_measured(xs: list[float], own: bool) -> None:
    axes = Canvas().subplots()
    axes.plot(xs, xs)
    draw._xticks(axes, xs, "linear")
    assert (list(axes.get_xticks()) == xs) is own
