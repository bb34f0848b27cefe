"""DPF, structured DPF and the quantiser against restatements on Python lists, and against plain SGD."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from methods.allocation import kept_of
from methods.dpf import DPF, StructuredDPF
from methods.quantised import Quantised
from methods.reparam import Feedback
from runner.compose import compose
from runner.errors import Misuse
from runner.execute import execute
from runner.experiment import make, validate
from runner.records import RunDirectory
from runner.trainer import Trainer

SHAPES = [(6, 4), (6, 8), (4, 3)]
LR, MOMENTUM = 0.1, 0.9


def largest(weights: list[list[float]], keep: int) -> list[list[bool]]:
    """Over all layers; ties to the lower index."""
    flat = [(-abs(v), i, j) for i, layer in enumerate(weights) for j, v in enumerate(layer)]
    kept = {(i, j) for _, i, j in sorted(flat)[:keep]}
    return [[(i, j) in kept for j in range(len(layer))] for i, layer in enumerate(weights)]


def masked(weights: list[list[float]], kept: list[list[bool]]) -> list[list[float]]:
    return [[w if k else 0.0 for w, k in zip(*pair, strict=True)] for pair in zip(weights, kept, strict=True)]


def test_trace(bench: Any, gaussian: Callable[..., Any], plain_sgd: Any) -> None:
    """Algorithm 1, twenty steps: p = 3, a ramp over the first twelve, gradients that depend on the masked weights."""
    weights = gaussian(SHAPES, 0)
    total = sum(w.numel() for w in weights)
    method = DPF(sparsity=0.75, period=3, start_epoch=0, end_epoch=2.4)
    b = bench(method, weights, lr=LR, momentum=MOMENTUM, nesterov=True, steps_per_epoch=5, epochs=4)
    dense = plain_sgd(
        [w.flatten().tolist() for w in weights], [[True] * w.numel() for w in weights], LR, MOMENTUM, True
    )
    targets = gaussian(SHAPES, 1)
    kept = largest(dense.w, total)
    came_back = 0
    for step in range(20):
        if step % 3 == 0:
            s = 0.75 * (1 - (1 - min(step / 12, 1.0)) ** 3)
            before, kept = kept, largest(dense.w, kept_of(total, s))
            came_back += sum(
                n and not o for new, old in zip(kept, before, strict=True) for n, o in zip(new, old, strict=True)
            )
        computed = masked(dense.w, kept)
        assert b.kept() == kept, step
        assert b.values() == [pytest.approx(layer, abs=1e-12) for layer in computed], step
        grads = [torch.tensor(c).view_as(t) - t for c, t in zip(computed, targets, strict=True)]  # of |w~ - t|^2 / 2
        b.step(grads)
        dense.step([g.flatten().tolist() for g in grads])
        uncompressed = [w.flatten().tolist() for w in method.dense]
        assert uncompressed == [pytest.approx(layer, abs=1e-12) for layer in dense.w], step
    assert came_back > 0  # feedback has brought weights back


@pytest.mark.parametrize("model", ["model.batch_norm=none", "model.batch_norm=all"])
def test_with_nothing_pruned_it_is_plain_sgd_bit_for_bit(model: str, tmp_path: Path) -> None:
    given = [model, "model.hidden=[20,10]", "dataset.train_subset=200", "schedule.epochs=2", "schedule.l2=1e-4"]
    final = {}
    for method in (["method=dense"], ["method=dpf", "method.period=1", "method.sparsity=0", "method.end_epoch=1"]):
        t = Trainer(make(compose([*given, *method])), RunDirectory(tmp_path / method[0]))
        t.fit()
        final[method[0]] = t.model.state_dict(), t.optimizer.state_dict()["state"]
    (dense, momenta), (dpf, others) = final["method=dense"], final["method=dpf"]
    assert all(torch.equal(dense[name], dpf[name]) for name in dense)
    assert all(torch.equal(momenta[i]["momentum_buffer"], others[i]["momentum_buffer"]) for i in momenta)


def test_the_gradient_is_taken_at_the_masked_weights_and_is_dense(tmp_path: Path) -> None:
    """What autograd gives for the masked weights as leaves is what the optimizer applies, dropped weights included."""
    given = ["model.hidden=[20,10]", "dataset.train_subset=50", "schedule.batch_size=50", "schedule.epochs=2"]
    config = compose(
        [*given, "method=dpf", "method.sparsity=0.8", "method.end_epoch=0", "schedule.optimizer.fused=false"]
    )
    t = Trainer(make(config), RunDirectory(tmp_path))
    seen: dict[str, Any] = {}
    method: Any = t.e.method

    def before_step(ctx: Any) -> bool:
        if ctx.step == 0:
            seen["computed"] = {n: w.detach().clone() for n, w in method.weights.items()}
            seen["grads"] = {n: w.grad.clone() for n, w in method.weights.items() if w.grad is not None}
        return bool(type(method).before_step(method, ctx))

    method.before_step = before_step
    t.fit()
    for name, mask in seen["computed"].items():
        dropped = mask == 0
        assert int(dropped.sum()) > 0
        assert float(seen["grads"][name][dropped].abs().max()) > 0, name


def test_dropped_weights_are_kept_as_they_were(bench: Any, gaussian: Callable[..., Any]) -> None:
    weights = gaussian(SHAPES, 3)
    b = bench(DPF(sparsity=0.5, period=1, end_epoch=0), weights)
    for own, given in zip(b.method.dense, weights, strict=True):
        assert torch.equal(own, given)
    assert sum(b.counts()) == kept_of(84, 0.5)


def test_the_target_is_reached_even_if_no_refresh_falls_after_the_ramp(
    bench: Any, gaussian: Callable[..., Any]
) -> None:
    b = bench(DPF(sparsity=0.5, period=100, end_epoch=1.5), gaussian(SHAPES, 0), steps_per_epoch=5, epochs=2)
    zeros = [torch.zeros_like(w) for w in b.weights]
    counts = []
    for _ in range(10):
        b.step(zeros)
        counts.append(sum(b.counts()))
    assert counts == [84] * 9 + [42]


def test_the_distance_by_hand(bench: Any) -> None:
    b = bench(DPF(sparsity=0.5, end_epoch=0), [torch.tensor([[3.0, 1.0]]), torch.tensor([[-4.0, 2.0]])])
    assert b.method.distance() == pytest.approx((1 + 4) / (9 + 1 + 16 + 4))


def test_layer_wise_ranking_keeps_each_layers_share(bench: Any, gaussian: Callable[..., Any]) -> None:
    weights = [w * scale for w, scale in zip(gaussian(SHAPES, 0), (1.0, 10.0, 100.0), strict=True)]
    assert bench(DPF(sparsity=0.5, end_epoch=0, allocation="uniform"), weights).counts() == [12, 24, 6]
    assert bench(DPF(sparsity=0.5, end_epoch=0), weights).counts()[2] == 12


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["method.initial_sparsity=0.95"], "initial_sparsity = 0.95 exceeds sparsity = 0.9"),
        (["method.end_epoch=41"], "the ramp from epoch 0 to epoch 41 does not lie within the run's 40 epochs"),
        (["method.start_epoch=21"], "the ramp from epoch 21 to epoch 20 does not lie within"),
    ],
)
def test_a_ramp_that_cannot_be_is_misuse(options: list[str], sentence: str) -> None:
    with pytest.raises(Misuse, match=sentence):
        validate(compose(["method=dpf", *options]))


# Filters


def test_filters_are_ranked_by_their_norm_across_layers(bench: Any) -> None:
    one = torch.tensor([[3.0, 4.0], [1.0, 1.0], [0.0, 2.5]])  # norms 5, 1.41, 2.5
    two = torch.tensor([[0.1, 0.1, 0.1], [9.0, 0.0, 0.0], [-2.0, -2.0, 2.0], [0.0, 0.0, 1.0]])  # 0.17, 9, 3.46, 1
    b = bench(StructuredDPF(sparsity=0.5, end_epoch=0), [one, two])  # 7 filters, of which 4 stay (3.5, half up)
    assert [[any(row) for row in mask.tolist()] for mask in b.method.masks().values()] == [
        [True, False, True],
        [False, True, True, False],
    ]
    assert b.counts() == [4, 6]
    within = bench(StructuredDPF(sparsity=0.5, end_epoch=0, allocation="uniform"), [one, two])
    assert within.counts() == [4, 6]  # 2 of 3 (1.5, half up) and 2 of 4
    assert bench(StructuredDPF(sparsity=0.9, end_epoch=0), [one, two]).counts() == [0, 3]  # a layer may vanish


def test_an_emptied_filter_before_batch_norm_has_the_gradient_of_its_epsilon() -> None:
    """What unsettles masks of narrow networks: batch norm of a constant divides by sqrt(eps), not by a deviation."""
    torch.manual_seed(0)
    layer, norm = torch.nn.Linear(5, 2, bias=False).double(), torch.nn.BatchNorm1d(2).double()
    x, target = torch.randn(64, 5).double(), torch.randn(64, 2).double()
    dense = layer.weight.detach().clone()
    mask = torch.tensor([[True] * 5, [False] * 5])  # the second filter is emptied
    layer.weight.data.mul_(mask)
    ((norm(layer(x)) - target) ** 2).sum().backward()
    error = 2 * (0.0 - target[:, 1])  # of the output, which is 0 whatever comes in
    by_hand = (error - error.mean()) @ x / norm.eps**0.5
    assert layer.weight.grad is not None
    assert torch.allclose(layer.weight.grad[1], by_hand, rtol=1e-9)
    # The same filter, not emptied, divides by the deviation of its outputs instead.
    layer.weight.grad, layer.weight.data = None, dense
    ((norm(layer(x)) - target) ** 2).sum().backward()
    deviation = float((x @ dense[1]).std(correction=0))
    ratio = by_hand.norm() / layer.weight.grad[1].norm()
    assert ratio > 0.5 * deviation / norm.eps**0.5 > 30


# Other compressors


def test_the_quantisers_levels_by_hand(bench: Any) -> None:
    b = bench(Quantised(bits=3), [torch.tensor([[0.9, -0.3], [0.44, -0.16]]), torch.zeros(2, 2)])
    assert b.values()[0] == pytest.approx([0.9, -0.3, 0.3, -0.3])  # steps of 0.9 / 3: 3, -1, 1.47 -> 1, -0.53 -> -1
    assert b.values()[1] == [0.0] * 4
    assert torch.equal(b.method.dense[0].flatten(), torch.tensor([0.9, -0.3, 0.44, -0.16]).double())


def test_the_quantised_network_learns(tmp_path: Path) -> None:
    given = ["method=quantised", "schedule.epochs=8", f"runs={tmp_path}"]
    summary = execute(compose(given), given)
    assert summary["final"]["test/accuracy"] > 85
    assert summary["status"] == "completed"


def test_any_compressor_will_do(bench: Any, gaussian: Callable[..., Any]) -> None:
    """Section 4: w(t+1) = w(t) - lr g(C(w(t)))."""

    class Halved(Feedback):
        def compress(self) -> None:
            torch._foreach_mul_(self.computed, 0.5)

    weights = gaussian(SHAPES, 0)
    b = bench(Halved(), weights, lr=0.25)
    for _ in range(3):
        b.step([w.detach() for w in b.weights])  # the gradient of |C(w)|^2 / 2 with respect to C(w)
    for own, start in zip(b.method.dense, weights, strict=True):
        assert torch.allclose(own, start * (1 - 0.25 * 0.5) ** 3, rtol=1e-12)
