"""Every option of conf/model builds and computes; each family is what its paper says."""

from __future__ import annotations

import math
import subprocess
import sys
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.allocation import prunable_weights
from models.catalog import timm_model, torchvision_model
from models.densenet import densenet
from models.lenet import lenet_300_100
from models.mobilenet import mobilenet_v1
from models.report import CONF, build, section
from models.resnet import resnet50
from models.resnet_cifar import resnet_cifar
from models.vgg import vgg
from models.wide_resnet import wide_resnet

NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))
TEXT = {name for name in NAMES if name.startswith("transformer")}  # predicts words: tests/test_transformer_xl.py
RECURRENT = {"lstm", "bilstm"}
CLASSIFIERS = [name for name in NAMES if name not in TEXT]
SIDES = {"vgg16_d": 32, "vgg11": 32}  # pixels of the smallest image a model takes, where 8 are too few
# Where an option of conf/model is another network than its builder's defaults make.
DIFFERENT = {"vgg11": {"hidden", "dropout", "last_pool"}}
ROOT = Path(__file__).resolve().parents[1]


def builder(config: dict[str, Any]) -> Any:
    module, _, function = config["_target_"].rpartition(".")
    return getattr(import_module(module), function)


def shape_for(name: str) -> tuple[int, ...]:
    """A small input of the option's kind: an image, or a sequence of 7 of 12 ids."""
    return (12, 7) if name in RECURRENT else (3, SIDES.get(name, 8), SIDES.get(name, 8))


def test_the_expected_options_exist() -> None:
    assert {"lenet_300_100", "wrn_28_2", "wrn_28_10", "resnet50", "timm", "torchvision"} <= set(NAMES)
    assert {"resnet20", "resnet32", "resnet56", "vgg16_d", "densenet_40_12", "vgg11", "conv6", *RECURRENT} <= set(NAMES)
    assert {"mobilenet_v1", "transformer_xl", "transformer_xl_small", "sew_resnet18", "sew_resnet_small"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_option_names_every_keyword_of_its_builder(name: str) -> None:
    config = section(name)
    parameters = signature(builder(config)).parameters
    assert all(parameter.kind is Parameter.KEYWORD_ONLY for parameter in parameters.values())
    assert set(get_type_hints(builder(config), include_extras=True)) == {*parameters, "return"}
    supplied_by_the_dataset = {"num_classes", "in_shape"}
    assert set(config) | supplied_by_the_dataset == set(parameters) | {"name", "revision", "_target_"}
    assert config["revision"] == 1
    if "name" not in parameters:
        assert config["name"] == name
    for key, parameter in parameters.items():
        if parameter.default is not Parameter.empty and key not in DIFFERENT.get(name, ()):
            value = config[key]
            assert (tuple(value) if isinstance(value, list) else value) == parameter.default, key


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_option_computes_and_every_parameter_gets_a_gradient(name: str) -> None:
    in_shape = shape_for(name)
    model = build(section(name), in_shape, num_classes=5)
    assert model.training
    logits = model(torch.randn(4, *in_shape) if name not in RECURRENT else torch.randint(2, 12, (4, 7)))
    assert logits.shape == (4, 5)
    logits.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(
    "name",
    [name for name in CLASSIFIERS if name not in ("wrn_28_4", "wrn_28_8", "wrn_28_10", "resnet101", "wide_resnet50_2")],
)
def test_option_depends_on_the_seed_alone(name: str) -> None:
    def first_weights(seed: int) -> list[nn.Parameter]:
        torch.manual_seed(seed)
        model = build(section(name), shape_for(name), num_classes=3)
        return [parameter for parameter in model.parameters() if parameter.ndim > 1][:3]

    once, again, other = first_weights(0), first_weights(0), first_weights(1)
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(once, other, strict=True))


def test_importing_the_package_does_not_import_torch() -> None:
    check = "import sys, models, models.account, models.report, models.names; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=False).returncode == 0


# LeNet-300-100


def names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_children()]


@pytest.mark.parametrize("in_shape", [(1, 8, 8), (1, 28, 28)])
def test_lenet_is_three_linear_layers_with_two_relus(in_shape: tuple[int, int, int]) -> None:
    model = lenet_300_100(num_classes=10, in_shape=in_shape)
    x = torch.randn(6, *in_shape)
    w = model.state_dict()
    assert list(w) == ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias", "fc3.weight", "fc3.bias"]
    h = x.reshape(6, -1)
    h = (h @ w["fc1.weight"].T + w["fc1.bias"]).clamp(min=0)
    h = (h @ w["fc2.weight"].T + w["fc2.bias"]).clamp(min=0)
    assert torch.allclose(model(x), h @ w["fc3.weight"].T + w["fc3.bias"], atol=1e-5)


def test_lenet_batch_norm_comes_before_the_activation() -> None:
    shape: dict[str, Any] = {"num_classes": 4, "in_shape": (1, 2, 2), "hidden": (5, 3)}
    assert names(lenet_300_100(**shape)) == ["flatten", "fc1", "relu1", "fc2", "relu2", "fc3"]
    hidden = ["flatten", "fc1", "norm1", "relu1", "fc2", "norm2", "relu2", "fc3"]
    assert names(lenet_300_100(**shape, batch_norm="hidden")) == hidden
    everywhere = lenet_300_100(**shape, batch_norm="all", bias=False)
    assert names(everywhere) == [*hidden, "norm3"]
    assert not any(name.startswith("fc") and name.endswith("bias") for name in everywhere.state_dict())
    logits = everywhere(torch.randn(64, 1, 2, 2))
    assert torch.allclose(logits.mean(0), torch.zeros(4), atol=1e-5)  # the logits are normalised, too


def test_lenet_starts_uniform_in_one_over_root_fan_in() -> None:
    model = lenet_300_100(num_classes=10, in_shape=(1, 28, 28))
    for layer, fan_in in ((model.fc1, 784), (model.fc2, 300), (model.fc3, 100)):
        bound = 1 / math.sqrt(fan_in)
        assert isinstance(layer, nn.Linear)
        assert 0.99 * bound < layer.weight.abs().max() <= bound * (1 + 1e-6)
        assert layer.bias.abs().max() <= bound * (1 + 1e-6)
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_lenet_rejects_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="batch_norm is"):
        lenet_300_100(num_classes=10, in_shape=(1, 8, 8), batch_norm="logits")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one unit"):
        lenet_300_100(num_classes=10, in_shape=(1, 8, 8), hidden=(0,))


# Wide residual networks


def shaken(model: nn.Module) -> nn.Module:
    """The model in evaluation mode with batch norms that do something."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.normal_(module.get_buffer("running_mean"))
            nn.init.uniform_(module.get_buffer("running_var"), 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    return model.eval()


def scaled(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    """Batch norm in evaluation mode."""
    mean, var = w[f"{name}.running_mean"], w[f"{name}.running_var"]
    return F.batch_norm(x, mean, var, w[f"{name}.weight"], w[f"{name}.bias"])


def normed(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    """Batch norm in evaluation mode, then ReLU."""
    return scaled(x, w, name).clamp(min=0)


def layers_of(model: nn.Module) -> list[str]:
    """The names of convolutions and linear layers, as predicates see them."""
    return [name for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]


def assert_he_normal_with_fan_out(model: nn.Module) -> None:
    for conv in (module for module in model.modules() if isinstance(module, nn.Conv2d)):
        fan_out = conv.out_channels * conv.kernel_size[0] * conv.kernel_size[1]
        tolerance = 5 / math.sqrt(2 * conv.weight.numel())  # five standard errors of a normal's standard deviation
        assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=tolerance)


@pytest.mark.parametrize("stride_at", ["first", "second"])
def test_wrn_is_the_pre_activation_network_of_the_paper(stride_at: Any) -> None:
    torch.manual_seed(0)
    model = shaken(wide_resnet(num_classes=7, in_shape=(3, 16, 16), depth=16, width=2, stride_at=stride_at))
    x = torch.randn(2, 3, 16, 16)
    w = model.state_dict()
    h = F.conv2d(x, w["stem.weight"], padding=1)
    for group in (1, 2, 3):
        for block in (0, 1):
            at = f"group{group}.{block}"
            stride = 2 if group > 1 and block == 0 else 1
            first, second = (stride, 1) if stride_at == "first" else (1, stride)
            active = normed(h, w, f"{at}.norm1")
            inner = F.conv2d(active, w[f"{at}.conv1.weight"], stride=first, padding=1)
            inner = F.conv2d(normed(inner, w, f"{at}.norm2"), w[f"{at}.conv2.weight"], stride=second, padding=1)
            # Every first block changes the width (16 -> 32 -> 64 -> 128); the later ones add their input untouched.
            h = inner + (F.conv2d(active, w[f"{at}.shortcut.weight"], stride=stride) if block == 0 else h)
    logits = normed(h, w, "norm").mean((2, 3)) @ w["fc.weight"].T + w["fc.bias"]
    assert torch.allclose(model(x), logits, rtol=1e-4, atol=1e-4)
    assert not any(f"group{group}.1.shortcut.weight" in w for group in (1, 2, 3))


def test_wrn_layer_names_serve_predicates() -> None:
    model = wide_resnet(num_classes=10, in_shape=(3, 32, 32), depth=28, width=2)
    layers = layers_of(model)
    dense = [name for name in layers if name in ("stem", "fc") or name.endswith(".shortcut")]
    assert dense == ["stem", "group1.0.shortcut", "group2.0.shortcut", "group3.0.shortcut", "fc"]
    assert len(layers) - len(dense) == 24  # the 3x3 convolutions of 12 blocks


def test_wrn_starts_he_normal_with_fan_out() -> None:
    model = wide_resnet(num_classes=10, in_shape=(3, 32, 32), depth=10, width=4)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 10
    assert_he_normal_with_fan_out(model)
    assert all(conv.bias is None for conv in convolutions)
    assert isinstance(model.fc, nn.Linear)
    assert not model.fc.bias.any() and model.fc.weight.any()


def test_wrn_of_width_one_has_no_shortcut_where_nothing_changes() -> None:
    model = wide_resnet(num_classes=10, in_shape=(3, 8, 8), depth=10, width=1)
    assert [key for key in model.state_dict() if "shortcut" in key] == [
        "group2.0.shortcut.weight",
        "group3.0.shortcut.weight",
    ]


def test_wrn_dropout_acts_between_the_convolutions_in_training_only() -> None:
    plain = wide_resnet(num_classes=4, in_shape=(3, 8, 8), depth=10, width=1)
    dropping: Any = wide_resnet(num_classes=4, in_shape=(3, 8, 8), depth=10, width=1, dropout=0.5)
    dropping.load_state_dict(plain.state_dict())
    seen: list[float] = []
    dropping.group1[0].conv2.register_forward_pre_hook(
        lambda _, args: seen.append((args[0] == 0).float().mean().item())
    )
    x = torch.randn(8, 3, 8, 8)
    dropping(x)
    dropping.eval()
    plain.eval()
    plain.load_state_dict(dropping.state_dict())
    assert torch.equal(dropping(x), plain(x))
    assert seen[0] == pytest.approx(0.75, abs=0.05)  # half by the ReLU, half of the rest by dropout
    assert seen[1] < 0.65


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"depth": 27}, "6n"),
        ({"depth": 4}, "6n"),
        ({"width": 0}, "width"),
        ({"dropout": 1.0}, "dropout"),
        ({"stride_at": "3x3"}, "stride_at"),
    ],
)
def test_wrn_rejects_what_makes_no_sense(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wide_resnet(num_classes=10, in_shape=(3, 32, 32), **{"depth": 28, "width": 2, **wrong})


# Residual networks for CIFAR


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("shortcut", ["projection", "identity"])
def test_cifar_resnet_is_the_network_of_the_paper(shortcut: Any, block: Any) -> None:
    torch.manual_seed(0)
    model = shaken(resnet_cifar(num_classes=7, in_shape=(3, 16, 16), depth=14, shortcut=shortcut, block=block))
    x = torch.randn(2, 3, 16, 16)
    w = model.state_dict()
    h = normed(F.conv2d(x, w["stem.weight"], padding=1), w, "norm")
    for group, width in ((1, 16), (2, 32), (3, 64)):
        for number in (0, 1):
            at = f"group{group}.{number}"
            stride = 2 if group > 1 and number == 0 else 1
            if block == "basic":
                inner = normed(F.conv2d(h, w[f"{at}.conv1.weight"], stride=stride, padding=1), w, f"{at}.norm1")
                inner = scaled(F.conv2d(inner, w[f"{at}.conv2.weight"], padding=1), w, f"{at}.norm2")
            else:
                inner = normed(F.conv2d(h, w[f"{at}.conv1.weight"]), w, f"{at}.norm1")
                inner = normed(F.conv2d(inner, w[f"{at}.conv2.weight"], stride=stride, padding=1), w, f"{at}.norm2")
                inner = scaled(F.conv2d(inner, w[f"{at}.conv3.weight"]), w, f"{at}.norm3")
                assert w[f"{at}.conv2.weight"].shape == (width, width, 3, 3)
            beside = h
            if inner.shape != h.shape and shortcut == "projection":
                beside = scaled(F.conv2d(h, w[f"{at}.shortcut.weight"], stride=stride), w, f"{at}.shortcut_norm")
            elif inner.shape != h.shape:
                beside = torch.zeros_like(inner)
                beside[:, : h.shape[1]] = h[:, :, ::stride, ::stride]
            h = (inner + beside).clamp(min=0)
    logits = h.mean((2, 3)) @ w["fc.weight"].T + w["fc.bias"]
    assert torch.allclose(model(x), logits, rtol=1e-4, atol=1e-4)


def test_cifar_resnet_has_as_many_layers_as_its_name_says() -> None:
    for depth in (20, 32, 56):
        model = build(section(f"resnet{depth}"), (3, 32, 32), num_classes=10)
        layers = layers_of(model)
        assert [name for name in layers if name in ("stem", "fc") or name.endswith("shortcut")] == [
            "stem",
            "group2.0.shortcut",
            "group3.0.shortcut",
            "fc",
        ]
        assert len(layers) - 2 == depth  # shortcuts do not count
    plain = layers_of(resnet_cifar(num_classes=10, in_shape=(3, 32, 32), depth=20, shortcut="identity"))
    assert len(plain) == 20
    # What is called ResNet-56 there has 83 layers: 9 blocks of 3 convolutions in each of 3 groups.
    deep = layers_of(resnet_cifar(num_classes=10, in_shape=(3, 32, 32), depth=56, block="bottleneck"))
    assert len([name for name in deep if not name.endswith("shortcut")]) == 83


def test_cifar_resnet_starts_he_normal_with_fan_out() -> None:
    model = resnet_cifar(num_classes=10, in_shape=(3, 32, 32), depth=20)
    assert_he_normal_with_fan_out(model)
    bound = 1 / math.sqrt(64)
    fc: Any = model.fc
    assert 0.9 * bound < fc.weight.abs().max() <= bound and fc.bias.any()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"depth": 18}, "6n"),
        ({"depth": 2}, "6n"),
        ({"shortcut": "padded"}, "shortcut is"),
        ({"block": "wide"}, "block is"),
    ],
)
def test_cifar_resnet_rejects_what_makes_no_sense(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resnet_cifar(num_classes=10, in_shape=(3, 32, 32), **{"depth": 20, **wrong})


# VGG


CONFIGURATIONS = {
    11: "64 M 128 M 256 256 M 512 512 M 512 512 M",
    13: "64 64 M 128 128 M 256 256 M 512 512 M 512 512 M",
    16: "64 64 M 128 128 M 256 256 256 M 512 512 512 M 512 512 512 M",
    19: "64 64 M 128 128 M 256 256 256 256 M 512 512 512 512 M 512 512 512 512 M",
}


@pytest.mark.parametrize("depth", CONFIGURATIONS)
def test_vgg_has_the_layers_of_its_configuration(depth: Any) -> None:
    with torch.device("meta"):
        model: Any = vgg(num_classes=10, in_shape=(3, 32, 32), depth=depth)
    found = []
    for name, module in model.features.named_children():
        if name.startswith("conv"):
            found.append(str(module.out_channels))
            assert (module.kernel_size, module.padding, module.stride) == ((3, 3), (1, 1), (1, 1))
        elif name.startswith("pool"):
            found.append("M")
    assert " ".join(found) == CONFIGURATIONS[depth]
    # Without a classifier of its own, the name counts the convolutions and three fully connected layers.
    assert len(layers_of(model)) == depth


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dropout": 0.0, "hidden_norm": True},
        {"batch_norm": False, "hidden": (5,)},
        {"hidden": (), "last_pool": "avg"},
    ],
)
def test_vgg_computes_what_it_should(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = shaken(vgg(num_classes=7, in_shape=(3, 64, 32), depth=11, **options))
    h = x = torch.randn(2, 3, 64, 32)
    w = model.state_dict()
    number = 0
    for entry in CONFIGURATIONS[11].split():
        if entry == "M":
            last = number == 8
            h = F.avg_pool2d(h, 2) if last and options.get("last_pool") == "avg" else F.max_pool2d(h, 2)
        else:
            number += 1
            h = F.conv2d(h, w[f"features.conv{number}.weight"], w[f"features.conv{number}.bias"], padding=1)
            h = normed(h, w, f"features.norm{number}") if options.get("batch_norm", True) else h.clamp(min=0)
    h = h.flatten(1)
    assert h.shape == (2, 512 * 2)  # two by one pixels are left
    for i in range(1, len(options.get("hidden", (512, 512))) + 1):
        h = (h @ w[f"hidden.fc{i}.weight"].T + w[f"hidden.fc{i}.bias"]).clamp(min=0)
        if options.get("hidden_norm"):
            h = scaled(h, w, f"hidden.norm{i}")
    assert torch.allclose(model(x), h @ w["fc.weight"].T + w["fc.bias"], rtol=1e-3, atol=1e-3)


def test_vgg_drops_before_each_hidden_layer_in_training_only() -> None:
    model: Any = vgg(num_classes=7, in_shape=(3, 32, 32), depth=11, dropout=0.25)
    assert names(model.hidden) == ["dropout1", "fc1", "relu1", "dropout2", "fc2", "relu2"]
    assert model.hidden.dropout1.p == model.hidden.dropout2.p == 0.25
    x = torch.randn(4, 3, 32, 32)
    assert not torch.equal(model(x), model(x))
    assert torch.equal(model.eval()(x), model(x))
    assert names(vgg(num_classes=7, in_shape=(3, 32, 32), depth=11, dropout=0.0).hidden) == [  # type: ignore[arg-type]
        "fc1",
        "relu1",
        "fc2",
        "relu2",
    ]


def test_vgg_starts_he_normal_with_fan_out() -> None:
    assert_he_normal_with_fan_out(vgg(num_classes=10, in_shape=(3, 32, 32), depth=11, hidden=()))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"depth": 12}, "11, 13, 16, 19 layers, not 12"),
        ({"in_shape": (3, 32, 28)}, "takes 32x32 or more, not 32x28"),
        ({"hidden": (512, 0)}, "at least one unit"),
        ({"dropout": 1.0}, "dropout"),
        ({"last_pool": "mean"}, "last_pool"),
    ],
)
def test_vgg_rejects_what_makes_no_sense(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vgg(num_classes=10, **{"in_shape": (3, 32, 32), "depth": 16, **wrong})


# DenseNet


def test_densenet_is_the_network_of_the_paper() -> None:
    torch.manual_seed(0)
    model = shaken(densenet(num_classes=7, in_shape=(3, 16, 16), depth=10, growth=5, stem=6, dropout=0.5))
    x = torch.randn(2, 3, 16, 16)
    w = model.state_dict()
    h = F.conv2d(x, w["stem.weight"], padding=1)
    for block in (1, 2, 3):
        outputs = [h]
        for layer in (0, 1):
            at = f"block{block}.{layer}"
            outputs.append(F.conv2d(normed(torch.cat(outputs, 1), w, f"{at}.norm"), w[f"{at}.conv.weight"], padding=1))
        h = torch.cat(outputs, 1)
        if block < 3:
            at = f"transition{block}"
            h = F.avg_pool2d(F.conv2d(normed(h, w, f"{at}.norm"), w[f"{at}.conv.weight"]), 2)
    assert h.shape == (2, 6 + 3 * 2 * 5, 4, 4)
    logits = normed(h, w, "norm").mean((2, 3)) @ w["fc.weight"].T + w["fc.bias"]
    assert torch.allclose(model(x), logits, rtol=1e-4, atol=1e-4)


def test_densenet_40_12_has_40_layers_and_drops_after_all_but_the_first() -> None:
    model: Any = densenet(num_classes=10, in_shape=(3, 32, 32), depth=40, growth=12, dropout=0.2)
    layers = layers_of(model)
    assert len(layers) == 40
    assert [name for name in layers if not name.startswith("block")] == [
        "stem",
        "transition1.conv",
        "transition2.conv",
        "fc",
    ]
    assert sum(isinstance(module, nn.Dropout) for module in model.modules()) == 38
    assert_he_normal_with_fan_out(model)
    assert not model.fc.bias.any()
    x = torch.randn(2, 3, 32, 32)
    assert not torch.equal(model(x), model(x))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"depth": 41}, "3n"),
        ({"depth": 4}, "3n"),
        ({"growth": 0}, "grows"),
        ({"stem": 0}, "stem"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_densenet_rejects_what_makes_no_sense(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        densenet(num_classes=10, in_shape=(3, 32, 32), **{"depth": 40, "growth": 12, **wrong})


# ResNet-50


def test_resnet50_is_torchvisions() -> None:
    from torchvision.models import resnet50 as reference

    theirs, ours = reference(num_classes=6), resnet50(num_classes=6, in_shape=(3, 64, 64))
    ours.load_state_dict(theirs.state_dict())  # strict: every name and shape
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


def test_resnet50_v1_moves_the_stride_and_nothing_else() -> None:
    with torch.device("meta"):
        late, early = (resnet50(num_classes=6, in_shape=(3, 64, 64), stride_at=at) for at in ("3x3", "1x1"))
    assert {k: v.shape for k, v in late.state_dict().items()} == {k: v.shape for k, v in early.state_dict().items()}
    strided = {
        stride_at: [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
        for stride_at, model in (("3x3", late), ("1x1", early))
    }
    assert strided == {
        at: ["conv1", *(f"layer{i}.0.{name}" for i in (2, 3, 4) for name in (conv, "downsample.0"))]
        for at, conv in (("3x3", "conv2"), ("1x1", "conv1"))
    }


def test_resnet50_of_the_official_codes_of_str_and_lats() -> None:
    """He-normal by fan-in, and a classifier without biases that starts alike."""
    torch.manual_seed(0)
    model: Any = resnet50(num_classes=100, in_shape=(3, 32, 32), init="kaiming_normal_in", classifier="convolution")
    assert model.fc.bias is None
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear) and module.weight.numel() > 5000:
            fan = module.weight[0].numel()
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan), rel=0.05)
    plain: Any = resnet50(num_classes=100, in_shape=(3, 32, 32), classifier="convolution")
    assert plain.fc.weight.std().item() == pytest.approx(math.sqrt(2 / 100), rel=0.05)  # fan-out
    uniform: Any = resnet50(num_classes=100, in_shape=(3, 32, 32), init="kaiming_uniform", classifier="convolution")
    assert uniform.fc.bias is None and float(uniform.fc.weight.detach().abs().max()) <= math.sqrt(6 / 2048) * 1.0001


def test_mobilenet_of_the_official_codes_of_str_and_lats() -> None:
    """A classifier without biases, He-normal by fan-in; convolutions uniform in +-1 / sqrt(fan_in)."""
    torch.manual_seed(0)
    model: Any = mobilenet_v1(num_classes=100, in_shape=(3, 32, 32), classifier="convolution")
    assert model.fc.bias is None and model.fc.weight.shape == (100, 1024)
    assert model.fc.weight.std().item() == pytest.approx(math.sqrt(2 / 1024), rel=0.02)
    assert float(model.fc.weight.detach().abs().max()) > math.sqrt(6 / 1024)  # not uniform
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            bound = 1 / math.sqrt(module.weight[0].numel())
            assert 0.9 * bound < float(module.weight.detach().abs().max()) <= bound * 1.0001
    whole = mobilenet_v1(num_classes=1000, in_shape=(3, 224, 224), classifier="convolution")
    assert sum(p.numel() for p in whole.parameters()) == 4_231_976 - 1000


def test_resnet50_options() -> None:
    assert resnet50(num_classes=3, in_shape=(1, 32, 32))(torch.randn(2, 1, 32, 32)).shape == (2, 3)
    model: Any = resnet50(num_classes=3, in_shape=(3, 32, 32), zero_init_residual=True)
    assert not model.layer1[0].bn3.weight.any() and model.layer1[0].bn2.weight.all()
    with pytest.raises(ValueError, match="stride_at"):
        resnet50(num_classes=3, in_shape=(3, 32, 32), stride_at="first")  # type: ignore[arg-type]


# timm and torchvision by name


@pytest.mark.parametrize(
    ("name", "in_shape"),
    [("resnet18", (1, 8, 8)), ("resnet10t.c3_in1k", (3, 32, 32)), ("vit_tiny_patch16_224", (3, 32, 48))],
)
def test_timm_fits_head_stem_and_image_size(name: str, in_shape: tuple[int, int, int]) -> None:
    model = timm_model(name=name, num_classes=7, in_shape=in_shape)
    assert model.training
    assert model(torch.randn(2, *in_shape)).shape == (2, 7)


def test_timm_rates() -> None:
    model = timm_model(name="resnet18", num_classes=7, in_shape=(3, 32, 32), drop_rate=0.25)
    assert model.drop_rate == 0.25
    with pytest.raises(ValueError, match=r"vgg11.*drop_path_rate"):
        timm_model(name="vgg11", num_classes=7, in_shape=(3, 32, 32), drop_path_rate=0.1)
    with pytest.raises(ValueError, match=r"drop_rate is a probability"):
        timm_model(name="resnet18", num_classes=7, in_shape=(3, 32, 32), drop_rate=1.0)


@pytest.mark.parametrize(
    ("build_by_name", "name", "message"),
    [
        (timm_model, "resnet81", "did you mean 'resnet18'"),
        (timm_model, "hf_hub:someone/model", "no model"),
        (timm_model, "resnet18.a1_in1", "did you mean 'a1_in1k'"),
        (torchvision_model, "resnet81", "did you mean 'resnet18'"),
        (torchvision_model, "fcn_resnet50", "no classifier"),  # a segmentation model
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(build_by_name: Any, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_by_name(name=name, num_classes=7, in_shape=(3, 32, 32))


@pytest.mark.parametrize(
    ("name", "in_shape"), [("resnet18", (3, 32, 32)), ("vit_b_32", (3, 32, 32)), ("googlenet", (3, 32, 32))]
)
def test_torchvision_fits_head_and_image_size(name: str, in_shape: tuple[int, int, int]) -> None:
    model = torchvision_model(name=name, num_classes=7, in_shape=in_shape)
    assert model.training
    assert model(torch.randn(2, *in_shape)).shape == (2, 7)  # a tensor, also where torchvision has auxiliary outputs


@pytest.mark.parametrize(
    ("name", "in_shape", "message"),
    [
        ("resnet18", (1, 28, 28), "3-channel images.*model=timm"),
        ("vit_b_32", (3, 40, 40), "cannot be built for images of 40x40"),
        ("vit_b_32", (3, 32, 64), "square"),
        ("alexnet", (3, 32, 32), "cannot process images of 32x32"),
    ],
)
def test_torchvision_says_which_images_it_cannot_take(name: str, in_shape: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        torchvision_model(name=name, num_classes=7, in_shape=in_shape)


def test_timm_says_which_images_it_cannot_take() -> None:
    with pytest.raises(ValueError, match="cannot process images of 32x32 with 3 channels"):
        timm_model(name="inception_v3", num_classes=7, in_shape=(3, 32, 32))


def test_torchvision_weights_keep_all_but_a_head_of_another_size(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import models

    published = models.resnet18(num_classes=1000).state_dict()
    entry = SimpleNamespace(get_state_dict=lambda **options: published if options["weights_only"] else None)
    monkeypatch.setattr(models, "get_model_weights", lambda name: SimpleNamespace(__members__={"V1": entry}))
    few = torchvision_model(name="resnet18", num_classes=7, in_shape=(3, 32, 32), weights="V1").state_dict()
    assert few["fc.weight"].shape == (7, 512)
    assert all(torch.equal(few[key], published[key]) for key in published if not key.startswith("fc."))
    same = torchvision_model(name="resnet18", num_classes=1000, in_shape=(3, 32, 32), weights="V1").state_dict()
    assert all(torch.equal(same[key], published[key]) for key in published)
    with pytest.raises(ValueError, match="no weights 'V2'"):
        torchvision_model(name="resnet18", num_classes=7, in_shape=(3, 32, 32), weights="V2")
    published["layer1.0.conv1.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"do not fit 'layer1\.0\.conv1\.weight'"):
        torchvision_model(name="resnet18", num_classes=7, in_shape=(3, 32, 32), weights="V1")


def test_weights_that_cannot_be_downloaded_are_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_network(*_: Any, **__: Any) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"weights IMAGENET1K_V1 of torchvision's 'resnet18' cannot be had.*no route"):
        torchvision_model(name="resnet18", num_classes=7, in_shape=(3, 32, 32), weights="IMAGENET1K_V1")
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", no_network)
    with pytest.raises(ValueError, match=r"weights of timm's 'resnet18' cannot be had.*no route"):
        timm_model(name="resnet18", num_classes=7, in_shape=(3, 32, 32), pretrained=True)


# MobileNetV1


def test_mobilenet_has_the_layers_of_the_public_code_by_name() -> None:
    with torch.device("meta"):
        model = mobilenet_v1(num_classes=1000, in_shape=(3, 224, 224))
    assert sum(parameter.numel() for parameter in model.parameters()) == 4_231_976
    weights = prunable_weights(model)
    names = ["model.0.0", *(f"model.{block}.{layer}" for block in range(1, 14) for layer in (0, 3)), "fc"]
    assert list(weights) == [f"{name}.weight" for name in names]  # LATS, table 12
    kept = set(weights) - set(prunable_weights(model, ["model.*.0"]))
    assert kept == {f"model.{block}.0.weight" for block in range(14)}
    # AC/DC, B.3: 90 % of the pruned parameters are 88.57 % of all (batch norm counted, the classifier's bias not).
    dense = sum(weights[name].numel() for name in kept)
    assert dense == 864 + 44_640
    assert f"{90 * (4_209_088 - dense) / (4_231_976 - 1000):.2f}" == "88.57"


def test_mobilenet_by_hand() -> None:
    """Two of its blocks, and the end, as plain functions; the strides show in the sides of the last feature map."""
    model = shaken(mobilenet_v1(num_classes=5, in_shape=(3, 64, 64), width=0.25)).eval()
    x = torch.randn(2, 3, 64, 64)

    def normed(block: nn.Module, at: int, images: Tensor, **how: Any) -> Tensor:
        out = F.conv2d(images, block[at].weight, **how)
        norm = block[at + 1]
        return F.relu(F.batch_norm(out, norm.running_mean, norm.running_var, norm.weight, norm.bias))

    blocks = model.model
    stem = normed(blocks[0], 0, x, stride=2, padding=1)
    assert stem.shape == (2, 8, 32, 32)
    first = normed(blocks[1], 3, normed(blocks[1], 0, stem, padding=1, groups=8))
    assert torch.allclose(blocks[:2](x), first, atol=1e-5)
    second = normed(blocks[2], 3, normed(blocks[2], 0, first, stride=2, padding=1, groups=16))
    assert torch.allclose(blocks[:3](x), second, atol=1e-5)
    last = blocks[:14](x)
    assert last.shape == (2, 256, 2, 2)
    assert torch.allclose(model(x), model.fc(last.mean((2, 3))), atol=1e-5)


# The networks of Chijiwa et al. 2021


def counted(name: str, in_shape: tuple[int, ...], classes: int, **options: Any) -> tuple[int, int]:
    """(weights of convolutions, weights of convolutions and linear layers), counted from the modules."""
    with torch.device("meta"):
        model = build({**section(name), **options}, in_shape, classes)
    conv = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d))
    return conv, conv + sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))


@pytest.mark.parametrize(("name", "printed"), [("resnet34", "6.38M"), ("resnet50", "7.04M"), ("resnet101", "12.72M")])
def test_table_4_counts_what_is_left_of_the_convolutions(name: str, printed: str) -> None:
    conv, _ = counted(name, (3, 224, 224), 1000)
    assert f"{0.3 * conv / 1e6:.2f}M" == printed


def test_table_4s_dense_counts_are_those_of_a_3x3_stem() -> None:
    for name, printed, own in (("resnet18", "11.16M", "11.17M"), ("resnet34", "21.26M", "21.27M")):
        assert f"{counted(f'{name}_cifar', (3, 32, 32), 10)[0] / 1e6:.2f}M" == printed
        assert f"{counted(name, (3, 224, 224), 1000)[0] / 1e6:.2f}M" == own


def test_table_9_counts_convolutions_and_classifier() -> None:
    assert f"{counted('wide_resnet50_2', (3, 224, 224), 1000)[1] / 1e6:.1f} M" == "68.8 M"
    assert f"{counted('resnet50', (3, 224, 224), 1000, width=2.0)[1] / 1e6:.1f} M" == "97.8 M"


@pytest.mark.parametrize("width", [0.25, 1.0, 1.3])
def test_the_width_scales_all_but_the_stem_and_the_logits(width: float) -> None:
    with torch.device("meta"):
        model: Any = build({**section("resnet18_cifar"), "width": width}, (3, 32, 32), 10)
    w = [int(channels * width) for channels in (64, 128, 256, 512)]
    stem = model.conv1
    assert (stem.out_channels, stem.kernel_size, stem.stride) == (64, (3, 3), (1, 1))
    assert [group[1].conv2.out_channels for group in (model.layer1, model.layer2, model.layer3, model.layer4)] == w
    assert model.layer1[0].conv1.in_channels == 64 and (model.layer1[0].downsample is None) == (width == 1)
    assert tuple(model.fc.weight.shape) == (10, w[3])
    assert model(torch.zeros(2, 3, 32, 32, device="meta")).shape == (2, 10)


def test_the_families_are_torchvisions() -> None:
    import torchvision

    for name in ("resnet18", "resnet34", "resnet101", "wide_resnet50_2"):
        with torch.device("meta"):
            own = build(section(name), (3, 64, 64), 1000)
            other = torchvision.models.get_model(name)
        assert {k: v.shape for k, v in own.state_dict().items()} == {k: v.shape for k, v in other.state_dict().items()}
        convolutions = [[m for m in model.modules() if isinstance(m, nn.Conv2d)] for model in (own, other)]
        for mine, theirs in zip(*convolutions, strict=True):
            assert (mine.stride, mine.padding) == (theirs.stride, theirs.padding)


def test_conv6_is_the_network_of_table_1() -> None:
    model = build({**section("conv6"), "width": 0.25}, (3, 32, 32), 10)
    convolutions = [m for m in model if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [16, 16, 32, 32, 64, 64]
    assert [tuple(m.weight.shape) for m in model if isinstance(m, nn.Linear)] == [(64, 1024), (64, 64), (10, 64)]
    x = torch.randn(2, 3, 32, 32)
    by_hand = x
    for index, layer in enumerate(convolutions):
        by_hand = F.conv2d(by_hand, layer.weight, layer.bias, padding=1).relu()
        by_hand = F.max_pool2d(by_hand, 2) if index % 2 else by_hand
    by_hand = by_hand.flatten(1)
    linear = [m for m in model if isinstance(m, nn.Linear)]
    for layer in linear[:2]:
        by_hand = F.linear(by_hand, layer.weight, layer.bias).relu()
    assert torch.allclose(model(x), F.linear(by_hand, linear[2].weight, linear[2].bias), atol=1e-5)
    assert not any(p.any() for name, p in model.named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize("name", ["conv6", "resnet18_cifar", "resnet50"])
def test_kaiming_uniform_is_that_of_fan_in(name: str) -> None:
    torch.manual_seed(0)
    model = build({**section(name), "init": "kaiming_uniform"}, (3, 32, 32), 10)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = math.sqrt(6 / module.weight[0].numel())
            assert 0.95 * bound < float(module.weight.detach().abs().max()) <= 1.0001 * bound
            assert float(module.weight.detach().double().var()) == pytest.approx(bound**2 / 3, rel=0.2)


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("conv6", {"width": 0.01}, "a width of 0.01 leaves no channel"),
        ("conv6", {"init": "zeros"}, "init is 'kaiming_normal', 'kaiming_normal_in' or 'kaiming_uniform', not 'zeros'"),
        ("resnet50", {"classifier": "dense"}, "classifier is 'linear' or 'convolution', not 'dense'"),
        ("mobilenet_v1", {"classifier": "dense"}, "classifier is 'linear' or 'convolution', not 'dense'"),
        ("resnet18", {"depth": 20}, "depth is 18, 34, 50, 101, not 20"),
        ("resnet18", {"bottleneck": 128}, "a ResNet-18 has no bottlenecks; leave bottleneck at 64"),
        ("resnet18", {"stem": "mnist"}, "stem is 'imagenet' or 'cifar', not 'mnist'"),
        ("resnet50", {"width": 0.001}, "leaves no channel of 64"),
    ],
)
def test_these_networks_reject_what_makes_no_sense(name: str, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build({**section(name), **wrong}, (3, 32, 32), 10)
