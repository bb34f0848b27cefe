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

from models.catalog import timm_model, torchvision_model
from models.lenet import lenet_300_100
from models.report import CONF, build, section
from models.resnet import resnet50
from models.wide_resnet import wide_resnet

NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))
ROOT = Path(__file__).resolve().parents[1]


def builder(config: dict[str, Any]) -> Any:
    module, _, function = config["_target_"].rpartition(".")
    return getattr(import_module(module), function)


def test_the_expected_options_exist() -> None:
    assert {"lenet_300_100", "wrn_28_2", "wrn_28_10", "resnet50", "timm", "torchvision"} <= set(NAMES)


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
        if parameter.default is not Parameter.empty:
            value = config[key]
            assert (tuple(value) if isinstance(value, list) else value) == parameter.default, key


@pytest.mark.parametrize("name", NAMES)
def test_option_computes_and_every_parameter_gets_a_gradient(name: str) -> None:
    in_shape = (3, 8, 8)
    model = build(section(name), in_shape, num_classes=5)
    assert model.training
    logits = model(torch.randn(4, *in_shape))
    assert logits.shape == (4, 5)
    logits.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("wrn_28_4", "wrn_28_8", "wrn_28_10")])
def test_option_depends_on_the_seed_alone(name: str) -> None:
    def first_weights(seed: int) -> list[nn.Parameter]:
        torch.manual_seed(seed)
        model = build(section(name), (3, 8, 8), num_classes=3)
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


def normed(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    """Batch norm in evaluation mode, then ReLU."""
    mean, var = w[f"{name}.running_mean"], w[f"{name}.running_var"]
    return F.batch_norm(x, mean, var, w[f"{name}.weight"], w[f"{name}.bias"]).clamp(min=0)


@pytest.mark.parametrize("stride_at", ["first", "second"])
def test_wrn_is_the_pre_activation_network_of_the_paper(stride_at: Any) -> None:
    torch.manual_seed(0)
    model = wide_resnet(num_classes=7, in_shape=(3, 16, 16), depth=16, width=2, stride_at=stride_at)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.get_buffer("running_mean"))
            nn.init.uniform_(module.get_buffer("running_var"), 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    model.eval()
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
    layers = [name for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    dense = [name for name in layers if name in ("stem", "fc") or name.endswith(".shortcut")]
    assert dense == ["stem", "group1.0.shortcut", "group2.0.shortcut", "group3.0.shortcut", "fc"]
    assert len(layers) - len(dense) == 24  # the 3x3 convolutions of 12 blocks


def test_wrn_starts_he_normal_with_fan_out() -> None:
    model = wide_resnet(num_classes=10, in_shape=(3, 32, 32), depth=10, width=4)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 10
    for conv in convolutions:
        fan_out = conv.out_channels * conv.kernel_size[0] * conv.kernel_size[1]
        tolerance = 5 / math.sqrt(2 * conv.weight.numel())  # five standard errors of a normal's standard deviation
        assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=tolerance)
        assert conv.bias is None
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
