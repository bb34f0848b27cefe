"""Transformer-XL: attention and softmax against slow computations of the paper's formulas, memory, counts, names."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.allocation import prunable_weights
from models.account import account
from models.adaptive import AdaptiveInput, AdaptiveSoftmax
from models.report import build, section
from models.transformer_xl import RelativeAttention, encoding, transformer_xl

TINY: dict[str, Any] = {
    "layers": 2, "width": 8, "heads": 2, "head_width": 3, "inner": 12, "dropout": 0.0, "attention_dropout": 0.0,
    "memory": 4, "test_memory": 4, "cutoffs": [5, 11], "divisor": 2, "init_std": 0.5, "projection_std": 0.5,
}  # fmt: skip


def tiny(seed: int = 0, **changes: Any) -> nn.Module:
    torch.manual_seed(seed)
    return transformer_xl(num_classes=17, in_shape=(4,), **{**TINY, **changes}).double()


def text(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(17, shape, generator=torch.Generator().manual_seed(seed))


# Relative attention


@pytest.mark.parametrize(("memory", "tokens"), [(0, 5), (3, 4), (6, 1), (2, 7)])
def test_relative_attention_is_equation_5_summed_by_hand(memory: int, tokens: int) -> None:
    torch.manual_seed(0)
    width, heads, each = 6, 2, 3
    attention = RelativeAttention(width, heads, each, 0.0).double()
    x, old = torch.randn(2, tokens, width).double(), torch.randn(2, memory, width).double()
    u, v = torch.randn(2, heads, each).double().unbind()
    seen = torch.cat([old, x], dim=1)
    positions = encoding(memory + tokens, width, x.device, x.dtype)
    ahead = torch.ones(tokens, memory + tokens, dtype=torch.bool).triu(memory + 1)
    found = attention(x, seen, positions, u, v, ahead)

    def r(distance: int) -> Tensor:  # section 3.3: the sinusoid encoding of i - j
        angles = [distance / 10000 ** (2 * i / width) for i in range(width // 2)]
        return torch.tensor([*map(math.sin, angles), *map(math.cos, angles)]).double()

    w_q, w_k, w_v = attention.qkv.weight.view(3, heads, each, width)
    w_r = attention.position.weight.view(heads, each, width)
    for n, i in itertools.product(range(2), range(tokens)):
        out = []
        for h in range(heads):
            q = w_q[h] @ x[n, i]
            keys = range(memory + i + 1)  # itself and what came before it
            scores = [
                (q + u[h]) @ (w_k[h] @ seen[n, j]) + (q + v[h]) @ (w_r[h] @ r(memory + i - j).to(q)) for j in keys
            ]
            weights = torch.stack(scores).div(math.sqrt(each)).softmax(0)
            out.append(sum(weights[j] * (w_v[h] @ seen[n, j]) for j in keys))
        by_hand = attention.out.weight @ torch.cat(out)  # type: ignore[arg-type]
        torch.testing.assert_close(found[n, i], by_hand, rtol=1e-6, atol=1e-8)


def test_a_layer_adds_then_normalises() -> None:
    model = tiny().eval()
    words = text(2, 4)
    x = model.embedding(words)
    ahead = torch.ones(4, 4, dtype=torch.bool).triu(1)
    positions = encoding(4, 8, x.device, x.dtype)
    for layer in model.layers:
        attended = layer.attention(x, x, positions, model.content_bias, model.position_bias, ahead)
        norm, first, last = layer.attention_norm, layer.feed_forward[0], layer.feed_forward[3]
        x = F.layer_norm(x + attended, (8,), norm.weight, norm.bias)
        inner = F.relu(x @ first.weight.T + first.bias)
        norm = layer.feed_forward_norm
        x = F.layer_norm(x + inner @ last.weight.T + last.bias, (8,), norm.weight, norm.bias)
    expected = model.softmax(x.flatten(0, 1), model.embedding, None).view(2, 4, 17)
    torch.testing.assert_close(model(words)[0], expected)


# Memory


def in_segments(model: nn.Module, words: Tensor, *lengths: int) -> Tensor:
    found, memory = [], None
    for part in words.split(list(lengths), dim=1):
        probabilities, memory = model(part, None, memory)
        found.append(probabilities)
    return torch.cat(found, dim=1)


def test_segments_with_memory_are_one_long_context() -> None:
    """As long as the memory holds everything, wherever the text is cut."""
    model, words = tiny(test_memory=100).eval(), text(3, 12)
    whole = model(words)[0]
    for lengths in ((4, 4, 4), (1, 7, 4), (11, 1), (2,) * 6):
        torch.testing.assert_close(in_segments(model, words, *lengths), whole)
    forgetful = tiny(test_memory=0).eval()
    apart = in_segments(forgetful, words, 4, 4, 4)
    torch.testing.assert_close(apart[:, :4], whole[:, :4])
    assert (apart[:, 4:] - whole[:, 4:]).abs().amax(-1).min() > 1e-3


def test_memory_reaches_its_length_in_every_layer() -> None:
    """With one token at a time, L layers and a memory of M, a prediction depends on the last L M tokens and itself."""
    model, words = tiny(test_memory=3).eval(), text(1, 12)
    singly = in_segments(model, words, *[1] * 12)[0, -1]
    reach = 2 * 3
    for back in range(1, 12):
        changed = words.clone()
        changed[0, 11 - back] = (changed[0, 11 - back] + 1) % 17
        difference = (in_segments(model, changed, *[1] * 12)[0, -1] - singly).abs().max()
        assert (difference > 1e-9) == (back <= reach), back


def test_memory_is_kept_at_the_length_of_its_mode_and_without_gradient() -> None:
    model = tiny(memory=2, test_memory=5)
    words, targets = text(3, 4), text(3, 4, seed=2)
    _, memory = model(words, targets)
    assert memory.shape == (2, 3, 2, 8) and not memory.requires_grad
    torch.testing.assert_close(memory[0], model.embedding(words)[:, -2:])
    _, memory = model.eval()(words, targets, memory)
    assert memory.shape == (2, 3, 5, 8)
    losses, _ = model(words, targets, memory.requires_grad_())
    assert losses.sum().requires_grad


def test_no_prediction_sees_what_comes_after_it() -> None:
    model, words = tiny().eval(), text(1, 6)
    before = model(words)[0]
    changed = words.clone()
    changed[0, 4] = (changed[0, 4] + 1) % 17
    after = model(changed)[0]
    assert torch.equal(before[0, :4], after[0, :4])
    assert not torch.allclose(before[0, 4:], after[0, 4:])


# Adaptive input and softmax


def parts(divisor: int, cutoffs: list[int]) -> tuple[AdaptiveInput, AdaptiveSoftmax]:
    torch.manual_seed(0)
    embedding = AdaptiveInput(17, 8, cutoffs, divisor).double()
    softmax = AdaptiveSoftmax(embedding).double()
    for parameter in softmax.parameters():
        nn.init.normal_(parameter)
    return embedding, softmax


@pytest.mark.parametrize("divisor", [1, 2])
def test_adaptive_input_by_hand(divisor: int) -> None:
    embedding, _ = parts(divisor, [5, 11])
    assert [table.weight.shape for table in embedding.tables] == [(5, 8), (6, 8 // divisor), (6, 8 // divisor**2)]
    assert len(embedding.projections) == (3 if divisor > 1 else 0)
    found = embedding(torch.arange(17))
    for word in range(17):
        cluster, low = next((i, low) for i, low in ((2, 11), (1, 5), (0, 0)) if word >= low)
        row = embedding.tables[cluster].weight[word - low]
        if divisor > 1:
            row = embedding.projections[cluster].weight @ row
        torch.testing.assert_close(found[word], row * math.sqrt(8))


@pytest.mark.parametrize("divisor", [1, 2])
def test_adaptive_softmax_is_that_of_torch(divisor: int) -> None:
    """With its weights put in the place of torch's: the tables behind their projections, the clusters' rows."""
    embedding, softmax = parts(divisor, [5, 11])
    reference = nn.AdaptiveLogSoftmaxWithLoss(8, 17, [5, 11], div_value=divisor, head_bias=True).double()
    hidden, targets = torch.randn(30, 8).double(), text(30)
    head = torch.cat([embedding.tables[0].weight, softmax.cluster_weight])
    if softmax.projection is not None:
        head = head @ softmax.projection.weight
    with torch.no_grad():
        reference.head.weight.copy_(head)
        reference.head.bias.copy_(torch.cat([softmax.biases[0], softmax.cluster_bias]))
        for i, (narrow, wide) in enumerate(reference.tail, start=1):
            softmax.biases[i].zero_()  # torch's tails have none
            narrow.weight.copy_(embedding.projections[i].weight.T if divisor > 1 else torch.eye(8))
            wide.weight.copy_(embedding.tables[i].weight)
    torch.testing.assert_close(softmax(hidden, embedding, None), reference.log_prob(hidden))
    torch.testing.assert_close(softmax(hidden, embedding, targets), -reference(hidden, targets).output)


@pytest.mark.parametrize(("divisor", "cutoffs"), [(1, []), (1, [5, 11]), (2, [5, 11]), (2, [])])
def test_losses_are_those_of_the_whole_distribution(divisor: int, cutoffs: list[int]) -> None:
    embedding, softmax = parts(divisor, cutoffs)
    hidden, targets = torch.randn(40, 8).double(), text(40)
    everything = softmax(hidden, embedding, None)
    torch.testing.assert_close(everything.exp().sum(1), torch.ones(40).double())
    targets[::7] = -1
    expected = F.nll_loss(everything, targets.clamp(min=0), reduction="none").masked_fill(targets < 0, 0.0)
    torch.testing.assert_close(softmax(hidden, embedding, targets), expected)
    if not cutoffs and divisor == 1:
        plain = hidden @ embedding.tables[0].weight.T + softmax.biases[0]
        torch.testing.assert_close(everything, plain.log_softmax(1))


def test_a_cluster_without_targets_has_a_zero_gradient_and_not_none() -> None:
    """Ranks of one run would wait for each other otherwise."""
    model = tiny()
    words = torch.zeros(2, 4, dtype=torch.int64)
    model(words, words)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not model.embedding.tables[2].weight.grad.any()


@pytest.mark.parametrize("cutoffs", [[0, 5], [5, 5], [9, 5], [5, 17], [3, 5, 8, 10]])
def test_cutoffs_that_make_no_sense(cutoffs: list[int]) -> None:
    with pytest.raises(ValueError, match=r"should ascend from above 0|leaves the last of 5 clusters no column"):
        tiny(cutoffs=cutoffs)


# The networks of the tables


@pytest.fixture(scope="module")
def large() -> nn.Module:
    with torch.device("meta"):
        return build(section("transformer_xl"), (384,), 267_735)


def test_the_papers_model_has_285_million_parameters(large: nn.Module) -> None:
    """Summed from NVIDIA's configuration of the large model (AC/DC, section 4: 285M)."""
    width, words, ends = 1024, 267_735, [0, 19997, 39997, 199997, 267_735]
    layer = 4 * width**2 + width**2 + (2 * 4 * width**2 + 4 * width + width) + 2 * 2 * width
    tables = sum((high - low) * width // 4**i for i, (low, high) in enumerate(itertools.pairwise(ends)))
    projections = sum(width * width // 4**i for i in range(4)) + width**2
    softmax = words + 3 + 3 * width
    total = 18 * layer + tables + projections + softmax + 2 * 16 * 64
    assert sum(parameter.numel() for parameter in large.parameters()) == total == 285_167_482
    assert f"{total / 1e6:.0f}M" == "285M"


def test_methods_find_layers_and_leave_embeddings_alone(large: nn.Module) -> None:
    weights = prunable_weights(large, ["embedding.projections.*", "softmax.projection"])
    each = ("attention.qkv", "attention.position", "attention.out", "feed_forward.0", "feed_forward.3")
    assert set(weights) == {f"layers.{layer}.{name}.weight" for layer in range(18) for name in each}
    assert sum(weight.numel() for weight in weights.values()) == 18 * 13 * 1024**2
    tables = {f"{name}.weight": m.weight for name, m in large.named_modules() if isinstance(m, nn.Embedding)}
    assert list(tables) == [f"embedding.tables.{i}.weight" for i in range(4)]
    assert sum(weight.numel() for weight in tables.values()) == 36_920_736
    assert not set(tables) & set(prunable_weights(large))


def test_what_a_segment_of_the_papers_model_costs(large: nn.Module) -> None:
    """One segment of 384 tokens after a full memory, every word's probability: keys are made for 768 tokens."""
    found = account(large, (384,))
    macs = {layer.name: layer.macs for layer in found.layers}
    tokens, keys, square = 384, 768, 1024**2
    assert macs["layers.0.attention.qkv.weight"] == keys * 3 * square
    assert macs["layers.0.attention.position.weight"] == keys * square
    assert macs["layers.0.attention.out.weight"] == tokens * square
    assert macs["layers.0.feed_forward.0.weight"] == macs["layers.0.feed_forward.3.weight"] == tokens * 4 * square
    assert macs["embedding.tables.0.weight"] == tokens * 19997 * 1024
    assert macs["embedding.projections.1.weight"] == tokens * 2 * 1024 * 256  # into the network and out of it
    assert found.activation_macs == 18 * 3 * tokens * keys * 1024  # scores by content and by position, and their use


def test_initial_weights_are_those_of_the_public_code() -> None:
    torch.manual_seed(0)
    less = ["layers=1", "width=128", "cutoffs=[1000]", "inner=512", "heads=2"]
    model = build(section("transformer_xl", [f"model.{option}" for option in less]), (8,), 3000)
    for name, parameter in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            mean, std = 1.0, 0.005
        elif "projection" in name:
            mean, std = 0.0, 0.01
        elif name.endswith("weight") or name in ("content_bias", "position_bias"):
            mean, std = 0.0, 0.005
        else:
            assert not parameter.any(), name
            continue
        assert parameter.std().item() == pytest.approx(std, rel=0.25), name
        assert parameter.mean().item() == pytest.approx(mean, abs=4 * std / math.sqrt(parameter.numel())), name
