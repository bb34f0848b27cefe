"""The counts in the manuals: those of the files and of the committed records, never written by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from results import status
from results.address import select
from results.benchmarks import benchmarks
from results.collect import LOGGED, Collection, collect
from runner.bench.figures import spread
from runner.bench.record import record
from runner.compose import names


def test_the_manuals_say_what_is_counted_now() -> None:
    parts = status.parts(collect([LOGGED]))
    assert [sorted(texts) for texts in parts.values()] == [["choices", "status"], ["bench"], ["differing", "measured"]]
    for file, texts in parts.items():
        text = file.read_text()
        assert status.written(text, texts) == text, f"{file}: python -m results.status"


def test_every_choice_says_what_it_is() -> None:
    lines = status.choices().splitlines()
    for group in ("method", "model", "dataset"):
        for name in names(group):
            assert sum(line.startswith(f"- `{name}`: ") and len(line) > len(name) + 15 for line in lines) == 1, name


def test_counts_by_hand() -> None:
    (row,) = (row for row in status.rows(Collection({})) if row["paper"] == "dpf")
    printed = [slot for selection in select(["dpf"]) for slot in selection.slots() if slot.published is not None]
    assert row["printed"] == len(printed) > 500
    assert row["measured"] == row["measured there"] == 0 and row["profiles"] == []
    assert row["read"] + row["differ"] == sum(
        slot.settings.kind == "config" and str(slot.published) != "absent" for slot in printed
    )


def test_a_measured_cell_is_counted_where_it_was_measured() -> None:
    runs = collect([LOGGED])
    without = Collection({place: run for place, run in runs.runs.items() if "resnet20" not in run.path.as_posix()})
    counts = {row["paper"]: row["measured there"] for row in status.rows(runs)}
    fewer = {row["paper"]: row["measured there"] for row in status.rows(without)}
    assert fewer["dpf"] == fewer["acdc"] == 0 < counts["dpf"]
    assert fewer["dsr"] == counts["dsr"] > 0  # LeNet's


def test_what_is_measured_says_where() -> None:
    every = {row["paper"]: row for row in status.rows(collect([LOGGED]))}
    lines = status.measured_table(list(every.values())).splitlines()
    # Table 4's LeNet: six methods, of which the dense runs fill a whole row; the paper's five densities, three seeds.
    assert "| `dsr/lenet_mnist` | full | 30 of 30 | 78 | `lenet_300_100` on `mnist` | CPU |" in lines
    assert "| `iterand/narrow_gain` | short | 10 of 10 | those of `iterand/narrow` |  |  |" in lines
    assert not any("`dpf/table1`" in line for line in lines)
    assert every["dsr"]["networks"] == ["`lenet_300_100` on `mnist`"] and every["dsr"]["devices"] == ["CPU"]
    # SET, DeepR, DSR, static, compressed and dense training.
    assert every["dsr"]["methods"] == 6
    for row in every.values():
        assert sum(each.cells for each in row["filled"]) == row["measured there"] + row["measured"]


def test_what_differs_stands_beside_the_print() -> None:
    every = status.rows(collect([LOGGED]))
    lines = status.differing_table(every).splitlines()
    assert "| `iterand/table4/resnet18_sgd/params` | 11.17M | 11.16M |" in lines
    assert len(lines) == 2 + sum(row["differ"] for row in every) > 10


def test_a_card_is_named() -> None:
    run = next(iter(collect([LOGGED]).runs.values()))
    assert status._device(run.environment) == "CPU"
    assert status._device({"device": "cuda", "device_name": "NVIDIA H100"}) == "NVIDIA H100"


def test_a_text_without_its_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no <!-- status: "):
        status.written("# regrow\n", {"status": ""})


def test_a_bench_record_is_told_figure_by_figure(tmp_path: Path) -> None:
    figures = [
        spread("steps", "set", [1.0, 1.1, 1.3], "x", target=1.15),
        spread("steps", "topkast", [2.0], "x", target=1.25, note="every step"),
        spread("data", "images", [1000.0], "images/s", target=2000.0, at_most=False),
        spread("data", "the peer's", [500.0], "images/s"),
    ]
    record(figures, tmp_path / "here.json", rounds=3)
    told = benchmarks(tmp_path)
    assert "**`here`**" in told and "medians of 3 rounds" in told and "1 of 3 targets are reached." in told
    assert "| set | 1.100 x | 1.000 to 1.300 | ≤ 1.150 |\n" in told
    assert "| topkast (every step) | 2.000 x | 2.000 to 2.000 | ≤ 1.250 **missed** |\n" in told
    assert "| images | 1,000 images/s | 1,000 to 1,000 | ≥ 2,000 **missed** |\n" in told
    assert "| the peer's | 500.0 images/s | 500.0 to 500.0 |  |\n" in told
    assert "<summary>steps; missed: topkast</summary>" in told and "<summary>data; missed: images</summary>" in told
    assert benchmarks(tmp_path / "nowhere") == "No record is committed.\n"
