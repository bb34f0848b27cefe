"""The search for a knob on known curves, its records, and a whole calibration with real runs."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from methods.knob import Knob
from results import calibration
from results.address import find_slot, select
from results.collect import Collection, collect
from results.fill import fill
from results.plan import plan
from results.search import Search, Trial, confirm, search
from runner.build import locate
from runner.compose import compose
from runner.errors import Misuse
from runner.experiment import validate
from scripts import calibrate

LOG = Knob(option="threshold", low=1e-4, high=1e2, guess=0.1)


def saturating(scale: float) -> Callable[[float], float]:
    """Like a threshold against weights of that scale: the share of |w| below it, w exponentially distributed."""
    return lambda value: 1 - math.exp(-value / scale)


@pytest.mark.parametrize("target", [0.5, 0.8, 0.9, 0.98, 0.995])
@pytest.mark.parametrize("scale", [0.01, 0.3, 5.0])
def test_a_smooth_curve_is_hit_within_a_few_runs(target: float, scale: float) -> None:
    found = search(saturating(scale), LOG, target, 0.003, budget=10)
    assert found.hit and found.best is not None
    assert abs(saturating(scale)(found.best.value) - target) <= 0.003
    assert len({trial.value for trial in found.trials}) == len(found.trials) <= 10


def test_a_falling_curve_and_a_linear_scale() -> None:
    knob = Knob(option="density", low=0.0, high=1.0, guess=0.5, scale="linear", increasing=False)
    found = search(lambda value: 1 - value**2, knob, 0.9, 0.003, budget=8)
    assert found.hit and found.best is not None and found.best.value == pytest.approx(math.sqrt(0.1), abs=0.005)


def test_a_log_scale_below_zero() -> None:
    """As STR's s_init: the larger, that is the nearer to 0, the sparser; equal steps of the magnitude's logarithm."""
    knob = Knob(option="s_init", low=-1e5, high=-1.0, guess=-3200.0)
    found = search(lambda value: 1 / (1 + math.sqrt(-value / 100)), knob, 0.9, 0.003, budget=10)
    assert found.trials[0].value == -3200 and found.trials[1].value == -800
    assert found.hit and found.best is not None and found.best.value == pytest.approx(-100 / 81, rel=0.1)
    beyond = search(lambda value: 0.01, knob, 0.9, 0.003, budget=20)
    assert beyond.ended == "the target lies beyond the end of the knob's range, -1"


def test_a_trial_within_the_tolerance_comes_before_one_with_a_nearer_logit() -> None:
    """Near 1 the tolerance reaches further down than a logit of equal size does."""
    found = Search(LOG, 0.98, 0.003, [Trial(1.0, 0.97695), Trial(2.0, 0.98295)])
    assert found.hit and found.best is not None and found.best.value == 2.0


def test_a_flat_end_of_the_search_sends_no_value_beyond_the_range() -> None:
    knob = Knob(option="decay", low=1e-8, high=10.0, guess=3e-5)
    found = Search(knob, 0.9, 0.003, [Trial(3e-5, 0.2), Trial(1.2e-4, 0.8), Trial(2e-4, 0.80001)])
    tried: list[float] = []
    long = confirm(lambda value: tried.append(value) or 0.85, found, 3)
    assert not long.hit and all(knob.low <= value <= knob.high for value in tried)


def test_the_guess_may_be_right_at_once() -> None:
    found = search(lambda value: 0.9, LOG, 0.9, 0.003, budget=8)
    assert [trial.value for trial in found.trials] == [0.1] and found.ended == "within 0.003 of the target"


def test_a_target_beyond_the_range_is_said() -> None:
    found = search(lambda value: 0.5 * value / (1 + value), LOG, 0.9, 0.003, budget=50)
    assert not found.hit and found.ended == "the target lies beyond the end of the knob's range, 100"


def test_a_jump_over_the_target_is_said() -> None:
    found = search(lambda value: 0.2 if value < 0.3 else 0.99, LOG, 0.9, 0.003, budget=200)
    assert not found.hit and found.ended.startswith("the metric jumps across the target")


def test_the_budget_is_kept() -> None:
    found = search(saturating(0.3), LOG, 0.9, 1e-9, budget=5)
    assert len(found.trials) == 5 and found.ended == "the budget of 5 run(s) is spent"
    assert found.best is not None and not found.hit


def test_a_diverged_run_went_too_far() -> None:
    curve = saturating(0.01)
    found = search(lambda value: math.nan if value > 0.05 else curve(value), LOG, 0.9, 0.003, budget=12)
    assert found.hit and any(math.isnan(trial.reached) for trial in found.trials)


def test_the_confirmation_corrects_for_longer_training() -> None:
    """Long runs give other sparsities than short ones; each confirmation comes nearer, the last one hits."""
    found = search(saturating(0.3), LOG, 0.9, 0.003, budget=10)
    long = confirm(saturating(0.2), found, 6)
    off = [abs(trial.reached - 0.9) for trial in long.trials]
    assert found.best is not None and long.trials[0].value == found.best.value
    assert off[0] > 0.03 and off == sorted(off, reverse=True) and long.hit and len(off) <= 4


def steep(value: float) -> float:
    """As STR on a small network: flat over decades, then everything goes within a factor of two."""
    return 0.8 + 0.2 / (1 + math.exp(-12 * (math.log(value) - math.log(3.0))))


@pytest.mark.parametrize("short", [saturating(0.05), saturating(20.0), lambda value: 0.9])
def test_the_confirmation_finds_what_the_short_runs_know_nothing_of(short: Callable[[float], float]) -> None:
    """From a value where all is pruned, from one where little is, and from a search that hit at once: one trial."""
    found = search(short, LOG, 0.9, 0.003, budget=12)
    long = confirm(steep, found, 14)
    assert long.hit and len({trial.value for trial in long.trials}) == len(long.trials)
    knob = Knob(option="x", low=-1e4, high=-1e-3, guess=-0.1, increasing=False)
    falling = confirm(lambda value: steep(-value), search(lambda value: short(-value), knob, 0.9, 0.003, 12), 14)
    assert falling.hit


def test_a_diverged_confirmation_went_too_far() -> None:
    found = search(saturating(2.0), LOG, 0.9, 0.003, budget=12)
    long = confirm(lambda value: math.nan if value > 1 else saturating(0.3)(value), found, 10)
    assert math.isnan(long.trials[0].reached) and long.hit


@pytest.mark.parametrize(
    ("full", "where"),
    [
        (
            lambda value: 0.2 if value < 0.3 else 0.99,
            "the target lies between",
        ),
        (lambda value: 0.2, "all of them lie below the target"),
        (lambda value: 1.0, "all of them lie above the target"),
        (lambda value: math.nan, "none of them has a value"),
    ],
)
def test_what_is_not_reached_is_said(full: Callable[[float], float], where: str) -> None:
    found = search(saturating(0.3), LOG, 0.9, 0.003, budget=10)
    long = confirm(full, found, 9)
    assert not long.hit and long.ended and long.placed.startswith(where)
    if where.endswith("between"):
        low, high = (float(part) for part in re.findall(r"([\d.]+) \(", long.placed))
        assert low < 0.3 <= high < 1.1 * low  # nine runs have closed in on the jump


def test_a_range_that_ends_before_the_target_ends_the_confirmation() -> None:
    knob = Knob(option="x", low=0.1, high=1.0, guess=0.5)
    long = confirm(lambda value: value / 10, search(lambda value: value, knob, 0.9, 0.003, 10), 20)
    assert long.ended == "the next value to be tried has been tried" and long.trials[-1].value == 1.0


def test_a_knob_must_make_sense() -> None:
    with pytest.raises(ValueError, match="starts at 5"):
        Knob(option="x", low=0.1, high=1.0, guess=5)
    for low, high in ((0.0, 1.0), (-1.0, 1.0), (-1.0, 0.0)):
        with pytest.raises(ValueError):
            Knob(option="x", low=low, high=high, guess=(low + high) / 2)


# Records and cells


def table(papers: Path, **changes: Any) -> Path:
    content = {
        "title": "Digits",
        "metric": "test/accuracy",
        "direction": "up",
        "seeds": [0],
        "overrides": ["experiment=demo/digits", "method=static", "method.sparsity=???"],
        "rows": [{"id": "static", "title": "Static"}],
        "columns": [{"id": "e85", "title": "85 %", "target": {"metric": "effective/sparsity", "value": 0.85}}],
        **changes,
    }
    path = papers / "own" / "digits.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content))
    return papers


def answer(papers: Path, root: Path, value: float | None, profile: str | None = None) -> calibration.Question:
    asked = calibration.question(find_slot("own/digits/static/e85", profile, papers), compose)
    calibration.write(calibration.path_of(asked, root), {"value": value, "reached": 0.8491})
    return asked


def test_a_record_gives_the_knob_which_enters_the_key(tmp_path: Path) -> None:
    papers, root = table(tmp_path / "papers"), tmp_path / "calibrations"
    (selection,) = select(["own"], papers)

    def cell(profile: str | None = None) -> Any:
        return fill(selection, Collection({}), profile, papers=papers, calibrations=root).cells["static", "e85"]

    assert cell().status == "uncalibrated" and plan(selection.slots(), calibrations=root) == []
    asked = answer(papers, root, 0.8505)
    assert cell().status == "missing" and "method.sparsity=0.8505" in cell().overrides
    assert "calibration, which reached 0.8491 of effective/sparsity where 0.85 was asked for" in cell().footnotes[0]
    (run,) = plan(selection.slots(), calibrations=root)
    assert run.config["method"]["sparsity"] == 0.8505 and run.key == cell().key
    assert cell("smoke").status == "uncalibrated", "another profile is another question"
    assert asked.id == calibration.question(find_slot("own/digits/static/e85", papers=papers), compose).id


def test_another_target_or_method_is_another_question(tmp_path: Path) -> None:
    slots = {}
    for name, changes in {
        "plain": {},
        "target": {
            "columns": [{"id": "e85", "title": "85 %", "target": {"metric": "effective/sparsity", "value": 0.86}}]
        },
        "metric": {"columns": [{"id": "e85", "title": "85 %", "target": {"metric": "mask/sparsity", "value": 0.85}}]},
        "science": {"overrides": ["experiment=demo/digits", "method=gmp", "method.sparsity=???"]},
        "machine": {
            "overrides": ["experiment=demo/digits", "method=static", "method.sparsity=???", "trainer.threads=2"]
        },
    }.items():
        slots[name] = find_slot("own/digits/static/e85", papers=table(tmp_path / name, **changes))
    ids = {name: calibration.question(slot, compose).id for name, slot in slots.items()}
    assert ids["machine"] == ids["plain"] and len(set(ids.values())) == 4


def test_an_answer_without_a_value_leaves_the_cell_uncalibrated(tmp_path: Path) -> None:
    papers, root = table(tmp_path / "papers"), tmp_path / "calibrations"
    answer(papers, root, None)
    (selection,) = select(["own"], papers)
    sheet = fill(selection, Collection({}), papers=papers, calibrations=root)
    assert sheet.cells["static", "e85"].status == "uncalibrated"


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 99, "value": 1}', '{"schema": 1}'])
def test_a_broken_record_is_named_and_never_passed_over(tmp_path: Path, text: str) -> None:
    papers, root = table(tmp_path / "papers"), tmp_path / "calibrations"
    path = calibration.path_of(answer(papers, root, 0.85), root)
    path.write_text(text)
    (selection,) = select(["own"], papers)
    with pytest.raises(Misuse, match=path.name):
        fill(selection, Collection({}), papers=papers, calibrations=root)


@pytest.mark.parametrize("value, text", [(0.1, "0.1"), (1 / 3, "0.333333"), (1e-5, "1e-05"), (1e2, "100.0")])
def test_values_are_spelt_so_that_they_hash_alike(value: float, text: str) -> None:
    assert calibration.spelt(value) == text and float(text) == float(f"{value:.6g}")


# The command


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["method.sparsity=0.5"], "say which cells"),
        (["own/digits", "--budget", "0"], "--budget 0 should be 1 or above"),
        (["own/digits", "--tolerance", "0"], "--tolerance 0.0 should be above 0"),
        (["own/digits", "--search", "shrot"], "Did you mean 'short'?"),
        (["own/digits", "--guess", "2"], "--guess 2: the knob sparsity starts at 2.0 in [0.0, 0.9999]."),
        (["own/digist"], "Did you mean 'own/digits'?"),
        (["own/digits", "seed=3"], "calibration takes the table's first seed"),
    ],
)
def test_mistakes_get_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert calibrate.main(words, table(tmp_path), tmp_path / "c") == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


def test_a_dry_run_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert calibrate.main(["own", "--dry-run", "--runs", str(tmp_path / "r")], table(tmp_path), tmp_path / "c") == 0
    assert "method.sparsity for effective/sparsity = 0.85" in capsys.readouterr().out
    assert not (tmp_path / "r").exists() and not (tmp_path / "c").exists()


def test_a_method_without_that_knob_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    papers = table(tmp_path, overrides=["experiment=demo/digits", "method=gmp", "method.layer_floor=???"])
    assert calibrate.main(["own", "--runs", str(tmp_path / "r")], papers, tmp_path / "c") == 2
    assert "the method gmp declares method.sparsity as its knob, not method.layer_floor" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "knobs"),
    [
        *((name, ["final_threshold"]) for name in ("stds", "lats", "s_lats", "pgh")),
        *((name, ["s_init", "threshold_decay"]) for name in ("str", "str_gs", "gpo")),
        *((name, ["sparsity"]) for name in ("probmask", "optg", "granet", "woodfisher", "rigl", "topkast", "gmp")),
        ("dense", []),
    ],
)
def test_knobs_are_declared_and_are_options(method: str, knobs: list[str]) -> None:
    section = compose([f"method={method}"])["method"]
    declared = locate(section["_target_"], "method").knobs  # type: ignore[attr-defined]
    assert [knob.option for knob in declared] == knobs and set(knobs) <= set(section)
    for knob in declared:
        validate(compose([f"method={method}", f"method.{knob.option}={knob.guess}"]))


@pytest.mark.slow
def test_a_real_calibration_hits_its_target_and_makes_the_cell_runnable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Static sparsity over the hidden layers only: the share over all weights must be searched for."""
    column = {"id": "e85", "title": "85 %", "target": {"metric": "effective/sparsity", "value": 0.8505}}
    papers, root = table(tmp_path / "papers", columns=[column]), tmp_path / "calibrations"
    arguments = ["own", "--runs", str(tmp_path / "runs")]
    assert calibrate.main(arguments, papers, root) == 0
    assert "within" not in capsys.readouterr().err
    (path,) = root.rglob("*.json")
    record = json.loads(path.read_text())
    assert record["hit"] and abs(record["reached"] - 0.8505) <= 0.003
    profiles = [trial["profile"] for trial in record["tried"]]
    assert profiles[0] == "tenth" and profiles[-1] == "full" and record["tried"][-1]["status"] == "completed"
    (selection,) = select(["own"], papers)
    (run,) = plan(selection.slots(), calibrations=root)
    assert list((tmp_path / "runs").glob(f"**/{run.key}/seed0/summary.json")), "the confirmation is the cell's own run"
    assert calibrate.main(arguments, papers, root) == 0
    assert "has the answer already" in capsys.readouterr().out


# A method, the open knob, more of its options, and words for the command.
DIGITS = {
    "S-LATS's final threshold": (["method=s_lats", "method.final_threshold=???"], []),
    "STDS's final threshold": (["method=stds", "method.final_threshold=???"], []),
    "STR's start": (
        ["method=str", "method.s_init=???", "method.threshold_decay=0.04"],
        ["--search=full", "--guess=-20"],
    ),
    "STR's decay": (
        ["method=str", "method.threshold_decay=???", "method.s_init=-50"],
        ["--search=full", "--guess=0.02"],
    ),
    "GPO's start": (
        ["method=gpo", "method.s_init=???", "method.threshold_decay=0.02", "method.beta_decay=0.05"],
        ["--search=full", "--guess=-2"],
    ),
    "ProbMask's budget": (["method=probmask", "method.sparsity=???"], []),
    "OptG's budget": (["method=optg", "method.sparsity=???"], []),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DIGITS)
def test_ninety_per_cent_are_reached_on_the_digits(name: str, tmp_path: Path) -> None:
    """Within 0.3 points, in a dozen runs at most, the last of them at full length."""
    overrides, words = DIGITS[name]
    column = {"id": "e90", "title": "90 %", "target": {"metric": "effective/sparsity", "value": 0.9}}
    papers = table(tmp_path / "papers", overrides=["experiment=demo/digits", *overrides], columns=[column])
    root, runs = tmp_path / "calibrations", tmp_path / "runs"
    assert calibrate.main(["own", f"--runs={runs}", *words], papers, root) == 0
    (path,) = root.rglob("*.json")
    record = json.loads(path.read_text())
    assert abs(record["reached"] - 0.9) <= 0.003 and len(record["tried"]) <= 12
    assert record["tried"][-1]["profile"] == "full"
    (selection,) = select(["own"], papers)
    cell = fill(selection, collect([runs]), papers=papers, calibrations=root).cells["static", "e90"]
    assert cell.status == "ok", "the run that confirms is the cell's own"


@pytest.mark.slow
def test_a_sparsity_that_a_method_jumps_over_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With this decay, STR's one threshold for all layers leaves a fifth of the weights, or none."""
    overrides = ["experiment=demo/digits", "method=str_gs", "method.s_init=???", "method.threshold_decay=0.04"]
    column = {"id": "e90", "title": "90 %", "target": {"metric": "effective/sparsity", "value": 0.9}}
    papers = table(tmp_path / "papers", overrides=overrides, columns=[column])
    words = ["own", f"--runs={tmp_path / 'runs'}", "--search=full", "--guess=-4.5", "--budget=5"]
    assert calibrate.main(words, papers, tmp_path / "c") == 1
    said = capsys.readouterr().out
    assert (
        "Not calibrated: the nearest value" in said and "the budget of 5 run(s) is spent, and the target lies" in said
    )


def test_the_best_trial_is_the_nearest_one() -> None:
    trials = [Trial(1.0, 0.7), Trial(2.0, math.nan), Trial(3.0, 0.95), Trial(4.0, 1.0)]
    assert Search(LOG, 0.9, 0.003, trials).best == trials[2] and Search(LOG, 0.9, 0.003, []).best is None
    assert Search(LOG, 0.9, 0.003, [trials[0], trials[3]]).best == trials[0], "of a share, a network without weights"
    assert Search(LOG, 9.0, 0.5, [Trial(1.0, 7.0), Trial(2.0, 10.0)]).best == Trial(2.0, 10.0)
