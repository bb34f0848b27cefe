"""Threshold schedules against the paper's formulas, plain loops and quadrature."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from scipy.integrate import quad

from methods.schedules import EpochRanges, LearningRate
from methods.thresholds import Threshold, facts, of, penalty_peak, pgh_slope, stop
from results.hyperparameters import evaluate
from runner.compose import compose
from runner.errors import Misuse

EPOCHS, STEPS = 7, 5
T = EPOCHS * STEPS

# Warm-up over a fractional number of epochs, ranges of base rates, decays: schedules without a closed form.
SCHEDULES = {
    "warm cosine": LearningRate(EpochRanges.parse(0.4), EPOCHS, "cosine", end=0.01, warmup_epochs=2, warmup_from=0.1),
    "steps": LearningRate(EpochRanges.parse(0.4), EPOCHS, "step", (3, 5), 0.1, warmup_epochs=1),
    "ranges": LearningRate(EpochRanges.parse("1:2 -> 0.1, 3:6 -> 0.02, 7:7 -> 0.05"), EPOCHS),
    "by epoch": LearningRate(EpochRanges.parse(0.4), EPOCHS, "cosine", warmup_epochs=2, changes="epoch"),
}


def threshold(scheduler: Any, rate: LearningRate | None = None, **options: Any) -> Threshold:
    basis: Any = "cosine" if rate is None else "run"
    return Threshold(
        **{
            "final": 0.7,
            "scheduler": scheduler,
            "epochs": EPOCHS,
            "steps_per_epoch": STEPS,
            "basis": basis,
            "rate": None if rate is None else lambda t: rate.at(t / STEPS),
            **options,
        }
    )


def trace(schedule: Threshold) -> list[float]:
    return [schedule.at(t) for t in range(schedule.steps + 1)]


@pytest.mark.parametrize(
    ("scheduler", "halfway"),
    [("sine", 0.5), ("linear", 0.5), ("log2", math.log2(1.5)), ("s_lats", 1 / math.pi + 0.5)],
)
def test_simple_schedulers(scheduler: str, halfway: float) -> None:
    d = threshold(scheduler, epochs=10, steps_per_epoch=2)
    assert (d.at(0), d.at(10), d.at(20)) == pytest.approx((0, 0.7 * halfway, 0.7), abs=1e-15)
    assert all(low < high for low, high in pairwise(trace(d)))


def test_sine_as_appendix_b_prints_it() -> None:
    printed = [0.5 * (1 + math.sin(math.pi * (t / T - 0.5))) * 0.7 for t in range(T + 1)]
    assert trace(threshold("sine")) == pytest.approx(printed, abs=1e-15)


def test_lats_adds_up_the_cosine_that_changes_between_epochs() -> None:
    """Corollary 1 by a plain loop; equation 12 is its closed form."""
    total, sums = 0.0, [0.0]
    for n in range(EPOCHS):
        for _ in range(STEPS):
            total += 0.256 / 2 * (1 + math.cos(math.pi * n / EPOCHS))
            sums.append(total)
    assert trace(threshold("lats")) == pytest.approx([0.7 * s / total for s in sums], abs=1e-14)
    assert total == pytest.approx(0.256 * STEPS * (EPOCHS + 1) / 2)  # (N + 1) / N above equation 14's


def test_equation_12_as_printed() -> None:
    def printed(n: int, b: int) -> float:
        ratio = math.sin((2 * n - 1) / (2 * EPOCHS) * math.pi) / math.sin(math.pi / (2 * EPOCHS))
        return STEPS / 4 * (2 * n + 1 + ratio) + b / 2 * (1 + math.cos(n * math.pi / EPOCHS))

    last = printed(EPOCHS - 1, STEPS)
    found = [printed(n, b) / last * 0.7 for n in range(EPOCHS) for b in range(1, STEPS + 1)]
    assert trace(threshold("lats"))[1:] == pytest.approx(found, abs=1e-14)


def official(scheduler: str, beta: float = 1.0) -> list[float]:
    """The threshold after every step as LATS's official code sets it (trainer.py, github.com/Yanqi-Chen/LATS)."""
    found = [0.0]  # forward passes before the first step are dense
    for n in range(EPOCHS):
        base = 0.5 * (1 + 2 * n + math.sin(math.pi * (n - 0.5) / EPOCHS) / math.sin(math.pi * 0.5 / EPOCHS))
        rise = (1 + math.cos(n * math.pi / EPOCHS)) / STEPS / (1 + EPOCHS)
        for b in range(1, STEPS + 1):
            x = (n * STEPS + b) / T
            if scheduler == "lats":
                found.append(0.7 * (base / (EPOCHS + 1) + b * rise))
            elif scheduler == "s_lats":
                found.append(0.7 * (math.sin(math.pi * x) / math.pi + x))
            else:
                log, power = math.log(beta), beta**x
                top = math.pi**2 * (power - 1) + (power - 2) * log**2
                top += power * log * (log * math.cos(math.pi * x) + math.pi * math.sin(math.pi * x))
                found.append(0.7 * top / (math.pi**2 * (beta - 1) - 2 * log**2))
    return found


@pytest.mark.parametrize(("scheduler", "beta"), [("lats", 1.0), ("s_lats", 1.0), ("pgh", 0.1), ("pgh", 1e-10)])
def test_every_step_has_the_official_codes_threshold(scheduler: str, beta: float) -> None:
    assert trace(threshold(scheduler, beta=beta)) == pytest.approx(official(scheduler, beta), abs=1e-13)


@pytest.mark.parametrize("name", SCHEDULES)
def test_lats_adds_up_any_learning_rate(name: str) -> None:
    rate = SCHEDULES[name]
    sums = [0.0]
    for t in range(T):
        sums.append(sums[-1] + rate.at(t / STEPS))
    d = threshold("lats", rate)
    assert trace(d) == pytest.approx([0.7 * s / sums[-1] for s in sums], abs=1e-14)
    penalties = [d.penalty(t, rate.at(t / STEPS)) for t in range(T) if rate.at(t / STEPS)]
    assert penalties == pytest.approx([0.7 / sums[-1]] * len(penalties), rel=1e-9)  # equation 11: constant


@pytest.mark.parametrize("beta", [1.0, 0.1, 1e-5])
@pytest.mark.parametrize("name", SCHEDULES)
def test_s_lats_and_pgh_integrate_any_learning_rate(name: str, beta: float) -> None:
    """Equations 13 and 15 by adaptive quadrature between the steps, where the rates may jump."""
    rate = SCHEDULES[name]
    parts = [quad(lambda t: rate.at(t / STEPS) * beta ** (t / T), t, t + 1 - 1e-12)[0] for t in range(T)]
    sums = [math.fsum(parts[:t]) / math.fsum(parts) for t in range(T + 1)]
    found = trace(threshold("pgh", rate, beta=beta))
    assert found == pytest.approx([0.7 * s for s in sums], abs=1e-8)
    if beta == 1.0:
        assert trace(threshold("s_lats", rate)) == found


def test_the_runs_own_cosine_gives_the_closed_forms() -> None:
    plain = LearningRate(EpochRanges.parse(0.3), EPOCHS, "cosine")
    by_epoch = LearningRate(EpochRanges.parse(0.3), EPOCHS, "cosine", changes="epoch")
    assert trace(threshold("lats", by_epoch)) == pytest.approx(trace(threshold("lats")), abs=1e-14)
    assert trace(threshold("s_lats", plain)) == pytest.approx(trace(threshold("s_lats")), abs=1e-9)
    assert trace(threshold("pgh", plain, beta=0.1)) == pytest.approx(trace(threshold("pgh", beta=0.1)), abs=1e-7)


def test_s_lats_as_equation_14_prints_it() -> None:
    printed = [0.7 * (math.sin(t * math.pi / T) / math.pi + t / T) for t in range(T + 1)]
    assert trace(threshold("s_lats")) == pytest.approx(printed, abs=1e-15)


@pytest.mark.parametrize("beta", [0.5, 0.1, 1e-5, 1e-10])
def test_pgh_as_equations_15_and_16_print_it(beta: float) -> None:
    def weight(x: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * x)) * beta**x

    def printed(x: float) -> float:
        p, b, log = math.pi, beta**x, math.log(beta)
        waves = log * b * (log * math.cos(p * x) + p * math.sin(p * x))
        return (p**2 * (b - 1) + log**2 * (b - 2) + waves) / (p**2 * (beta - 1) - 2 * log**2)

    found = trace(threshold("pgh", beta=beta))
    whole = quad(weight, 0, 1, epsabs=1e-13)[0]
    assert found == pytest.approx([0.7 * printed(t / T) for t in range(T + 1)], abs=1e-12)
    assert found == pytest.approx([0.7 * quad(weight, 0, t / T)[0] / whole for t in range(T + 1)], abs=1e-9)
    assert pgh_slope(0.3, beta) == pytest.approx((printed(0.3 + 1e-6) - printed(0.3 - 1e-6)) / 2e-6, rel=1e-6)


def test_pgh_near_its_limits() -> None:
    assert trace(threshold("pgh", beta=1.0)) == pytest.approx(trace(threshold("s_lats")), abs=1e-15)
    assert trace(threshold("pgh", beta=1 - 1e-12)) == pytest.approx(trace(threshold("s_lats")), abs=1e-12)
    assert trace(threshold("pgh", beta=0.0)) == [0.0] + [0.7] * T
    assert trace(threshold("pgh", SCHEDULES["steps"], beta=0.0, stop_slope=0.1)) == [0.0] + [0.7] * T
    assert threshold("pgh", beta=1e-300).at(1) == pytest.approx(0.7, abs=1e-8)


@pytest.mark.parametrize(("beta", "progress"), [(0.1, 0.743), (1e-5, 0.382), (1e-10, 0.231)])
def test_early_pruning_stops_where_the_paper_says(beta: float, progress: float) -> None:
    """Section 6.2."""
    assert stop(beta, 0.1) == pytest.approx(progress, abs=5e-4)
    d = threshold("pgh", beta=beta, stop_slope=0.1, epochs=100, steps_per_epoch=10)
    free = threshold("pgh", beta=beta, epochs=100, steps_per_epoch=10)
    last = math.floor(1000 * stop(beta, 0.1))
    assert trace(d)[: last + 1] == trace(free)[: last + 1]
    assert len({*trace(d)[last + 1 :]}) == 1
    assert free.at(last) < d.at(1000) < free.at(last + 1)
    cosine = LearningRate(EpochRanges.parse(0.3), 100, "cosine")
    own = Threshold(
        final=0.7,
        scheduler="pgh",
        beta=beta,
        stop_slope=0.1,
        epochs=100,
        steps_per_epoch=10,
        basis="run",
        rate=lambda t: cosine.at(t / 10),
    )
    assert trace(own) == pytest.approx(trace(d), abs=2e-3)


def test_a_slow_beginning_does_not_stop_the_pruning() -> None:
    """In the warm-up g' rises from 0: what counts is where it falls for good."""
    rate = SCHEDULES["warm cosine"]
    d = threshold("pgh", rate, beta=0.5, stop_slope=0.8, final=1.0)
    free = trace(threshold("pgh", rate, beta=0.5, final=1.0))
    slopes = [T * (after - before) for before, after in pairwise(free)]
    last = max(t for t, slope in enumerate(slopes) if slope >= 0.8) + 1
    assert slopes[0] < 0.8 and 0 < last < T
    assert trace(d) == pytest.approx(free[: last + 1] + [free[last]] * (T - last))


def test_a_slope_that_is_never_reached_is_refused() -> None:
    with pytest.raises(ValueError, match=r"stop_slope = 3 is never reached: g' is 2 at most"):
        stop(1.0, 3.0)
    assert stop(1.0, 0.0) == 1.0


def test_the_penalty_of_the_sine_scheduler_grows_without_bound() -> None:
    """Equation 23: proportional to tan(t pi / 2T), for a cosine learning rate."""
    d = threshold("sine", epochs=100, steps_per_epoch=100)
    rate = LearningRate(EpochRanges.parse(0.256), 100, "cosine")
    ratios = [d.penalty(t, rate.at(t / 100)) / math.tan((t + 0.5) * math.pi / 20000) for t in range(10, 9900, 97)]
    assert ratios == pytest.approx([0.7 * math.pi / 10000 / 0.256] * len(ratios), rel=0.02)


def test_the_peak_of_strs_penalty() -> None:
    """Appendix C.1: gamma = -1.5434 for the sigmoid."""
    assert penalty_peak("sigmoid") == pytest.approx(-1.5434, abs=5e-5)

    def penalty(s: float) -> float:
        return -s * math.exp(s)

    assert penalty(penalty_peak("exp")) > max(penalty(-1.01), penalty(-0.99))


def test_a_threshold_of_a_composed_configuration() -> None:
    config = compose(
        ["method=pgh", "method.beta=0.2", "method.stop_slope=0", "schedule.epochs=7", "schedule.decay=cosine"]
    )
    d = of(config["method"], config["schedule"], 5)
    assert trace(d) == pytest.approx([each / 7 for each in trace(threshold("pgh", beta=0.2))], rel=1e-12)
    own = compose(["method=lats", "method.learning_rate=run", "schedule.epochs=7", "schedule.lr='1:3 -> 2, 4:7 -> 1'"])
    assert of(own["method"], own["schedule"], 1).at(3) == pytest.approx(0.5 * 6 / 10)
    with pytest.raises(ValueError, match="str has no threshold schedule"):
        of(compose(["method=str"])["method"], config["schedule"])
    assert facts(config["method"]) == {"stop": 1.0}
    assert facts(compose(["method=str"])["method"])["penalty_peak"] == penalty_peak("sigmoid")
    assert facts(compose(["method=dense"])["method"]) == {}


def test_tables_read_what_follows_from_a_threshold() -> None:
    config = compose(["method=pgh", "method.beta=1e-5", "schedule.epochs=100"])
    assert f"{evaluate('threshold.stop * schedule.epochs', config):.0f}" == "38"
    with pytest.raises(Misuse, match=r"no 'threshold.stp'. Did you mean 'stop'\?"):
        evaluate("threshold.stp", config)


def test_penalties_need_a_rate() -> None:
    with pytest.raises(ValueError, match="needs the run's learning rate"):
        threshold("sine").penalties()


def test_a_run_basis_without_a_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="must be told of it"):
        threshold("s_lats", basis="run").at(1)
