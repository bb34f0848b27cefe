"""STR, GPO, STDS and its schedulers against autograd through layers that compute with the mapped weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from methods.stds import STDS
from methods.str import GPO, STR
from methods.thresholds import Threshold, of
from runner.compose import compose
from runner.errors import Misuse
from runner.experiment import make, validate
from runner.records import RunDirectory
from runner.trainer import Trainer

SHAPES = [(6, 4), (5, 6), (3, 5)]
LR, MOMENTUM, DECAY = 0.2, 0.9, 1e-2


def soft(w: Tensor, d: Tensor | float) -> Tensor:
    """As the official codes have it: autograd gives the subgradient."""
    return w.sign() * torch.relu(w.abs() - d)


class Straight(torch.autograd.Function):
    """relu that passes all gradients: LATS's official code."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.relu()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad


class Slow(nn.Module):
    """Linear layers whose weights are mapped in every forward pass; a scheduled threshold is set from outside."""

    def __init__(self, weights: list[Tensor], kind: str, **options: Any) -> None:
        super().__init__()
        self.kind, self.options, self.d = kind, options, 0.0
        self.w = nn.ParameterList([w.clone() for w in weights])
        count = 1 if options.get("scope") == "global" else len(weights)
        self.s = nn.ParameterList(
            [torch.full((1, 1), options.get("s_init", 0.0), dtype=torch.float64) for _ in range(count)]
        )
        self.beta = nn.ParameterList(
            [torch.tensor(options.get("beta_init", 0.0), dtype=torch.float64) for _ in weights]
        )

    def mapped(self) -> list[Tensor]:
        link = torch.exp if self.options.get("threshold") == "exp" else torch.sigmoid
        found = []
        for i, w in enumerate(self.w):
            d = link(self.s[i % len(self.s)]) if self.kind in ("str", "gpo") else self.d
            if self.kind == "stds":
                found.append(w + (soft(w, d) - w).detach())
            elif self.kind == "official":
                found.append(w.sign() * Straight.apply(w.abs() - d))
            elif self.kind == "gpo":
                k = self.options["beta_scale"] * self.beta[i].abs()
                found.append((1 - k) * soft(w, d) + k * w)
            else:
                found.append(soft(w, d))
        return found

    def forward(self, x: Tensor) -> Tensor:
        for w in self.mapped():
            x = torch.tanh(x @ w.T)
        return x


def loss_of(outputs: Tensor, step: int) -> Tensor:
    target = torch.sin(torch.arange(outputs.numel(), dtype=torch.float64) + step).view_as(outputs)
    return 0.2 * (outputs - target).square().sum()


def inputs(step: int) -> Tensor:
    return torch.cos(torch.arange(28, dtype=torch.float64) * (1 + step / 7)).view(7, 4)


# The method, what the slow layers do, and with which options.
METHODS: dict[str, tuple[Callable[[], Any], str, dict[str, Any]]] = {
    "str": (lambda: STR(s_init=-2.0), "str", {"s_init": -2.0}),
    "str exp": (lambda: STR(s_init=-1.5, threshold="exp"), "str", {"s_init": -1.5, "threshold": "exp"}),
    "str_gs": (lambda: STR(s_init=-2.0, scope="global"), "str", {"s_init": -2.0, "scope": "global"}),
    "str own decay": (lambda: STR(s_init=-2.0, threshold_decay=0.1), "str", {"s_init": -2.0, "s_decay": 0.1}),
    "str scheduled": (lambda: STR(s_init=-2.0, scheduler="log2", final_threshold=0.4), "scheduled", {}),
    "gpo": (
        lambda: GPO(s_init=-1.0, beta_init=8.0, beta_scale=0.1, beta_decay=0.3),
        "gpo",
        {"s_init": -1.0, "beta_init": 8.0, "beta_scale": 0.1, "beta_decay": 0.3},
    ),
    "stds": (lambda: STDS(final_threshold=0.8), "stds", {}),
    "lats": (lambda: STDS(final_threshold=0.8, scheduler="lats"), "stds", {}),
    "s_lats, official layer": (lambda: STDS(final_threshold=0.8, scheduler="s_lats"), "official", {}),
    "pgh": (lambda: STDS(final_threshold=0.8, scheduler="pgh", beta=0.1, stop_slope=0.5), "stds", {}),
    "stds subgradient": (
        lambda: STDS(final_threshold=0.8, scheduler="linear", gradient="subgradient"),
        "scheduled",
        {},
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_trajectories_are_those_of_autograd_through_the_mapping(
    name: str, bench: Any, gaussian: Callable[..., Any]
) -> None:
    """Thirty steps with momentum and weight decay: hidden weights, mapped weights, s and beta, step by step."""
    make_method, kind, options = METHODS[name]
    weights = gaussian(SHAPES, 0)
    method = make_method()
    b = bench(method, weights, lr=LR, momentum=MOMENTUM, steps_per_epoch=5, epochs=6)
    for group in b.optimizer.param_groups:
        group["weight_decay"] = group["weight_decay"] or DECAY  # where the method has none of its own
    slow = Slow(weights, kind, **options)
    optimizer = torch.optim.SGD(
        [
            {"params": list(slow.w)},
            {"params": list(slow.s), "weight_decay": options.get("s_decay", DECAY)},
            {"params": list(slow.beta), "weight_decay": options.get("beta_decay", 0.0)},
        ],
        lr=LR,
        momentum=MOMENTUM,
        weight_decay=DECAY,
    )
    zeros = set()
    for step in range(30):
        if kind in ("scheduled", "stds", "official"):
            slow.d = method.source.value
        mapped = [w.detach().flatten().tolist() for w in slow.mapped()]
        assert b.values() == [pytest.approx(layer, abs=1e-10) for layer in mapped], step
        if kind != "gpo":
            assert b.kept() == [[value != 0 for value in layer] for layer in mapped]
        zeros.add(sum(value == 0 for layer in mapped for value in layer))
        x = inputs(step)
        for layer in b.model:
            x = torch.tanh(layer(x))
        grads = torch.autograd.grad(loss_of(x, step), b.weights)
        b.step(grads)
        optimizer.zero_grad()
        loss_of(slow(inputs(step)), step).backward()
        optimizer.step()
        for own, other in zip(method.dense, slow.w, strict=True):
            assert torch.allclose(own, other, rtol=0, atol=1e-10), step
        if kind in ("str", "gpo"):
            assert method.source.s.tolist() == pytest.approx([s.item() for s in slow.s], abs=1e-10)
        if kind == "gpo":
            assert method.beta.tolist() == pytest.approx([each.item() for each in slow.beta], abs=1e-10)
    assert len(zeros) > 2 or kind == "gpo"


def test_the_threshold_of_every_step(bench: Any, gaussian: Callable[..., Any]) -> None:
    """Algorithm 1: the first step is dense, step t computes with d(t), after the last step the threshold is D."""
    b = bench(STDS(final_threshold=0.5, scheduler="linear"), gaussian(SHAPES, 0), steps_per_epoch=5, epochs=2)
    seen = []
    for _ in range(10):
        seen.append(b.method.source.value)
        b.step([torch.zeros_like(w) for w in b.weights])
    assert [*seen, b.method.source.value] == pytest.approx([0.05 * t for t in range(11)])
    assert b.counts() == [int((w.abs() > 0.5).sum()) for w in gaussian(SHAPES, 0)]


@pytest.mark.parametrize("method", ["str", "s_lats"])
def test_either_way_to_shrink_gives_the_same_bits(method: str, tmp_path: Path) -> None:
    """By torch's softshrink where thresholds are at hand, by clamping where asking would wait; NaN takes the latter."""
    config = compose(["dataset=digits", f"method={method}", "model.hidden=[90,70]"])
    trainers = [Trainer(make(config), RunDirectory(tmp_path / name)) for name in "ab"]
    one, other = (trainer.e.method for trainer in trainers)
    for trainer in trainers:
        trainer.e.method.begin(trainer.ctx)
    other.at_hand = lambda: None
    for source in (one.source, other.source):
        source.limits = lambda: [torch.tensor(d) for d in (0.0, 1 / 3, 0.02)] if method == "str" else 0.0311
    for each in (one, other):
        with torch.no_grad():
            each.compress()
    assert one.computed[1].count_nonzero() < one.dense[1].count_nonzero()
    for found, expected in zip(one.computed, other.computed, strict=True):
        assert torch.equal(found, expected)
    for limit in (math.nan, math.inf, 1e39):
        one.source.limits = lambda limit=limit: limit
        assert one.at_hand() is None


def test_early_pruning_stops_growing(bench: Any, gaussian: Callable[..., Any]) -> None:
    method = STDS(final_threshold=0.5, scheduler="pgh", beta=0.1, stop_slope=0.1)
    b = bench(method, gaussian(SHAPES, 0), steps_per_epoch=5, epochs=4)
    seen = []
    for _ in range(20):
        b.step([torch.zeros_like(w) for w in b.weights])
        seen.append(method.source.value)
    assert all(low < high for low, high in pairwise(seen[:15]))  # 0.743 of 20 steps is 14.86
    assert len(set(seen[14:])) == 1 and 0.49 < seen[-1] < 0.5


def test_pruning_at_initialisation(bench: Any, gaussian: Callable[..., Any]) -> None:
    b = bench(STDS(final_threshold=0.5, scheduler="pgh", beta=0.0, stop_slope=0.1), gaussian(SHAPES, 0))
    zeros = [torch.zeros_like(w) for w in b.weights]
    counts = [b.counts()]
    for _ in range(3):
        b.step(zeros)
        counts.append(b.counts())
    assert counts == [[24, 30, 15]] + [[int((w.abs() > 0.5).sum()) for w in gaussian(SHAPES, 0)]] * 3


@pytest.mark.parametrize("gradient", ["identity", "subgradient"])
@pytest.mark.parametrize("options", [{"scheduler": "sine"}, {"scheduler": "lats"}, {"scheduler": "pgh", "beta": 0.01}])
def test_theorem_1_the_step_of_nonzero_weights_is_istas(
    gradient: Any, options: dict[str, Any], bench: Any, gaussian: Callable[..., Any]
) -> None:
    """w(t+1) = S_{mu eta}(w(t) - eta g), mu = (d(t+1) - d(t)) / eta, where |theta(t+1)| > d(t) of unchanged sign."""
    method = STDS(final_threshold=1.0, gradient=gradient, **options)
    b = bench(method, gaussian([(20, 10), (10, 20)], 0), lr=0.05, steps_per_epoch=5, epochs=4)
    plan = Threshold(final=1.0, epochs=4, steps_per_epoch=5, **options)
    held = broken = lost = 0
    for step in range(20):
        eta = 0.05 * (1 + math.cos(math.pi * step / 20)) / 2
        b.ctx.lr = b.optimizer.param_groups[0]["lr"] = eta
        before = [w.detach().clone() for w in b.weights]
        hidden = [w.clone() for w in method.dense]
        grads = gaussian([(20, 10), (10, 20)], step + 1)
        b.step(grads)
        mu = plan.penalty(step, eta)
        for w, g, start, theta, after in zip(before, grads, hidden, method.dense, b.weights, strict=True):
            ista = soft(w - eta * g, mu * eta)
            fits = (w != 0) & (theta.abs() > plan.at(step)) & (theta.sign() == start.sign())
            assert torch.allclose(after.detach()[fits], ista[fits], rtol=0, atol=1e-12)
            held += int(fits.sum())
            lost += int((fits & (after == 0)).sum())
            outside = (w != 0) & ~fits
            broken += int(((after.detach() - ista).abs()[outside] > 1e-9).sum())
    assert held > 2000 and lost > 20 and broken > 0


def test_the_records_by_hand(bench: Any, gaussian: Callable[..., Any]) -> None:
    """Implied L1 penalty and gradient over decay of an epoch of three steps of STR, two layers."""
    start = gaussian([(4, 3), (2, 4)], 0)
    method = STR(s_init=-2.0, threshold_decay=0.5)
    b = bench(method, start, lr=0.1, steps_per_epoch=3)
    ratios: list[list[float]] = []
    for epoch in range(2):
        ratios.clear()
        began, eta = torch.sigmoid(method.source.s.detach()), 0.0
        for step in range(3):
            b.ctx.lr = b.optimizer.param_groups[0]["lr"] = b.optimizer.param_groups[1]["lr"] = 0.1 / (1 + step)
            grads = gaussian([(4, 3), (2, 4)], 10 * epoch + step + 1)
            s, d = method.source.s.detach().clone(), torch.sigmoid(method.source.s.detach())
            pulls = [(g * w.detach().sign()).sum() for g, w in zip(grads, b.weights, strict=True)]
            ratios.append([float((-d * (1 - d) * p / (0.5 * s))[i].abs()) for i, p in enumerate(pulls)])
            eta += b.ctx.lr
            b.step(grads)
        now = torch.sigmoid(method.source.s.detach())
        found = method.diagnostics()
        for i, name in enumerate(("fc1", "fc2")):
            assert found[f"threshold:{name}"] == pytest.approx(float(now[i]))
            assert found[f"l1_penalty:{name}"] == pytest.approx(float(now[i] - began[i]) / eta)
            mean = math.exp(sum(math.log(r[i]) for r in ratios) / 3)
            assert found[f"gradient_to_decay:{name}"] == pytest.approx(mean)
    assert len(found) == 6
    without = bench(STR(s_init=-2.0, threshold_decay=0.0), start)
    without.step(gaussian([(4, 3), (2, 4)], 1))
    assert not any(name.startswith("gradient_to_decay") for name in without.method.diagnostics())


def test_a_step_that_overflowed_is_not_in_the_means(bench: Any, gaussian: Callable[..., Any]) -> None:
    start, grads = gaussian([(4, 3)], 0), gaussian([(4, 3)], 1)
    once, with_overflow = (bench(STR(s_init=-2.0, threshold_decay=0.5), start) for _ in range(2))
    once.step(grads)
    with_overflow.step(grads)
    told = once.method.diagnostics()["gradient_to_decay:fc1"]
    with_overflow.step([torch.full_like(g, math.inf) for g in grads])
    assert with_overflow.method.diagnostics()["gradient_to_decay:fc1"] == pytest.approx(told)


def test_runs_record_thresholds_and_penalties(tiny: list[str], tmp_path: Path) -> None:
    """LATS on the run's own learning rate, with a warm-up: the penalty is the same in every epoch, and is D / sum."""
    given = [*tiny, "method=lats", "method.learning_rate=run", "schedule.lr=0.1", "schedule.epochs=5"]
    given += ["schedule.warmup_epochs=2", "schedule.decay=cosine", "trainer.records=[thresholds]"]
    t = Trainer(make(compose(given)), RunDirectory(tmp_path))
    history = t.fit()
    total = sum(t.learning_rate.at(step / 4) for step in range(20))
    assert [line["l1_penalty:all"] for line in history] == pytest.approx([0.5 / total] * 5, rel=1e-9)
    assert history[-1]["threshold:all"] == pytest.approx(0.5)
    assert "gradient_to_decay:all" not in history[-1]


@pytest.mark.parametrize("learning_rate", ["cosine", "run"])
@pytest.mark.parametrize("method", ["stds", "lats", "s_lats", "pgh"])
def test_what_is_drawn_of_a_schedule_is_what_its_run_records(
    method: str, learning_rate: str, tiny: list[str], tmp_path: Path
) -> None:
    """Figures of schedules take a configuration to the threshold that the trainer sets, warm-up and all."""
    given = [*tiny, f"method={method}", "schedule.epochs=5", "schedule.decay=cosine", "schedule.warmup_epochs=2"]
    if method != "stds":
        given += [f"method.learning_rate={learning_rate}"]
    config = compose([*given, "method.final_threshold=0.3", "trainer.records=[thresholds]"])
    history = Trainer(make(config), RunDirectory(tmp_path)).fit()
    drawn = dict(of(config["method"], config["schedule"], 4).trace())
    assert [line["threshold:all"] for line in history] == [drawn[epoch / 5] for epoch in range(1, 6)]


def test_decay_alone_moves_a_threshold_that_no_gradient_reaches(tiny: list[str], tmp_path: Path) -> None:
    """Equation 25: s = s_init prod (1 - eta lambda) while sigmoid(s) is 0, with the run's weight decay and warm-up."""
    given = [*tiny, "method=str", "method.s_init=-800", "schedule.l2=0.3", "schedule.lr=0.2", "schedule.epochs=4"]
    given += ["schedule.warmup_epochs=1", "schedule.decay=cosine", "schedule.optimizer.momentum=0"]
    t = Trainer(make(compose([*given, "schedule.optimizer.nesterov=false"])), RunDirectory(tmp_path))
    rates = [t.learning_rate.at(step / 4) for step in range(16)]
    t.fit()
    expected = -800 * math.prod(1 - 0.3 * rate for rate in rates)
    assert -700 < expected < -300  # exp(-300) is below every float32
    assert t.e.method.source.s.tolist() == pytest.approx([expected] * 3, rel=1e-5)  # type: ignore[attr-defined]


def test_weights_without_a_gradient_pull_at_no_threshold(bench: Any, gaussian: Callable[..., Any]) -> None:
    b = bench(STR(s_init=-2.0), gaussian(SHAPES, 0), lr=0.1)
    b.optimizer.zero_grad()
    b.weights[0].grad = torch.ones_like(b.weights[0])
    assert b.method.before_step(b.ctx)
    assert b.weights[1].grad is None
    assert b.method.source.s.grad.count_nonzero() == 1


def test_gpo_starts_as_the_dense_network_and_ends_as_str(bench: Any, gaussian: Callable[..., Any]) -> None:
    """k = 1e-6 |beta|, beta = 1e6: the identity; decay alone carries beta to 0, and what counts as zero is |w| <= d."""
    weights = gaussian(SHAPES, 0)
    method = GPO(s_init=-1.0)
    b = bench(method, weights, lr=0.5)
    assert b.values() == [pytest.approx(w.flatten().tolist(), abs=1e-15) for w in weights]
    d = 1 / (1 + math.e)
    zero = [w.abs() <= d for w in weights]
    assert all(torch.equal(w == 0, z) for w, z in zip(method.effective().values(), zero, strict=True))
    decayed = 1e6
    for _ in range(3):
        b.step([torch.zeros_like(w) for w in b.weights])
        decayed *= 1 - 0.5 * 1e-4
    assert method.beta.tolist() == pytest.approx([decayed] * 3)
    with torch.no_grad():
        method.beta.zero_()
    b.step([torch.zeros_like(w) for w in b.weights])
    assert b.values() == [pytest.approx(soft(w, d).flatten().tolist(), abs=1e-12) for w in weights]


def test_batch_norm_is_pruned_on_demand(tmp_path: Path) -> None:
    given = ["model.batch_norm=hidden", "method=s_lats", "method.prune_batch_norm=true", "dataset.train_subset=40"]
    t = Trainer(make(compose([*given, "schedule.epochs=2", "method.final_threshold=2"])), RunDirectory(tmp_path))
    t.fit()
    scales = {name: w for name, w in t.e.method.effective().items() if w.dim() == 1}
    assert len(scales) == 2
    assert all(int(w.count_nonzero()) == 0 for w in scales.values())  # they start at 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["method=str", "method.scheduler=sine"], "scheduler is set without final_threshold"),
        (["method=str", "method.final_threshold=1e-3"], "final_threshold is set without scheduler"),
        (["method=str", "method.s_init=11"], r"method.s_init = 11 should be in the range -1e6 <= x <= 10"),
        (["method=pgh", "method.stop_slope=1000"], "stop_slope = 1000 is never reached"),
        (["method=pgh", "method.beta=1.5"], r"method.beta = 1.5 should be in the range 0 <= x <= 1"),
        (["method=stds", "method.scheduler=cosine"], "should be one of sine, linear, log2, lats, s_lats, pgh"),
        (["method=s_lats", "method.scheduler=sine", "method.learning_rate=run"], "has no effect on scheduler = sine"),
        (["method=pgh", "method.scheduler=s_lats"], "beta and stop_slope belong to scheduler = pgh"),
    ],
)
def test_options_that_cannot_be_are_misuse(options: list[str], sentence: str) -> None:
    with pytest.raises(Misuse, match=sentence):
        validate(compose(options))


def test_only_the_same_distance_from_zero_is_taken_off(bench: Any) -> None:
    weights = [torch.tensor([[0.9, -0.9, 0.2, -0.2, 0.5, -0.5, 0.0]], dtype=torch.float64)]
    b = bench(STDS(final_threshold=0.5, scheduler="linear"), weights, steps_per_epoch=1, epochs=1)
    b.step([torch.zeros(1, 7)])
    assert b.values()[0] == pytest.approx([0.4, -0.4, 0, 0, 0, 0, 0])
    assert b.kept()[0] == [True, True, False, False, False, False, False]
    assert b.method.distance() == pytest.approx((4 * 0.25 + 2 * 0.04) / (2 * 0.81 + 2 * 0.04 + 2 * 0.25))


def test_a_run_that_is_lengthened_once_begun_has_the_longer_schedule(bench: Any, gaussian: Callable[..., Any]) -> None:
    """As a budget of FLOPs does (runner.trainer): the threshold ends with the run."""
    b = bench(STDS(final_threshold=0.8, scheduler="linear"), gaussian(SHAPES, 0), lr=0.0, steps_per_epoch=2, epochs=2)
    b.ctx.total_steps = 8
    found = []
    for _ in range(8):
        b.step([torch.zeros_like(w) for w in b.weights])
        found.append(float(b.method.source.values()))
    assert found == pytest.approx([0.1 * step for step in range(1, 9)])
