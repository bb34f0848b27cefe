"""The committed records: whole, clean, and still those that today's configurations ask for."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from results.address import select
from results.collect import LOGGED, collect
from results.engines import FOLDER as ENGINES
from results.engines import IDENTITY, untrained
from results.fill import fill
from results.plan import plan
from runner.compose import compose
from runner.identity import key

RECORDS = sorted(LOGGED.rglob("seed*.json"))


@pytest.fixture(scope="module")
def records() -> dict[Path, dict[str, Any]]:
    return {path: json.loads(path.read_text()) for path in RECORDS}


@pytest.mark.parametrize(
    ("address", "profile", "runs", "epochs"),
    [
        ("dsr/lenet_mnist", None, 78, {100, 40}),
        ("dpf/narrow", "short", 18, {20, 4}),
        ("acdc/narrow", "short", 6, {20}),
        ("demo/wikitext2", None, 6, {12}),
        ("lats/lenet_mnist", None, 51, {30}),
        ("lats/narrow", "short", 15, {20}),
        ("iterand/reviews", "short_text", 3, {3}),
        ("iterand/narrow", "short", 15, {20}),
        ("iterand/narrow_period", "short", 5, {20}),
    ],
)
def test_a_measured_table_has_all_its_runs(
    address: str, profile: str | None, runs: int, epochs: set[int], records: dict[Path, dict[str, Any]]
) -> None:
    """Those that its cells ask for today, completed, and the parents that they began from."""
    (selection,) = select([address])
    asked = plan(selection.slots(profile))
    found = {(r["summary"]["key"], r["config"]["seed"]): r["summary"] for r in records.values()}
    ends = [found[run.key, run.seed] for run in asked]
    assert len(ends) == runs and {end["epochs"] for end in ends} == epochs
    assert {end["status"] for end in ends} == {"completed"}
    assert {(run.parent, run.seed) for run in asked if run.parent} <= set(found)


def test_the_narrow_networks_have_exact_masks(records: dict[Path, dict[str, Any]]) -> None:
    nets = [r for r in records.values() if r["config"]["method"]["name"] == "dpf"]
    assert nets and {r["summary"]["final"]["mask/sparsity"] for r in nets} == {1 - 3384 / 67672}


def test_the_compact_network_is_that_of_its_record(records: dict[Path, dict[str, Any]]) -> None:
    (path,) = LOGGED.rglob("compact.json")
    compact, trained = json.loads(path.read_text()), records[path.with_name("seed0.json")]
    assert compact["key"] == path.parent.name == trained["summary"]["key"]
    assert compact["outputs"]["equal"] and compact["outputs"]["other_predictions"] == 0
    convolutions = trained["summary"]["layers"].values()
    assert compact["filters"]["all"] == sum(layer["shape"][0] for layer in convolutions) + 10  # and the classifier's
    assert compact["filters"]["left"] > compact["filters"]["all"] - compact["filters"]["zero"]


def test_the_times_of_inference_are_those_of_their_table() -> None:
    """Of every network that acdc/engines composes, once, and of no other; outputs equal, no other engine inside."""
    (path,) = ENGINES.glob("*.json")
    record = json.loads(path.read_text())
    (selection,) = select(["acdc/engines"])
    asked = {slot.row.id: untrained(compose(list(slot.overrides))) for slot in selection.slots()}
    assert [{name: network[name] for name in IDENTITY} for network in record["networks"]] == list(asked.values())
    assert record["environment"]["git"]["dirty"] is False and "never trained" in record["weights"]
    assert not [text for text in strings(record) if text.startswith("/")]
    for network in record["networks"]:
        assert set(network["times"]) == {"onnxruntime", "openvino", "deepsparse"}
        assert network["zeros"]["exported"] == network["zeros"]["model"]
        assert network["weights"]["left"] == network["weights"]["all"] - network["zeros"]["model"]
        pruned = network["pruning"]["sparsity"] > 0
        assert (network["weights"]["left"] < 0.3 * network["weights"]["all"]) == pruned
        for engine, times in network["times"].items():
            for time in times.values():
                assert time["equal"] and 0 <= time["difference"] < 1e-4
                assert time["least"] <= time["ms"] <= time["greatest"]
                assert pruned or set(time["speedup"].values()) == {1.0}
                assert engine != "deepsparse" or time["own_operators"] == 1.0
    sheet = fill(selection, collect([]))
    for slot, network in zip(asked, record["networks"], strict=True):
        cells = {column: sheet.cells[slot, column].text for column in ("macs", "deepsparse_1")}
        assert cells["deepsparse_1"] == f"{network['times']['deepsparse']['batch1_threads2']['ms']:.1f}"
        assert cells["macs"] == f"{100 * network['macs']['left'] / network['macs']['all']:.1f}%"


def test_every_record_hashes_to_its_place_and_composes_to_its_key(records: dict[Path, dict[str, Any]]) -> None:
    """Neither a new option nor a changed default may orphan a record; a changed number raises a revision."""
    for path, record in records.items():
        assert key(record["config"]) == path.parent.name == record["summary"]["key"], path
        assert key(compose(record["overrides"])) == path.parent.name, path
        assert path.stem == f"seed{record['config']['seed']}"


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings(item)
    elif isinstance(value, str):
        yield value


def test_records_are_of_committed_code_and_hold_no_paths(records: dict[Path, dict[str, Any]]) -> None:
    for path, record in records.items():
        assert record["environment"]["git"]["dirty"] is False, path
        assert not [text for text in strings(record) if "=/" in text or text.startswith("/")], path


def test_dense_and_dsr_lie_where_the_literature_has_them(records: dict[Path, dict[str, Any]]) -> None:
    def accuracies(method: str, *sparsities: float) -> list[float]:
        return [
            r["summary"]["final"]["test/accuracy"]
            for r in records.values()
            if r["config"]["dataset"]["name"] == "mnist"
            and r["config"]["schedule"]["epochs"] == 100
            and r["config"]["method"]["name"] == method
            and r["config"]["method"].get("sparsity", 0) in sparsities
        ]

    dense = accuracies("dense", 0)
    assert len(dense) == 3 and all(98.2 <= value <= 98.5 for value in dense)
    dsr = accuracies("dsr", 0.9, 0.95)
    assert len(dsr) == 6 and min(dsr) > sum(dense) / 3 - 1
