"""Densely connected networks for CIFAR (Huang et al. 2016a): every layer sees the outputs of all before it."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn


class Layer(nn.Module):
    """BN-ReLU-conv3x3-(dropout), its output appended to its input: (N, C, H, W) -> (N, C + growth, H, W)."""

    def __init__(self, in_channels: int, growth: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(in_channels, growth, 3, padding=1, bias=False)
        self.dropout = nn.Dropout(dropout) if dropout else None

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv(self.relu(self.norm(x)))
        if self.dropout is not None:
            new = self.dropout(new)
        return torch.cat((x, new), dim=1)


class Transition(nn.Module):
    """BN-ReLU-conv1x1-(dropout)-average pooling between two blocks: (N, C, H, W) -> (N, C, H/2, W/2)."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)
        self.dropout = nn.Dropout(dropout) if dropout else None
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.relu(self.norm(x)))
        return self.pool(x if self.dropout is None else self.dropout(x))


class DenseNet(nn.Module):
    """stem -> block1, transition1, block2, transition2, block3 -> norm, relu, average pool -> fc."""

    def __init__(self, layers: int, growth: int, stem: int, num_classes: int, in_channels: int, dropout: float) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, stem, 3, padding=1, bias=False)

        def block(channels: int) -> nn.Sequential:
            return nn.Sequential(*(Layer(channels + i * growth, growth, dropout) for i in range(layers)))

        after = [stem + group * layers * growth for group in (1, 2, 3)]  # channels behind each block
        self.block1 = block(stem)
        self.transition1 = Transition(after[0], dropout)
        self.block2 = block(after[0])
        self.transition2 = Transition(after[1], dropout)
        self.block3 = block(after[1])
        self.norm = nn.BatchNorm2d(after[2])
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(after[2], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.transition1(self.block1(self.stem(x)))
        x = self.block3(self.transition2(self.block2(x)))
        return self.fc(self.pool(self.relu(self.norm(x))).flatten(1))


def densenet(
    *,
    num_classes: int,
    in_shape: tuple[int, int, int],
    depth: Annotated[int, "7 <= x"],
    growth: Annotated[int, "1 <= x"],
    stem: Annotated[int, "1 <= x"] = 16,
    dropout: Annotated[float, "0 <= x < 1"] = 0.0,
) -> nn.Module:
    """DenseNet-depth-growth without bottlenecks and compression: images (N, C, H, W) -> logits (N, num_classes).

    depth = 3n + 4, n layers in each of 3 blocks; every layer adds `growth` channels. `stem`: channels of the first
    convolution, 16 in Huang et al. (1.0 M parameters for DenseNet-40-12, their Table 2); the public code of DPF's first
    author (https://github.com/epfml/ChocoSGD) takes 2 x growth. `dropout` follows each convolution but the first;
    Huang et al. use 0.2 where the data are not augmented. Convolutions start He-normal with fan-out, the classifier as
    PyTorch's default with zero biases. Layers: "stem", "block*.*.conv", "transition*.conv", "fc".

    ValueError for a depth that is no 3n + 4, or a value out of range.
    """
    if depth < 7 or (depth - 4) % 3:
        raise ValueError(f"a DenseNet's depth is 3n + 4 (7, 10, 22, 40, 100 and so on), not {depth}")
    if growth < 1:
        raise ValueError(f"a DenseNet grows by at least 1 channel a layer, not {growth}")
    if stem < 1:
        raise ValueError(f"a DenseNet's stem has at least 1 channel, not {stem}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is a probability in [0, 1), not {dropout}")
    return DenseNet((depth - 4) // 3, growth, stem, num_classes, in_shape[0], dropout)
