"""The IteRand paper's tables and figures share the runs that they should; those of ours train what they say."""

from __future__ import annotations

from typing import Any

import pytest

from results import document
from results.address import figures, load, select
from results.table import Table
from runner.compose import compose, identify
from runner.identity import parent_config


def table(name: str) -> Table:
    path = figures().get(f"iterand/{name}")
    return load(path) if path is not None else select([f"iterand/{name}"])[0].table


def keys(name: str, profile: str | None = None) -> dict[tuple[str, str], str]:
    """Row and column -> the key of its runs."""
    slots = [slot for slot in table(name).slots(profile) if slot.settings.kind == "runs"]
    return {(slot.row.id, slot.column.id): identify(slot.overrides).key for slot in slots}


def test_one_setting_in_two_tables_is_one_run() -> None:
    widths, sparsities, narrow = keys("table3"), keys("table6"), keys("table8")
    for method in ("iterand", "edge_popup"):
        assert sparsities[f"conv6_{method}", "p50"] == widths[f"conv6_{method}_sc", "w100"]
        for column in ("w050", "w100"):
            assert narrow[method, column] == widths[f"resnet18_{method}_ku", column]
        assert keys("table5")[method, "time"] == widths[f"resnet18_{method}_sc", "w100"]
        for panel, network in (("a", "conv6"), ("b", "resnet18"), ("c", "resnet34")):
            assert keys(f"figure1{panel}")[method, "k300"] == widths[f"{network}_{method}_ku", "w100"]
    assert keys("figure2")["r01", "k300"] == widths["resnet18_iterand_ku", "w100"]
    assert keys("figure2_validation") == keys("figure2")


def test_different_settings_are_different_runs() -> None:
    for name, runs in (("table3", 60), ("table4", 8), ("table6", 28), ("table7", 30), ("table10", 6), ("figure2", 16)):
        assert len(set(keys(name).values())) == runs
    for panel in "abc":
        assert len(set(keys(f"figure1{panel}").values())) == 5 + 1


@pytest.mark.parametrize("network", ["vgg11", "resnet20"])
def test_magnitude_pruning_retrains_three_times(network: str) -> None:
    """Dense training, then three rounds of as many epochs, each from the initial weights in what the last one left."""
    slots = {slot.column.id: slot for slot in table("table7").slots() if slot.row.id == f"{network}_imp"}
    for column, sparsity in (("p50", 0.5), ("p99", 0.99)):
        stages: list[Any] = [compose(slots[column].overrides)]
        while (parent := parent_config(stages[0])) is not None:
            stages.insert(0, parent)
        left = [1 - stage["method"].get("sparsity", 0.0) for stage in stages]
        assert left == pytest.approx([(1 - sparsity) ** (n / 3) for n in range(4)])
        assert [stage["schedule"]["epochs"] for stage in stages] == [160] * 4
        assert [stage["model"]["name"] for stage in stages] == [network] * 4
        assert [stage["start"]["take"] for stage in stages[1:]] == ["mask"] * 3


def test_the_main_parts_figures_draw_tables_3_and_4() -> None:
    paths = figures()
    panels = [document.load(paths[f"iterand/main_figure2_{name}"]) for name in ("conv6", "resnet18", "resnet34")]
    assert [row for panel in panels for row in panel["rows"]] == [row.id for row in table("table3").rows]
    assert all(panel["table"] == "iterand/table3" and panel["columns"][0] == "w025" for panel in panels)
    assert all(panel["columns"] == [c.id for c in table("table3").columns][1:] for panel in panels)
    figure, printed = table("main_figure3"), table("table4")
    for (method, network), own in keys("main_figure3").items():
        cell = figure.published[method, network]
        row = f"{network}_{method}"
        if (row, "accuracy") in printed.published:
            assert cell.text == printed.published[row, "accuracy"].text
            assert own == keys("table4")[row, "accuracy"]
        else:
            assert cell.mark == "absent", row


def test_the_reviews_are_table_10s_lstm_cut_short() -> None:
    own, whole = keys("reviews", "short_text"), keys("table10", "short_text")
    for row in ("sgd", "edge_popup", "iterand"):
        assert own[row, "accuracy"] == own[row, "validation"] == whole["lstm", row]
        assert keys("reviews")[row, "accuracy"] != own[row, "accuracy"]
    for slot in table("reviews").slots("short_text"):
        config = compose(slot.overrides)
        assert (config["schedule"]["epochs"], config["dataset"]["max_length"]) == (3, 200)
        assert (config["dataset"]["name"], config["dataset"]["train_subset"]) == ("imdb", None)
        assert config["model"]["bidirectional"] is False


def test_the_narrow_table_is_table_3_at_its_least_width() -> None:
    found: dict[str, Any] = {}
    for slot in table("narrow").slots("short"):
        config = compose(slot.overrides)
        model, method, schedule, dataset = (config[group] for group in ("model", "method", "schedule", "dataset"))
        assert (model["name"], model["width"], model["init"]) == ("conv6", 0.25, "kaiming_uniform")
        assert (schedule["epochs"], dataset["train_subset"], dataset["validation"]) == (20, 20_000, 5000)
        assert schedule["lr"] == (0.01 if method["name"] == "dense" else 0.2)
        assert method.get("period", 300) == 300 and method.get("rate", 0.1) == 0.1 and method.get("pruned", 0.5) == 0.5
        assert list(slot.settings.seeds) == [0, 1, 2]
        found[slot.row.id] = method["name"], method.get("draw")
    assert found == {
        "sgd": ("dense", None),
        "edge_popup_sc": ("edge_popup", "signed_constant"),
        "edge_popup_ku": ("edge_popup", "kaiming_uniform"),
        "iterand_sc": ("iterand", "signed_constant"),
        "iterand_ku": ("iterand", "kaiming_uniform"),
    }


@pytest.mark.parametrize("name", ["narrow_period", "narrow_figure1"])
def test_the_sweep_of_periods_differs_in_nothing_else(name: str) -> None:
    runs, narrow = keys(name, "short"), keys("narrow", "short")
    row = "validation" if name == "narrow_period" else "iterand"
    slots = [slot for slot in table(name).slots("short") if slot.row.id == row]
    methods = {slot.column.id: compose(slot.overrides)["method"] for slot in slots}
    periods = {column: method.pop("period") for column, method in methods.items()}
    assert periods == {f"k{period}": period for period in (1, 30, 300, 1000, 3000)}
    assert all(method == methods["k300"] for method in methods.values())
    assert runs[row, "k300"] == narrow["iterand_ku", "accuracy"]
    assert len({runs[row, column] for column in periods}) == 5
    if name == "narrow_figure1":
        assert {runs["edge_popup", column] for column in periods} == {narrow["edge_popup_ku", "accuracy"]}
        assert {runs["iterand", column] for column in periods} == set(keys("narrow_period", "short").values())
