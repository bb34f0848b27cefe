"""WoodFisher against dense linear algebra: the inverse, the saliencies, the update, the schedule, and its gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from data.order import derive, epoch_order
from methods.allocation import kept_of
from methods.fisher import InverseFisher
from methods.masks import digest
from methods.schedules import cubic
from methods.woodfisher import WoodFisher
from runner.compose import compose
from runner.experiment import make
from runner.records import RunDirectory
from runner.trainer import Trainer

SHAPES = [(3, 4), (2, 5)]
DAMPING = 1e-2


def fisher(gradients: Tensor, block: int, damping: float = DAMPING) -> Tensor:
    """The damped empirical Fisher matrix of `gradients` (m, d), what lies between blocks set to 0."""
    m, d = gradients.shape
    index = torch.arange(d) // block
    same = index[:, None] == index[None, :]
    return damping * torch.eye(d, dtype=gradients.dtype) + same * (gradients.T @ gradients) / m


def inverse_of(gradients: Tensor, block: int, damping: float = DAMPING) -> InverseFisher:
    found = InverseFisher(gradients[0], samples=len(gradients), block=block, damping=damping)
    for gradient in gradients:
        found.add(gradient)
    return found


def dense(inverse: InverseFisher, size: int) -> Tensor:
    """The matrix, column by column."""
    return torch.stack([inverse.times(unit) for unit in torch.eye(size, dtype=inverse.factors.dtype)], dim=1)


@pytest.mark.parametrize(("size", "block", "samples"), [(12, 12, 5), (12, 4, 30), (13, 5, 8), (3, 100, 2), (7, 1, 4)])
def test_it_is_the_inverse_of_the_damped_blocks(
    gaussian: Callable[..., Any], size: int, block: int, samples: int
) -> None:
    (gradients,) = gaussian([(samples, size)], size)
    found = inverse_of(gradients, block)
    expected = torch.linalg.inv(fisher(gradients, block))
    torch.testing.assert_close(dense(found, size) / DAMPING, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.diagonal() / DAMPING, expected.diagonal(), rtol=1e-9, atol=1e-9)


def test_every_gradient_is_a_step_of_woodburys_recursion(gaussian: Callable[..., Any]) -> None:
    """Singh & Alistarh 2020: F^-1 <- F^-1 - F^-1 g g^T F^-1 / (m + g^T F^-1 g), from I / damping, on one block."""
    (gradients,) = gaussian([(6, 8)], 1)
    found = InverseFisher(gradients[0], samples=6, block=8, damping=DAMPING)
    expected = torch.eye(8, dtype=torch.float64) / DAMPING
    for g in gradients:
        found.add(g)
        product = expected @ g
        expected = expected - torch.outer(product, product) / (6 + g @ product)
        torch.testing.assert_close(dense(found, 8) / DAMPING, expected, rtol=1e-9, atol=1e-9)


def test_the_diagonal_stays_above_its_bound_where_rounding_leaves_nothing(gaussian: Callable[..., Any]) -> None:
    """The bound 1 / F_qq holds for the exact inverse, and takes over where the factors say less than nothing."""
    (gradients,) = gaussian([(40, 30)], 2)
    found, bound = inverse_of(gradients, 30), DAMPING / fisher(gradients, 30).diagonal()
    exact = torch.linalg.inv(fisher(gradients, 30)).diagonal() * DAMPING
    assert bool((exact > bound).all())
    torch.testing.assert_close(found.diagonal(), exact)
    found.factors *= 2  # what rounding does, overdone
    torch.testing.assert_close(found.diagonal(), bound)


def test_a_matrix_beyond_single_precision_is_refused(gaussian: Callable[..., Any]) -> None:
    (gradients,) = gaussian([(40, 30)], 2)
    found = inverse_of((1e4 * gradients).float(), 30, damping=1e-5)
    with pytest.raises(ValueError, match=r"too near to a singular one to be inverted; raise method\.damping"):
        found.diagonal()


def test_single_precision_is_enough_for_the_papers_damping(gaussian: Callable[..., Any]) -> None:
    """Gradients of norm 1 in blocks of 100 weights: eigenvalues up to 1e5 times the damping."""
    (gradients,) = gaussian([(60, 100)], 3)
    single = (gradients / gradients.norm(dim=1, keepdim=True)).float()
    exact = torch.linalg.inv(fisher(single.double(), 100, damping=1e-5)).diagonal() * 1e-5
    torch.testing.assert_close(inverse_of(single, 100, damping=1e-5).diagonal().double(), exact, rtol=1e-4, atol=0)


def test_memory_is_that_of_the_factors() -> None:
    for size, samples, block in ((12, 5, 12), (13, 3, 5), (3, 7, 100)):
        inverse = InverseFisher(torch.zeros(size), samples=samples, block=block, damping=1.0)
        assert InverseFisher.bytes_of(size, samples, block) == inverse.factors.nbytes
    assert InverseFisher.bytes_of(2_359_296, 400, 2000) == 400 * 4 * 2_360_000  # ResNet-50's largest layer


def prepared(bench: Any, method: WoodFisher, weights: list[Tensor], gradients: list[Tensor], **options: Any) -> Any:
    """A bench whose gradients over training samples are these (m, ...) per layer."""
    b = bench(method, weights, **options)
    b.asked = []

    def samples(count: int, batch: int) -> Iterator[dict[str, Tensor]]:
        b.asked.append((b.ctx.step, count, batch))
        for index in range(count):
            yield {f"fc{i}.weight": g[index].clone() for i, g in enumerate(gradients, start=1)}

    b.ctx.grad_samples = samples
    return b


def woodfisher(**options: Any) -> WoodFisher:
    given = {"sparsity": 0.5, "iterations": 1, "every_epochs": 1, "damping": DAMPING, "fisher_samples": 6}
    return WoodFisher(**{**given, "fisher_batch": 7, "block_size": 5, **options})


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])


def by_dense_algebra(
    weights: list[Tensor], gradients: list[Tensor], kept: list[Tensor], keep: list[int] | int, scale: float = 1.0
) -> tuple[list[Tensor], list[Tensor]]:
    """(masks, weights) after one pruning, by full matrices; `keep`: weights over all layers, or of each."""
    inverses = [torch.linalg.inv(fisher(g.flatten(1) * k, 5)) for g, k in zip(gradients, kept, strict=True)]
    saliency = [
        torch.where(k, w.flatten().square() / (2 * inv.diagonal()), -1.0)
        for w, k, inv in zip(weights, kept, inverses, strict=True)
    ]
    limits = [flat(saliency).sort().values[-keep]] * 2 if isinstance(keep, int) else []
    if isinstance(keep, list):
        limits = [s.sort().values[-k] for s, k in zip(saliency, keep, strict=True)]
    masks, after = [], []
    for w, k, s, inv, limit in zip(weights, kept, saliency, inverses, limits, strict=True):
        mask = s >= limit
        updated = w.flatten().clone()
        for q in (k & ~mask).nonzero().view(-1):
            updated -= scale * w.flatten()[q] / inv[q, q] * inv[:, q]
        masks.append(mask)
        after.append(updated * mask)
    return masks, after


@pytest.mark.parametrize(("allocation", "scale"), [("global", 1.0), ("uniform", 1.0), ("global", 0.9), ("global", 0.0)])
@pytest.mark.parametrize("scratch", [math.inf, 300.0])
def test_two_prunings_by_dense_algebra(
    bench: Any, gaussian: Callable[..., Any], allocation: Any, scale: float, scratch: float
) -> None:
    """Saliencies, masks and updates, the second time over what the first has left; layers together or one by one."""
    weights, gradients = gaussian(SHAPES, 3), gaussian([(6, *shape) for shape in SHAPES], 4)
    method = woodfisher(allocation=allocation, update_scale=scale)
    b = prepared(bench, method, weights, gradients)
    b.ctx.scratch = scratch
    assert len(method.groups(scratch)) == (1 if scratch == math.inf else 2)
    masks = [torch.ones(w.numel(), dtype=torch.bool) for w in weights]
    for sparsity, keep in ((0.3, [8, 7]), (0.6, [5, 4])):
        assert sum(keep) == kept_of(22, sparsity)
        method.prune_by_fisher(b.ctx, sparsity)
        method.mask.project()
        masks, flat_weights = by_dense_algebra(
            weights, gradients, masks, keep if allocation == "uniform" else sum(keep), scale
        )
        weights = [w.view(shape) for w, shape in zip(flat_weights, SHAPES, strict=True)]
        assert b.kept() == [mask.tolist() for mask in masks]
        torch.testing.assert_close(flat(b.weights), flat(weights), rtol=1e-8, atol=1e-8)
    assert b.asked == [(0, 6, 7)] * (2 if scratch == math.inf else 8)


def test_the_update_minimises_the_quadratic_model(bench: Any, gaussian: Callable[..., Any]) -> None:
    """One weight dropped: min 1/2 d^T F d where w_q + d_q = 0, solved as a linear system with its multiplier."""
    (weight,), (gradients,) = gaussian([(1, 6)], 8), gaussian([(9, 1, 6)], 9)
    method = woodfisher(fisher_samples=9, block_size=6, sparsity=1 / 6)
    b = prepared(bench, method, [weight], [gradients])
    method.prune_by_fisher(b.ctx, 1 / 6)
    (q,) = (~torch.tensor(b.kept()[0])).nonzero().view(-1).tolist()
    matrix = fisher(gradients.flatten(1), 6)
    kkt = torch.zeros(7, 7, dtype=torch.float64)
    kkt[:6, :6], kkt[q, 6], kkt[6, q] = matrix, 1, 1
    right = torch.zeros(7, dtype=torch.float64)
    right[6] = -weight[0, q]
    change = torch.linalg.solve(kkt, right)[:6]
    torch.testing.assert_close(b.weights[0].detach()[0], weight[0] + change, rtol=1e-9, atol=1e-9)
    # And this weight is the one whose constrained minimum is least.
    costs = []
    for p in range(6):
        others = [i for i in range(6) if i != p]
        free = torch.linalg.solve(matrix[others][:, others], weight[0, p] * matrix[others, p])
        d = torch.zeros(6, dtype=torch.float64)
        d[others], d[p] = free, -weight[0, p]
        costs.append(float(d @ matrix @ d) / 2)
    assert costs.index(min(costs)) == q


def test_a_block_knows_nothing_of_another(bench: Any, gaussian: Callable[..., Any]) -> None:
    """What is dropped in the first block moves no weight of the second, and so for the gradients there."""
    (weight,), (gradients,) = gaussian([(1, 10)], 7), gaussian([(6, 1, 10)], 8)
    weight[0, :5] *= 1e-3  # all that goes, goes there
    method = woodfisher(sparsity=0.3)
    b = prepared(bench, method, [weight], [gradients])
    method.prune_by_fisher(b.ctx, 0.3)
    after = b.weights[0].detach()[0]
    assert torch.equal(after[5:], weight[0, 5:])
    kept = torch.tensor(b.kept()[0])
    assert int(kept[:5].sum()) == 2 and bool((after[:5][kept[:5]] != weight[0, :5][kept[:5]]).all())


@pytest.mark.parametrize(("initial", "first"), [(0.05, [(2, 0.05)]), (0.0, [])])
def test_prunings_follow_the_schedule(
    bench: Any, gaussian: Callable[..., Any], initial: float, first: list[tuple[int, float]]
) -> None:
    """At start_epoch to the initial sparsity, then along the cubic; the last one reaches the target."""
    shapes = [(20, 20)]
    method = woodfisher(
        sparsity=0.9, iterations=4, every_epochs=2, start_epoch=1, initial_sparsity=initial, fisher_samples=2
    )
    method.check(9)
    b = prepared(bench, method, gaussian(shapes, 0), gaussian([(2, *s) for s in shapes], 1), steps_per_epoch=3)
    found = {}
    for step in range(30):
        before = sum(b.counts())
        b.step(gaussian(shapes, 2 + step))
        if sum(b.counts()) != before:
            found[step] = sum(b.counts())
        assert all(k or w == 0 for k, w in zip(b.kept()[0], b.values()[0], strict=True))
    expected = first + [(2 + 6 * i, cubic(initial, 0.9, i / 4)) for i in range(1, 5)]
    assert found == {step: kept_of(400, sparsity) for step, sparsity in expected}
    assert [step for step, _, _ in b.asked] == list(found)


def test_layers_go_in_groups_that_fit(bench: Any, gaussian: Callable[..., Any]) -> None:
    method = woodfisher(block_size=10)
    bench(method, gaussian([(1, 10), (1, 30), (1, 5), (1, 10)], 0))
    unit = 6 * 10 * 4  # bytes of ten weights' factors
    assert method.groups(math.inf) == [[0, 1, 2, 3]]
    assert method.groups(4 * unit) == [[0, 1], [2, 3]]
    assert method.groups(unit) == [[0], [1], [2], [3]]


def test_a_weight_that_the_loss_does_not_reach_is_named(bench: Any, gaussian: Callable[..., Any]) -> None:
    method = woodfisher()
    b = bench(method, gaussian(SHAPES, 0))
    b.ctx.grad_samples = lambda count, batch: iter([{"fc1.weight": torch.zeros(3, 4)}])
    with pytest.raises(ValueError, match=r"no gradient with respect to fc2\.weight; add it to keep_dense"):
        method.prune_by_fisher(b.ctx, 0.5)


# The stream of gradients

GIVEN = ["model.hidden=[20,10]", "dataset.train_subset=130", "schedule.batch_size=50", "schedule.epochs=1"]


def trainer(tmp_path: Path, *more: str) -> Trainer:
    return Trainer(make(compose([*GIVEN, *more])), RunDirectory(tmp_path))


def everything(t: Trainer) -> str:
    grads = {f"grad/{name}": p.grad for name, p in t.model.named_parameters() if p.grad is not None}
    return digest({**t.model.state_dict(), **grads, "torch": torch.get_rng_state(), "method": t.ctx.rng.get_state()})


def drawn(t: Trainer, step: int, rounds: int) -> Tensor:
    """The training samples in the order in which gradients are taken at a step."""
    return torch.cat([epoch_order(130, derive(t.e.seed, "samples", step), number) for number in range(rounds)])


@pytest.mark.parametrize("step", [0, 7])
def test_samples_are_means_over_the_next_training_samples(tmp_path: Path, step: int) -> None:
    """Twice through the training set and beyond, in micro-batches of 50 at most."""
    t = trainer(tmp_path)
    t.ctx.step = step
    order = drawn(t, step, 3)
    names, parameters = zip(*t.model.named_parameters(), strict=True)
    found = list(t.ctx.grad_samples(4, 80))
    assert len(found) == 4
    for index, grads in enumerate(found):
        images, labels = t.e.data.batch(order[80 * index : 80 * (index + 1)], 0)
        expected = torch.autograd.grad(F.cross_entropy(t.model(images), labels), parameters)
        assert list(grads) == list(names)
        for name, grad in zip(names, expected, strict=True):
            torch.testing.assert_close(grads[name], grad, rtol=1e-5, atol=1e-7)


def test_samples_are_a_function_of_seed_and_step(tmp_path: Path) -> None:
    t = trainer(tmp_path)
    first = [digest(grads) for grads in t.ctx.grad_samples(3, 4)]
    torch.manual_seed(5)
    assert [digest(grads) for grads in t.ctx.grad_samples(3, 4)] == first
    assert len(set(first)) == 3
    t.ctx.step = 1
    assert not {digest(grads) for grads in t.ctx.grad_samples(3, 4)} & set(first)


def test_samples_leave_no_trace_even_half_read(tmp_path: Path) -> None:
    t = trainer(tmp_path, "model.batch_norm=all")
    for parameter in t.model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    t.net.eval()
    before = everything(t)
    for _ in t.ctx.grad_samples(3, 20):
        assert everything(t) == before
        assert not t.net.training
    next(t.ctx.grad_samples(3, 20))
    assert everything(t) == before


def test_less_scratch_gives_the_same_run(tmp_path: Path) -> None:
    busy = ["method.start_epoch=0", "method.iterations=2", "method.every_epochs=0.5", "method.fisher_samples=4"]
    given = ["method=woodfisher", "start=null", *busy, "method.fisher_batch=10", "method.block_size=30"]
    ends = []
    for scratch in ("48", "1e-6"):
        t = trainer(tmp_path / scratch, *given, f"trainer.scratch_gib={scratch}")
        t.fit()
        assert len(t.e.method.groups(t.ctx.scratch)) == (1 if scratch == "48" else 3)  # type: ignore[attr-defined]
        ends.append(everything(t))
    assert ends[0] == ends[1]
