"""Figures: the numbers behind every mark, what is left out and named, and files that can be looked at."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from results import draw
from results.collect import Collection, collect
from results.figure import choose, plot
from runner.errors import Misuse
from scripts import make_figures
from tests.test_results_cells import SET90, TABLE, write_table
from tests.test_results_records import fake_compose, write_run

SPARSITY = {"title": "Toys", "kind": "sparsity_accuracy", "table": "toys/first", "ylabel": "accuracy"}
CURVES = {"title": "Toys", "kind": "curves", "table": "toys/first", "columns": ["s90"]}


def write_figure(papers: Path, fields: dict[str, Any], name: str = "one") -> Path:
    path = papers / "toys" / "figures" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(fields))
    return papers


@pytest.fixture
def papers(tmp_path: Path) -> Path:
    return write_table(tmp_path / "papers")


def some_runs(root: Path) -> Collection:
    for seed, accuracy in enumerate((97.0, 98.0, 99.0)):
        write_run(root, SET90, seed, accuracy=accuracy)
        write_run(root, ["method=dense"], seed, accuracy=99.0 + 0.5 * seed)
    write_run(root, ["method=set", "method.sparsity=0.8"], seed=1, accuracy=0.0)
    return collect([root])


def test_sparsity_series_by_hand(papers: Path, tmp_path: Path) -> None:
    (figure,) = choose(["toys/one"], write_figure(papers, SPARSITY))
    plotted = plot(figure, some_runs(tmp_path / "runs"), None, fake_compose, papers)
    dense, sparse = plotted.series
    assert (dense.title, dense.flat, dense.mean, dense.std) == ("Dense", True, (99.5,), (0.5,))
    assert (sparse.title, sparse.flat, sparse.x) == ("SET", False, (0.8, 0.9))
    assert (sparse.mean, sparse.std) == ((0.0, 98.0), (None, 1.0))
    assert plotted.remarks == ("toys/one: drawn from fewer runs than the table asks for: set/s80 (n=1).",)


def test_missing_and_non_finite_cells_are_left_out_and_named(papers: Path, tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        write_run(tmp_path / "runs", SET90, seed, accuracy="nan")
        write_run(tmp_path / "runs", ["method=set", "method.sparsity=0.8"], seed)
    (figure,) = choose([], write_figure(papers, SPARSITY))
    plotted = plot(figure, collect([tmp_path / "runs"]), None, fake_compose, papers)
    assert [(series.title, series.x) for series in plotted.series] == [("SET", (0.8,))]
    assert plotted.remarks == ("toys/one: not drawn: dense/s80 (missing), set/s90 (nan).",)


def test_curves_by_hand(papers: Path, tmp_path: Path) -> None:
    accuracies = {0: [10.0, 20.0, 40.0], 1: [30.0, "nan"]}  # epoch 3 is not shared
    for seed, values in accuracies.items():
        lines = [{"epoch": epoch, "test/accuracy": value} for epoch, value in enumerate(values, start=1)]
        write_run(tmp_path / "runs", SET90, seed, metrics=lines)
    write_run(tmp_path / "runs", SET90, 2, status="failed")
    (figure,) = choose([], write_figure(papers, CURVES))
    plotted = plot(figure, collect([tmp_path / "runs"]), None, fake_compose, papers)
    (series,) = plotted.series
    assert series.x == (1.0, 2.0)
    assert series.mean[0] == 20.0 and math.isnan(series.mean[1])
    assert series.std[0] == pytest.approx(math.sqrt(200.0))  # (-10)^2 + 10^2 over n - 1 = 1
    assert plotted.remarks == (
        "toys/one: not drawn: dense/s90 (missing).",
        "toys/one: drawn from fewer runs than the table asks for: set/s90 (n=2).",
    )


def test_a_metric_without_history_is_named(papers: Path, tmp_path: Path) -> None:
    (figure,) = choose([], write_figure(papers, {**CURVES, "metric": "test/loss", "rows": ["set"]}))
    with pytest.raises(Misuse, match=r"toys/one would be empty"):
        plot(figure, some_runs(tmp_path / "runs"), None, fake_compose, papers)
    other = write_figure(papers, {**CURVES, "metric": "best:test/accuracy", "rows": ["set"]})
    with pytest.raises(Misuse):
        plot(choose([], other)[0], some_runs(tmp_path / "more"), None, fake_compose, papers)


@pytest.mark.parametrize("fields", [SPARSITY, CURVES])
def test_an_empty_figure_is_a_sentence(papers: Path, fields: dict[str, Any]) -> None:
    (figure,) = choose([], write_figure(papers, fields))
    with pytest.raises(Misuse, match=r"^toys/one would be empty: toys/first has no run with a value for it yet\.$"):
        plot(figure, Collection({}), None, fake_compose, papers)


@pytest.mark.parametrize("fields", [SPARSITY, CURVES])
def test_files_are_written_and_the_same_runs_give_the_same_bytes(
    papers: Path, tmp_path: Path, fields: dict[str, Any]
) -> None:
    (figure,) = choose([], write_figure(papers, {**fields, "title": "A <title> & more"}))
    plotted = plot(figure, some_runs(tmp_path / "runs"), None, fake_compose, papers)
    first, second = draw.save(plotted, tmp_path / "a"), draw.save(plotted, tmp_path / "b")
    assert [path.name for path in first] == ["toys_one.png", "toys_one.svg"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert first[0].read_bytes().startswith(b"\x89PNG")
    svg = first[1].read_text()
    for text in ("A &lt;title&gt; &amp; more", "Dense", "SET"):
        assert text in svg


def test_what_is_drawn_is_what_was_measured(papers: Path, tmp_path: Path) -> None:
    (figure,) = choose([], write_figure(papers, SPARSITY))
    axes = draw.draw(plot(figure, some_runs(tmp_path / "runs"), None, fake_compose, papers)).axes[0]
    container = axes.containers[0]
    assert list(container.lines[0].get_ydata()) == [0.0, 98.0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["80 %", "90 %"]
    (bars,) = container.lines[2]
    alone, three = bars.get_segments()
    assert len(alone) == 0 and three[:, 1].tolist() == [97.0, 99.0]  # no bar for one run; mean - std, mean + std
    assert any(list(line.get_ydata()) == [99.5, 99.5] for line in axes.lines)


def test_a_profile_is_in_the_title_and_in_the_file_name(papers: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "runs", [*SET90, "profile=short"])
    (figure,) = choose([], write_figure(papers, SPARSITY))
    plotted = plot(figure, collect([tmp_path / "runs"]), "short", fake_compose, papers)
    assert plotted.title == "Toys (profile short)"
    assert [path.name for path in draw.save(plotted, tmp_path)] == ["toys_one.short.png", "toys_one.short.svg"]


def test_a_row_looks_the_same_whatever_else_is_drawn(papers: Path, tmp_path: Path) -> None:
    rows = [*TABLE["rows"], {"id": "static", "title": "Static", "overrides": ["method=static"]}]
    write_table(papers, rows=rows)
    write_run(tmp_path / "runs", ["method=static", "method.sparsity=0.9"])
    write_run(tmp_path / "runs", SET90)
    runs = collect([tmp_path / "runs"])
    both, alone = (
        plot(choose([], write_figure(papers, fields))[0], runs, None, fake_compose, papers).series
        for fields in (SPARSITY, {**SPARSITY, "rows": ["static"]})
    )
    assert [series.place for series in both] == [0, 1] and [series.place for series in alone] == [1]


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"kind": "pie"}, "unknown kind 'pie'"),
        ({"tabel": "x"}, "unknown field 'tabel'. Did you mean 'table'?"),
        ({"table": "toys/frist"}, "There is no table 'toys/frist'. Did you mean 'toys/first'?"),
        ({"table": "toys/first/set"}, "it is an address PAPER/TABLE"),
        ({"rows": ["sett"]}, "toys/first has no row 'sett'. Did you mean 'set'?"),
        ({"columns": ["s91"]}, "toys/first has no column 's91'. Did you mean 's90'?"),
        ({"rows": "set"}, "it is a list of ids"),
        ({"kind": "curves"}, "draws curves of one column"),
    ],
)
def test_a_mistake_in_a_figure_file_is_named(papers: Path, changes: dict[str, Any], sentence: str) -> None:
    write_figure(papers, {**SPARSITY, **changes})
    with pytest.raises(Misuse) as caught:
        choose([], papers)
    assert sentence in str(caught.value)


def test_the_projects_figures_load() -> None:
    addresses = {figure.address for figure in choose()}
    assert addresses >= {"demo/digits", "demo/digits_curves", "dsr/lenet_mnist", "dsr/lenet_mnist_curves"}
    assert [figure.address for figure in choose(["demo/digits", "demo/digits"])] == ["demo/digits"]


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
    assert not (tmp_path / "out").exists()


def test_of_all_figures_the_empty_ones_are_only_named(
    papers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_figure(papers, SPARSITY, "full")
    write_figure(papers, {**SPARSITY, "columns": ["s80"], "rows": ["dense"]}, "empty")
    write_run(tmp_path / "runs", SET90)
    monkeypatch.setattr(make_figures, "choose", lambda addresses: choose(addresses, papers))
    monkeypatch.setattr(make_figures, "plot", lambda f, runs, profile: plot(f, runs, profile, fake_compose, papers))
    arguments = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    assert make_figures.main(arguments) == 0
    captured = capsys.readouterr()
    assert [Path(line).name for line in captured.out.splitlines()] == ["toys_full.png", "toys_full.svg"]
    assert "toys/empty would be empty" in captured.err and "set/s80 (missing)" in captured.err
    assert make_figures.main(["toys", *arguments]) == 1


def test_a_shortfall_axis_is_logarithmic_in_the_distance_to_100_percent(papers: Path, tmp_path: Path) -> None:
    (figure,) = choose(["toys/one"], write_figure(papers, SPARSITY | {"yscale": "shortfall"}))
    plotted = plot(figure, some_runs(tmp_path / "runs"), None, fake_compose, papers)
    (axes,) = draw.draw(plotted).axes
    forward = axes.yaxis.get_transform().transform
    heights = [float(forward(accuracy)) for accuracy in (80.0, 90.0, 95.0, 97.5)]
    gaps = [b - a for a, b in pairwise(heights)]
    assert gaps == pytest.approx([math.log(2)] * 3)
    assert set(axes.get_yticks()) <= set(draw._ACCURACIES)
    low, high = axes.get_ylim()
    assert low <= 0.0 and 99.5 <= high < 100


def test_an_unknown_scale_is_named(papers: Path) -> None:
    with pytest.raises(Misuse, match="Did you mean 'shortfall'"):
        choose(["toys/one"], write_figure(papers, SPARSITY | {"yscale": "shortfal"}))
