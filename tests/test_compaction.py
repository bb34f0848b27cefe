"""methods.compaction: the network without its zero filters computes the same; how small it becomes, by hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.base import Method
from methods.compaction import compacted, constant_channels, filters
from methods.constants import LAYERS, Constant, Constants
from models.account import account
from models.report import build, section
from runner.compose import compose
from runner.execute import execute
from runner.experiment import make
from runner.identity import run_dir
from runner.repeat import finished, here

# A small one of every family: option of conf/model, input shape, overrides.
SMALL: dict[str, tuple[str, tuple[int, int, int], list[str]]] = {
    "lenet": ("lenet_300_100", (1, 8, 8), ["model.hidden=[30,20]"]),
    "lenet-norm": ("lenet_300_100", (1, 8, 8), ["model.hidden=[30,20]", "model.batch_norm=all", "model.bias=false"]),
    "resnet": ("resnet20", (3, 16, 16), ["model.width=6"]),
    "resnet-identity": ("resnet20", (3, 16, 16), ["model.width=6", "model.shortcut=identity"]),
    "resnet-bottleneck": ("resnet56", (3, 8, 8), ["model.width=3", "model.block=bottleneck", "model.depth=14"]),
    "wrn": ("wrn_28_2", (3, 8, 8), ["model.depth=16", "model.width=1"]),
    "densenet": ("densenet_40_12", (3, 8, 8), ["model.depth=13", "model.growth=5", "model.stem=6"]),
}
LARGE: dict[str, tuple[str, tuple[int, int, int], list[str]]] = {
    "vgg": ("vgg16_d", (3, 64, 64), []),
    "resnet50": ("resnet50", (3, 64, 64), []),
    "resnet56": ("resnet56", (3, 32, 32), []),
    "wrn": ("wrn_28_2", (3, 32, 32), []),
    "densenet": ("densenet_40_12", (3, 32, 32), []),
}


def made(name: str, shape: tuple[int, int, int], overrides: list[str], seed: int) -> nn.Module:
    """The model in float64 with random statistics and parameters of its batch norms, in evaluation mode."""
    torch.manual_seed(seed)
    model = build(section(name, overrides), shape, 10).double().eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    return model


@torch.no_grad()
def drop(model: nn.Module, share: float, seed: int) -> None:
    """Zero this share of the filters of all layers but the last, whole layers among them by chance."""
    rng = torch.Generator().manual_seed(seed)
    layers = [module for module in model.modules() if isinstance(module, LAYERS)]
    for layer in layers[:-1]:
        layer.weight[torch.rand(len(layer.weight), generator=rng) < share] = 0.0


@torch.no_grad()
def difference(a: nn.Module, b: nn.Module, shape: tuple[int, ...]) -> float:
    """Largest difference of the outputs, as a share of the largest output."""
    images = torch.randn(5, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    return float((a(images) - b(images)).abs().max() / a(images).abs().max())


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("family", SMALL)
def test_outputs_are_equal_and_the_network_is_smaller(family: str, share: float) -> None:
    name, shape, overrides = SMALL[family]
    model = made(name, shape, overrides, 0)
    drop(model, share, 0)
    small = compacted(model, torch.zeros(1, *shape))
    assert difference(model, small, shape) < 1e-10
    before, after = account(model, shape), account(small, shape)
    assert (after.macs < before.macs) == (after.parameters < before.parameters) == (share > 0)
    assert all(filters(small).get(layer, (0, 0))[0] <= count for layer, (count, _) in filters(model).items())


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.3, 0.7])
@pytest.mark.parametrize("family", LARGE)
def test_outputs_are_equal_for_the_papers_networks(family: str, share: float) -> None:
    name, shape, overrides = LARGE[family]
    model = made(name, shape, overrides, 0)
    drop(model, share, 0)
    small = compacted(model, torch.zeros(1, *shape))
    assert difference(model, small, shape) < 1e-10
    assert parameters(small) < parameters(model)


@pytest.mark.parametrize("family", ["lenet", "lenet-norm"])
def test_of_fully_connected_networks_exactly_the_zero_filters_go(family: str) -> None:
    name, shape, overrides = SMALL[family]
    model = made(name, shape, overrides, 3)
    drop(model, 0.5, 3)
    alive = [count - zero for count, zero in filters(model).values()]
    small = compacted(model, torch.zeros(1, *shape))
    assert [count for count, _ in filters(small).values()] == alive
    # Batch norms have two numbers a unit, one for every filter that is left; a bias is new where there was none.
    inputs, (one, two, three) = 64, alive
    expected = inputs * one + one * two + two * three + one + two + three
    if family == "lenet-norm":
        # fc1 reads the image only: it needs no bias.
        expected += 2 * (one + two + three) - one
    assert parameters(small) == expected


# By hand


class Chain(nn.Sequential):
    """conv1 (1 -> 4 channels) - norm - ReLU - conv2 (4 -> 2), `kernel` wide, no biases."""

    def __init__(self, kernel: int, betas: list[float]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4, eps=0.0)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(4, 2, kernel, padding=kernel // 2, bias=False)
        self.double().eval()
        with torch.no_grad():
            self.norm.bias.copy_(torch.tensor(betas))
            self.norm.running_mean.fill_(0.5)  # type: ignore[union-attr]
            self.norm.running_var.fill_(4.0)  # type: ignore[union-attr]
            self.conv1.weight[1:] = 0.0


def shrunk(model: nn.Module) -> Any:
    small = compacted(model, torch.zeros(1, 1, 6, 6))
    assert difference(model, small, (1, 6, 6)) < 1e-12
    return small


def test_a_constant_below_zero_ends_at_the_relu() -> None:
    # A zero filter behind the norm is beta - 0.5 / 2.
    small = shrunk(Chain(3, [0.0, 0.25, 0.2, -1.0]))
    assert parameters(small) == 9 + 2 + 2 * 9
    assert small.conv2.bias is None


def test_constants_go_into_the_bias_where_there_is_no_border() -> None:
    model = Chain(1, [0.0, 0.5, 1.25, -1.0])
    small = shrunk(model)
    assert parameters(small) == 9 + 2 + 2 + 2
    w = model.conv2.weight.detach()[:, :, 0, 0]
    assert torch.allclose(small.conv2.bias, 0.25 * w[:, 1] + 1.0 * w[:, 2], rtol=1e-12)


def test_constants_that_end_at_the_border_become_one_channel() -> None:
    model = Chain(3, [0.0, 0.5, 1.25, 1.0])
    small = shrunk(model)
    assert parameters(small) == 2 * 9 + 2 * 2 + 2 * 2 * 9
    w = model.conv2.weight.detach()
    # The largest constant, 1.0 of channel 2, stands for 0.25 of channel 1 and 0.75 of channel 3.
    assert torch.allclose(small.conv2.weight[:, 1], w[:, 2] + 0.25 * w[:, 1] + 0.75 * w[:, 3], rtol=1e-12)
    assert torch.equal(small.conv2.weight[:, 0], w[:, 0])
    assert constant_channels(model, torch.zeros(1, 1, 6, 6)) == {"zero": 0, "biased": 0, "bordered": 3}


def test_constant_channels_are_counted_by_what_becomes_of_them() -> None:
    example = torch.zeros(1, 1, 6, 6)
    assert constant_channels(Chain(3, [0.0, 0.25, 0.2, 1.0]), example) == {"zero": 2, "biased": 0, "bordered": 1}
    assert constant_channels(Chain(1, [0.0, 0.5, 1.25, -1.0]), example) == {"zero": 1, "biased": 2, "bordered": 0}
    assert constant_channels(shrunk(Chain(3, [0.0] * 4)), example) == {"zero": 0, "biased": 0, "bordered": 0}


def test_a_filter_that_nobody_reads_goes_though_it_is_not_zero() -> None:
    model = Chain(3, [0.0, -1.0, -1.0, -1.0])
    with torch.no_grad():
        model.conv1.weight.normal_()
        model.conv2.weight[:, 2] = 0.0
    assert filters(shrunk(model)) == {"conv1": (3, 0), "conv2": (2, 0)}


def test_constants_are_followed_by_hand() -> None:
    model: Any = nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.ReLU(),
        nn.AvgPool2d(2, padding=1),
        nn.Conv2d(3, 4, 3, padding=1),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 2),
    )
    model.double().eval()
    with torch.no_grad():
        model[0].weight[1:] = 0.0
        model[0].bias.copy_(torch.tensor([0.0, 1.5, -2.0]))
        model[3].weight[1:] = 0.0
        model[3].weight[2, 1] = 1.0  # of channel 1, whose border is not that of the image's inside
        model[3].weight[3, 2] = 1.0  # of channel 2, which is 0
        model[3].bias.copy_(torch.tensor([0.0, 0.5, 0.25, -4.0]))
    found = Constants.of(model, torch.randn(2, 1, 8, 8, dtype=torch.float64))
    nan = math.nan
    for name, values in {
        "0": [nan, 1.5, -2.0],
        "1": [nan, 1.5, 0.0],
        "2": [nan, nan, 0.0],  # the pooling counts the zeros beyond the border
        "3": [nan, 0.5, nan, -4.0],
        "5": [nan] * 4 + [0.5] * 4 + [nan] * 4 + [-4.0] * 4,
    }.items():
        assert torch.equal(found.outputs[name].nan_to_num(99), torch.tensor(values).double().nan_to_num(99)), name
    assert found.last == {"6"}
    model[2].padding = 0
    again = Constants.of(model, torch.randn(2, 1, 8, 8, dtype=torch.float64))
    assert again.outputs["2"][1] == 1.5 and math.isnan(again.outputs["3"][2])


def resnet8() -> Any:
    return made("resnet20", (3, 8, 8), ["model.depth=8", "model.width=4"], 0)


def test_a_residual_channel_goes_only_if_it_is_zero_in_every_branch() -> None:
    model = resnet8()
    with torch.no_grad():
        model.stem.weight[1:3] = 0.0
        model.group1[0].conv2.weight[2:4] = 0.0
        model.norm.bias[1:3] = model.group1[0].norm2.bias[2:4] = -9.0
    small: Any = compacted(model, torch.zeros(1, 3, 8, 8))
    assert difference(model, small, (3, 8, 8)) < 1e-12
    # Channel 2 is gone everywhere; 1 and 3 live on from the branch and from the stem.
    assert (len(small.stem.weight), len(small.group1[0].conv2.weight)) == (3, 3)
    assert small.group1[0].conv1.weight.shape == (4, 3, 3, 3)
    assert small.group2[0].conv1.weight.shape[1] == small.group2[0].shortcut.weight.shape[1] == 3
    assert filters(small)["stem"] == filters(small)["group1.0.conv2"] == (3, 1)


def test_a_residual_branch_that_vanished_costs_nothing() -> None:
    model = resnet8()
    with torch.no_grad():
        model.group2[0].conv2.weight.zero_()
        model.group3[0].conv1.weight.zero_()
        model.group3[0].norm1.bias.fill_(-9.0)
    small: Any = compacted(model, torch.zeros(1, 3, 8, 8))
    assert difference(model, small, (3, 8, 8)) < 1e-12
    for block in (small.group2[0], small.group3[0]):
        gone = (block.conv1, block.norm1, block.conv2, block.norm2)
        assert all(isinstance(layer, Constant) for layer in gone)
        assert [layer.value.numel() for layer in gone] == [1, 1, *[len(block.shortcut.weight)] * 2]
    layers = {layer.name for layer in account(small, (3, 8, 8)).layers}
    assert layers == {
        "stem.weight",
        "group1.0.conv1.weight",
        "group1.0.conv2.weight",
        "group2.0.shortcut.weight",
        "group3.0.shortcut.weight",
        "fc.weight",
    }


def test_a_chain_that_vanished_leaves_constant_outputs() -> None:
    model = made("lenet_300_100", (1, 4, 4), ["model.hidden=[6,5]"], 0)
    with torch.no_grad():
        model.fc1.weight.zero_()  # type: ignore[union-attr]
    small = compacted(model, torch.zeros(1, 1, 4, 4))
    images = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    assert torch.allclose(small(images), model(images), rtol=1e-12)
    assert torch.equal(small(images)[0], small(images)[1])
    assert account(small, (1, 4, 4)).macs == 0


def test_of_inner_filters_one_is_left_for_all_constants() -> None:
    """In a pre-activation block conv1's filters are read by conv2 alone."""
    model: Any = made("wrn_28_2", (3, 8, 8), ["model.depth=10", "model.width=1"], 0)
    block = model.group2[0]
    with torch.no_grad():
        block.conv1.weight[:20] = 0.0
        norm = block.norm2
        norm.bias.copy_(norm.running_mean / (norm.running_var + norm.eps).sqrt() * norm.weight)
        norm.bias[:12] += 0.5
        norm.bias[12:20] -= 0.5
    small: Any = compacted(model, torch.zeros(1, 3, 8, 8))
    assert difference(model, small, (3, 8, 8)) < 1e-12
    assert small.group2[0].conv2.weight.shape == (32, 13, 3, 3)
    assert small.group2[0].conv1.weight.shape == (13, 16, 3, 3)


def test_the_model_stays_as_it_is_and_the_copy_evaluates() -> None:
    model = made("wrn_28_2", (3, 8, 8), ["model.depth=10", "model.width=1"], 0).float().train()
    drop(model, 0.5, 0)
    state, flags = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    small = compacted(model, torch.zeros(1, 3, 8, 8))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == flags
    assert not any(m.training for m in small.modules())
    assert {p.dtype for p in small.parameters()} == {torch.float32}
    images = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        assert float((model.eval()(images) - small(images)).abs().max() / model(images).abs().max()) < 1e-5
    assert set(small.state_dict()) <= {*state, *(f"{n}.value" for n, m in small.named_modules() if m is not small)} | {
        f"{n.removesuffix('weight')}bias" for n in state
    }


# What cannot be followed is refused


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.conv(x))


class Branching(Twice):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if x.sum() > 0 else x


class Sigmoid(Twice):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.conv(x))


class Bordered(Twice):
    def forward(self, x: Tensor) -> Tensor:
        return F.pad(self.conv(x), (1, 1))


class Stacked(Twice):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.conv(x), x), dim=2)


class FirstSample(Twice):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)[:1]


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "twice": (Twice, "the layer conv is used twice"),
    "branching": (Branching, "cannot be traced"),
    "sigmoid": (Sigmoid, "torch.sigmoid.*through which constants cannot be followed"),
    "border": (Bordered, "through a padding of"),
    "stacked": (Stacked, "concatenation along dimension 2"),
    "sample": (FirstSample, "through the indexing"),
    "grouped": (lambda: nn.Sequential(nn.Conv2d(2, 2, 1, groups=2)), "grouped convolutions"),
    "module": (lambda: nn.Sequential(nn.Conv2d(2, 2, 1), nn.GELU()), "through 1, a GELU"),
    "linear": (lambda: nn.Sequential(nn.Linear(4, 4)), "linear layer on 4 dimensions"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_followed_is_refused(case: str) -> None:
    model, sentence = REFUSED[case]
    with pytest.raises(ValueError, match=sentence):
        compacted(model(), torch.zeros(1, 2, 4, 4))


def test_outputs_that_differ_are_never_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("methods.compaction.fold", lambda model, *_: model.conv1.weight.data.mul_(1 + 1e-6))
    with pytest.raises(ValueError, match="more than rounding"):
        compacted(Chain(3, [0.0] * 4), torch.zeros(1, 1, 6, 6))


# Methods

TINY = ["schedule.batch_size=20", "schedule.epochs=2", "schedule.lr=0.05", "dataset=digits", "dataset.train_subset=100"]
WRN = ["model=wrn_28_2", "model.depth=10", "model.width=1"]
LENET = ["model.hidden=[20,10]", "model.batch_norm=hidden"]
STRUCTURED = {
    "dpf_structured": [*WRN, "method.period=2", "method.end_epoch=1.5"],
    "dpf_structured_finetuned": WRN,
    "retrain_mask_structured": WRN,
    "sfp": [*WRN, "method.end_epoch=2"],
}
UNSTRUCTURED = {
    "dense": [],
    "dpf": ["method.end_epoch=1.5"],
    "static": [],
    "gmp": ["method.iterations=4", "method.every_epochs=0.5"],
}


def run(tmp_path: Path, *overrides: str) -> Any:
    given = [*TINY, *overrides, f"runs={tmp_path}", "trainer.eval_batch_size=100"]
    config = compose(given)
    execute(config, given)
    path = run_dir(tmp_path, config)
    return finished(path, here(config), 10)


@pytest.mark.parametrize("method", STRUCTURED)
def test_structured_methods_end_in_a_smaller_network(method: str, tmp_path: Path) -> None:
    trainer = run(tmp_path, f"method={method}", "method.sparsity=0.6", *STRUCTURED[method])
    e, dense = trainer.e, trainer.model.eval()
    images = next(iter(e.data.test_batches(100)))[0]
    zero = sum(zero for _, zero in filters(dense).values())
    assert zero >= 0.55 * sum(count for count, _ in filters(dense).values())
    small = e.method.finalize(dense, compact=True, example=images)
    with torch.no_grad():
        wanted, found = dense(images), small(images)
    assert float((wanted - found).abs().max() / wanted.abs().max()) < 1e-5
    assert parameters(small) < 0.9 * parameters(dense)
    assert e.method.finalize(dense) is dense
    with pytest.raises(ValueError, match="needs example="):
        e.method.finalize(dense, compact=True)


@pytest.mark.parametrize("method", UNSTRUCTURED)
def test_unstructured_methods_refuse(method: str, tmp_path: Path) -> None:
    trainer = run(tmp_path, *LENET, f"method={method}", *UNSTRUCTURED[method])
    reason = "it has no masks" if method == "dense" else "the mask of fc1.weight drops single weights"
    with pytest.raises(ValueError, match=f"leaves no whole filters out .{reason}"):
        trainer.e.method.finalize(trainer.model, compact=True, example=torch.zeros(1, 1, 8, 8))


def test_a_method_without_a_run_refuses_too() -> None:
    e = make(compose(["dataset=synthetic", "dataset.shape=[1,4,4]", "dataset.train_size=36", "method=dense"]))
    method: Method = e.method
    with pytest.raises(ValueError, match="Method leaves no whole filters out"):
        method.finalize(method.setup(e.model), compact=True, example=torch.zeros(1, 1, 4, 4))
