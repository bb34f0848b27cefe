"""GraNet against a straightforward loop on Python lists; its counts by hand, its updates, its cost."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from methods.allocation import allocate, kept_of
from methods.granet import GraNet
from methods.schedules import step_of
from runner.compose import compose
from runner.errors import Misuse
from runner.experiment import make, validate
from runner.records import RunDirectory
from runner.trainer import Trainer

SHAPES = [(6, 5), (4, 5), (5, 10)]  # 30, 20 and 50 weights: 100
LR, MOMENTUM = 0.1, 0.9


class Loop:
    """Section 4 of Liu et al. 2021 with momentum, one weight at a time."""

    def __init__(self, weights: list[list[float]], kept: list[list[bool]], updates: dict[int, float], total: int):
        self.w = [[v if k else 0.0 for v, k in zip(*pair, strict=True)] for pair in zip(weights, kept, strict=True)]
        self.kept = [list(layer) for layer in kept]
        self.m = [[0.0] * len(layer) for layer in weights]
        self.updates, self.total = updates, total
        self.dropped: list[list[int]] = []  # per update, by layer
        self.back = self.new = self.restarted = 0

    def step(self, t: int, grads: list[list[float]]) -> None:
        for layer, g in enumerate(grads):
            for i, keep in enumerate(self.kept[layer]):
                self.m[layer][i] = MOMENTUM * self.m[layer][i] + (g[i] if keep else 0.0)
                if keep:
                    self.w[layer][i] -= LR * self.m[layer][i]
        if t in self.updates:
            pruned = self.prune(self.updates[t])
            if t < self.total:
                share = 0.02 + 0.48 * (1 + math.cos(math.pi * t / self.total)) / 2
                self.dropped.append([self.exchange(i, g, share, pruned) for i, g in enumerate(grads)])

    def prune(self, sparsity: float) -> set[tuple[int, int]]:
        places = [(i, j) for i, layer in enumerate(self.kept) for j, keep in enumerate(layer) if keep]
        places.sort(key=lambda p: -abs(self.w[p[0]][p[1]]))
        gone = set(places[kept_of(100, sparsity) :])
        for i, j in gone:
            self.kept[i][j], self.w[i][j] = False, 0.0
        return gone

    def exchange(self, layer: int, g: list[float], share: float, pruned: set[tuple[int, int]]) -> int:
        w, kept = self.w[layer], self.kept[layer]
        active = [i for i, keep in enumerate(kept) if keep]
        count = math.ceil(share * len(active))
        dropped = set(sorted(active, key=lambda i: abs(w[i]))[:count])
        empty = [i for i in range(len(w)) if not kept[i] or i in dropped]
        grown = sorted(empty, key=lambda i: -abs(g[i]))[:count]
        for i in range(len(w)):
            if i in grown and i not in dropped:
                w[i] = self.m[layer][i] = 0.0
                self.new += 1
                self.restarted += (layer, i) in pruned
            elif i in grown:
                self.back += 1
            elif i in dropped:
                w[i] = 0.0
        self.kept[layer] = [(keep and i not in dropped) or i in grown for i, keep in enumerate(kept)]
        return count


@pytest.mark.parametrize(("start", "known"), [(0.5, True), (0.5, False), (0.0, True)])
def test_the_algorithm_as_a_loop(start: float, known: bool, bench: Any, gaussian: Any) -> None:
    """Five steps per epoch, an update every 0.4 epochs: the ramp's ends after 2, 4, 6, 8 and 10 steps, and on."""
    method = GraNet(
        sparsity=0.9, initial_sparsity=start, iterations=5, every_epochs=0.4, drop_fraction=0.5, end_fraction=0.02
    )
    method.check(4)
    b = bench(method, gaussian(SHAPES, 0), lr=LR, momentum=MOMENTUM, steps_per_epoch=5, epochs=4, known=known)
    assert b.counts() == allocate("erk", SHAPES, start)
    ramp = {2 * i: 0.9 + (start - 0.9) * (1 - min(i / 5, 1)) ** 3 for i in range(1, 11)}
    loop = Loop([w.flatten().tolist() for w in gaussian(SHAPES, 0)], b.kept(), ramp, 20)
    assert loop.w == b.values()
    totals = []
    for t in range(1, 21):
        grads = gaussian(SHAPES, 100 + t)
        loop.step(t, [g.flatten().tolist() for g in grads])
        b.step(grads)
        assert b.kept() == loop.kept, t
        for found, expected in zip(b.values(), loop.w, strict=True):
            assert found == pytest.approx(expected, abs=1e-12), t
        totals.append(sum(b.counts()))
    # By hand: 10 + 40 (1 - i/5)^3 = 30.48, 18.64, 12.56, 10.32 and 10; from dense 10 + 90 (...) = 56.08, 29.44 ...
    by_hand = [50, 30, 30, 19, 19, 13, 13, 10] if start else [100, 56, 56, 29, 29, 16, 16, 11]
    assert totals == by_hand + [10 if start else 11] + [10] * 11
    assert loop.new > 20 and loop.back > 5 and loop.restarted > 0  # all cases have happened
    assert len(loop.dropped) == 9  # nothing is exchanged after the last step


def test_the_share_that_is_exchanged_by_hand(bench: Any, gaussian: Any) -> None:
    """Of 10 and 30 kept weights ceil(r n), r = 0.3 + 0.2 (1 + cos(pi t / 12)) / 2 after t = 3, 6 and 9 of 12 steps.

    cos is 0.7071, 0 and -0.7071: r = 0.4707, 0.4 and 0.3293.
    """
    counts = []
    sparse = GraNet(
        sparsity=0.5, initial_sparsity=0.5, iterations=1, every_epochs=1, drop_fraction=0.5, end_fraction=0.3,
        start_allocation="uniform", allocation="uniform",
    )  # fmt: skip
    b = bench(sparse, [torch.ones(4, 5), torch.ones(6, 10)], lr=0.0, steps_per_epoch=3, epochs=4)
    for _t in range(12):
        before_masks = [torch.tensor(k) for k in b.kept()]
        # What is empty has the largest gradients, so that all that is dropped is replaced by others.
        grads = [(~m).double().view_as(w) for m, w in zip(before_masks, b.weights, strict=True)]
        b.step(grads)
        after = [torch.tensor(k) for k in b.kept()]
        counts.append([int((m & ~a).sum()) for m, a in zip(before_masks, after, strict=True)])
        assert b.counts() == [10, 30]
    assert [c for c in counts if c != [0, 0]] == [[5, 15], [4, 12], [4, 10]]  # of 4.707, 14.12; 4, 12; 3.293, 9.879


def test_a_weight_that_comes_back_at_once_keeps_its_value(bench: Any) -> None:
    """Kept 3, -1, 2, 4; -1 is dropped, and grown since its gradient is the largest. The empty one would start at 0."""
    method = GraNet(
        sparsity=0.2, initial_sparsity=0, iterations=1, every_epochs=1, drop_fraction=0.25, end_fraction=0.25
    )
    for gradient, kept, values in [
        ([0.0, 9.0, 0.0, 0.0, 1.0], [True, True, True, True, False], [3.0, -1.0, 2.0, 4.0, 0.0]),
        ([0.0, 1.0, 0.0, 0.0, 9.0], [True, False, True, True, True], [3.0, 0.0, 2.0, 4.0, 0.0]),
    ]:
        b = bench(method, [torch.tensor([[3.0, -1.0, 2.0, 4.0, 0.5]])], lr=0.0, steps_per_epoch=1, epochs=5)
        b.step([torch.tensor([gradient])])
        assert b.kept() == [kept] and b.values() == [values]


def test_growth_looks_at_the_gradient_of_empty_positions_not_at_its_sign(bench: Any) -> None:
    method = GraNet(sparsity=0.5, initial_sparsity=0, iterations=1, every_epochs=1, drop_fraction=0.5, end_fraction=0.5)
    b = bench(method, [torch.tensor([[4.0, 3.0, 2.0, 1.0]])], lr=0.0, steps_per_epoch=1, epochs=5)
    b.step([torch.tensor([[0.0, 0.5, -7.0, 5.0]])])
    assert b.kept() == [[True, False, True, False]]
    b = bench(method, [torch.tensor([[4.0, 3.0, 2.0, 1.0]])], lr=0.0, steps_per_epoch=1, epochs=5)
    b.method.prune(0.5)
    b.method.grads = [torch.tensor([[0.0, 0.5, math.inf, 5.0]])]  # fp16 overflowed: no claim
    b.method.exchange(b.ctx)
    assert b.kept() == [[True, False, False, True]]


@pytest.mark.parametrize("every", [0.4, 0.25, 1.0, 1.7, 0.05])
@pytest.mark.parametrize("start", [0.0, 1.3])
def test_updates_follow_the_epochs_to_the_end(every: float, start: float, bench: Any, gaussian: Any) -> None:
    method = GraNet(sparsity=0.9, start_epoch=start, iterations=2, every_epochs=every)
    b = bench(method, gaussian(SHAPES, 0), steps_per_epoch=7, epochs=6)
    after = {max(1, step_of(start + i * every, 7)) for i in range(1, 1000)}
    numbers = {step: method.number(step, b.ctx) for step in range(1, 43)}
    assert {step for step, number in numbers.items() if number is not None} == after & set(range(1, 43))
    for step, number in numbers.items():
        assert number is None or max(1, step_of(start + number * every, 7)) == step
    found = [method.exchanges(step, b.ctx) for step in range(1, 43)]
    assert found == [numbers[step] is not None and step < 42 for step in range(1, 43)]


def test_a_start_with_a_given_mask_keeps_it(bench: Any, gaussian: Any) -> None:
    method = GraNet(sparsity=0.9, iterations=1, every_epochs=1)
    b = bench(method, gaussian(SHAPES, 0), begin=False)
    given = {name: torch.rand(w.shape, generator=torch.Generator().manual_seed(1)) < 0.4 for name, w in
             zip(method.weights, b.weights, strict=True)}  # fmt: skip
    method.adopt(given, {})
    method.begin(b.ctx)
    assert b.kept() == [m.flatten().tolist() for m in given.values()]


def test_the_start_is_random_and_the_seeds(bench: Any, gaussian: Any) -> None:
    masks = []
    for seed in (0, 0, 1):
        b = bench(GraNet(sparsity=0.9, iterations=1, every_epochs=1), gaussian(SHAPES, 0), seed=seed)
        masks.append(b.kept())
        assert sum(b.counts()) == 50
    assert masks[0] == masks[1] != masks[2]


def test_dense_gradients_are_charged_for_as_often_as_they_are_needed(bench: Any, gaussian: Any) -> None:
    """Updates after 3, 5, 8, 10 steps ...: 2 of the first 5, 2 of the next; the last step of all has none."""
    method = GraNet(sparsity=0.9, iterations=2, every_epochs=0.5)
    b = bench(method, gaussian([(4, 5)], 0), steps_per_epoch=5, epochs=2)
    layers = {"fc1.weight": {"kept": 4, "nonzero": 3, "total": 20}}
    shares = [method.passes(layers)]  # before the first step already
    for step in range(10):
        b.step(gaussian([(4, 5)], 1))
        if step in (4, 9):
            shares.append(method.passes(layers))
    assert [p.forward for p in shares] == [p.error for p in shares] == [{"fc1.weight": 4}] * 3
    assert [p.gradient["fc1.weight"] for p in shares] == pytest.approx([4 + 0.4 * 16, 4 + 0.4 * 16, 4 + 0.2 * 16])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["method.end_fraction=0.6"], "end_fraction = 0.6 exceeds drop_fraction = 0.5"),
        (["method.initial_sparsity=0.95"], "initial_sparsity = 0.95 exceeds sparsity = 0.9"),
        (["method.iterations=200"], "the last of 200 prunings every 0.4 epochs from epoch 0 lies after the run's end"),
        (["method.every_epochs=0"], "every_epochs = 0 leaves no time between two updates"),
    ],
)
def test_what_cannot_be_is_misuse(options: list[str], sentence: str) -> None:
    with pytest.raises(Misuse, match=sentence):
        validate(compose(["method=granet", *options]))


def test_a_layer_without_a_gradient_is_named(tiny: list[str], tmp_path: Path) -> None:
    config = compose([*tiny, "method=granet", "method.iterations=4", "method.every_epochs=0.25"])
    t = Trainer(make(config), RunDirectory(tmp_path))
    t.model.fc2.weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"no gradient with respect to fc2\.weight; add its layer to keep_dense"):
        t.fit()
