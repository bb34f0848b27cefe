"""Masks: exact selection with its tie rule, uniform draws, projection, optimizer-state reset."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from methods import masks as module
from methods.masks import Masks, Pursuit, digest, kth_largest, random_positions, reset_state, top_mask


def kept(scores: list[float], keep: int) -> list[int]:
    mask = top_mask(torch.tensor(scores), keep)
    assert mask.dtype == torch.bool and mask.shape == (len(scores),)
    return mask.nonzero().flatten().tolist()


def test_top_mask_by_hand() -> None:
    assert kept([0.3, 0.1, 0.5, 0.2], 2) == [0, 2]
    assert kept([-3.0, -1.0, -2.0], 1) == [1]


def test_top_mask_keeps_none_or_all() -> None:
    assert kept([1.0, 2.0], 0) == []
    assert kept([1.0, 2.0], -1) == []
    assert kept([1.0, 2.0], 2) == [0, 1]
    assert kept([1.0, 2.0], 5) == [0, 1]


def test_among_ties_the_lower_index_is_kept() -> None:
    assert kept([1.0, 1.0, 1.0, 1.0], 1) == [0]
    assert kept([0.0, 2.0, 1.0, 1.0, 1.0], 3) == [1, 2, 3]
    assert kept([1.0, 5.0, 1.0, 0.0], 2) == [0, 1]
    assert kept([-1.0, 0.0, -0.0, -1.0], 1) == [1]  # 0 and -0 are equal


def test_top_mask_with_infinite_scores() -> None:
    assert kept([math.inf, -math.inf, 0.0, math.inf], 3) == [0, 2, 3]
    assert kept([-math.inf, -math.inf, 0.0], 2) == [0, 2]


def test_top_mask_takes_any_shape_and_answers_flat() -> None:
    scores = torch.tensor([[0.0, 3.0], [2.0, 1.0]])
    assert top_mask(scores, 2).tolist() == [False, True, True, False]
    assert top_mask(scores.t(), 2).tolist() == [False, True, True, False]
    assert top_mask(torch.tensor([[0.0, 3.0], [1.0, 2.0]]).t(), 2).tolist() == [False, False, True, True]


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30), st.integers(0, 32))
def test_top_mask_equals_a_stable_sort(scores: list[int], keep: int) -> None:
    by_score = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    assert kept([float(s) for s in scores], keep) == sorted(by_score[:keep])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", ["signed", "positive", "mostly zero", "mostly one negative number", "few values"])
def test_large_selections_equal_a_stable_sort(kind: str, dtype: torch.dtype) -> None:
    """Selection goes over bits, and leaves a number out that is there often: whatever is asked for, it is exact."""
    generator = torch.Generator().manual_seed(0)
    size = 20_011
    scores = torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)
    often = torch.rand(size, generator=generator) < 0.7
    if kind == "positive":
        scores = scores.abs()
    elif kind == "mostly zero":
        scores[often] = 0.0
        scores[1::7] = -0.0
    elif kind == "mostly one negative number":
        scores[often] = -0.5
    elif kind == "few values":
        scores = scores.round()
    order = scores.sort(descending=True, stable=True).indices
    for keep in (1, 2, 1000, 3000, 3001, 5000, 9000, 14_000, 17_500, size - 1):
        expected = torch.zeros(size, dtype=torch.bool)
        expected[order[:keep]] = True
        assert torch.equal(top_mask(scores, keep), expected), keep
        assert kth_largest(scores, keep) == scores[order[keep - 1]] and kth_largest(scores, keep).dtype == dtype


@pytest.mark.parametrize("size", [1, 5, 2000])
def test_the_kth_largest_by_sorting(size: int) -> None:
    scores = torch.linspace(-1, 1, size)[torch.randperm(size, generator=torch.Generator().manual_seed(1))]
    for k in {1, (size + 1) // 2, size}:
        assert kth_largest(scores, k) == scores.sort(descending=True).values[k - 1]


@pytest.mark.parametrize("size", [9, 1999, 2001])
def test_not_a_number_is_larger_than_all_numbers(size: int) -> None:
    scores = torch.linspace(-1, 1, size)
    scores[4] = math.nan
    assert kth_largest(scores, 1).isnan()
    assert kth_largest(scores, 2) == 1.0
    scores[4] = -math.nan  # and the negative one smaller
    assert kth_largest(scores, 1) == 1.0
    assert kth_largest(scores, size).isnan()


def drifting(kind: str, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """Scores as training has them, or as it has them rarely, 40 times."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(12_007, generator=generator, dtype=dtype)
    direction = torch.randn(12_007, generator=generator, dtype=dtype) + 0.3
    for step in range(40):
        if kind == "jumps" and step % 7 == 3:
            scores = scores.flip(0) + (-1) ** step * 2
        if kind == "shrinks":
            scores = scores * 0.5
        scores = scores + (0.0 if kind == "stands" else 1e-3) * direction
        shown = scores.clone()
        if kind == "ties":
            shown = (shown * (2 if step < 20 else 200)).round()
        elif kind == "NaN" and 10 <= step < 30:
            shown[step::600] = math.nan if step < 20 else -math.nan
        elif kind == "infinite" and step % 5 == 0:
            shown[1::3] = math.inf
            shown[2::3] = -math.inf
        elif kind == "huge":
            shown = shown.sign() * torch.finfo(dtype).max * 0.9
        elif kind == "of other sizes" and step >= 20:
            shown = shown[:11_000] if step < 30 else shown[:500]
        yield shown


KINDS = ("drifts", "stands", "jumps", "shrinks", "ties", "NaN", "infinite", "huge", "of other sizes")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_pursuit_gives_the_answers_of_a_sort(kind: str, dtype: torch.dtype) -> None:
    """Whatever the numbers do between two questions; NaN, as in a sort, is the largest of all (-NaN the smallest)."""
    for share in (0.0001, 0.3, 0.6, 1.0):
        pursuit, again = Pursuit(), Pursuit()
        for scores in drifting(kind, dtype):
            k = math.ceil(share * len(scores))
            found, mask = pursuit.kth_largest(scores, k), top_mask(scores, k, again)
            assert found.dtype == dtype and found.shape == ()
            number = scores.to(torch.float64, copy=True)
            number[scores.isnan() & ~scores.signbit()] = math.inf  # no kind has both
            number[scores.isnan() & scores.signbit()] = -math.inf
            expected = number.sort().values[-k]
            assert found.double() == expected or (found.isnan() and expected.isinf())
            assert torch.equal(mask, top_mask(scores, k))


@pytest.mark.parametrize(("kind", "most"), [("drifts", 1), ("stands", 1), ("jumps", 8)])
def test_a_pursuit_seldom_selects_among_all(kind: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(module, "kth_largest", lambda flat, k: (asked.append(k), kth_largest(flat, k))[1])
    pursuit = Pursuit()
    for scores in drifting(kind, torch.float32):
        pursuit.kth_largest(scores, 5000)
    assert 1 <= len(asked) <= most  # of 40 questions


def test_random_positions_draws_exactly_the_free_ones() -> None:
    rng = torch.Generator().manual_seed(0)
    free = torch.tensor([False, True, True, False, True])
    assert random_positions(free, 3, rng).tolist() == [1, 2, 4]
    assert random_positions(free, 0, rng).tolist() == []
    assert random_positions(torch.zeros(4, dtype=torch.bool), 0, rng).dtype == torch.long
    with pytest.raises(ValueError, match="cannot draw 4 positions from 3 free ones"):
        random_positions(free, 4, rng)
    with pytest.raises(ValueError, match="cannot draw 1 positions from 0 free ones"):
        random_positions(torch.zeros(5, dtype=torch.bool), 1, rng)


@given(st.integers(1, 60), st.data())
def test_random_positions_are_distinct_free_and_ascending(size: int, data: st.DataObject) -> None:
    free = torch.tensor(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    count = data.draw(st.integers(0, int(free.sum())))
    drawn = random_positions(free, count, torch.Generator().manual_seed(size)).tolist()
    assert len(drawn) == count and drawn == sorted(set(drawn))
    assert all(free[i] for i in drawn)


# The 99.9 % quantiles of chi-square with 119, 65 and 189 degrees of freedom. The draws behind the numbers are fixed.
@pytest.mark.parametrize(("free", "count", "quantile"), [(10, 3, 172.42), (12, 2, 105.99), (20, 2, 254.82)])
def test_random_positions_are_uniform_over_subsets(free: int, count: int, quantile: float) -> None:
    where = torch.arange(3 * free) % 3 == 1
    rng = torch.Generator().manual_seed(7)
    draws = 40 * math.comb(free, count)
    found = Counter(tuple(random_positions(where, count, rng).tolist()) for _ in range(draws))
    subsets = list(combinations(range(1, 3 * free, 3), count))
    assert set(found) <= set(subsets)
    assert sum((found[subset] - 40) ** 2 / 40 for subset in subsets) < quantile


def test_random_positions_come_from_the_given_generator_alone() -> None:
    free = torch.ones(50, dtype=torch.bool)
    for count in (3, 30):  # rejection and permutation
        drawn = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            drawn.append(random_positions(free, count, torch.Generator().manual_seed(5)).tolist())
        assert drawn[0] == drawn[1]
        assert drawn[0] != random_positions(free, count, torch.Generator().manual_seed(6)).tolist()


def trained(
    optimizer_class: type[torch.optim.Optimizer], **options: float
) -> tuple[nn.Parameter, torch.optim.Optimizer]:
    weight = nn.Parameter(torch.arange(1.0, 7.0).view(2, 3))
    optimizer = optimizer_class([weight], lr=0.1, **options)  # type: ignore[call-arg]
    weight.grad = torch.full((2, 3), 2.0)
    optimizer.step()
    return weight, optimizer


@pytest.mark.parametrize("set_to_none", [None, True, False])
def test_reset_state_works_before_and_after_zero_grad(set_to_none: bool | None) -> None:
    weight, optimizer = trained(torch.optim.SGD, momentum=0.9)
    if set_to_none is not None:
        optimizer.zero_grad(set_to_none=set_to_none)
    reset_state(optimizer, weight, torch.tensor([True, False, False, False, True, False]))
    assert optimizer.state[weight]["momentum_buffer"].tolist() == [[0.0, 2.0, 2.0], [2.0, 0.0, 2.0]]


def test_reset_state_clears_every_moment_but_no_step_counter() -> None:
    weight, optimizer = trained(torch.optim.Adam)
    reset_state(optimizer, weight, torch.tensor([[True, True, False], [False, False, False]]))
    state = optimizer.state[weight]
    assert float(state["step"]) == 1
    for moment in ("exp_avg", "exp_avg_sq"):
        assert (state[moment] == 0).flatten().tolist() == [True, True, False, False, False, False]


def test_reset_state_before_the_first_step_has_nothing_to_do() -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    reset_state(optimizer, weight, torch.tensor([True, True]))
    assert weight not in optimizer.state


def masks_of(*weights: torch.Tensor) -> Masks:
    return Masks({f"fc{i}.weight": weight for i, weight in enumerate(weights, start=1)})


def test_masks_start_dense_and_count_exactly() -> None:
    masks = masks_of(torch.zeros(2, 3), torch.zeros(4))
    assert masks.counts() == [6, 4]
    masks.set(0, torch.tensor([True, False, True, False, False, False]))
    masks.set(1, torch.tensor([[False, False], [True, False]]))
    assert masks.counts() == [2, 1]
    assert masks.kept(0).tolist() == [True, False, True, False, False, False]
    assert {name: mask.tolist() for name, mask in masks.as_dict().items()} == {
        "fc1.weight": [[True, False, True], [False, False, False]],
        "fc2.weight": [False, False, True, False],
    }


def test_masks_change_in_place() -> None:
    masks = masks_of(torch.ones(3))
    before, changes = masks.tensors[0], masks.changes()
    masks.set(0, torch.tensor([True, False, True]))
    assert masks.tensors[0] is before and before.tolist() == [1.0, 0.0, 1.0] and masks.changes() > changes


OPTIMIZERS: dict[str, Callable[[list[torch.Tensor]], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "Nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, fused=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
    "LAMB-like": lambda p: Restless(p, lr=0.1),
}


class Restless(torch.optim.SGD):
    """Moves every weight, those without gradient and state, too."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        super().step()
        for weight in self.param_groups[0]["params"]:
            weight.add_(0.25)


@pytest.mark.parametrize("forget", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_holding_dropped_weights_is_projecting_them(name: str, forget: bool) -> None:
    """Over steps whose masks stay, lose some weights, lose most, and, unless their state is forgotten, regain them."""
    rng = torch.Generator().manual_seed(0)
    first = torch.randn(20, 10, 3, 3, generator=rng)
    both = [first.clone().requires_grad_() for _ in range(2)]
    optimizers = [OPTIMIZERS[name]([weight]) for weight in both]
    masks = [Masks({"w": weight}) for weight in both]
    seen = set()
    for step in range(40):
        grad = torch.randn(first.shape, generator=rng)
        for weight, optimizer, mask, how in zip(both, optimizers, masks, ("hold", "project"), strict=True):
            weight.grad = grad.clone()
            mask.mask_grads()
            optimizer.step()
            mask.hold(optimizer, forget) if how == "hold" else mask.project()
            if forget and how == "project" and step % 10 == 0:  # where nobody looks at it again, it may as well go
                reset_state(optimizer, weight, mask.tensors[0] == 0)
        assert torch.equal(*both), step
        assert torch.equal(both[0] == 0, masks[0].tensors[0] == 0)
        loose = masks[0].loose[0]
        seen.add(None if loose is None else loose.numel() > 0)
        share = {0: 0.98, 10: 0.9, 20: 0.2}.get(step)
        if share:
            kept = masks[0].kept(0) & (torch.rand(first.numel(), generator=rng) < share)
            for mask in masks:
                mask.set(0, kept)
        elif step == 30 and not forget:
            for mask in masks:
                mask.set(0, torch.ones(first.numel(), dtype=torch.bool))
    if name in ("SGD", "Nesterov"):
        assert seen == ({False} if forget else {False, True, None})  # the test has been where it says
        if forget:
            state = optimizers[0].state[both[0]]["momentum_buffer"]
            assert not state[masks[0].tensors[0] == 0].any()


def test_unmasked_gradients_do_not_leak() -> None:
    """A method of a user's may leave them as they are, in all steps or in some, for a dense momentum."""
    weight = torch.ones(4, requires_grad=True)
    masks, optimizer = Masks({"w": weight}), torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    masks.set(0, torch.tensor([True, False, True, False]))
    for step in range(8):
        weight.grad = torch.ones(4)
        if step in (0, 1, 4, 7):
            masks.mask_grads()
        optimizer.step()
        masks.hold(optimizer, forget=step in (2, 3))
        assert (weight == 0).tolist() == [False, True, False, True], step
    assert optimizer.state[weight]["momentum_buffer"][1] > 1


def test_of_an_optimizer_that_is_not_known_nothing_is_forgotten() -> None:
    weight = torch.ones(4, requires_grad=True)
    masks, optimizer = Masks({"w": weight}), Restless([weight], lr=0.1, momentum=0.9)
    weight.grad = torch.ones(4)
    optimizer.step()
    masks.set(0, torch.tensor([True, False, True, False]))
    for _ in range(2):
        masks.mask_grads()
        optimizer.step()
        masks.hold(optimizer, forget=True)
    assert optimizer.state[weight]["momentum_buffer"][1] == pytest.approx(0.81)


def test_masks_load_what_as_dict_gave_and_refuse_others() -> None:
    masks, other = masks_of(torch.ones(2, 2), torch.ones(3)), masks_of(torch.ones(2, 2), torch.ones(3))
    masks.set(0, torch.tensor([True, False, False, True]))
    other.load(masks.as_dict())
    assert other.counts() == [2, 3] and digest(other.as_dict()) == digest(masks.as_dict())
    with pytest.raises(ValueError, match="do not fit"):
        other.load({"fc1.weight": torch.ones(2, 2, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"fc2\.weight has shape \(2,\), not \(3,\)"):
        other.load({**masks.as_dict(), "fc2.weight": torch.ones(2, dtype=torch.bool)})


def test_without_projection_momentum_leaks_a_dropped_weight_back() -> None:
    """The fact behind `project`: gradients masked, and still the weight returns."""
    weight, optimizer = trained(torch.optim.SGD, momentum=0.9)
    masks = masks_of(weight)
    masks.set(0, torch.tensor([False, True, True, True, True, True]))
    masks.project()
    assert float(weight.detach()[0, 0]) == 0
    weight.grad = torch.ones(2, 3)
    masks.mask_grads()
    assert weight.grad.flatten().tolist() == [0.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    optimizer.step()
    assert float(weight.detach()[0, 0]) == pytest.approx(-0.1 * 0.9 * 2.0)
    masks.project()
    assert float(weight.detach()[0, 0]) == 0
    assert (weight.detach().flatten()[1:] != 0).all()


def test_mask_grads_passes_over_weights_without_gradient() -> None:
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    masks = masks_of(unused, used)
    masks.set(1, torch.tensor([False, True]))
    used.grad = torch.tensor([3.0, 3.0])
    masks.mask_grads()
    assert unused.grad is None and used.grad.tolist() == [0.0, 3.0]


def test_digest_tells_contents_and_names_apart() -> None:
    one = {"a": torch.tensor([True, False]), "b": torch.tensor([1.0])}
    assert digest(one) == digest(dict(reversed(one.items())))
    assert digest(one) != digest({**one, "a": torch.tensor([False, True])})
    assert digest(one) != digest({"c": one["a"], "b": one["b"]})
