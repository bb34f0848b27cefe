"""The counts in the README: those of the files and of the committed records, never written by hand."""

from __future__ import annotations

import pytest

from results import status
from results.address import select
from results.collect import LOGGED, Collection, collect
from runner.compose import names

README = status.README.read_text()


def test_the_readme_says_what_is_counted_now() -> None:
    parts = {"status": status.papers_table(collect([LOGGED])), "choices": status.choices()}
    assert status.written(README, parts) == README, "python -m results.status"


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


def test_a_text_without_its_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no <!-- status: "):
        status.written("# regrow\n", {"status": ""})
