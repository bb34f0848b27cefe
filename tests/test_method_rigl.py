"""RigL against a straightforward loop on Python lists, and when it updates."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from methods.rigl import RigL, moved
from runner.compose import compose
from runner.errors import Misuse
from runner.execute import execute
from runner.experiment import make, validate
from runner.records import RunDirectory
from runner.trainer import Trainer

SHAPES = [(4, 5), (3, 6)]


class Loop:
    """Algorithm 1 of Evci et al. 2020 with momentum, one weight at a time."""

    def __init__(
        self, weights: list[list[float]], kept: list[list[bool]], total: int, alpha: float, every: int
    ) -> None:
        self.w = [[v if k else 0.0 for v, k in zip(*pair, strict=True)] for pair in zip(weights, kept, strict=True)]
        self.kept = [list(layer) for layer in kept]
        self.m = [[0.0] * len(layer) for layer in weights]
        self.end, self.alpha, self.every = 0.75 * total, alpha, every
        self.regrown = self.new = 0

    def step(self, t: int, grads: list[list[float]]) -> None:
        if t > 0 and t % self.every == 0 and t < self.end:
            fraction = self.alpha / 2 * (1 + math.cos(t * math.pi / self.end))
            for layer, g in enumerate(grads):
                self.update(layer, g, fraction)
            return
        for layer, g in enumerate(grads):
            for i, keep in enumerate(self.kept[layer]):
                self.m[layer][i] = 0.9 * self.m[layer][i] + (g[i] if keep else 0.0)
                if keep:
                    self.w[layer][i] -= 0.1 * self.m[layer][i]

    def update(self, layer: int, g: list[float], fraction: float) -> None:
        w, kept = self.w[layer], self.kept[layer]
        active = [i for i, keep in enumerate(kept) if keep]
        count = int(fraction * len(active))
        dropped = set(sorted(active, key=lambda i: abs(w[i]))[:count])
        survivors = [i for i in active if i not in dropped]
        candidates = [i for i in range(len(w)) if i not in survivors]
        grown = sorted(candidates, key=lambda i: -abs(g[i]))[:count]
        for i in range(len(w)):
            if i in grown and not kept[i]:
                w[i] = self.m[layer][i] = 0.0
                self.new += 1
            elif i in grown:
                self.regrown += 1
            elif i not in survivors:
                w[i] = 0.0
        self.kept[layer] = [i in survivors or i in grown for i in range(len(w))]


@pytest.mark.parametrize(("allocation", "known"), [("uniform", True), ("uniform", False), ("erk", True)])
def test_the_algorithm_box_as_a_loop(allocation: str, known: bool, bench: Any, gaussian: Any) -> None:
    method = RigL(sparsity=0.5, drop_fraction=0.6, period=3, allocation=allocation)
    b = bench(method, gaussian(SHAPES, 0), lr=0.1, momentum=0.9, epochs=8, known=known)
    counts = b.counts()
    assert sum(counts) == 19
    loop = Loop([w.flatten().tolist() for w in gaussian(SHAPES, 0)], b.kept(), 40, 0.6, 3)
    for t in range(40):
        grads = gaussian(SHAPES, 100 + t)
        loop.step(t, [g.flatten().tolist() for g in grads])
        b.step(grads)
        assert b.kept() == loop.kept, t
        assert b.counts() == counts
        for found, expected in zip(b.values(), loop.w, strict=True):
            assert found == pytest.approx(expected, abs=1e-12), t
    assert loop.new >= 10 and loop.regrown >= 3  # both cases have happened


def test_a_step_that_updates_masks_moves_no_kept_weight(bench: Any, gaussian: Any) -> None:
    method = RigL(sparsity=0.5, drop_fraction=0.5, period=2)
    b = bench(method, gaussian(SHAPES, 0), momentum=0.9, epochs=8)
    for t in range(3):
        before, masks = [w.detach().clone() for w in b.weights], [torch.tensor(k) for k in b.kept()]
        b.step(gaussian(SHAPES, t))
        after = [torch.tensor(k) for k in b.kept()]
        stayed = [(m & a).view_as(w) for m, a, w in zip(masks, after, before, strict=True)]
        still = all(torch.equal(w.detach()[s], old[s]) for w, old, s in zip(b.weights, before, stayed, strict=True))
        assert still == (t == 2)


def test_when_it_updates(bench: Any, gaussian: Any) -> None:
    """Multiples of the period above 0 and before three quarters of 40 steps; the official code begins with step 0."""
    for from_start, expected in ((False, [10, 20]), (True, [0, 10, 20])):
        method = RigL(sparsity=0.5, drop_fraction=0.5, period=10, from_start=from_start)
        b = bench(method, gaussian(SHAPES, 0), epochs=8)
        due = []
        for t in range(40):
            due += [t] if method.due(b.ctx) else []
            b.step(gaussian(SHAPES, t))
        assert due == expected  # 30 is not before 0.75 * 40


def test_one_update_by_hand() -> None:
    before = torch.tensor([True, True, True, True, False, False])
    weight = torch.tensor([0.1, -2.0, 0.2, 3.0, 0.0, 0.0])
    grad = torch.tensor([9.0, 9.0, 0.5, 9.0, -1.0, 0.4])
    after, new = moved(before, weight, grad, 0.55)  # floor(2.2) = 2 of 4 go: 0.1 and 0.2
    assert after.tolist() == [True, True, False, True, True, False]  # 0.1's gradient brings it back
    assert new.tolist() == [False, False, False, False, True, False]
    broken = torch.tensor([math.nan, 0.0, 0.1, 0.0, math.inf, 0.4])
    assert moved(before, weight, broken, 0.55)[0].tolist() == [False, True, True, True, False, True]


def test_the_gradient_is_that_of_all_positions_and_of_the_whole_batch(tmp_path: Path) -> None:
    """In the trainer, with micro-batches: what grows has the largest gradient of the loss at the masked weights."""
    given = ["method=rigl", "method.period=2", "method.drop_fraction=1.0", "dataset.train_subset=150"]
    given += ["schedule.batch_size=50", "schedule.epochs=2", "schedule.accumulate=2", "model.hidden=[20,10]"]
    t = Trainer(make(compose(given)), RunDirectory(tmp_path))
    method: Any = t.e.method
    seen: list[Any] = []
    real = RigL.update

    def watched(ctx: Any) -> None:
        grads = [w.grad.clone() for w in method.mask.weights]
        before = [method.mask.kept(i) for i in range(3)]
        sizes = method.mask.counts()
        real(method, ctx)
        seen.append((grads, before, [method.mask.kept(i) for i in range(3)], sizes, ctx.step))

    method.update = watched
    t.fit()
    assert [step for *_, step in seen] == [2, 4]
    grads, before, after, sizes, _ = seen[0]
    for g, old, new, size in zip(grads, before, after, sizes, strict=True):
        assert g.view(-1)[~old].count_nonzero() > 0  # not masked
        dropped = math.floor(0.5 * (1 + math.cos(math.pi * 2 / 4.5)) * size)
        assert int((old & ~new).sum()) <= dropped and int(new.sum()) == size


def test_five_times_the_training_scales_every_anchor() -> None:
    """Evci et al. 2020, section 4.1; the official code multiplies steps, learning rate epochs and T_end alike."""
    one = compose(["experiment=acdc/imagenet", "method=rigl"])
    five = compose(["experiment=acdc/imagenet", "method=rigl", "schedule.extend=5"])
    assert (one["schedule"]["epochs"], five["schedule"]["epochs"]) == (100, 500)
    assert five["schedule"]["milestones"] == [150, 350, 450] and five["schedule"]["warmup_epochs"] == 25
    assert five["method"] == one["method"]  # T_end is a share
    rates = [validate(config)[1].learning_rate() for config in (one, five)]
    for position in (1.0, 4.0, 20.0, 60.0, 80.0, 95.0):
        assert rates[1].at(5 * position) == pytest.approx(rates[0].at(position))
    short = compose(["experiment=acdc/imagenet", "method=rigl", "schedule.extend=5", "profile=short"])
    assert short["schedule"]["epochs"] == 100 and short["schedule"]["milestones"] == [30, 70, 90]


@pytest.mark.parametrize(
    ("steps", "period", "stop", "moves"),
    [(100, 100, 0.75, []), (100, 75, 0.75, []), (100, 74, 0.75, [74]), (101, 75, 0.75, [75]), (8, 8, 1.0, [])],
)
def test_a_run_without_a_single_update_is_refused(
    steps: int, period: int, stop: float, moves: list[int], bench: Any, gaussian: Any
) -> None:
    """Exactly what would never be due is refused (20 epochs of 20,000 samples in batches of 4096 are 100 steps)."""
    method = RigL(sparsity=0.5, drop_fraction=0.3, period=period, stop=stop)
    if not moves:
        with pytest.raises(
            ValueError, match=f"period = {period}, .* of the run's {steps} only, so that RigL would never"
        ):
            bench(method, gaussian([(4, 6)], seed=1), steps_per_epoch=steps, epochs=1)
    b = bench(method, gaussian([(4, 6)], seed=1), steps_per_epoch=steps, epochs=1, begin=bool(moves))
    due = []
    for b.ctx.step in range(steps):
        due += [b.ctx.step] * method.due(b.ctx)
    assert due == moves


def test_the_refusal_names_a_period_that_acts(bench: Any, gaussian: Any) -> None:
    with pytest.raises(ValueError, match=r"set method\.period to 74 or less, or a smaller schedule\.batch_size"):
        bench(RigL(sparsity=0.5, drop_fraction=0.3), gaussian([(4, 6)], seed=1), steps_per_epoch=5, epochs=20)
    bench(RigL(sparsity=0.5, drop_fraction=0.3, period=74), gaussian([(4, 6)], seed=1), steps_per_epoch=5, epochs=20)
    bench(
        RigL(sparsity=0.5, drop_fraction=0.3, from_start=True), gaussian([(4, 6)], seed=1), steps_per_epoch=5, epochs=1
    )


def test_a_run_says_so_before_its_first_step(tmp_path: Path) -> None:
    tiny = ["model.hidden=[20,10]", "schedule.epochs=2", "schedule.batch_size=500", f"runs={tmp_path}"]
    with pytest.raises(Misuse, match=r"^method: period = 100, but masks move up to step 4 of the run's 6 only"):
        execute(compose([*tiny, "method=rigl"]), [])
    assert not list(tmp_path.rglob("summary.json"))
