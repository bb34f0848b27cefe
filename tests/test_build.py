"""`_target_` sections: signatures, types, ranges, and what may be named at all."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

import pytest

from runner.build import build, check, check_arguments, mismatch
from runner.errors import Misuse, nearest


@pytest.mark.parametrize(
    ("value", "hint", "problem"),
    [
        (1, int, None), (True, int, "a whole number"), (1.5, int, "a whole number"), (1, float, None),
        (True, float, "a number"), ("a", str, None), (3, str, "text"), (1, bool, "true or false"),
        (None, int | None, None), ("x", int | None, "a whole number or null"), ("a", Literal["a", "b"], None),
        ("c", Literal["a", "b"], "one of a, b"), ([1, 2], list[int], None), ([1, "x"], list[int], "each is a whole"),
        (3, list[int], "a list"), ({}, dict[str, Any], None), (3, dict, "a mapping"),
        (0.0, Annotated[float, "0 <= x < 1"], None), (1.0, Annotated[float, "0 <= x < 1"], "in the range 0 <= x < 1"),
        (0, Annotated[float, "0 < x"], "in the range 0 < x"), (7, Annotated[int, "1 <= x"], None),
        (2, Annotated[float, "x <= 1"], "in the range x <= 1"),
        ("1:2 -> 0.5, 3:4 -> 2", Annotated[str | float, "0 <= x < 1"], "in the range 0 <= x < 1"),
        ("1:2 -> 0.5, 4:4 -> 0", Annotated[str | float, "0 <= x < 1"], "should begin at epoch 3"),
    ],
)  # fmt: skip
def test_values_against_type_hints(value: Any, hint: Any, problem: str | None) -> None:
    found = mismatch(value, hint)
    assert found == problem or (problem is not None and found is not None and problem in found)


def target(*, width: Annotated[int, "1 <= x"], depth: int = 2, given: int = 0) -> int:
    return width * depth + given


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"width": 1, "deth": 3}, "there is no option 'model.deth'. Did you mean 'depth'?"),
        ({"depth": 3}, "model.width is missing; set it."),
        ({"width": 0}, "model.width = 0 should be in the range 1 <= x."),
        ({"width": 1, "given": 3}, "there is no option 'model.given'."),
    ],
)
def test_arguments_against_a_signature(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Misuse, match="^" + sentence.replace("?", r"\?").replace(".", r"\.")):
        check_arguments(arguments, target, "model", ("given",))


def test_labels_are_not_passed_on_unless_asked_for() -> None:
    made = build({"_target_": "data.synthetic.synthetic", "name": "x", "revision": 1, "shape": [1, 2, 2],
                  "num_classes": 3, "train_size": 4, "test_size": 2}, "dataset", root="")  # fmt: skip
    assert made.in_shape == (1, 2, 2)


@pytest.mark.parametrize(
    "name",
    ["os.system", "builtins.eval", "torch.load", "subprocess.run", "results.collect.pack", "methodsx.y", None, "", 3],
)
def test_a_configuration_names_only_what_it_may(name: Any) -> None:
    with pytest.raises(Misuse, match="should name something in"):
        check({"_target_": name}, "method")


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: nearest("dsrr", ["dsr", "set"]), " Did you mean 'dsr'?"),
        (lambda: nearest("xyz", ["dsr", "set"]), " Valid: dsr, set."),
        (lambda: nearest("xyz", []), " There are none."),
    ],
)
def test_nearest_names(call: Callable[[], str], sentence: str) -> None:
    assert call() == sentence
