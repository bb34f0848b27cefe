"""The extending grid (Lin et al. 2020, A.2) on known curves: what it measures, in which order, and where it ends."""

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from results.grid import Grid, Spacing

FIRST = [0.05, 0.1, 0.15, 0.2]


def search(curve: Callable[[float], float], up: bool = True, **options: Any) -> tuple[Grid, list[list[float]]]:
    """The grid at its end, and the values of each round."""
    grid = Grid(Spacing(**{"values": FIRST, "low": 0.0, **options}), up)
    rounds = []
    while wanted := grid.wanted():
        rounds.append(wanted)
        for value in wanted:
            grid.tell(value, curve(value))
    return grid, rounds


def peak(at: float) -> Callable[[float], float]:
    return lambda value: 90 - abs(value - at)


def test_a_best_inside_ends_it_after_the_first_round() -> None:
    grid, rounds = search(peak(0.11))
    assert rounds == [FIRST] and grid.contained and grid.ended == "the best lies inside the grid"
    assert grid.best is not None and grid.best.value == 0.1


def test_it_goes_on_above_by_the_first_step_until_the_best_is_inside() -> None:
    grid, rounds = search(peak(0.3))
    assert rounds == [FIRST, [0.25], [0.3], [0.35]] and grid.contained
    assert grid.best is not None and grid.best.value == 0.3


def test_it_goes_on_below_and_halves_where_a_step_would_reach_the_bound() -> None:
    grid, rounds = search(peak(0.012))
    assert rounds == [FIRST, [0.025], [0.0125], [0.00625]] and grid.contained
    assert grid.best is not None and grid.best.value == 0.0125


def test_without_a_bound_steps_go_below_zero_and_with_one_above_they_halve_there() -> None:
    assert search(peak(-0.05), low=None)[1] == [FIRST, [0.0], [-0.05], [-0.1]]
    assert search(peak(0.27), high=0.3)[1] == [FIRST, [0.25], [0.275], [0.2875]]


def test_the_lowest_may_be_the_best() -> None:
    grid, rounds = search(lambda value: abs(value - 0.25), up=False)
    assert rounds == [FIRST, [0.25], [0.3]] and grid.best is not None and grid.best.value == 0.25


def test_a_ratio_instead_of_a_step() -> None:
    assert search(peak(0.001), values=[0.01, 0.02], ratio=4)[1] == [[0.01, 0.02], [0.0025], [0.000625], [0.00015625]]
    assert search(peak(0.3), values=[0.01, 0.1], ratio=10)[1][1:] == [[1.0]]


def test_a_single_value_is_both_edges() -> None:
    grid, rounds = search(peak(0.1), values=[0.1], step=0.02)
    assert rounds == [[0.1], [0.08, 0.12]] and grid.contained


def test_whole_values_stay_whole() -> None:
    grid, rounds = search(peak(1), values=[8, 16], low=0)
    assert rounds == [[8, 16], [4], [2], [1]] and not grid.contained
    assert all(isinstance(value, int) for value in grid.values)
    assert grid.ended == "the best lies at an edge still, and there is no room beyond it"


def test_of_equal_ones_the_smallest_inside_the_grid() -> None:
    grid, rounds = search(lambda value: 50.0)
    assert rounds == [FIRST] and grid.contained and grid.best is not None and grid.best.value == 0.1
    grid, rounds = search(lambda value: 50.0 if value in (0.1, 0.2) else 40.0)
    assert rounds == [FIRST] and grid.best is not None and grid.best.value == 0.1


def test_equal_ones_at_both_edges_extend_both() -> None:
    grid, rounds = search(lambda value: 50.0 if value in (0.05, 0.2) else 40.0)
    assert rounds == [FIRST, [0.025, 0.25]] and grid.best is not None and grid.best.value == 0.05


def test_diverged_is_the_worst_in_either_direction() -> None:
    for up in (True, False):
        grid, rounds = search(lambda value: math.nan if value > 0.12 else value, up)
        assert grid.best is not None and math.isfinite(grid.best.reached)
        assert (rounds == [FIRST]) == up  # up: 0.1 beside the diverged 0.15; down: ever lower
    grid, _ = search(lambda value: math.nan if value == 0.05 else -value)
    assert grid.contained and grid.best is not None and grid.best.value == 0.1


def test_where_everything_diverges_nothing_is_chosen() -> None:
    grid, rounds = search(lambda value: math.nan)
    assert rounds == [FIRST] and grid.best is None and not grid.contained
    assert grid.ended == "every value has diverged"


def test_the_limit_ends_it_and_the_best_is_said_to_be_at_an_edge() -> None:
    grid, rounds = search(lambda value: value, max_values=6)
    assert rounds == [FIRST, [0.25], [0.3]] and not grid.contained
    assert grid.ended == "the best lies at an edge still, and max_values = 6 is reached"
    assert grid.best is not None and grid.best.value == 0.3
    both = search(lambda value: 50.0 if value in (0.05, 0.2) else 40.0, max_values=5)
    assert both[1] == [FIRST, [0.025]] and both[0].best is not None


def test_what_is_known_is_not_wanted_again() -> None:
    grid = Grid(Spacing(values=FIRST, low=0.0))
    grid.tell(0.1, 1.0)
    assert grid.wanted() == [0.05, 0.15, 0.2] == grid.wanted()
    for value in (0.05, 0.15, 0.2):
        grid.tell(value, value)
    assert grid.wanted() == [] and [trial.value for trial in grid.trials] == FIRST


@given(st.floats(0.001, 0.6), st.integers(4, 30))
def test_a_grid_of_one_hill_ends_with_its_best_inside_or_says_why(top: float, limit: int) -> None:
    grid, rounds = search(peak(top), max_values=limit)
    tried = [value for each in rounds for value in each]
    assert len(tried) == len(set(tried)) == len(grid.values) <= limit and grid.values == sorted(tried)
    assert grid.best is not None and grid.best.reached == max(map(peak(top), tried))
    inside = grid.values[0] < grid.best.value < grid.values[-1]
    assert grid.contained == inside and inside == ("inside" in grid.ended)
    assert inside or len(tried) == limit


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"values": []}, "values = [] is an empty grid"),
        ({"values": ["a"]}, "values has 'a'; a grid is made of numbers"),
        ({"values": [True]}, "values has True"),
        ({"values": [0.1, math.nan]}, "values has nan"),
        ({"values": [0.0, 0.1]}, "values has 0.0, which is not above low = 0.0"),
        ({"values": [0.1, 0.1]}, "names a value twice"),
        ({"values": [0.1]}, "give the step or the ratio"),
        ({"step": 0}, "step = 0 should be above 0"),
        ({"step": -0.05}, "step = -0.05 should be above 0"),
        ({"ratio": 1.0}, "ratio = 1.0 should be above 1"),
        ({"ratio": 2.0, "step": 0.1}, "exclude one another"),
        ({"ratio": 2.0, "low": None, "values": [0, 1]}, "needs values above 0"),
        ({"max_values": 3}, "max_values = 3 is less than the 4 first values"),
    ],
)
def test_what_makes_no_grid_is_said(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as error:
        Spacing(**{"values": FIRST, "low": 0.0, **options})
    assert sentence in str(error.value)
