"""Residual networks for ImageNet (He et al. 2016a) and their forms of other widths, built from torchvision's blocks."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from torch import nn

from models.initial import Initial, draw, initialise, require

BLOCKS = {18: [2, 2, 2, 2], 34: [3, 4, 6, 3], 50: [3, 4, 6, 3], 101: [3, 4, 23, 3]}


def resnet(
    *,
    num_classes: int,
    in_shape: tuple[int, int, int],
    depth: Literal[18, 34, 50, 101],
    stem: Literal["imagenet", "cifar"],
    bottleneck: Annotated[int, "1 <= x"],
    width: Annotated[float, "0 < x"] = 1.0,
    stride_at: Literal["3x3", "1x1"] = "3x3",
    zero_init_residual: bool = False,
    init: Initial = "kaiming_normal",
    classifier: Literal["linear", "convolution"] = "linear",
) -> nn.Module:
    """ResNet-depth: images (N, C, H, W) -> logits (N, num_classes), with torchvision's module and parameter names.

    `stem`: a 7x7 convolution with stride 2 and a max pooling (`imagenet`), or a 3x3 convolution (`cifar`, as in Chijiwa
    et al. 2021, table 1). `width` multiplies the channels of all blocks, rounded down; the stem keeps its 64 (tables 1
    and 2). `bottleneck`: the inner channels of a bottleneck's first group; 128 is Wide ResNet-50-2 (Zagoruyko &
    Komodakis 2016). `stride_at`: the convolution of a bottleneck that halves the resolution, its 3x3 ("v1.5":
    torchvision, 4.09 GMACs at 224x224 for 50 layers) or its first 1x1 ("v1": He et al., 3.86 GMACs).
    `zero_init_residual` starts the last batch norm of every block at 0 (Goyal et al. 2017).
    `init`: convolutions He-normal with fan-out, the rest as PyTorch's default ("kaiming_normal"), convolutions with
    fan-in ("kaiming_normal_in"), or convolutions and classifier uniform in +-sqrt(6 / fan_in) with zero biases
    ("kaiming_uniform", Chijiwa et al. 2021). `classifier` "convolution" is one without biases that starts as
    convolutions do, as the 1x1 convolution of STR's and LATS's official code. Layers that methods like to keep dense:
    "conv1" (the stem), "layer?.0.downsample.0" (the 1x1 shortcuts), "fc".

    ValueError for an unknown value, or a width that leaves no channel.
    """
    from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

    require(init)
    if depth not in BLOCKS:
        raise ValueError(f"depth is {', '.join(map(str, BLOCKS))}, not {depth}")
    if stride_at not in ("3x3", "1x1"):
        raise ValueError(f"stride_at is '3x3' or '1x1', not {stride_at!r}")
    if stem not in ("imagenet", "cifar"):
        raise ValueError(f"stem is 'imagenet' or 'cifar', not {stem!r}")
    if classifier not in ("linear", "convolution"):
        raise ValueError(f"classifier is 'linear' or 'convolution', not {classifier!r}")
    if int(64 * width) < 1:
        raise ValueError(f"a width of {width:g} leaves no channel of 64")
    block = BasicBlock if depth < 50 else Bottleneck
    if block is BasicBlock and bottleneck != 64:
        raise ValueError(f"a ResNet-{depth} has no bottlenecks; leave bottleneck at 64")

    class Scaled(ResNet):
        def _make_layer(self, block: Any, planes: int, *args: Any, **kwargs: Any) -> nn.Sequential:
            return super()._make_layer(block, int(planes * width), *args, **kwargs)

    model = (ResNet if width == 1 else Scaled)(
        block, BLOCKS[depth], num_classes=num_classes, zero_init_residual=zero_init_residual, width_per_group=bottleneck
    )
    if stem == "cifar" or in_shape[0] != 3:
        kernel, stride, padding = (3, 1, 1) if stem == "cifar" else (7, 2, 3)
        model.conv1 = nn.Conv2d(in_shape[0], 64, kernel, stride, padding, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    if stem == "cifar":
        model.maxpool = nn.Identity()
    if width != 1 or classifier == "convolution":
        model.fc = nn.Linear(int(512 * width) * block.expansion, num_classes, bias=classifier == "linear")
    if stride_at == "1x1" and block is Bottleneck:
        for group in (model.layer2, model.layer3, model.layer4):
            group[0].conv1.stride, group[0].conv2.stride = group[0].conv2.stride, group[0].conv1.stride
    if init != "kaiming_normal":  # torchvision's own
        initialise(model, init)
    if classifier == "convolution":
        draw(model.fc.weight, init)
    return model


def resnet50(
    *,
    num_classes: int,
    in_shape: tuple[int, int, int],
    stride_at: Literal["3x3", "1x1"] = "3x3",
    zero_init_residual: bool = False,
    width: Annotated[float, "0 < x"] = 1.0,
    init: Initial = "kaiming_normal",
    classifier: Literal["linear", "convolution"] = "linear",
) -> nn.Module:
    """`resnet` of 50 layers: the same 25,557,032 parameters at 1000 classes for either `stride_at`."""
    return resnet(
        num_classes=num_classes,
        in_shape=in_shape,
        depth=50,
        stem="imagenet",
        bottleneck=64,
        width=width,
        stride_at=stride_at,
        zero_init_residual=zero_init_residual,
        init=init,
        classifier=classifier,
    )
