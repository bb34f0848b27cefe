"""The account of an architecture against hand counts, independent formulas and the papers' printed numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from models.account import CONVENTIONS, Account, account
from models.lenet import lenet_300_100
from models.recurrent import lstm
from models.report import build, main, section
from models.resnet import resnet50
from models.wide_resnet import wide_resnet

ROOT = Path(__file__).resolve().parents[1]


@cache
def on_meta(name: str, in_shape: tuple[int, ...], num_classes: int, **changes: Any) -> Account:
    with torch.device("meta"):
        return account(build({**section(name), **changes}, in_shape, num_classes), in_shape)


# By hand


def test_lenet_counted_by_hand() -> None:
    result = account(lenet_300_100(num_classes=10, in_shape=(1, 28, 28)), (1, 28, 28))
    rows = [(layer.name, layer.kind, layer.shape, layer.weights, layer.biases, layer.macs) for layer in result.layers]
    assert rows == [
        ("fc1.weight", "linear", (300, 784), 235_200, 300, 235_200),
        ("fc2.weight", "linear", (100, 300), 30_000, 100, 30_000),
        ("fc3.weight", "linear", (10, 100), 1_000, 10, 1_000),
    ]
    assert [layer.output for layer in result.layers] == [(300,), (100,), (10,)]
    assert [layer.params for layer in result.layers] == [235_500, 30_100, 1_010]
    assert (result.weights, result.biases, result.parameters, result.macs) == (266_200, 410, 266_610, 266_200)
    assert (result.relu_elements, result.batch_norm_elements, result.activation_macs) == (400, 0, 0)
    assert result.flops("2xmac") == 532_400
    assert result.flops("dpf") == 266_200 + 400
    assert result.flops("acdc") == 532_400 + 410
    assert result.flops("acdc_all") == 532_400 + 410 + 400


def test_lenet_with_batch_norm_everywhere() -> None:
    model = lenet_300_100(num_classes=10, in_shape=(1, 28, 28), batch_norm="all", bias=False)
    result = account(model, (1, 28, 28))
    assert (result.parameters, result.batch_norm_parameters, result.batch_norm_elements) == (267_020, 820, 410)
    assert result.flops("dpf") == 266_200 + 2 * 410 + 400
    assert result.flops("acdc") == 532_400  # no biases to add


def test_strided_and_grouped_convolution_by_hand() -> None:
    # 6 channels in two groups of 3, 4 filters of 3x2; 9x7 -> (9 + 2 - 3)//2 + 1 = 5 by (7 - 2)//3 + 1 = 2.
    conv = nn.Conv2d(6, 4, (3, 2), stride=(2, 3), padding=(1, 0), groups=2)
    (layer,) = account(nn.Sequential(conv), (6, 9, 7)).layers
    assert (layer.name, layer.kind, layer.groups) == ("0.weight", "conv", 2)
    assert layer.shape == (4, 3, 3, 2)
    assert layer.output == (4, 5, 2)
    # Each of the 4 x 5 x 2 outputs sums 3 channels x 3 x 2 products, and adds one bias.
    assert (layer.weights, layer.biases, layer.macs, layer.bias_adds) == (72, 4, 40 * 18, 40)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("options", "in_shape"),
    [
        ({"kernel_size": 3}, (4, 8, 8)),
        ({"kernel_size": 3, "stride": 2, "padding": 1, "bias": False}, (4, 9, 7)),
        ({"kernel_size": (1, 5), "dilation": (1, 2), "groups": 4}, (4, 6, 12)),
        ({"kernel_size": 7, "stride": 3, "padding": 3, "groups": 2}, (4, 11, 10)),
    ],
)
def test_convolution_against_the_textbook_formula(
    device: str, options: dict[str, Any], in_shape: tuple[int, int, int]
) -> None:
    conv = nn.Conv2d(4, 8, **options, device=device)
    (layer,) = account(conv, in_shape).layers
    assert layer.name == "weight"
    padding = options.get("padding", 0)
    height, width = (
        (side + 2 * padding - conv.dilation[i] * (conv.kernel_size[i] - 1) - 1) // conv.stride[i] + 1
        for i, side in enumerate(in_shape[1:])
    )
    assert layer.output == (8, height, width)
    assert layer.macs == height * width * 8 * (4 // conv.groups) * conv.kernel_size[0] * conv.kernel_size[1]
    assert layer.bias_adds == (8 * height * width if conv.bias is not None else 0)


def test_transposed_convolution_spreads_every_input() -> None:
    (layer,) = account(nn.ConvTranspose2d(3, 5, 2, stride=2), (3, 4, 6)).layers
    assert layer.output == (5, 8, 12)
    assert layer.macs == 3 * 4 * 6 * 5 * 2 * 2
    assert layer.bias_adds == 5 * 8 * 12


def test_linear_layer_over_a_sequence() -> None:
    (layer,) = account(nn.Linear(6, 4), (5, 6)).layers
    assert (layer.macs, layer.bias_adds, layer.output) == (5 * 6 * 4, 5 * 4, (5, 4))


def test_pooling_windows() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.MaxPool2d(3, 2), nn.AvgPool2d((1, 2)), nn.AdaptiveAvgPool2d(1))
    result = account(model, (1, 9, 9))  # -> 2x9x9 -> 2x4x4 -> 2x4x2
    assert result.pooling_operations == 2 * 4 * 4 * 9 + 2 * 4 * 2 * 2
    assert result.flops("acdc_all") - result.flops("acdc") == result.pooling_operations


# What passes by the modules


class Shared(nn.Module):
    """One layer used twice, one used as a function, one not at all, and a product of activations."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(4, 4)
        self.function = nn.Linear(4, 3, bias=False)
        self.unused = nn.Linear(9, 9)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.twice(self.twice(x)))
        attention = x @ x.transpose(1, 2)  # (1, 5, 4) x (1, 4, 5)
        return F.linear(attention @ x, self.function.weight)


def test_shared_functional_and_unused_weights() -> None:
    result = account(Shared(), (5, 4))
    macs = {layer.name: layer.macs for layer in result.layers}
    assert macs == {"twice.weight": 2 * 5 * 16, "function.weight": 5 * 12, "unused.weight": 0}
    assert {layer.name: layer.output for layer in result.layers}["unused.weight"] == ()
    assert {layer.name: layer.bias_adds for layer in result.layers}["twice.weight"] == 2 * 5 * 4
    assert result.activation_macs == 2 * 5 * 5 * 4
    assert result.relu_elements == 5 * 4
    assert result.flops("macs") == 160 + 60  # products of activations are in no convention


def test_multi_head_attention_counts_its_packed_weights() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.heads(x, x, x, need_weights=False)[0]

    result = account(Attention(), (5, 8))
    assert {layer.name: (layer.macs, layer.biases) for layer in result.layers} == {
        "heads.out_proj.weight": (5 * 8 * 8, 8),
        "heads.in_proj_weight": (5 * 8 * 24, 24),
    }
    assert result.activation_macs == 2 * 5 * 5 * 8
    assert torch.backends.mha.get_fastpath_enabled()


def test_parametrized_weight_is_its_module_under_the_canonical_name() -> None:
    class Half(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight / 2

    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 3, 1))
    plain = account(model, (1, 5, 5))
    parametrize.register_parametrization(model[0], "weight", Half())
    assert account(model, (1, 5, 5)) == plain


def test_weights_in_one_block_of_memory_are_told_apart() -> None:
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False))
    plain = account(model, (4,))
    block = torch.zeros(18)
    model[0].weight = nn.Parameter(block[:12].view(3, 4))
    model[1].weight = nn.Parameter(block[12:].view(2, 3))
    assert account(model, (4,)) == plain
    assert [layer.macs for layer in plain.layers] == [12, 6]


def test_nothing_of_the_model_changes() -> None:
    model: Any = lenet_300_100(num_classes=10, in_shape=(1, 8, 8), batch_norm="all")
    model.norm1.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    account(model, (1, 8, 8))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert model.training and not model.norm1.training and model.norm2.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_failing_forward_restores_the_model_too() -> None:
    model = lenet_300_100(num_classes=10, in_shape=(1, 8, 8))
    with pytest.raises(RuntimeError):
        account(model, (1, 9, 9))
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_counting_inside_inference_mode_finds_the_same() -> None:
    model = Shared()
    with torch.inference_mode():
        inside = account(model, (5, 4))
    assert inside == account(model, (5, 4))


# Independent formulas for whole networks


def wrn_by_formula(depth: int, width: int, classes: int, stride_at: str) -> tuple[int, int]:
    """(parameters, MACs) at 32x32x3, summed over the architecture table of Zagoruyko & Komodakis."""
    blocks, channels, side = (depth - 4) // 6, 16, 32
    weights, macs, norms = 27 * 16, 27 * 16 * 32**2, 0
    for group in range(3):
        wide = 16 * width * 2**group
        for block in range(blocks):
            halves = group > 0 and block == 0
            after = side // 2 if halves else side
            between = after if stride_at == "first" else side
            weights += 9 * channels * wide + 9 * wide * wide
            macs += 9 * channels * wide * between**2 + 9 * wide * wide * after**2
            if channels != wide:
                weights += channels * wide
                macs += channels * wide * after**2
            norms += 2 * channels + 2 * wide
            channels, side = wide, after
    return weights + norms + 2 * channels + channels * classes + classes, macs + channels * classes


@pytest.mark.parametrize("stride_at", ["first", "second"])
@pytest.mark.parametrize(("depth", "width"), [(10, 1), (16, 4), (28, 2), (28, 10), (40, 2)])
def test_wrn_against_the_formula(depth: int, width: int, stride_at: Any) -> None:
    with torch.device("meta"):
        model = wide_resnet(num_classes=10, in_shape=(3, 32, 32), depth=depth, width=width, stride_at=stride_at)
    result = account(model, (3, 32, 32))
    assert (result.parameters, result.macs) == wrn_by_formula(depth, width, 10, stride_at)


def resnet50_by_formula(stride_at: str) -> tuple[int, int]:
    """(conv and linear weights, MACs) at 224x224, 1000 classes, from table 1 of He et al."""
    weights, macs, channels, side = 49 * 3 * 64, 49 * 3 * 64 * 112**2, 64, 56
    for group, blocks in enumerate((3, 4, 6, 3)):
        narrow = 64 * 2**group
        for block in range(blocks):
            after = side // 2 if group > 0 and block == 0 else side
            between = side if stride_at == "3x3" else after
            for size, place in ((channels * narrow, between), (9 * narrow**2, after), (4 * narrow**2, after)):
                weights += size
                macs += size * place**2
            if block == 0:
                weights += channels * 4 * narrow
                macs += channels * 4 * narrow * after**2
            channels, side = 4 * narrow, after
    return weights + 2_048_000, macs + 2_048_000


@pytest.mark.parametrize("stride_at", ["3x3", "1x1"])
def test_resnet50_against_the_formula(stride_at: Any) -> None:
    result = on_meta("resnet50", (3, 224, 224), 1000, stride_at=stride_at)
    assert (result.weights, result.macs) == resnet50_by_formula(stride_at)
    assert result.parameters == 25_557_032
    assert len(result.layers) == 54


def test_mobilenet_against_the_formula() -> None:
    """Howard et al., section 3.1: a depthwise block costs (9 M + M N) per pixel; table 1 has the sizes."""
    side, inner, weights, macs = 112, 32, 27 * 32, 27 * 32 * 112**2
    for outer, stride in [
        (64, 1),
        (128, 2),
        (128, 1),
        (256, 2),
        (256, 1),
        (512, 2),
        *[(512, 1)] * 5,
        (1024, 2),
        (1024, 1),
    ]:
        side //= stride
        weights += 9 * inner + inner * outer
        macs += (9 * inner + inner * outer) * side**2
        inner = outer
    result = on_meta("mobilenet_v1", (3, 224, 224), 1000)
    assert (result.weights, result.macs) == (weights + 1_024_000, macs + 1_024_000)
    assert (result.parameters, result.macs) == (4_231_976, 568_740_352)
    assert f"{result.flops('acdc') / 1e9:.1f}" == "1.1"  # AC/DC, table 3


def resnet_by_formula(depth: int, shortcut: str) -> tuple[int, int]:
    """(parameters, MACs) of a CIFAR ResNet at 3x32x32 and 10 classes, from section 4.2 of He et al."""
    blocks, parameters, macs = (depth - 2) // 6, 27 * 16 + 2 * 16, 27 * 16 * 32**2
    for fan_in, width, side in ((16, 16, 32), (16, 32, 16), (32, 64, 8)):
        weights = 9 * fan_in * width + (2 * blocks - 1) * 9 * width**2
        norms = 2 * blocks
        if fan_in != width and shortcut == "projection":
            weights += fan_in * width
            norms += 1
        parameters += weights + norms * 2 * width
        macs += weights * side**2
    return parameters + 64 * 10 + 10, macs + 64 * 10


@pytest.mark.parametrize("shortcut", ["projection", "identity"])
@pytest.mark.parametrize("depth", [20, 32, 56])
def test_cifar_resnet_against_the_formula(depth: int, shortcut: str) -> None:
    result = on_meta(f"resnet{depth}", (3, 32, 32), 10, shortcut=shortcut)
    assert (result.parameters, result.macs) == resnet_by_formula(depth, shortcut)
    assert result.biases == 10


def test_vgg16_against_the_formula() -> None:
    widths = [3, *[64] * 2, *[128] * 2, *[256] * 3, *[512] * 6]
    sides = [*[32] * 2, *[16] * 2, *[8] * 3, *[4] * 3, *[2] * 3]
    weights = [9 * fan_in * fan_out for fan_in, fan_out in pairwise(widths)]
    dense = 512 * 512 * 2 + 512 * 10
    result = on_meta("vgg16_d", (3, 32, 32), 10)
    assert result.macs == sum(n * side**2 for n, side in zip(weights, sides, strict=True)) + dense
    assert (result.weights, result.biases) == (sum(weights) + dense, sum(widths[1:]) + 512 * 2 + 10)
    assert result.parameters == result.weights + result.biases + 2 * sum(widths[1:]) == 15_253_578
    eleven = on_meta("vgg16_d", (3, 32, 32), 10, depth=11, hidden=(), last_pool="avg")
    assert eleven.weights == 9 * sum(a * b for a, b in pairwise((3, 64, 128, 256, 256, *[512] * 4))) + 512 * 10


def test_densenet_40_12_against_the_formula() -> None:
    parameters, macs, channels = 27 * 16, 27 * 16 * 32**2, 16
    for side in (32, 16, 8):
        for _ in range(12):
            parameters += 2 * channels + 9 * channels * 12
            macs += 9 * channels * 12 * side**2
            channels += 12
        if side > 8:
            parameters += 2 * channels + channels**2
            macs += channels**2 * side**2  # before the pooling
    result = on_meta("densenet_40_12", (3, 32, 32), 10)
    assert channels == 448
    assert (result.parameters, result.macs) == (parameters + 2 * 448 + 448 * 10 + 10, macs + 448 * 10)


def test_meta_and_real_tensors_agree() -> None:
    with torch.device("meta"):
        model = resnet50(num_classes=10, in_shape=(3, 64, 64))
    assert account(model, (3, 64, 64)) == account(model.to_empty(device="cpu"), (3, 64, 64))


# Printed numbers


@pytest.mark.parametrize(("name", "million_macs"), [("wrn_28_2", 216), ("wrn_28_4", 848), ("wrn_28_8", 3366)])
def test_dpf_figures_3_and_6(name: str, million_macs: int) -> None:
    assert round(on_meta(name, (3, 32, 32), 10).flops("dpf") / 1e6) == million_macs


def test_dpf_parameters_and_share_of_the_classifier() -> None:
    wrn, resnet = on_meta("wrn_28_2", (3, 32, 32), 10), on_meta("resnet50", (3, 224, 224), 1000)
    assert f"{wrn.parameters / 1e6:.2f}" == "1.47"
    # Footnote 2: the classifier makes up 0.05 % of ResNet-50's MACs and 0.0006 % of WideResNet-28-2's.
    assert f"{100 * resnet.layers[-1].macs / resnet.macs:.2f}" == "0.05"
    assert f"{100 * wrn.layers[-1].macs / wrn.macs:.4f}" == "0.0006"


@pytest.mark.parametrize(
    ("sparsity", "left", "reached"), [(0.8, "6.79", "73.42"), (0.9, "4.45", "82.60")], ids=["80 %", "90 %"]
)
def test_dpf_table_3_left_and_reached(sparsity: float, left: str, reached: str) -> None:
    """All convolutions are pruned, everything else stays; 82.6 is as printed, 73.42 stands as 73.5 there."""
    resnet = on_meta("resnet50", (3, 224, 224), 1000)
    kept = resnet.kept({layer.name: 1 - sparsity for layer in resnet.layers if layer.kind == "conv"})
    zeros = resnet.sparsity(kept, of="parameters")
    assert f"{(1 - zeros) * resnet.parameters / 1e6:.2f}" == left
    assert f"{100 * zeros:.2f}" == reached
    assert resnet.sparsity(kept, of="pruned") == pytest.approx(sparsity)


@pytest.mark.parametrize(("depth", "printed"), [(20, "0.27"), (32, "0.46"), (56, "0.85")])
def test_he_table_6_counts_identity_shortcuts(depth: int, printed: str) -> None:
    he = on_meta(f"resnet{depth}", (3, 32, 32), 10, shortcut="identity")
    ours = on_meta(f"resnet{depth}", (3, 32, 32), 10)
    assert f"{he.parameters / 1e6:.2f}" == printed
    # Two projections (16 -> 32, 32 -> 64), each with a batch norm: what the default has on top.
    assert ours.parameters - he.parameters == 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64


def test_huang_table_2_counts_a_stem_of_16() -> None:
    sizes = {stem: on_meta("densenet_40_12", (3, 32, 32), 10, stem=stem).parameters for stem in (16, 24)}
    assert {stem: f"{count / 1e6:.1f}" for stem, count in sizes.items()} == {16: "1.0", 24: "1.1"}


def test_published_sizes_of_the_large_networks() -> None:
    resnet = on_meta("resnet50", (3, 224, 224), 1000)
    assert f"{resnet.parameters / 1e6:.2f} {resnet.macs / 1e9:.2f}" == "25.56 4.09"
    assert f"{on_meta('resnet50', (3, 224, 224), 1000, stride_at='1x1').macs / 1e9:.2f}" == "3.86"
    assert f"{on_meta('wrn_28_10', (3, 32, 32), 10).parameters / 1e6:.1f}" == "36.5"


def test_acdc_dense_gflops_and_training_eflops() -> None:
    resnet = on_meta("resnet50", (3, 224, 224), 1000)
    wrn = on_meta("wrn_28_10", (3, 32, 32), 100, stride_at="second")
    # Tables 1 and 5; dense training costs 3 passes a sample (C.2), 100 epochs of ImageNet and 200 of CIFAR-100.
    assert f"{resnet.flops('acdc') / 1e9:.1f}" == "8.2"
    assert f"{100 * 1_281_167 * 3 * resnet.flops('acdc') / 1e18:.2f}" == "3.14"
    # As C.2 says: with batch norm, ReLU and pooling ImageNet would cost more than the table prints.
    assert f"{100 * 1_281_167 * 3 * resnet.flops('acdc_all') / 1e18:.2f}" == "3.16"
    for convention in ("acdc", "acdc_all"):
        assert f"{wrn.flops(convention) / 1e9:.1f}" == "11.9"
        assert f"{200 * 50_000 * 3 * wrn.flops(convention) / 1e18:.2f}" == "0.36"


@pytest.mark.parametrize(("sparsity", "printed"), [(0.9, "0.13"), (0.95, "0.08")])
def test_acdc_table_9_uniform_flops_with_first_and_last_dense(sparsity: float, printed: str) -> None:
    resnet = on_meta("resnet50", (3, 224, 224), 1000)
    inner = {layer.name: 1 - sparsity for layer in resnet.layers if layer.name not in ("conv1.weight", "fc.weight")}
    kept = resnet.kept(inner)
    assert f"{resnet.flops('acdc', kept) / resnet.flops('acdc'):.2f}" == printed
    # Its global sparsity of 82.6 and 87.2 % is over everything but biases.
    assert f"{100 * resnet.sparsity(kept, of='weights+norm'):.1f}" == {0.9: "82.6", 0.95: "87.2"}[sparsity]
    assert resnet.sparsity(kept, of="pruned") == pytest.approx(sparsity)


@pytest.mark.parametrize(("sparsity", "printed"), [(0.5, "49.98"), (0.75, "74.96"), (0.9, "89.96"), (0.95, "94.95")])
def test_acdc_table_5_sparsity_column(sparsity: float, printed: str) -> None:
    wrn = on_meta("wrn_28_10", (3, 32, 32), 100, stride_at="second")
    kept = wrn.kept({layer.name: 1 - sparsity for layer in wrn.layers})
    assert f"{100 * wrn.sparsity(kept, of='weights+norm'):.2f}" == printed


# Masks and densities


def test_sparse_macs_equal_a_count_of_the_products_that_a_mask_leaves() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 3 * 4, 5))
    result = account(model, (3, 7, 9))
    masks = {layer.name: torch.rand(layer.shape) < 0.3 for layer in result.layers}
    kept = {name: int(mask.sum()) for name, mask in masks.items()}
    # Ones in, ones as the kept weights: every output is the number of products it sums.
    conv = F.conv2d(torch.ones(1, 3, 7, 9), masks["0.weight"].float(), stride=2)
    linear = F.linear(torch.ones(1, 48), masks["3.weight"].float())
    assert result.layer_macs(kept) == {"0.weight": int(conv.sum()), "3.weight": int(linear.sum())}
    assert result.flops("macs", kept) == int(conv.sum() + linear.sum())
    assert isinstance(result.flops("2xmac", kept), int)
    assert result.flops("dpf", kept) == result.flops("macs", kept) + 4 * 3 * 4  # ReLUs stay
    assert result.flops("acdc", kept) == 2 * result.flops("macs", kept) + 4 * 3 * 4 + 5  # biases stay


def test_layers_that_are_not_listed_are_dense() -> None:
    result = account(lenet_300_100(num_classes=10, in_shape=(1, 28, 28)), (1, 28, 28))
    assert result.layer_macs({"fc1.weight": 1200}) == {"fc1.weight": 1200, "fc2.weight": 30_000, "fc3.weight": 1000}
    assert result.flops("macs", {"fc1.weight": 0, "fc2.weight": 0, "fc3.weight": 0}) == 0
    kept = result.kept({"fc1.weight": 0.1})
    assert kept == {"fc1.weight": pytest.approx(23_520)}
    assert result.sparsity(kept) == pytest.approx(0.9 * 235_200 / 266_200)
    assert result.sparsity(kept, of="pruned") == pytest.approx(0.9)
    assert result.sparsity(kept, of="parameters") == pytest.approx(0.9 * 235_200 / 266_610)
    assert result.sparsity({}, of="pruned") == 0


def test_what_makes_no_sense_is_refused() -> None:
    result = account(lenet_300_100(num_classes=10, in_shape=(1, 28, 28)), (1, 28, 28))
    with pytest.raises(ValueError, match=r"no layer weight 'fc1' \(did you mean 'fc1.weight'"):
        result.flops("macs", {"fc1": 3})
    with pytest.raises(ValueError, match="1000 weights; it cannot keep 1001"):
        result.layer_macs({"fc3.weight": 1001})
    with pytest.raises(ValueError, match="cannot keep -1"):
        result.layer_macs({"fc3.weight": -1})
    with pytest.raises(ValueError, match=r"density of fc3\.weight is 1\.2"):
        result.kept({"fc3.weight": 1.2})
    with pytest.raises(ValueError, match="did you mean 'macs'"):
        result.flops("mac")
    with pytest.raises(ValueError, match="not measured of"):
        result.sparsity({}, of="everything")  # type: ignore[arg-type]


# Records and the command line


def test_record_survives_json_and_is_checked() -> None:
    result = account(wide_resnet(num_classes=10, in_shape=(3, 8, 8), depth=10, width=1), (3, 8, 8))
    record = json.loads(json.dumps(result.record()))
    assert Account.from_record(record) == result
    assert record["macs"] == result.macs
    assert set(record["flops"]) == set(CONVENTIONS)
    with pytest.raises(ValueError, match="schema 0"):
        Account.from_record({**record, "schema": 0})
    del record["layers"][0]["macs"]
    with pytest.raises(ValueError, match="incomplete"):
        Account.from_record(record)


def test_command_line_writes_a_record_that_is_read_without_torch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "wrn.json"
    assert main(["wrn_28_2", "model.depth=10", "--in-shape", "3,16,16", "--num-classes", "5", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "group3.0.shortcut.weight" in printed and "acdc_all" in printed
    record = json.loads(out.read_text())
    assert record["model"]["depth"] == 10 and record["num_classes"] == 5
    check = (
        "import json, sys; from models.account import Account\n"
        "result = Account.from_record(json.load(open(sys.argv[1])))\n"
        "assert 'torch' not in sys.modules; print(result.flops('dpf', result.kept({'stem.weight': 0.5})))"
    )
    done = subprocess.run([sys.executable, "-c", check, str(out)], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(done.stdout) == record["flops"]["dpf"] - record["layers"][0]["macs"] / 2


def test_command_line_as_a_module() -> None:
    command = [sys.executable, "-m", "models.account", "lenet_300_100", "--in-shape", "1,28,28", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["weights"] == 266_200


def test_help_does_not_import_torch() -> None:
    check = (
        "import runpy, sys\n"
        "sys.argv = ['account', '--help']\n"
        "try: runpy.run_module('models.account', run_name='__main__')\n"
        "except SystemExit as end: sys.exit(end.code or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "usage: python -m models.account" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["wrn_28_3"], "did you mean 'wrn_28_"),
        (["../config"], "there is no conf/model"),
        (["wrn_28_2", "model.dept=10"], "did you mean 'depth'"),
        (["wrn_28_2", "depth=10"], "model.KEY=VALUE"),
        (["wrn_28_2", "model.depth=11"], "6n + 4"),
        (["timm", "model.name=resnet81"], "did you mean 'resnet18'"),
        (["wrn_28_2", "model._target_=os.system"], "in the package models"),
        (["wrn_28_2", "--in-shape", "3,32"], "C,H,W"),
    ],
)
def test_command_line_refuses_with_one_sentence(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


# Sequences


@pytest.mark.parametrize(
    ("both", "layers", "length"),
    [(False, 1, 9), (True, 1, 9), (True, 2, 5), (False, 1, 1), (False, 1, 2), (False, 1, 3)],
)
def test_two_steps_of_a_sequence_tell_the_cost_of_all(both: bool, layers: int, length: int) -> None:
    """Against counting every step, and by hand: of an LSTM all weights once a step, of the classifier once."""
    options = {"bidirectional": both, "embedding_dim": 5, "hidden_dim": 4, "layers": layers}
    with torch.device("meta"):
        model: Any = lstm(num_classes=2, in_shape=(20, length), **options)
    found = account(model, (20, length))
    model.steps_alike = False
    assert found == account(model, (20, length))
    ends = 2 if both else 1
    weights = sum(p.numel() for name, p in model.lstm.named_parameters() if "weight" in name)
    assert weights == ends * 16 * (5 + 4 + (layers - 1) * (4 * ends + 4))
    assert (found.macs, found.in_shape) == (length * weights + 4 * ends, (20, length))


def test_what_grows_with_the_steps_grows_and_nothing_else() -> None:
    class Steps(nn.Module):
        """On every token a linear layer, batch norm, ReLU and a product of activations; at the end a classifier."""

        steps_alike = True

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.norm, self.fc = nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)

        def example(self, in_shape: tuple[int, ...]) -> tuple[Tensor]:
            return (torch.zeros(in_shape[1], 3),)

        def forward(self, x: Tensor) -> Tensor:
            states = [F.relu(self.norm(self.inner(step[None]))) for step in x]
            squares = [state @ state.T for state in states]
            return self.fc(states[-1] + sum(squares))

    model: Any = Steps()
    found = account(model, (9, 40))
    model.steps_alike = False
    assert found == account(model, (9, 40))
    assert (found.macs, found.relu_elements, found.batch_norm_elements) == (40 * 18 + 12, 240, 240)
    assert (found.activation_macs, [layer.bias_adds for layer in found.layers]) == (240, [240, 2])


@pytest.mark.slow
def test_a_review_counted_step_by_step() -> None:
    """The whole length of IMDB's longest review: many seconds, against a twentieth of one."""
    with torch.device("meta"):
        model: Any = build(section("bilstm"), (25_002, 2752), 2)
    found = account(model, (25_002, 2752))
    model.steps_alike = False
    assert found == account(model, (25_002, 2752))
