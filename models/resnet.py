"""ImageNet ResNet-50 (He et al. 2016a), built from torchvision's blocks so that its checkpoints load."""

from __future__ import annotations

from typing import Literal

from torch import nn


def resnet50(
    *,
    num_classes: int,
    in_shape: tuple[int, int, int],
    stride_at: Literal["3x3", "1x1"] = "3x3",
    zero_init_residual: bool = False,
    init_fan: Literal["out", "in"] = "out",
    classifier: Literal["linear", "convolution"] = "linear",
) -> nn.Module:
    """ResNet-50: images (N, C, H, W) -> logits (N, num_classes), with torchvision's module and parameter names.

    `stride_at`: the convolution of a bottleneck that halves the resolution, its 3x3 ("v1.5": torchvision, 4.09 GMACs at
    224x224) or its first 1x1 ("v1": He et al., 3.86 GMACs). The parameters are the same 25,557,032 at 1000 classes.
    `zero_init_residual` starts the last batch norm of every block at 0 (Goyal et al. 2017). Convolutions start
    He-normal with fan-out (or `init_fan` = "in"), the rest as PyTorch's default. `classifier` "convolution" is one
    without biases that starts as convolutions do, as the 1x1 convolution of STR's and LATS's official code. Layers that
    methods like to keep dense: "conv1" (the stem), "layer?.0.downsample.0" (the 1x1 shortcuts), "fc".

    Other than 3 input channels give a stem of that many, with the same initialisation.
    ValueError for an unknown `stride_at`, `init_fan` or `classifier`.
    """
    from torchvision.models.resnet import Bottleneck, ResNet

    if stride_at not in ("3x3", "1x1"):
        raise ValueError(f"stride_at is '3x3' or '1x1', not {stride_at!r}")
    if init_fan not in ("out", "in"):
        raise ValueError(f"init_fan is 'out' or 'in', not {init_fan!r}")
    if classifier not in ("linear", "convolution"):
        raise ValueError(f"classifier is 'linear' or 'convolution', not {classifier!r}")
    model = ResNet(Bottleneck, [3, 4, 6, 3], num_classes=num_classes, zero_init_residual=zero_init_residual)
    if in_shape[0] != 3:
        model.conv1 = nn.Conv2d(in_shape[0], 64, kernel_size=7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    if stride_at == "1x1":
        for group in (model.layer2, model.layer3, model.layer4):
            group[0].conv1.stride, group[0].conv2.stride = group[0].conv2.stride, group[0].conv1.stride
    if classifier == "convolution":
        model.fc = nn.Linear(model.fc.in_features, num_classes, bias=False)
        nn.init.kaiming_normal_(model.fc.weight, mode="fan_in" if init_fan == "in" else "fan_out", nonlinearity="relu")
    if init_fan == "in":
        for convolution in (module for module in model.modules() if isinstance(module, nn.Conv2d)):
            nn.init.kaiming_normal_(convolution.weight, mode="fan_in", nonlinearity="relu")
    return model
