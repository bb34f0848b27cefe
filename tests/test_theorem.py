"""Theorem A.1 of Chijiwa et al. 2021: chances in closed form, the construction by hand, the record, what it shows."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import binomtest

from methods.approximation import bound, certified, chance, first_widths, least, sufficient, targets, tolerances
from results import theorem
from results.collect import LOGGED
from results.statistics import clopper_pearson
from results.theorem import Settings, measure, sizes
from runner.errors import Misuse
from scripts.theorem import main

ROOT = Path(__file__).resolve().parents[1]
RECORD = LOGGED / "theorem" / "widths.json"


# What the theorem asks for


def test_the_theorem_by_hand() -> None:
    # 64 l^2 d^2 d' / (0.01 R^2) log(2 l d d' / 0.05) with l = 1: 6400 log 40; l = 2: 204,800 log 320, 102,400 log 160.
    assert bound((1, 1), 0.1, 0.05, 1) == math.ceil(6400 * math.log(40)) == 23_609
    assert bound((1, 1), 0.1, 0.05, 10) == math.ceil(64 * math.log(40))
    assert bound((2, 2, 1), 0.1, 0.05, 1) == math.ceil(64 * 4 * 4 * 2 * 100 * math.log(320))
    assert bound((2, 1, 3), 0.1, 0.05, 1) == math.ceil(64 * 4 * 4 * 1 * 100 * math.log(160))
    assert tolerances((2, 4, 1), 0.16) == [0.16 / (4 * 2 * 2 * 2), 0.16 / (4 * 2 * 4)]


def test_from_so_many_draws_on_one_neuron_is_enough() -> None:
    """The theorem's last sentence: R above 8 l d / error sqrt(d' log(2 l d d' / failure))."""
    edge = 8 / 0.1 * math.sqrt(math.log(40))
    assert [bound((1, 1), 0.1, 0.05, draws) for draws in (math.floor(edge), math.ceil(edge))] == [2, 1]


# The proof's choice


def test_without_resampling_the_chance_is_that_of_the_plain_theorem() -> None:
    """n neurons, each good with the probability (t / 2)^2: the proof's own count, and its bound holds."""
    t = tolerances((1, 1), 0.1)[0]
    for n in (1, 10, 20_000):
        assert chance((1, 1), 0.1, 1, n) == pytest.approx((1 - (1 - t * t / 4) ** n) ** 2, rel=1e-9, abs=0)
    for of in ((1, 1), (2, 2, 1), (3, 1), (1, 5)):
        assert sufficient(of, 0.1, 0.05, 1) <= bound(of, 0.1, 0.05, 1)


def test_the_chance_is_that_of_enumerated_neurons() -> None:
    """All outcomes of n neurons: whether u is good, and which of the outputs have a good v."""
    error, draws, neurons = 1.0, 30, 2
    of = (2, 3)
    a = 1 - (1 - tolerances(of, error)[0] / 2) ** draws
    whole = 0.0
    for us in product((0, 1), repeat=neurons):
        for vs in product((0, 1), repeat=neurons * 3):
            held = [any(us[i] and vs[3 * i + k] for i in range(neurons)) for k in range(3)]
            whole += all(held) * math.prod(a if good else 1 - a for good in (*us, *vs))
    assert chance(of, error, draws, neurons) == pytest.approx(whole**4, rel=1e-9, abs=0)  # 2 inputs, 2 signs


def test_no_draw_lies_near_by_with_the_chance_of_independent_draws() -> None:
    """(1 - p)^(n R), counted: of n R uniform draws none within the tolerance of 1."""
    rng = np.random.default_rng(0)
    n, draws, t = 4, 5, 0.2
    nearest = rng.uniform(-1, 1, (20_000, n * draws)).max(1)
    assert binomtest(int((nearest < 1 - t).sum()), 20_000, (1 - t / 2) ** (n * draws)).pvalue > 0.01


def test_more_neurons_and_more_draws_never_hurt() -> None:
    for of in ((1, 1), (2, 3, 1)):
        grown = [[chance(of, 0.5, draws, n) for n in (1, 3, 10, 100)] for draws in (1, 2, 8, 30)]
        assert all(a <= b for row in grown for a, b in pairwise(row))
        assert all(a <= b for one, more in pairwise(grown) for a, b in zip(one, more, strict=True))
        assert all(0 <= value <= 1 for row in grown for value in row)
        widths = [sufficient(of, 0.5, 0.05, draws) for draws in (1, 2, 8, 30)]
        assert widths == sorted(widths, reverse=True)


def test_the_least_width_is_where_the_chance_passes() -> None:
    for draws in (1, 7, 100):
        n = sufficient((2, 2, 1), 0.3, 0.1, draws)
        assert chance((2, 2, 1), 0.3, draws, n) >= 0.9 > (chance((2, 2, 1), 0.3, draws, n - 1) if n > 1 else 0)
    assert [least(lambda n, at=at: n >= at) for at in (1, 2, 3, 8, 9, 1000)] == [1, 2, 3, 8, 9, 1000]  # type: ignore[misc]


def test_pairs_of_draws_are_not_independent_so_that_the_proof_asks_for_less_than_its_choice_needs() -> None:
    """A neuron is good when one of R u is and one of R v: not as if its R^2 pairs were drawn one by one."""
    t, draws, n = tolerances((1, 1), 0.1)[0], 20, 60
    counted = 1 - (1 - t * t / 4) ** (n * draws**2)
    assert bound((1, 1), 0.1, 0.05, draws) == n and counted**2 >= 0.95 > chance((1, 1), 0.1, draws, n)
    rng = np.random.default_rng(1)
    good = [(rng.uniform(-1, 1, (6000, n, draws)) > 1 - t).any(-1) for _ in range(2)]
    held = int((good[0] & good[1]).any(1).sum())
    assert binomtest(held, 6000, math.sqrt(chance((1, 1), 0.1, draws, n))).pvalue > 0.01
    assert binomtest(held, 6000, counted).pvalue < 1e-6


# Measured widths


def hit(weight: float, error: float, draws: int) -> float:
    """The probability that one neuron of one sign comes as near: |u v - w| <= error, u the greatest of its draws."""

    def of_u(u: float) -> float:
        low, high = max(-1.0, (weight - error) / u), min(1.0, (weight + error) / u)
        v = max(0.0, high - low) / 2
        density = draws / 2 * ((1 + u) / 2) ** (draws - 1)
        return density * (1 - (1 - v) ** draws)

    edges = sorted({abs(weight - error), abs(weight + error), 0.0, 1.0})
    return sum(quad(of_u, a, b)[0] for a, b in pairwise(edges) if b <= 1)


@pytest.mark.parametrize(("weight", "draws"), [(1.0, 1), (1.0, 2), (1.0, 10), (0.5, 1), (-0.3, 4), (0.0, 3)])
def test_the_width_of_one_weight_follows_its_closed_form(weight: float, draws: int) -> None:
    """Both signs need a neuron: (1 - (1 - p)^n)^2."""
    rng = np.random.default_rng([7, draws])
    first = first_widths([np.full((4000, 1, 1), weight)], 0.2, draws, rng, 10_000)
    p = hit(weight, 0.2, draws)
    for n in {1, max(1, round(0.5 / p)), max(1, round(2 / p))}:
        assert binomtest(int((first <= n).sum()), 4000, (1 - (1 - p) ** n) ** 2).pvalue > 1e-3, n


def test_at_one_draw_the_weight_1_is_hit_by_the_area_under_a_hyperbola() -> None:
    assert hit(1.0, 0.1, 1) == pytest.approx((0.1 + 0.9 * math.log(0.9)) / 4, rel=1e-6)


def test_a_width_that_was_not_reached_is_beyond_the_last() -> None:
    target = [np.ones((50, 1, 1))]
    whole = first_widths(target, 0.1, 2, np.random.default_rng(0), 5000)
    assert whole.max() <= 5000 and whole.min() >= 1
    assert (first_widths(target, 1e-6, 2, np.random.default_rng(0), 30) == 31).all()


def test_targets_have_norms_up_to_1() -> None:
    drawn = targets((3, 4, 2), 500, np.random.default_rng(0))
    assert [layer.shape for layer in drawn] == [(500, 4, 3), (500, 2, 4)]
    norms = [np.sqrt((layer**2).sum((1, 2))) for layer in drawn]
    assert max(float(norm.max()) for norm in norms) <= 1 + 1e-12
    single = targets((1, 1), 4000, np.random.default_rng(0))[0]
    assert single.min() < -0.99 and single.max() > 0.99  # a weight is left as it is drawn
    assert (targets((1, 1), 3, np.random.default_rng(0), -1.0)[0] == -1).all()


def relu(x: Any) -> Any:
    return np.maximum(x, 0)


def pruned(target: list[Any], neurons: int, rng: np.random.Generator) -> tuple[Any, list[Any]]:
    """Matrices G * M of a random network of twice the depth, pruned as in lemma A.6, and |u v - w| of what is kept.

    Of every weight the nearest neuron of its block; written with loops, apart from the project's code.
    """
    matrices, errors = [], []
    for layer in target:
        outputs, inputs = layer.shape
        into, out = np.zeros((2 * inputs * neurons, inputs)), np.zeros((outputs, 2 * inputs * neurons))
        error = np.zeros((1, 2, inputs, outputs))
        for (s, sign), j in product(enumerate((1, -1)), range(inputs)):
            rows = [(s * inputs + j) * neurons + i for i in range(neurons)]
            u = rng.uniform(-1, 1, neurons)
            v = rng.uniform(-1, 1, (outputs, neurons))
            for k in range(outputs):
                apart = [abs(u[i] * v[k, i] - layer[k, j]) if sign * u[i] > 0 else math.inf for i in range(neurons)]
                i = int(np.argmin(apart))
                into[rows[i], j], out[k, rows[i]], error[0, s, j, k] = u[i], v[k, i], apart[i]
        matrices.append((into, out))
        errors.append(error)

    def network(x: Any) -> Any:
        for position, (into, out) in enumerate(matrices):
            x = out @ relu(into @ (relu(x) if position else x))
        return x

    return network, errors


@pytest.mark.parametrize("of", [(1, 1), (3, 2), (2, 2, 1), (2, 3, 2, 2)])
def test_the_certified_error_is_no_less_than_any_of_the_pruned_network(of: tuple[int, ...]) -> None:
    rng = np.random.default_rng(3)
    for _ in range(5):
        target = [layer[0] for layer in targets(of, 1, rng)]
        network, errors = pruned(target, 60, rng)
        stated = float(certified([layer[None] for layer in target], errors).item())
        corners = np.array(list(product((-1.0, 0.0, 1.0), repeat=of[0]))).T
        points = np.concatenate([corners, rng.uniform(-1, 1, (of[0], 2000))], axis=1)
        f = points
        for position, layer in enumerate(target):
            f = layer @ (relu(f) if position else f)
        apart = np.sqrt(((network(points) - f) ** 2).sum(0))
        assert apart.max() <= stated * (1 + 1e-12) + 1e-15
        assert apart.max() > 0.02 * stated  # and it is not empty talk
        if of == (1, 1):
            assert apart.max() == pytest.approx(stated, rel=1e-9)


def test_the_certified_error_by_hand() -> None:
    """Two layers: e_1 = s_1, e_2 = |F_2| e_1 + s_2 (b_1 + e_1), of the second layer the plus sign only."""
    target = [np.array([[[0.6], [-0.8]]]), np.array([[[0.3, 0.4]]])]
    first = np.array([0.1, 0.2, 0.3, 0.1]).reshape(1, 2, 1, 2)  # the worse of both signs: 0.3 and 0.2
    second = np.array([0.01, 0.02, 9.0, 9.0]).reshape(1, 2, 2, 1)
    e = math.hypot(0.3, 0.2)
    assert certified(target, [first, second]).item() == pytest.approx(0.5 * e + 0.03 * (0.8 + e), rel=1e-12)


# The experiment

TINY: dict[str, Any] = {"targets": ("hardest", "2-1"), "draws": (3, 10), "repetitions": 400, "error": 0.3}


def test_a_row_says_what_was_measured() -> None:
    rows = list(measure(Settings(**TINY)))
    assert [(row["target"], row["draws"]) for row in rows] == [("hardest", 3), ("hardest", 10), ("2-1", 3), ("2-1", 10)]
    assert rows == list(measure(Settings(**TINY)))
    assert rows[1:2] == list(measure(Settings(**{**TINY, "targets": ("hardest",), "draws": (10,)})))  # by itself
    assert rows != list(measure(Settings(**TINY, seed=1)))
    assert (rows[0]["theorem"], rows[0]["failed"]) == (bound((1, 1), 0.3, 0.05, 3), 0)


def test_intervals_hold_the_width_that_is_needed() -> None:
    """95 of 100, by the closed form; of 60 at least 52."""
    p = hit(1.0, 0.3, 3)
    n = least(lambda n: (1 - (1 - p) ** n) ** 2 >= 0.95)
    asked: dict[str, Any] = {**TINY, "targets": ("hardest",), "draws": (3,)}
    rows = [row for seed in range(60) for row in measure(Settings(**asked, seed=seed))]
    assert all(row["low"] <= row["measured"] <= row["high"] for row in rows)
    assert 52 <= sum(row["low"] <= n <= row["high"] for row in rows) < 60


def test_what_the_repetitions_cannot_tell_is_said() -> None:
    (few,) = measure(Settings(targets=("1-1",), draws=(30,), repetitions=20))  # 20 of 20 are within 0.83 and 1
    assert few["high"] is None and few["low"] <= few["measured"]
    (narrow,) = measure(Settings(targets=("hardest",), draws=(1,), repetitions=200, most=50))
    assert (narrow["measured"], narrow["high"]) == (None, None) and narrow["failed"] > 150
    content = theorem.record(Settings(repetitions=200, most=50), [narrow])
    assert "| 1 | 23,609 | 23,526 | > 50 | > 50 to > 50 |  | " in theorem.markdown(content)
    assert theorem.draw(content).axes  # what was not reached is left out


def test_the_interval_of_a_share_is_exact() -> None:
    for successes, trials in ((0, 10), (3, 10), (10, 10), (9500, 10_000)):
        exact = binomtest(successes, trials).proportion_ci(method="exact")
        assert clopper_pearson(successes, trials) == pytest.approx((exact.low, exact.high), abs=1e-12)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"targets": ("2-0",)}, "'2-0' is no target: give 'hardest', or the sizes of a network"),
        ({"targets": ("weight",)}, "'weight' is no target"),
        ({"targets": ("1-1", "1-1")}, "targets are 1-1, 1-1; give each once"),
        ({"draws": ()}, "draws are none; give each once, and one at least"),
        ({"draws": (3, 0)}, "draws is 0; it is a whole number from 1"),
        ({"error": 1.5}, "error is 1.5; it lies between 0 and 1"),
        ({"failure": 0.0}, "failure is 0; it lies between 0 and 1"),
        ({"repetitions": 0}, "repetitions is 0"),
        ({"most": 0}, "most is 0"),
        ({"seed": -1}, "seed is -1; it is a whole number from 0"),
        ({"targets": ("300-300",)}, "300-300 takes 1341.1 GiB a neuron; fewer repetitions or draws, or smaller sizes"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Misuse, match=sentence):
        Settings(**wrong)


def test_sizes_of_targets() -> None:
    assert [sizes(target) for target in ("hardest", "1-1", "12-3-4")] == [(1, 1), (1, 1), (12, 3, 4)]


# The record


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    return theorem.read(RECORD)


def test_the_committed_record_is_what_is_measured_today(content: dict[str, Any]) -> None:
    """The rows of 15 draws or more, which take no time; the others the slow test."""
    few = Settings(targets=("1-1", "hardest"), draws=(15, 50))
    assert {name: content[name] for name in ("error", "failure", "repetitions", "most", "seed")} == {
        name: getattr(few, name) for name in ("error", "failure", "repetitions", "most", "seed")
    }
    kept = [row for row in content["rows"] if row["target"] in few.targets and row["draws"] in few.draws]
    assert list(measure(few)) == kept


@pytest.mark.slow
def test_every_row_of_the_record_is_what_is_measured_today(content: dict[str, Any]) -> None:
    assert list(measure(Settings())) == content["rows"]


def test_what_is_shown_is_the_record(content: dict[str, Any]) -> None:
    assert theorem.text(content) == RECORD.read_text()
    assert theorem.markdown(content) == (ROOT / "results/shown/theorem.md").read_text()


def test_what_the_record_shows(content: dict[str, Any]) -> None:
    """Widths fall with R, from the theorem's square of R at first; measured ones stay below; the proof's choice not."""
    rows = {(row["target"], row["draws"]): row for row in content["rows"]}
    assert len(rows) == 33
    for target in ("1-1", "hardest", "2-2-1"):
        widths = [row["measured"] for (of, _), row in rows.items() if of == target]
        assert widths == sorted(widths, reverse=True)
    assert all(row["high"] <= row["theorem"] for row in content["rows"])
    assert [draws for (of, draws), row in rows.items() if of == "1-1" and row["proof"] > row["theorem"]] == [
        *(2, 3, 5, 7, 10, 15, 20, 30, 50, 100)
    ]
    hardest = [rows["hardest", draws]["measured"] for draws in (1, 10)]
    assert 50 < hardest[0] / hardest[1] < 100


def test_the_plot_names_everything(content: dict[str, Any]) -> None:
    canvas = theorem.draw(content)
    labels = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in canvas.axes]
    both = ["theorem A.1", "its proof's choice, exactly"]
    assert labels == [
        [*both, "measured: a random weight", "measured: the weight 1, the hardest to hit"],
        [*both, "measured: random networks 2-2-1"],
    ]
    assert {axes.get_xlabel() for axes in canvas.axes} == {"R, draws of every weight"}
    assert "error of 0.1 with probability 0.95" in canvas.get_suptitle()


# The command line


def test_the_command_line_measures_writes_and_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--targets", "hardest", "--draws", "5", "20", "--repetitions", "300", "--out", str(tmp_path / "a")]
    assert main(given) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == [str(tmp_path / "a" / f"theorem.{end}") for end in ("json", "md", "png")]
    assert said.err.startswith("hardest, R = 5: ") and "(theorem A.1: 945)" in said.err
    assert main(["--record", str(tmp_path / "a" / "theorem.json"), "--out", str(tmp_path / "b")]) == 0
    for end in ("json", "md", "png"):
        assert (tmp_path / "a" / f"theorem.{end}").read_bytes() == (tmp_path / "b" / f"theorem.{end}").read_bytes()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda text: text[: len(text) // 2], "is not valid JSON"),
        (lambda text: text.replace('"schema": 1', '"schema": 2'), "has schema 2, not 1; measure again"),
        (lambda text: text.replace('"proof"', '"prove"', 1), "is not a whole record of the theorem; measure again"),
        (lambda text: text.replace('"error"', '"terror"', 1), "is not a whole record of the theorem; measure again"),
        (lambda text: json.dumps({**json.loads(text), "rows": 3}), "is not a whole record of the theorem"),
        (lambda text: "[]", "holds no object"),
    ],
)
def test_a_damaged_record_is_one_sentence(
    damage: Any, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "record.json"
    path.write_text(damage(RECORD.read_text()))
    assert main(["--record", str(path), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_folder_that_takes_nothing_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["--record", str(RECORD), "--out", str(tmp_path / "file" / "out")]) == 2
    assert "does not take the results" in capsys.readouterr().err
    assert main(["--error", "2"]) == 2
    assert capsys.readouterr().err == "error is 2; it lies between 0 and 1, as in the theorem's lemmas.\n"


def test_asking_and_measuring_import_no_torch() -> None:
    code = (
        "import sys; from results import theorem; from scripts.theorem import main; "
        "rows = list(theorem.measure(theorem.Settings(draws=(9,), repetitions=50))); assert len(rows) == 3; "
        "assert main(['--error', '2']) == 2; assert not {'torch', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
