"""The printed sparsity budgets of Chen et al. 2023 (tables 10 to 15) against the sizes of the networks built here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from methods.allocation import prunable_weights
from models.report import build
from results.address import find_slot, select
from results.collect import collect
from results.fill import fill
from results.table import Table
from runner.compose import compose, identify
from runner.execute import execute

# Layers; columns of which all rows are legible; columns whose printed Overall is a misprint.
TABLES: dict[str, tuple[int, int, set[str]]] = {
    "table10": (54, 0, set()),
    "table11": (54, 7, set()),
    "table12": (28, 4, set()),
    "table13": (54, 4, set()),
    "table14": (21, 9, {"d7.0"}),
    "table15": (21, 5, set()),
}
#: Rounding to two decimals, of Overall and of each row.
ROUNDED = 0.01


def printed(name: str) -> Table:
    (selection,) = select([f"lats/{name}"])
    return selection.table


def layers(table: Table) -> dict[str, str]:
    """Row -> the layer that it prints."""
    found = {row.id: row.settings.metric or "" for row in table.rows}
    return {row: metric.removeprefix("layers:") for row, metric in found.items() if metric.startswith("layers:")}


def sizes(table: Table) -> dict[str, int]:
    """Layer -> its number of weights, of the network that the table's runs train."""
    config = compose(find_slot(f"{table.address}/accuracy/{table.columns[0].id}").overrides)
    with torch.device("meta"):
        model = build(config["model"], (3, 224, 224), 1000)
    weights = prunable_weights(model, config["method"]["keep_dense"])
    return {name.removesuffix(".weight"): weight.numel() for name, weight in weights.items()}


@pytest.mark.parametrize("name", TABLES)
def test_the_networks_have_the_layers_that_are_printed_in_their_order(name: str) -> None:
    found = list(layers(printed(name)).values())
    assert found == list(sizes(printed(name))) and len(found) == TABLES[name][0]


@pytest.mark.parametrize("name", TABLES)
def test_overall_is_the_mean_of_the_layers_weighted_by_their_sizes(name: str) -> None:
    """To the digits that are printed, in every column without damage; where rows are damaged, the rest can be that."""
    table, weights = printed(name), sizes(printed(name))
    _, whole, misprints = TABLES[name]
    total = sum(weights.values())
    legible = 0
    for column in table.columns:
        overall = table.published["overall", column.id].mean
        assert overall is not None
        cells = {layer: table.published[row, column.id] for row, layer in layers(table).items()}
        known = {layer: cell.mean for layer, cell in cells.items() if cell.mean is not None}
        zero = sum(weights[layer] * sparsity for layer, sparsity in known.items())
        unknown = total - sum(weights[layer] for layer in known)
        if unknown:
            rest = (overall * total - zero) / unknown  # the sparsity that the damaged rows must have together
            assert 50 < rest < 100, column.id
            continue
        legible += 1
        assert (abs(zero / total - overall) > ROUNDED) == (column.id in misprints), (column.id, zero / total)
    assert legible == whole


def test_what_is_in_overall_matters() -> None:
    """The check can fail: without the classifier no column of table 13 adds up."""
    table, weights = printed("table13"), sizes(printed("table13"))
    kept = {layer: size for layer, size in weights.items() if layer != "fc"}
    for column in table.columns:
        rows = {layer: table.published[row, column.id].mean or 0.0 for row, layer in layers(table).items()}
        mean = sum(size * rows[layer] for layer, size in kept.items()) / sum(kept.values())
        assert abs(mean - (table.published["overall", column.id].mean or 0.0)) > 10 * ROUNDED


def test_zeroed_layers_of_table_4_are_the_full_rows_of_table_13() -> None:
    budgets, table = printed("table13"), printed("table4")
    for column in table.columns:
        empty = [row for row in layers(budgets) if budgets.published[row, column.id].mean == 100]
        assert table.published["zeroed_layers", column.id].mean == len(empty)
        for row in ("accuracy", "overall"):
            twin = "sparsity" if row == "overall" else row
            assert budgets.published[row, column.id] == table.published[twin, column.id]


def test_tables_that_print_one_run_print_one_sparsity() -> None:
    """Tables 2, 3, 4, 6 and 10 to 13: cells of the same configuration, whichever final threshold they take it from."""
    prints: dict[str, dict[str, float]] = {}
    for selection in select(["lats"]):
        for slot in selection.table.slots():
            value = slot.published.mean if slot.published is not None else None
            measured = slot.settings.kind == "runs" and slot.settings.metric == "effective/sparsity"
            if measured and slot.calibrated and value is not None:
                prints.setdefault(identify(slot.overrides).key, {})[slot.address] = value
    several = [cells for cells in prints.values() if len(cells) > 1]
    assert len(several) == 9 + 7 + 4 + 4  # of tables 10, 11, 12 and 13
    assert [cells for cells in several if len(set(cells.values())) > 1] == []


def test_budgets_come_from_the_records_of_runs(tmp_path: Path) -> None:
    """A small SEW ResNet trained with S-LATS: every layer, Overall and the zeroed layers, from its record alone."""
    given = ["model=sew_resnet_small", "model.width=2", "model.timesteps=2", "dataset=synthetic",
             "dataset.shape=[3,8,8]", "dataset.train_size=20", "dataset.test_size=7", "schedule.batch_size=10",
             "schedule.epochs=2", "method=s_lats", "method.final_threshold=0.3"]  # fmt: skip
    summary = execute(compose([*given, f"runs={tmp_path / 'runs'}"]), given)
    names = [name.removesuffix(".weight") for name in summary["layers"]]
    rows: list[dict[str, Any]] = [{"id": "overall", "title": "Overall"}, {"id": "zeroed", "title": "Zeroed layers",
            "metric": "effective/zeroed_layers", "scale": 1}]  # fmt: skip
    rows += [{"id": name, "title": name, "metric": f"layers:{name}"} for name in names]
    content = {
        "title": "Budgets",
        "metric": "effective/sparsity",
        "scale": 100,
        "direction": "up",
        "seeds": [0],
        "overrides": given,
        "rows": rows,
        "columns": [{"id": "d", "title": "D = 0.3"}],
    }
    path = tmp_path / "papers" / "own" / "budgets.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(yaml.safe_dump(content))
    (selection,) = select(["own"], tmp_path / "papers")
    sheet = fill(selection, collect([tmp_path / "runs"]), papers=tmp_path / "papers")
    found = {row: cell.mean for (row, _), cell in sheet.cells.items()}
    counts = {name: summary["layers"][f"{name}.weight"] for name in names}
    assert len(names) == 10 and {"conv1", "fc", "layer2.0.downsample.0.0"} <= set(names)
    for name in names:
        assert found[name] == pytest.approx(100 * (1 - counts[name]["nonzero"] / counts[name]["total"]))
    total = sum(count["total"] for count in counts.values())
    mean = sum((found[name] or 0.0) * counts[name]["total"] for name in names) / total
    assert found["overall"] == pytest.approx(mean) and 0 < mean < 100
    assert found["zeroed"] == sum(count["nonzero"] == 0 for count in counts.values())
