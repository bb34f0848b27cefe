"""The five papers' targets are all there, say what is missing, and say nothing that is not so."""

import re
from collections import Counter
from pathlib import Path

import pytest

from results import document
from results.address import PAPERS, figures, load, select, tables
from results.table import Slot, Table
from runner.compose import compose, groups, identify, names

TABLES = {
    "dsr": ["table4"],
    "dpf": [f"table{number}" for number in range(1, 6)],
    "acdc": [f"table{number}" for number in range(1, 15)],
    "lats": [f"table{number}" for number in range(1, 16)],
    "iterand": [f"table{number}" for number in range(1, 12)],
}
FIGURES = {
    "dpf": range(3, 15),
    "acdc": range(1, 10),
    "lats": (1, 2, 3, 4, 6, 7),  # 5 is a drawing
    "iterand": (1, 2),
}


def all_targets() -> list[Table]:
    """Every table, and every figure with cells of its own."""
    own = [path for path in figures().values() if "table" not in document.load(path)]
    return [selection.table for selection in select()] + [load(path) for path in own]


@pytest.mark.parametrize("paper", TABLES)
def test_all_46_tables_are_targets(paper: str) -> None:
    assert sum(map(len, TABLES.values())) == 46
    assert {f"{paper}/{name}" for name in TABLES[paper]} <= set(tables())
    if paper != "dsr":
        assert f"{paper}/text" in tables(), "the numbers that the paper prints only in its text"


@pytest.mark.parametrize("paper", FIGURES)
def test_all_figures_are_targets(paper: str) -> None:
    there = {int(match[1]) for name in figures() if (match := re.match(rf"{paper}/figure(\d+)", name))}
    assert there == set(FIGURES[paper])


def test_every_cell_of_a_papers_table_has_its_printed_entry() -> None:
    for paper, printed in TABLES.items():
        for name in printed:
            (selection,) = select([f"{paper}/{name}"])
            lacking = [slot.address for slot in selection.slots() if slot.published is None]
            assert not lacking, lacking[:5]


def test_no_need_is_named_that_is_there_already() -> None:
    """A need that has landed must be taken out of the files, so that its cells become runnable."""
    for table in all_targets():
        for slot in table.slots():
            for need in slot.needs:
                group, _, choice = need.partition("=")
                assert group in (*groups(), "option", "metric", "plot", "record"), (slot.address, need)
                if group in groups():
                    assert choice not in names(group), f"{slot.address} needs {need}, which is there"


def test_every_group_choice_of_a_cell_is_there_or_needed() -> None:
    """So that no misspelt method hides behind other needs."""
    for table in all_targets():
        for slot in table.slots():
            for override in slot.overrides:
                group, _, choice = override.partition("=")
                if group in groups():
                    assert choice in names(group) or override in slot.needs, (slot.address, override)


def test_a_choice_is_spelt_alike_in_all_papers() -> None:
    """Two names of one thing differ by more than a hyphen or a case."""
    needs = Counter(need for table in all_targets() for slot in table.slots() for need in slot.needs)
    plain = Counter(re.sub(r"[^a-z0-9=]", "", need.lower()) for need in needs)
    assert [need for need, count in plain.items() if count > 1] == []


def test_lats_table_3_trains_in_each_rows_own_batches() -> None:
    """What stands in its second column, and the learning rate that goes with it (table 7; the quoted papers' own)."""
    (selection,) = select(["lats/table3"])
    found = {}
    for slot in selection.slots():
        if slot.column.id == "a90":
            schedule = compose([o for o in slot.overrides if o != slot.knob])["schedule"]
            found[slot.row.id] = (schedule["batch_size"], schedule["lr"], schedule["epochs"])
    ours, large = (256, 0.256, 100), (4096, 1.6, 100)
    assert found == {
        **dict.fromkeys(("str", "str_gs", "probmask", "s_lats"), ours),
        **dict.fromkeys(("granet", "optg"), (256, 0.1, 100)),
        "woodfisher": (256, 0.005, 100),  # after its dense parent
        "s_lats_1024": (1024, 0.512, 100),
        **dict.fromkeys(("rigl_erk", "topkast_powerprop", "topkast_powerprop_erk"), large),
    }


def test_what_two_papers_quote_from_a_third_is_one_run() -> None:
    """RigL's own recipe, network included, behind AC/DC's and LATS's tables."""
    (acdc,), (lats,) = select(["acdc/table1/rigl_erk_s90"]), select(["lats/table3/rigl_erk/a90"])
    theirs, (ours,) = ({identify(s.overrides).key for s in each.slots()} for each in (acdc, lats))
    assert ours in theirs


def test_open_knobs_name_a_sparsity_between_0_and_1() -> None:
    for table in all_targets():
        for slot in _open(table):
            target = slot.settings.target
            assert target is not None and "sparsity" in target.metric and 0 < target.value < 1, slot.address


def _open(table: Table) -> list[Slot]:
    return [slot for slot in table.slots() if slot.knob is not None and slot.settings.kind == "runs"]


def test_titles_and_notes_say_which_paper() -> None:
    for paper in ("dsr", "dpf", "acdc", "lats", "iterand"):
        for path in sorted((PAPERS / paper).glob("*.yaml")):
            first = path.read_text(encoding="utf-8").splitlines()[0]
            assert first.startswith("#") and re.search(r"20(19|20|21|23)", first), f"{path.name} cites no paper"


def test_figures_and_tables_with_cells_have_different_names() -> None:
    own = {name for name, path in figures().items() if "table" not in document.load(path)}
    assert not own & set(tables()), "an address must mean one thing"


def test_files_lie_where_addresses_find_them() -> None:
    stray = [p for p in Path(PAPERS).rglob("*.y*ml") if p not in {*tables().values(), *figures().values()}]
    assert stray == []
