"""Residual networks for CIFAR (He et al. 2016a, section 4.2): ResNet-20, -32, -56 and so on, three groups of blocks."""

from __future__ import annotations

from typing import Annotated, Literal

import torch.nn.functional as F
from torch import Tensor, nn

Shortcut = Literal["projection", "identity"]


class PaddedIdentity(nn.Module):
    """The shortcut without parameters: every `stride`-th pixel, then channels of zeros (He et al. 2016a, option A).

    (N, C, H, W) -> (N, C + `channels`, H/stride, W/stride).
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.channels, self.stride = channels, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.channels))


class Beside(nn.Module):
    """A block's shortcut where the shape changes, else the input itself; `Basic` and `Bottleneck` have its layers."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.shortcut: nn.Module | None = None
        self.shortcut_norm: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            if shortcut == "projection":
                self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
                self.shortcut_norm = nn.BatchNorm2d(out_channels)
            else:
                self.shortcut = PaddedIdentity(out_channels - in_channels, stride)

    def beside(self, x: Tensor) -> Tensor:
        """What is added to the block's last batch norm."""
        if self.shortcut is not None:
            x = self.shortcut(x)
        return x if self.shortcut_norm is None else self.shortcut_norm(x)


class Basic(Beside):
    """conv3x3-BN-ReLU-conv3x3-BN, plus the shortcut, ReLU: (N, in_channels, H, W) -> (N, width, H/stride, W/stride)."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__(in_channels, width, stride, shortcut)
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.relu1(self.norm1(self.conv1(x)))
        return self.relu2(self.norm2(self.conv2(inner)) + self.beside(x))


class Bottleneck(Beside):
    """conv1x1-BN-ReLU-conv3x3-BN-ReLU-conv1x1-BN, plus the shortcut, ReLU.

    (N, in_channels, H, W) -> (N, 4 width, H/stride, W/stride); the 3x3 has the stride.
    """

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__(in_channels, 4 * width, stride, shortcut)
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(4 * width)
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.relu1(self.norm1(self.conv1(x)))
        inner = self.relu2(self.norm2(self.conv2(inner)))
        return self.relu3(self.norm3(self.conv3(inner)) + self.beside(x))


BLOCKS: dict[str, type[Basic | Bottleneck]] = {"basic": Basic, "bottleneck": Bottleneck}


class ResNet(nn.Module):
    """stem, norm, relu -> group1, group2, group3 of blocks -> average pool -> fc."""

    def __init__(
        self,
        block: type[Basic | Bottleneck],
        blocks: int,
        num_classes: int,
        in_channels: int,
        shortcut: Shortcut,
        width: int,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()

        def group(fan_in: int, width: int, stride: int) -> nn.Sequential:
            later = (block(block.expansion * width, width, 1, shortcut) for _ in range(blocks - 1))
            return nn.Sequential(block(fan_in, width, stride, shortcut), *later)

        self.group1 = group(width, width, 1)
        self.group2 = group(width * block.expansion, 2 * width, 2)
        self.group3 = group(2 * width * block.expansion, 4 * width, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width * block.expansion, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.stem(x)))
        return self.fc(self.pool(self.group3(self.group2(self.group1(x)))).flatten(1))


def resnet_cifar(
    *,
    num_classes: int,
    in_shape: tuple[int, int, int],
    depth: Annotated[int, "8 <= x"],
    shortcut: Shortcut = "projection",
    block: Literal["basic", "bottleneck"] = "basic",
    width: Annotated[int, "1 <= x"] = 16,
) -> nn.Module:
    """ResNet-depth: images (N, C, H, W) -> logits (N, num_classes); depth = 6n + 2, n blocks in each of 3 groups.

    The groups' blocks have `width`, twice and four times as many channels; He et al.'s networks have 16.

    `shortcut`, where the shape changes: a 1x1 convolution with batch norm (`projection`, He et al.'s option B: the
    public code of DPF's first author, https://github.com/epfml/ChocoSGD, and open_lth), or the input with zeros for the
    new channels (`identity`, option A: He et al.'s own CIFAR networks, 0.27, 0.46 and 0.85 M parameters for 20, 32 and
    56 layers). `block`: two 3x3 convolutions (`basic`), or 1x1, 3x3, 1x1 with four times the channels (`bottleneck`),
    n of them as well: what the same public code builds from depth 44 on, more layers than the name says.

    Convolutions start He-normal with fan-out, the classifier as PyTorch's default. Layers that methods like to keep
    dense: "stem", "*.shortcut", "fc". ValueError for a depth that is no 6n + 2, or an unknown value.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"a CIFAR ResNet's depth is 6n + 2 (8, 14, 20, 32, 56 and so on), not {depth}")
    if shortcut not in ("projection", "identity"):
        raise ValueError(f"shortcut is 'projection' or 'identity', not {shortcut!r}")
    if block not in BLOCKS:
        raise ValueError(f"block is 'basic' or 'bottleneck', not {block!r}")
    return ResNet(BLOCKS[block], (depth - 2) // 6, num_classes, in_shape[0], shortcut, width)
