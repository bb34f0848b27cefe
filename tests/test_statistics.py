"""Intervals, Welch's test and Holm's correction, against SciPy, by hand, and on tables with comparison groups."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from results.render import FORMATS
from results.statistics import holm, interpolated, interval, welch
from tests.test_results_cells import filled
from tests.test_results_records import write_run

SAMPLES = [
    ([98.1, 98.3, 98.2], [97.9, 98.0, 98.4]),
    ([1.0, 2.0], [5.0, 9.0, 7.0, 6.0]),
    ([92.17, 92.4, 91.9, 92.2, 92.0], [92.6, 92.61]),
]


@pytest.mark.parametrize("one, other", SAMPLES)
def test_welch_is_scipys(one: list[float], other: list[float]) -> None:
    assert welch(one, other) == pytest.approx(scipy.stats.ttest_ind(one, other, equal_var=False).pvalue, rel=1e-10)
    assert welch(one, other) == welch(other, one)


def test_welch_of_random_samples_is_scipys() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        one = list(rng.normal(0, rng.uniform(0.1, 3), rng.integers(2, 8)))
        other = list(rng.normal(rng.uniform(-1, 1), 1, rng.integers(2, 8)))
        assert welch(one, other) == pytest.approx(scipy.stats.ttest_ind(one, other, equal_var=False).pvalue, rel=1e-9)


def test_welch_needs_two_finite_values_a_side_and_takes_no_spread_as_it_is() -> None:
    assert welch([1.0], [2.0, 3.0]) is None and welch([1.0, 2.0], []) is None
    assert welch([1.0, float("nan")], [2.0, 3.0]) is None
    assert welch([1.0, 1.0], [2.0, 2.0]) == 0.0 and welch([1.0, 1.0], [1.0, 1.0]) == 1.0


@pytest.mark.parametrize("values", [one for one, _ in SAMPLES])
def test_the_interval_is_students(values: list[float]) -> None:
    expected = scipy.stats.t.interval(0.95, len(values) - 1, np.mean(values), scipy.stats.sem(values))
    assert interval(values) == pytest.approx(expected, rel=1e-10)


def test_the_interval_by_hand_and_where_there_is_none() -> None:
    # n = 2: half the distance is std / sqrt(2); t quantile for one degree of freedom is 12.7062
    assert interval([1.0, 3.0]) == pytest.approx((2 - 12.7062047, 2 + 12.7062047))
    assert interval([0.0, 0.0, 0.0]) == (0.0, 0.0)
    assert interval([5.0]) is None and interval([]) is None and interval([1.0, float("inf")]) is None


@pytest.mark.parametrize(
    ("x", "y"), [(1.0, 5.0), (2.5, 8.0), (3.0, 9.0), (5.0, 9.0), (7.0, 9.0), (9.0, 5.0), (0.9, None), (9.1, None)]
)
def test_a_curve_by_hand(x: float, y: float | None) -> None:
    """Through (1, 5), (3, 9), (7, 9), (9, 5); the two points at 3 count as their mean."""
    assert interpolated(x, [7, 3, 1, 9, 3], [9, 10, 5, 5, 8]) == (None if y is None else pytest.approx(y))


def test_a_curve_is_numpys() -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    for _ in range(50):
        xs, ys = rng.permutation(20)[:6] + rng.random(6), rng.normal(size=6)
        order = np.argsort(xs)
        for x in rng.uniform(xs.min(), xs.max(), 5):
            found = interpolated(float(x), xs.tolist(), ys.tolist())
            assert found == pytest.approx(float(np.interp(x, xs[order], ys[order])), abs=1e-12)
    assert interpolated(1.0, [], []) is None and interpolated(2.0, [2.0], [7.0]) == 7.0


def test_holm_by_hand() -> None:
    # 0.01 <= 0.05/4, 0.015 <= 0.05/3, 0.02 <= 0.05/2, 0.04 <= 0.05/1
    assert holm({"a": 0.04, "b": 0.01, "c": 0.02, "d": 0.015}) == {"a", "b", "c", "d"}
    # 0.013 > 0.05/4: nothing is rejected, not even what alone would be
    assert holm({"a": 0.013, "b": 0.013, "c": 0.02, "d": 0.03}) == set()
    # the first passes 0.05/3; 0.03 > 0.05/2 stops the descent before 0.04 <= 0.05/1
    assert holm({"a": 0.016, "b": 0.03, "c": 0.04}) == {"a"}
    assert holm({}) == set()


# Tables

ROWS = [
    {"id": "dense", "title": "Dense", "overrides": ["method=dense"]},
    {"id": "set", "title": "SET", "overrides": ["method=set"]},
    {"id": "gmp", "title": "GMP", "overrides": ["method=gmp"]},
]
GROUPS = {"all": {"compare": "rows", "among": ["dense", "set", "gmp"]}}
CLEAR = {"dense": (90.0, 90.1, 90.2), "set": (95.0, 95.1, 95.2), "gmp": (80.0, 85.0, 82.0)}


def sheet(tmp_path: Path, accuracies: dict[str, tuple[float, ...]], *addresses: str, **changes: Any) -> Any:
    """A table of three methods, s90 with these accuracies by seed and s80 with three all too close ones."""
    for method, values in accuracies.items():
        for seed, value in enumerate(values):
            write_run(tmp_path / "runs", [f"method={method}", "method.sparsity=0.9"], seed, accuracy=value)
        for seed in range(3):
            write_run(tmp_path / "runs", [f"method={method}", "method.sparsity=0.8"], seed, accuracy=70.0 + seed)
    return filled(tmp_path, *addresses, **{"rows": ROWS, "groups": GROUPS, **changes})


def best(found: Any) -> set[tuple[str, str]]:
    return {place for place, cell in found.cells.items() if cell.best}


def test_the_best_beyond_chance_is_marked_and_no_other(tmp_path: Path) -> None:
    found = sheet(tmp_path, CLEAR)
    assert best(found) == {("set", "s90")} and found.tests == 2
    text = FORMATS["md"]([found], False)
    assert "| SET | 71.00 ± 1.00 | **95.10 ± 0.10** |" in text and "Holm-corrected over 2 test(s)" in text
    assert r"$\mathbf{95.10 \pm 0.10}$" in FORMATS["tex"]([found], False)


def test_down_means_the_lowest(tmp_path: Path) -> None:
    accuracies = {"dense": (2.0, 2.1, 2.2), "set": (9.0, 9.1, 9.2), "gmp": (8.0, 8.5, 8.2)}
    assert best(sheet(tmp_path, accuracies, direction="down")) == {("dense", "s90")}


def test_one_run_never_wins_nor_loses_a_comparison(tmp_path: Path) -> None:
    found = sheet(tmp_path, {**CLEAR, "set": (95.0,)}, seeds=[0])
    assert best(found) == set() and found.tests == 0 and "Bold" not in FORMATS["md"]([found], False)


def test_nothing_is_best_while_a_member_is_missing(tmp_path: Path) -> None:
    assert best(sheet(tmp_path, {**CLEAR, "gmp": ()})) == set()


def test_holm_counts_the_whole_table_also_when_one_cell_is_asked_for(tmp_path: Path) -> None:
    found = sheet(tmp_path, CLEAR, "toys/first/set/s90")
    assert best(found) == {("set", "s90")} and found.tests == 2 and len(found.cells) == 1


def test_a_margin_that_one_test_would_accept_fails_among_many(tmp_path: Path) -> None:
    # by Welch p = 0.027: enough alone, too much as the second of three
    close = {"dense": (90.0, 90.1, 90.2), "set": (90.28, 90.38, 90.48), "gmp": (80.0, 85.0, 82.0)}
    p = scipy.stats.ttest_ind(close["set"], close["dense"], equal_var=False).pvalue
    assert 0.025 < p < 0.05
    within = {"all": {**GROUPS["all"], "within": ["s90"]}}
    assert best(sheet(tmp_path, close, groups=within)) == {("set", "s90")}
    third = {"again": {"compare": "columns", "among": ["s80", "s90"], "within": ["gmp"]}}
    assert best(sheet(tmp_path, {}, groups={**GROUPS, **third})) == {("gmp", "s90")}


def test_a_diverged_member_has_lost(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path / "runs", ["method=gmp", "method.sparsity=0.9"], seed, status="diverged")
    accuracies = {name: values for name, values in CLEAR.items() if name != "gmp"}
    found = sheet(tmp_path, accuracies)
    assert found.cells["gmp", "s90"].status == "diverged" and best(found) == {("set", "s90")}
