"""Edge-popup and IteRand against restatements on Python lists; what they freeze, draw and draw anew."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import binomtest, kstest
from torch import nn

from methods.allocation import prunable_weights
from methods.edge_popup import EdgePopup
from methods.iterand import IteRand
from runner.compose import compose
from runner.errors import Misuse
from runner.experiment import make, validate
from runner.records import RunDirectory
from runner.trainer import Trainer

SHAPES = [(6, 4), (5, 6), (3, 5)]


@torch.no_grad()
def set_scores(b: Any, *scores: list[float]) -> None:
    """Give the layers these scores and choose the masks by them."""
    for own, given in zip(b.method.dense, scores, strict=True):
        own.copy_(torch.tensor(given).view_as(own))
    torch._foreach_copy_(b.weights, b.method.dense)
    b.method.compress()


# Masks of given scores


def test_percentile_drops_what_lies_below_and_keeps_ties(bench: Any) -> None:
    b = bench(EdgePopup(pruned=0.5), [torch.ones(1, 7)])
    set_scores(b, [5.0, -6.0, 1.0, 2.0, 0.0, 4.0, 3.0])  # round(0.5 * 6) = 3 go: -6, 0, 1
    assert b.kept() == [[True, False, False, True, False, True, True]]
    set_scores(b, [2.0, 2.0, 2.0, 2.0, 1.0, 4.0, 3.0])  # the 4th lowest is 2: only 1 lies below it
    assert b.kept() == [[True, True, True, True, False, True, True]]
    b = bench(EdgePopup(pruned=0.5), [torch.ones(1, 6)])  # round(2.5) = 2, to even as Python and the official code do
    set_scores(b, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert b.kept() == [[False, False, True, True, True, True]]


def test_floor_drops_exactly_int_of_p_n_by_magnitude(bench: Any) -> None:
    b = bench(EdgePopup(pruned=0.5, rank="magnitude", rounding="floor"), [torch.ones(1, 7)])
    set_scores(b, [5.0, -6.0, 1.0, 2.0, 0.0, 4.0, 3.0])  # int(3.5) = 3 go: 0, 1, 2
    assert b.kept() == [[True, True, False, False, False, True, True]]
    set_scores(b, [2.0, -2.0, 2.0, 2.0, 2.0, 2.0, 2.0])  # of ties the lower positions stay
    assert b.kept() == [[True] * 4 + [False] * 3]


def test_nearest_keeps_the_rounded_share(bench: Any) -> None:
    b = bench(EdgePopup(pruned=0.7, rounding="nearest"), [torch.ones(1, 9)])  # 2.7 stay
    set_scores(b, [float(i) for i in range(9)])
    assert b.kept() == [[False] * 6 + [True] * 3]


@pytest.mark.parametrize("rounding", ["percentile", "floor", "nearest"])
def test_every_layer_is_pruned_alike_and_p_0_prunes_nothing(
    bench: Any, gaussian: Callable[..., Any], rounding: Any
) -> None:
    b = bench(EdgePopup(pruned=0.5, rounding=rounding), gaussian([(10, 10), (4, 10), (3, 4)], 0))
    assert b.counts() == {"percentile": [50, 20, 6], "floor": [50, 20, 6], "nearest": [50, 20, 6]}[rounding]
    assert bench(EdgePopup(pruned=0.0, rounding=rounding), gaussian(SHAPES, 0)).counts() == [24, 30, 15]


# What is trained


@pytest.mark.parametrize("rank", ["score", "magnitude"])
def test_trace(bench: Any, plain_sgd: Any, gaussian: Callable[..., Any], rank: Any) -> None:
    """Ten steps by hand: the scores follow momentum SGD on w dL/d(m w), the sign of the score included by magnitude."""
    b = bench(EdgePopup(pruned=0.4, rank=rank, rounding="nearest"), gaussian(SHAPES, 0), lr=0.3, momentum=0.9)
    frozen = [w.flatten().tolist() for w in b.method.frozen]
    start = [s.flatten().tolist() for s in b.method.dense]
    scores = plain_sgd(start, [[True] * len(s) for s in start], 0.3, 0.9, False)
    changed = False
    before = b.kept()
    for step in range(10):
        kept = []
        for layer in scores.w:
            ranked = [abs(s) if rank == "magnitude" else s for s in layer]
            keep = math.floor(0.6 * len(layer) + 0.5 + 1e-9)
            best = sorted(range(len(layer)), key=lambda i: (-ranked[i], i))[:keep]
            kept.append([i in best for i in range(len(layer))])
        assert b.kept() == kept, step
        changed = changed or kept != before
        computed = [[w if k else 0.0 for w, k in zip(*pair, strict=True)] for pair in zip(frozen, kept, strict=True)]
        assert b.values() == [pytest.approx(layer, abs=1e-12) for layer in computed], step
        grads = [
            torch.tensor(c, dtype=torch.float64).view(shape) - 0.3 for c, shape in zip(computed, SHAPES, strict=True)
        ]
        b.step(grads)
        by_hand = [
            [g * w * (math.copysign(1, s) if rank == "magnitude" else 1) for g, w, s in zip(*each, strict=True)]
            for each in zip([g.flatten().tolist() for g in grads], frozen, scores.w, strict=True)
        ]
        scores.step(by_hand)
        found = [s.flatten().tolist() for s in b.method.dense]
        assert found == [pytest.approx(layer, abs=1e-12) for layer in scores.w], step
    assert changed
    assert [w.flatten().tolist() for w in b.method.frozen] == frozen


@pytest.mark.parametrize("rank", ["score", "magnitude"])
@pytest.mark.parametrize("rounding", ["percentile", "floor", "nearest"])
def test_large_layers_have_the_masks_of_a_sort_at_every_step(bench: Any, rounding: Any, rank: Any) -> None:
    """What a threshold remembers of earlier ones shows in no mask and in no weight, a resumed run's neither."""
    rng = torch.Generator().manual_seed(3)
    shapes = [(101, 120), (64, 297), (30, 30)]
    options: dict[str, Any] = {"pruned": 0.7, "rounding": rounding, "rank": rank}
    b, resumed = (bench(EdgePopup(**options), [torch.zeros(shape) for shape in shapes], lr=3.0) for _ in range(2))
    for step in range(30):
        if step == 20:
            resumed.method.load_state_dict(copy.deepcopy(b.method.state_dict()))
        grads = [torch.randn(shape, generator=rng) * (1 if step % 10 else 40) for shape in shapes]
        for each in (b, resumed)[: 1 + (step >= 20)]:
            each.step([g.clone() for g in grads])
        for i, scores in enumerate(b.method.dense):
            ranked, n = (scores.abs() if rank == "magnitude" else scores).flatten(), scores.numel()
            order = ranked.sort(descending=True, stable=True).indices
            if rounding == "percentile":
                best = ranked >= ranked[order[n - round(0.7 * (n - 1)) - 1]]
            else:
                best = torch.zeros(n, dtype=torch.bool)
                best[order[: n - int(0.7 * n) if rounding == "floor" else math.floor(0.3 * n + 0.5)]] = True
            assert torch.equal(b.method.mask.kept(i), best), step
            assert torch.equal(b.weights[i].flatten(), b.method.frozen[i].flatten() * best), step
            if step >= 20:
                assert torch.equal(resumed.method.dense[i], scores) and torch.equal(resumed.weights[i], b.weights[i])


def test_autograd_of_the_published_forward_gives_the_same_scores(tmp_path: Path) -> None:
    """A network that multiplies by a straight-through mask in its forward pass, trained by plain SGD."""

    class Through(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, scores: Any, lowest: int) -> Any:
            return (scores >= scores.flatten().kthvalue(lowest).values).to(scores.dtype)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return grads[0], None

    given = ["model.hidden=[12]", "dataset.train_subset=60", "schedule.batch_size=20", "schedule.epochs=3"]
    given += ["method=edge_popup", "method.pruned=0.3", "schedule.l2=0.01", "schedule.optimizer.nesterov=false"]
    t = Trainer(make(compose([*given, "schedule.lr=0.4"])), RunDirectory(tmp_path))
    batches, learn = [], t.step

    def step(indices: Any) -> None:
        if not batches:
            start.extend(
                (w.clone(), s.clone().requires_grad_()) for w, s in zip(method.frozen, method.dense, strict=True)
            )
        batches.append(t.e.data.batch(indices, 0))
        learn(indices)

    method: Any = t.e.method
    start: list[Any] = []
    t.step = step  # type: ignore[method-assign]
    t.fit()
    optimizer = torch.optim.SGD([s for _, s in start], lr=0.4, momentum=0.9, weight_decay=0.01)
    for images, labels in batches:
        x = images.flatten(1)
        for index, (w, s) in enumerate(start):
            x = x if index == 0 else x.relu()
            x = x @ (w * Through.apply(s, 1 + round(0.3 * (s.numel() - 1)))).T
        optimizer.zero_grad()
        nn.functional.cross_entropy(x, labels).backward()
        optimizer.step()
    for found, (_, expected) in zip(method.dense, start, strict=True):
        torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("train_norms", [False, True])
def test_nothing_but_scores_is_trained(tmp_path: Path, train_norms: bool) -> None:
    given = ["model.hidden=[20,10]", "model.batch_norm=all", "dataset.train_subset=100", "schedule.epochs=2"]
    config = compose([*given, "method=edge_popup", f"method.train_norms={train_norms}", "method.keep_dense=[fc2]"])
    t = Trainer(make(config), RunDirectory(tmp_path))
    initial = {name: p.detach().clone() for name, p in t.model.named_parameters()}
    t.fit()
    for name, parameter in t.model.named_parameters():
        if name.startswith("norm"):
            still = torch.ones_like(parameter) if name.endswith("weight") else torch.zeros_like(parameter)
            assert torch.equal(parameter, still) != train_norms, name
        elif name.startswith("fc2"):  # kept dense: as the model has it
            assert torch.equal(parameter, initial[name]), name
        elif name.endswith("bias"):
            assert not parameter.any(), name
    computed = [m * w for m, w in zip(t.e.method.masks().values(), t.e.method.frozen, strict=True)]  # type: ignore[attr-defined]
    for found, expected in zip(t.e.method.effective().values(), computed, strict=True):
        assert torch.equal(found, expected)


# What weights and scores begin with


def begun(shape: tuple[int, ...], bench: Any, **options: Any) -> Any:
    return bench(EdgePopup(pruned=options.pop("pruned", 0.75), **options), [torch.zeros(shape)]).method


@pytest.mark.parametrize(("scale_fan", "fan"), [("none", 100.0), ("kept", 25.0), ("pruned", 75.0)])
def test_the_magnitude_of_signed_constants(bench: Any, scale_fan: Any, fan: float) -> None:
    w = begun((40, 100), bench, scale_fan=scale_fan).frozen[0].flatten()
    assert w.abs().unique().tolist() == pytest.approx([math.sqrt(2 / fan)] * len(w.abs().unique()), rel=1e-6)
    assert binomtest(int((w > 0).sum()), 4000, 0.5).pvalue > 0.01


@pytest.mark.parametrize(("scale_fan", "fan"), [("none", 100.0), ("kept", 25.0), ("pruned", 75.0)])
def test_kaiming_uniform_weights(bench: Any, scale_fan: Any, fan: float) -> None:
    bound = math.sqrt(6 / fan)
    w = begun((40, 100), bench, draw="kaiming_uniform", scale_fan=scale_fan).frozen[0].flatten()
    assert kstest(w.numpy(), "uniform", (-bound, 2 * bound)).pvalue > 0.01
    assert kstest(w.numpy(), "uniform", (-1.1 * bound, 2.2 * bound)).pvalue < 0.01  # the test tells


@pytest.mark.parametrize(("scores", "bound"), [("relu", math.sqrt(6 / 100)), ("default", 1 / math.sqrt(100))])
def test_initial_scores_are_those_of_the_codes(bench: Any, scores: Any, bound: float) -> None:
    s = begun((40, 100), bench, scores=scores).dense[0].flatten()
    assert kstest(s.numpy(), "uniform", (-bound, 2 * bound)).pvalue > 0.01


def test_the_fan_of_a_convolution_counts_its_window() -> None:
    method = EdgePopup(pruned=0.5)
    method.setup(nn.Sequential(nn.Conv2d(3, 8, 5)))
    drawn = method.drawn(0, 10, torch.Generator().manual_seed(0))
    assert drawn.abs().tolist() == pytest.approx([math.sqrt(2 / 75)] * 10)


def test_a_fan_of_no_weights_is_misuse() -> None:
    with pytest.raises(Misuse, match="scale_fan = pruned makes no weights of pruned = 0; use scale_fan = kept"):
        validate(compose(["method=edge_popup", "method.pruned=0", "method.scale_fan=pruned"]))


# Randomization


@pytest.mark.parametrize("draw", ["signed_constant", "kaiming_uniform"])
def test_what_a_randomization_changes(bench: Any, draw: Any) -> None:
    b = bench(IteRand(pruned=0.5, draw=draw, period=300, rate=0.25), [torch.zeros(100, 60), torch.zeros(80, 100)])
    weights = [w.clone() for w in b.method.frozen]
    scores = [s.clone() for s in b.method.dense]
    computed = [w.clone() for w in b.weights]
    kept = [m.clone() for m in b.method.masks().values()]
    b.method.randomize(b.ctx.rng)
    for i, fan in enumerate((60, 100)):
        now, before = b.method.frozen[i], weights[i]
        assert torch.equal(b.method.dense[i], scores[i])  # scores stay,
        assert torch.equal(now[kept[i]], before[kept[i]])  # and weights inside the mask,
        assert torch.equal(b.weights[i], computed[i])  # so that the network computes as before
        moved = (now != before) & ~kept[i]
        pruned = int((~kept[i]).sum())
        # A new sign is the old one half of the time.
        chance = 0.25 if draw == "kaiming_uniform" else 0.125
        assert binomtest(int(moved.sum()), pruned, chance).pvalue > 0.01
        if draw == "signed_constant":
            assert torch.allclose(now.abs(), torch.tensor(math.sqrt(2 / fan), dtype=now.dtype))
        else:
            bound = math.sqrt(6 / fan)
            assert kstest(now[moved].numpy(), "uniform", (-bound, 2 * bound)).pvalue > 0.01


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_the_extremes_of_the_rate(bench: Any, rate: float) -> None:
    b = bench(IteRand(pruned=0.5, draw="kaiming_uniform", period=1, rate=rate), [torch.zeros(20, 20)])
    before, kept = b.method.frozen[0].clone(), next(iter(b.method.masks().values()))
    b.method.randomize(b.ctx.rng)
    assert torch.equal(b.method.frozen[0] != before, ~kept if rate else torch.zeros_like(kept))


def test_it_happens_before_every_period_th_forward_pass(bench: Any, gaussian: Callable[..., Any]) -> None:
    b = bench(IteRand(pruned=0.5, draw="kaiming_uniform", period=3, rate=1.0), gaussian(SHAPES, 0))
    moved = []
    randomize = b.method.randomize
    b.method.randomize = lambda rng: (moved.append(b.ctx.step), randomize(rng))
    for _ in range(10):
        b.step([torch.zeros(shape) for shape in SHAPES])
    assert moved == [2, 5, 8]  # step t, from 0, when t + 1 is a multiple: (it + 1) % K_per == 0 in the official code


def test_a_new_weight_weighs_its_scores_gradient_at_once(bench: Any, gaussian: Callable[..., Any]) -> None:
    b = bench(IteRand(pruned=0.5, draw="kaiming_uniform", period=1, rate=1.0), gaussian(SHAPES, 0), lr=1.0)
    scores, old = b.method.dense[0].clone(), b.method.frozen[0].clone()
    b.step([torch.ones(shape) for shape in SHAPES])
    assert not torch.equal(b.method.frozen[0], old)
    assert torch.allclose(scores - b.method.dense[0], b.method.frozen[0], atol=1e-12)


# Recurrent layers and embeddings


def net() -> nn.Module:
    model = nn.Module()
    model.embedding, model.lstm, model.fc = nn.Embedding(9, 4), nn.LSTM(4, 3, bidirectional=True), nn.Linear(6, 1)
    return model


LSTM = [f"lstm.weight_{kind}_l0{end}" for end in ("", "_reverse") for kind in ("ih", "hh")]


def test_recurrent_weights_are_prunable_and_embeddings_when_named() -> None:
    assert list(prunable_weights(net())) == [*LSTM, "fc.weight"]
    assert list(prunable_weights(net(), ["lstm"])) == ["fc.weight"]
    assert list(prunable_weights(net(), ["type:LSTM"], ["type:Embedding"])) == ["embedding.weight", "fc.weight"]
    with pytest.raises(ValueError, match=r"also pattern 'fc' matches none of the layers embedding"):
        prunable_weights(net(), (), ["fc"])
    with pytest.raises(ValueError, match=r"keep_dense pattern 'embedding' matches none of the layers lstm, fc"):
        prunable_weights(net(), ["embedding"])


def test_an_lstm_computes_with_its_masked_weights(tmp_path: Path) -> None:
    given = ["dataset=synthetic_texts", "model=lstm", "model.hidden_dim=8", "model.embedding_dim=6"]
    given += ["schedule.epochs=2", "method=iterand", "method.also=[embedding]", "method.period=3"]
    t = Trainer(make(compose(given)), RunDirectory(tmp_path))
    t.fit()
    method: Any = t.e.method
    assert list(method.masks()) == ["embedding.weight", *LSTM[:2], "fc.weight"]
    for name, mask in method.masks().items():
        n = mask.numel()
        assert int(mask.sum()) == n - round(0.5 * (n - 1)), name
    assert not any(p.any() for name, p in t.model.named_parameters() if "bias" in name)
    plain = make(compose(given)).model
    plain.load_state_dict({**t.model.state_dict(), **method.effective()})
    ids = torch.randint(2, 90, (5, 11))
    with torch.no_grad():
        assert torch.equal(t.model.eval()(ids), plain.eval()(ids))
