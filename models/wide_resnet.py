"""Wide residual networks WRN-d-k (Zagoruyko & Komodakis 2016): pre-activation basic blocks, k times as wide."""

from __future__ import annotations

from typing import Annotated, Literal

from torch import Tensor, nn


class Block(nn.Module):
    """BN-ReLU-conv3x3-BN-ReLU-(dropout)-conv3x3 beside a shortcut.

    (N, in_channels, H, W) -> (N, out_channels, H/stride, W/stride). Where the shape changes, the shortcut is a 1x1
    convolution of the *activated* input (He et al. 2016b; the official code), elsewhere the input itself.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, dropout: float, stride_at: Literal["first", "second"]
    ) -> None:
        super().__init__()
        first, second = (stride, 1) if stride_at == "first" else (1, stride)
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=first, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU()
        self.dropout = nn.Dropout(dropout) if dropout else None
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, stride=second, padding=1, bias=False)
        changes = stride != 1 or in_channels != out_channels
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu1(self.norm1(x))
        beside = x if self.shortcut is None else self.shortcut(active)
        inner = self.relu2(self.norm2(self.conv1(active)))
        if self.dropout is not None:
            inner = self.dropout(inner)
        return self.conv2(inner) + beside


class WideResNet(nn.Module):
    """stem -> group1, group2, group3 of blocks -> norm, relu, average pool -> fc."""

    def __init__(
        self,
        depth: int,
        width: int,
        num_classes: int,
        in_channels: int,
        dropout: float,
        stride_at: Literal["first", "second"],
    ) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        self.stem = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)

        def group(fan_in: int, fan_out: int, stride: int) -> nn.Sequential:
            first = Block(fan_in, fan_out, stride, dropout, stride_at)
            return nn.Sequential(first, *(Block(fan_out, fan_out, 1, dropout, stride_at) for _ in range(blocks - 1)))

        self.group1 = group(16, 16 * width, 1)
        self.group2 = group(16 * width, 32 * width, 2)
        self.group3 = group(32 * width, 64 * width, 2)
        self.norm = nn.BatchNorm2d(64 * width)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.group3(self.group2(self.group1(self.stem(x))))
        return self.fc(self.pool(self.relu(self.norm(x))).flatten(1))


def wide_resnet(
    *,
    num_classes: int,
    in_shape: tuple[int, int, int],
    depth: Annotated[int, "10 <= x"],
    width: Annotated[int, "1 <= x"],
    dropout: Annotated[float, "0 <= x < 1"] = 0.0,
    stride_at: Literal["first", "second"] = "first",
) -> nn.Module:
    """WRN-depth-width: images (N, C, H, W) -> logits (N, num_classes); depth = 6n + 4, n blocks in each of 3 groups.

    `stride_at`: which 3x3 convolution of a downsampling block has the stride, the first (the paper's official code) or
    the second (the network behind AC/DC's 11.9 GFLOPs for WRN-28-10). `dropout` acts between the convolutions of a
    block. Convolutions start He-normal with fan-out, the classifier as PyTorch's default with zero biases. Layers that
    methods like to keep dense: "stem", "*.shortcut", "fc". 32x32x3 and 10 classes: WRN-28-2 has 1,467,610
    parameters, WRN-28-10 36,479,194.

    ValueError for a depth that is no 6n + 4, or a value out of range.
    """
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"a WRN's depth is 6n + 4 (10, 16, 22, 28 and so on), not {depth}")
    if width < 1:
        raise ValueError(f"a WRN's width is at least 1, not {width}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is a probability in [0, 1), not {dropout}")
    if stride_at not in ("first", "second"):
        raise ValueError(f"stride_at is 'first' or 'second', not {stride_at!r}")
    return WideResNet(depth, width, num_classes, in_shape[0], dropout, stride_at)
