"""Spike-element-wise residual networks (SEW ResNet, Fang et al. 2021): residual networks of spiking neurons."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, get_args

from torch import Tensor, nn

from models.spiking import Neuron, Neurons, Spiking

Connect = Literal["ADD", "AND", "IAND"]
Stem = Literal["imagenet", "cifar", "pooled"]
#: The first convolution's kernel and stride, and whether a max pooling follows its neurons.
STEMS = {"imagenet": (7, 2, True), "cifar": (3, 1, False), "pooled": (3, 2, True)}


def joined(fired: Tensor, shortcut: Tensor, connect: Connect) -> Tensor:
    """The element-wise function of a block's own spikes and those of its shortcut (Fang et al. 2021, table 1)."""
    if connect == "ADD":
        return fired + shortcut
    return fired * shortcut if connect == "AND" else shortcut * (1 - fired)


def normed(in_channels: int, channels: int, kernel: int, stride: int) -> nn.Sequential:
    """A convolution without biases, then its batch norm."""
    convolution = nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels))


class Block(nn.Module):
    """conv3x3-BN-neurons-conv3x3-BN-neurons, joined with the shortcut: (T N, C, H, W) -> (T N, width, H/s, W/s).

    The shortcut is the input itself, or where the shape changes conv1x1-BN-neurons.
    """

    def __init__(
        self, in_channels: int, width: int, stride: int, connect: Connect, neurons: Callable[[], Neurons]
    ) -> None:
        super().__init__()
        self.conv1 = normed(in_channels, width, 3, stride)
        self.sn1 = neurons()
        self.conv2 = normed(width, width, 3, 1)
        self.sn2 = neurons()
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != width:
            self.downsample = nn.Sequential(normed(in_channels, width, 1, stride), neurons())
        self.connect: Connect = connect

    def forward(self, x: Tensor) -> Tensor:
        fired = self.sn2(self.conv2(self.sn1(self.conv1(x))))
        return joined(fired, x if self.downsample is None else self.downsample(x), self.connect)


class SEWResNet(Spiking):
    """conv1, bn1, sn1, maxpool -> layer1, layer2 ... of blocks -> mean over image and time -> fc."""

    def __init__(
        self,
        blocks: tuple[int, ...],
        num_classes: int,
        in_channels: int,
        width: int,
        stem: Stem,
        connect: Connect,
        neurons: Callable[[], Neurons],
    ) -> None:
        super().__init__()
        kernel, stride, pooled = STEMS[stem]
        self.conv1 = nn.Conv2d(in_channels, width, kernel, stride, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.sn1 = neurons()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if pooled else nn.Identity()
        self.groups = [f"layer{group}" for group in range(1, len(blocks) + 1)]
        channels = width
        for group, (name, count) in enumerate(zip(self.groups, blocks, strict=True)):
            wide = width * 2**group
            first = Block(channels, wide, 2 if group else 1, connect, neurons)
            setattr(
                self, name, nn.Sequential(first, *(Block(wide, wide, 1, connect, neurons) for _ in range(count - 1)))
            )
            channels = wide
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        x = self.maxpool(self.sn1.constant(self.bn1(self.conv1(images))))
        for group in self.groups:
            x = self.get_submodule(group)(x)
        means = self.avgpool(x).flatten(1).unflatten(0, (self.sn1.timesteps, -1)).mean(0)
        return self.fc(means)


def sew_resnet(
    *,
    num_classes: int,
    in_shape: tuple[int, int, int],
    blocks: tuple[int, ...],
    stem: Stem,
    width: Annotated[int, "1 <= x"],
    timesteps: Annotated[int, "1 <= x"] = 4,
    connect: Connect = "ADD",
    neuron: Neuron = "if",
    tau: Annotated[float, "1 < x"] = 2.0,
) -> nn.Module:
    """SEW ResNet: images (N, C, H, W) -> logits (N, num_classes), by `timesteps` steps of spiking neurons.

    The image is the first neurons' constant current; from there on layers see the steps of all images as one batch
    (batch norm, too: its statistics are over images and steps). Spikes are averaged over the last resolution and over
    the steps before the classifier. `blocks` of two 3x3 convolutions in every group; the first group has `width`
    channels, every further one twice as many at half the resolution: (2, 2, 2, 2) and 64 are SEW ResNet-18. `stem`: a
    7x7 convolution of stride 2, its neurons and a max pooling ("imagenet"), the same with 3x3 ("pooled", for small
    images at little cost), or 3x3 of stride 1 and no pooling ("cifar"). `connect`: what a block makes of its own spikes
    and its shortcut's: ADD (0, 1, 2, ...), AND, or IAND (the shortcut's where the block is silent). `neuron`, `tau`: as
    `models.spiking.Neurons` has them; the official code's are "if".

    Modules are named as in the official code of STDS, which LATS's tables 14 and 15 follow: "conv1",
    "layer1.0.conv1.0", "layer2.0.downsample.0.0", "fc". Convolutions start He-normal with fan-out, the classifier as
    PyTorch's default.

    MACs (models.account) are those of a dense network in all its steps: T times a layer's, but once those of conv1,
    which sees the image, and of fc, which sees the mean. They are an upper bound of the synaptic operations, which
    happen where a spike arrives and so depend on the input.

    ValueError for an unknown value, or groups without blocks.
    """
    if not blocks or min(blocks) < 1:
        raise ValueError(f"blocks is the number of blocks of every group, 1 or more each, not {list(blocks)}")
    if stem not in STEMS:
        raise ValueError(f"stem is 'imagenet', 'cifar' or 'pooled', not {stem!r}")
    if connect not in get_args(Connect):
        raise ValueError(f"connect is 'ADD', 'AND' or 'IAND', not {connect!r}")
    if width < 1:
        raise ValueError(f"a width of {width} leaves no channel")
    return SEWResNet(
        blocks=tuple(blocks),
        num_classes=num_classes,
        in_channels=in_shape[0],
        width=width,
        stem=stem,
        connect=connect,
        neurons=lambda: Neurons(timesteps, neuron, tau),
    )
