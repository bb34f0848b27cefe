"""What a table file can say beyond runs: derived and config cells, needs, columns without a section, footnotes."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from results.address import find_slot, select
from results.render import FORMATS
from runner.errors import Misuse
from tests.test_results_cells import SET90, TABLE, filled, write_table
from tests.test_results_records import change_json, fake_compose, write_run

DENSE, SET = TABLE["rows"]
S80, S90 = TABLE["columns"]


def runs(tmp_path: Path, **accuracies: tuple[float, ...]) -> None:
    """Runs of method=<name> at 90 %, seed by seed."""
    for method, values in accuracies.items():
        for seed, value in enumerate(values):
            write_run(tmp_path / "runs", [f"method={method}", "method.sparsity=0.9"], seed, accuracy=value)


def methods(*more: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A table with one row at 90 % and the methods as columns."""
    row = {"id": "s90", "title": "90 %", "overrides": ["method.sparsity=0.9"]}
    columns = [{"id": name, "title": name, "overrides": [f"method={name}"]} for name in ("gmp", "set")]
    return {"rows": [row], "columns": [*columns, *more], **changes}


def derived(expression: str, **more: Any) -> dict[str, Any]:
    return {"id": "derived", "title": "Derived", "kind": "derived", "derive": expression, **more}


# Derived cells


def test_a_difference_is_taken_seed_by_seed(tmp_path: Path) -> None:
    runs(tmp_path, gmp=(90.0, 92.0, 94.0), set=(91.0, 94.0, 97.0))
    cell = filled(tmp_path, **methods(derived("{set} - {gmp}"))).cells["s90", "derived"]
    assert cell.values == {0: 1.0, 1: 2.0, 2: 3.0} and (cell.mean, cell.std, cell.status) == (2.0, 1.0, "ok")
    assert cell.operands == ("toys/first/s90/set", "toys/first/s90/gmp")


def test_a_derived_cell_knows_the_published_difference(tmp_path: Path) -> None:
    runs(tmp_path, gmp=(90.0, 92.0, 94.0), set=(91.0, 94.0, 97.0))
    published = {"s90": {"derived": "+1.50"}}
    cell = filled(tmp_path, **methods(derived("{set} - {gmp}"), published=published)).cells["s90", "derived"]
    assert (cell.difference, cell.inside) == (0.5, True)


def test_only_shared_seeds_count(tmp_path: Path) -> None:
    runs(tmp_path, gmp=(90.0,), set=(91.0, 94.0))
    cell = filled(tmp_path, **methods(derived("{set} / {gmp}"))).cells["s90", "derived"]
    assert cell.values == {0: pytest.approx(91 / 90)} and cell.status == "partial"
    assert cell.states == {0: "completed", 1: "missing", 2: "missing"}


@pytest.mark.parametrize("state", ["failed", "diverged"])
def test_a_derived_cell_says_what_its_operands_lack(tmp_path: Path, state: str) -> None:
    runs(tmp_path, gmp=(90.0, 91.0, 92.0))
    for seed in range(3):
        write_run(tmp_path / "runs", SET90, seed, status=state)
    assert filled(tmp_path, **methods(derived("{set} - {gmp}"))).cells["s90", "derived"].status == state


def test_operands_in_other_rows_and_tables_are_filled_for_it(tmp_path: Path) -> None:
    runs(tmp_path, gmp=(90.0, 91.0, 92.0), set=(91.0, 91.0, 91.0))
    write_table(tmp_path / "papers", "toys/other", **methods())
    column = derived("{s90/set} - 2 * {other/s90/gmp}")
    sheet = filled(tmp_path, "toys/first/s90/derived", **methods(column))
    assert sheet.cells["s90", "derived"].values == {0: -89.0, 1: -91.0, 2: -93.0} and len(sheet.cells) == 1


def test_a_circle_is_named(tmp_path: Path) -> None:
    columns = [{**derived("{b}"), "id": "a"}, {**derived("{a}"), "id": "b"}]
    with pytest.raises(Misuse, match="toys/first/s90/a is derived from itself"):
        filled(tmp_path, **{**methods(), "columns": columns})


def test_a_config_cell_is_a_constant_of_a_derived_one(tmp_path: Path) -> None:
    runs(tmp_path, set=(91.0, 94.0, 97.0))
    target = {"id": "target", "title": "Target", "kind": "config", "overrides": ["method=set"]}
    target["read"] = "{100 * method.sparsity:g}%"
    column = derived("{set} - {target}")
    sheet = filled(tmp_path, **methods(target, column, published={"s90": {"target": "90%"}}))
    assert sheet.cells["s90", "target"].text == "90%" and sheet.cells["s90", "target"].status == "ok"
    assert sheet.cells["s90", "derived"].values == {0: 1.0, 1: 4.0, 2: 7.0}


# Curves

#: Two methods at two sparsities; what is read at 85 %, seed by seed, and the difference of the methods there.
CURVES: dict[str, Any] = {
    "rows": [{"id": "z85", "title": "85 %", "at": 85}, {"id": "z95", "title": "95 %", "at": 95}],
    "columns": [
        {"id": name, "title": name, "derive": f"curve(at, {{other/{name}/r1,r2}}, {{other/{name}/p1, p2}})"}
        for name in ("gmp", "set")
    ] + [{"id": "gain", "title": "Gain", "derive": "{set} - {gmp}", "spread": "interval"}],
    "kind": "derived",
}  # fmt: skip


def curves(tmp_path: Path, **accuracies: tuple[tuple[float, float], ...]) -> Any:
    """The sheet: runs at 80 and 90 %, whose metrics say where they end."""
    for method, seeds in accuracies.items():
        for seed, pair in enumerate(seeds):
            for sparsity, value in zip((0.8, 0.9), pair, strict=True):
                run = write_run(
                    tmp_path / "runs", [f"method={method}", f"method.sparsity={sparsity}"], seed, accuracy=value
                )
                final = json.loads((run / "summary.json").read_text())["final"]
                change_json(run / "summary.json", final={**final, "effective/sparsity": sparsity + 0.01 * seed})
    reached = {"metric": "effective/sparsity", "scale": 100}
    other = [
        {"id": f"{kind}{i}", "title": "x", "overrides": [f"method.sparsity={s}"], **(reached if kind == "r" else {})}
        for kind in "rp" for i, s in enumerate((0.8, 0.9), start=1)
    ]  # fmt: skip
    rows = [{"id": name, "title": name, "overrides": [f"method={name}"]} for name in ("gmp", "set")]
    write_table(tmp_path / "papers", "toys/other", rows=rows, columns=other)
    return filled(tmp_path, "toys/first", **CURVES)


def test_a_curve_is_read_seed_by_seed_at_the_cells_own_number(tmp_path: Path) -> None:
    """Points at 80 and 90 % for seed 0, at 81 and 91 % for seed 1, at 82 and 92 % for seed 2."""
    sheet = curves(tmp_path, gmp=((90, 80), (90, 80), (90, 70)), set=((98, 96), (95, 95), (99, 89)))
    assert sheet.cells["z85", "gmp"].values == pytest.approx({0: 85.0, 1: 86.0, 2: 84.0})
    assert sheet.cells["z85", "set"].values == pytest.approx({0: 97.0, 1: 95.0, 2: 96.0})
    gain = sheet.cells["z85", "gain"]
    assert gain.values == pytest.approx({0: 12.0, 1: 9.0, 2: 12.0}) and gain.status == "ok"
    # 11 with a deviation of the square root of 3, Student's 4.303 for three values: 4.303 sqrt(3) / sqrt(3)
    assert gain.mean == pytest.approx(11) and gain.reach == pytest.approx(4.3027, abs=1e-4)
    assert sheet.cells["z85", "set"].reach == sheet.cells["z85", "set"].std == pytest.approx(1.0)
    text = FORMATS["md"]([sheet], False)
    assert "| 85 % | 85.00 ± 1.00 | 96.00 ± 1.00 | 11.00 ± 4.30 |" in text
    assert "±in the column" not in text and "± in the column(s) Gain: half of the mean's 95 % interval" in text


def test_a_curve_is_never_continued_beyond_its_ends(tmp_path: Path) -> None:
    sheet = curves(tmp_path, gmp=((90, 80),) * 3, set=((98, 96),) * 3)
    assert {sheet.cells["z95", column].status for column in ("gmp", "set", "gain")} == {"beyond"}
    assert sheet.cells["z95", "gain"].states == dict.fromkeys(range(3), "beyond") and sheet.cells["z95", "gain"].settled
    assert "| 95 % | beyond | beyond | beyond |" in FORMATS["md"]([sheet], False)
    assert "beyond: the runs' own points end before it." in FORMATS["md"]([sheet], False)
    assert "beyond" in FORMATS["tex"]([sheet], False) and ",beyond," in FORMATS["csv"]([sheet], False)
    changes = [{"id": "z91", "title": "x", "at": 90.5}]  # of seeds 1 and 2 alone
    cell = filled(tmp_path, "toys/first", **{**CURVES, "rows": changes}).cells["z91", "gain"]
    assert cell.status == "partial" and cell.states == {0: "beyond", 1: "completed", 2: "completed"}
    assert cell.settled and not dataclasses.replace(cell, states={**cell.states, 0: "missing"}).settled


def test_a_curve_with_a_missing_run_is_none(tmp_path: Path) -> None:
    sheet = curves(tmp_path, gmp=((90, 80),) * 3, set=((98, 96),) * 2)
    assert sheet.cells["z85", "set"].values.keys() == {0, 1}
    assert sheet.cells["z85", "gain"].states == {0: "completed", 1: "completed", 2: "missing"}


@pytest.mark.parametrize(
    ("derive", "sentence"),
    [
        ("curve(at, {other/set/r1,r2}, {other/set/p1})", "takes two or more x and as many y, not 3"),
        ("curve({other/set/r1}, {other/set/p1})", "takes two or more x and as many y, not 1"),
        ("{other/set/p1} + curve()", "takes two or more x and as many y, not 0"),
        ("curve({other/set/p1}, x=2)", "calls curve with something that is no number"),
        ("bend(at, {other/set/r1,r2}, {other/set/p1,p2})", "may hold paths, numbers"),
        ("{other/set/p1} - to", "calculates with 'to', which is no number of its own"),
    ],
)
def test_a_curve_that_is_none_is_named(tmp_path: Path, derive: str, sentence: str) -> None:
    curves(tmp_path, set=((98, 96),))
    with pytest.raises(Misuse, match=sentence):
        filled(tmp_path, "toys/first", **{**CURVES, "columns": [{"id": "set", "title": "x", "derive": derive}]})


def test_a_curve_without_its_number_is_named(tmp_path: Path) -> None:
    curves(tmp_path, set=((98, 96),))
    with pytest.raises(Misuse, match="toys/first/z/set calculates with 'at'"):
        filled(
            tmp_path,
            "toys/first",
            **{**CURVES, "rows": [{"id": "z", "title": "no at"}], "columns": CURVES["columns"][1:2]},
        )


# Needs, without, across, single cells


def test_what_is_not_there_yet_is_not_composed_but_stays_a_target(tmp_path: Path) -> None:
    row = {"id": "dpf", "title": "DPF", "overrides": ["method=unheard_of"], "needs": ["method=unheard_of"]}
    changes = {"rows": [SET, row], "needs": ["experiment=x"], "published": {"dpf": {"s90": "94.36 ± 0.24"}}}
    sheet = filled(tmp_path, **changes)
    cell = sheet.cells["dpf", "s90"]
    assert (cell.status, cell.needs, cell.key) == ("needs", ("experiment=x", "method=unheard_of"), None)
    assert not cell.settled and sheet.cells["set", "s90"].status == "needs"
    assert "| DPF | needs | needs [94.36 ± 0.24] |" in FORMATS["md"]([sheet], True)
    assert json.loads(FORMATS["json"]([sheet], True))[-1]["needs"] == ["experiment=x", "method=unheard_of"]


def test_a_derived_cell_needs_what_its_operands_need(tmp_path: Path) -> None:
    column = {"id": "dpf", "title": "DPF", "overrides": ["method=dpf"], "needs": ["method=dpf"]}
    cell = filled(tmp_path, **methods(column, derived("{dpf} - {set}"))).cells["s90", "derived"]
    assert (cell.status, cell.needs) == ("needs", ("method=dpf",))


def test_a_column_without_a_section_takes_no_override_of_it(tmp_path: Path) -> None:
    dense = {"id": "dense", "title": "Dense", "overrides": ["method=dense"], "without": ["method"]}
    row = {"id": "s90", "title": "90 %", "overrides": ["model=net", "method.sparsity=0.9"]}
    (selection,) = select(["toys"], write_table(tmp_path, **{**methods(dense), "rows": [row]}))
    slots = {slot.column.id: slot.overrides for slot in selection.slots("short")}
    assert slots["dense"] == ("model=net", "method=dense", "profile=short")
    assert slots["set"] == ("model=net", "method.sparsity=0.9", "method=set", "profile=short")


def test_what_a_line_does_not_take_it_does_not_need(tmp_path: Path) -> None:
    dense = {"id": "dense", "title": "Dense", "overrides": ["method=dense"], "without": ["method"]}
    row = {"id": "s90", "title": "90 %", "overrides": ["method.p=0.9"]}
    row["needs"] = ["method=dpf", "option=method.p", "model=vgg", "metric=flops/inference"]
    (selection,) = select(["toys"], write_table(tmp_path, **{**methods(dense), "rows": [row]}))
    needs = {slot.column.id: slot.needs for slot in selection.slots()}
    assert needs["dense"] == ("model=vgg", "metric=flops/inference") and needs["set"] == tuple(row["needs"])


def test_a_single_cell_has_overrides_and_settings_of_its_own(tmp_path: Path) -> None:
    own = {"set": {"s90": {"overrides": ["method.count=7"], "seeds": [4], "digits": 0}}}
    slot = find_slot("toys/first/set/s90", papers=write_table(tmp_path, cells=own))
    assert slot.overrides == (*SET90, "method.count=7") and slot.settings.seeds == (4,) and slot.settings.digits == 0
    assert find_slot("toys/first/set/s80", papers=tmp_path).overrides == ("method=set", "method.sparsity=0.8")


def test_scale_turns_a_fraction_into_percent(tmp_path: Path) -> None:
    runs(tmp_path, set=(50.0, 60.0, 70.0))
    cell = filled(tmp_path, scale=0.01).cells["set", "s90"]
    assert cell.values == {0: 0.5, 1: 0.6, 2: pytest.approx(0.7)}


def test_what_the_paper_leaves_blank_is_blank_until_it_is_measured(tmp_path: Path) -> None:
    published = {"set": {"s80": "absent", "s90": "absent"}}
    runs(tmp_path, set=(50.0, 60.0, 70.0))
    sheet = filled(tmp_path, published=published)
    assert sheet.cells["set", "s80"].status == "absent" and sheet.cells["set", "s80"].settled
    assert sheet.cells["set", "s90"].mean == 60.0


# Footnotes


def test_mixed_versions_and_uncommitted_changes_are_footnotes(tmp_path: Path) -> None:
    for seed, torch in enumerate(("2.11.0", "2.15.0", "2.15.0")):
        environment = {"python": "3.11.7", "packages": {"torch": torch}, "git": {"commit": "abc", "dirty": seed == 2}}
        path = write_run(tmp_path / "runs", SET90, seed, accuracy=90.0 + seed)
        (path / "environment.json").write_text(json.dumps(environment))
    sheet = filled(tmp_path)
    assert sheet.cells["set", "s90"].footnotes == (
        "runs with different versions: torch 2.11.0 and 2.15.0",
        "1 of 3 run(s) from a tree with uncommitted changes",
    )
    text = FORMATS["md"]([sheet], False)
    assert "91.00 ± 1.00<sup>a,b</sup> |" in text
    assert "<sup>a</sup> runs with different versions: torch 2.11.0 and 2.15.0." in text
    assert r"\textsuperscript{a,b}" in FORMATS["tex"]([sheet], False)


# Patterns in addresses


@pytest.mark.parametrize(
    "address, places",
    [
        ("toys/first/*/s90", {("dense", "s90"), ("set", "s90")}),
        ("toys/*/set", {("set", "s80"), ("set", "s90")}),
        ("*/first/s?t/s[8]0", {("set", "s80")}),
    ],
)
def test_patterns_address_columns_and_rows(tmp_path: Path, address: str, places: set[tuple[str, str]]) -> None:
    (selection,) = select([address], write_table(tmp_path))
    assert selection.places == places


def test_a_pattern_that_fits_nothing_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match=r"has no column 's9x\*'"):
        select(["toys/first/*/s9x*"], write_table(tmp_path))
    with pytest.raises(Misuse, match="means 2 cells"):
        find_slot("toys/first/set/*", papers=tmp_path)


def test_tables_come_in_the_papers_order(tmp_path: Path) -> None:
    papers = write_table(write_table(write_table(tmp_path, "toys/table10"), "toys/table2"), "toys/table1")
    assert [selection.table.name for selection in select(["toys"], papers)] == ["table1", "table2", "table10"]


def test_a_figure_with_cells_of_its_own_is_addressed_by_name_only(tmp_path: Path) -> None:
    papers = write_table(tmp_path)
    write_table(papers, "toys/figures/figure9", plot="points")
    assert [selection.table.address for selection in select(["toys"], papers)] == ["toys/first"]
    (selection,) = select(["toys/figure9/set"], papers)
    assert [slot.address for slot in selection.slots()] == ["toys/figure9/set/s80", "toys/figure9/set/s90"]
    write_table(papers, "toys/figures/figure3", plot="points", table="toys/first")
    with pytest.raises(Misuse, match="draws cells of toys/first; address those"):
        select(["toys/figure3"], papers)


def test_composition_happens_once_for_equal_overrides(tmp_path: Path) -> None:
    composed: list[tuple[str, ...]] = []

    def counting(overrides: Any) -> dict[str, Any]:
        composed.append(tuple(overrides))
        return fake_compose(overrides)

    from results.collect import Collection
    from results.fill import fill

    layers = [{"id": f"layer{n}", "title": "x", "metric": f"layers:conv{n}"} for n in range(30)]
    (selection,) = select(["toys"], write_table(tmp_path, rows=layers, overrides=["method=set"]))
    fill(selection, Collection({}), None, counting)
    assert len(composed) == 2  # one a column
