"""An architecture in the words of a paper's table: what its stages hold, widths as multiples of the width factor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torchvision.models.resnet import ResNet

from models.recurrent import Recurrent
from models.report import build

#: Texts and channels in the order in which they are printed.
Parts = list[str | int]
FACTOR = "ρ"


def stages(config: Mapping[str, Any], in_shape: Sequence[int], num_classes: int) -> dict[str, str | int]:
    """What Chijiwa et al. 2021 print of their networks (tables 1, 2 and 11), read from the model as it is built.

    Of residual networks: stem (channels), stem_kernel, stem_stride, stem_pool; block1 ... block4, "[64ρ, 64ρ] × 2";
    pool, pool_kernel; linear. Of plain ones: block1 ..., "64ρ, 64ρ, max-pool", each up to its pooling; linear, the
    widths of all linear layers. Of recurrent ones: linear, output. Of any other model nothing.

    `config`: a section of conf/model, whose `width`, where it has one, is the factor ρ: what doubles with it is printed
    as a multiple, the same whatever the section's own width.
    """
    given = _built(config, in_shape, num_classes)
    reader = next((reader for kind, reader in READERS.items() if isinstance(given, kind)), None)
    if reader is None:
        return {}
    models = [given]
    if "width" in config:
        models = [_built({**config, "width": factor}, in_shape, num_classes) for factor in (1.0, 2.0)]
    read = [reader(model, in_shape) for model in models]
    return {name: parts if isinstance(parts, int) else _text(parts, read[-1][name]) for name, parts in read[0].items()}


def _built(config: Mapping[str, Any], in_shape: Sequence[int], num_classes: int) -> nn.Module:
    with torch.device("meta"):
        return build(config, in_shape, num_classes)


def _text(one: Parts, other: Any) -> str:
    """`other`: the same of a network of twice the width."""
    return "".join(f"{a}{FACTOR if a != b else ''}" for a, b in zip(one, other, strict=True))


def _listed(parts: Sequence[str | int]) -> Parts:
    """With commas between them."""
    return [each for part in parts for each in (", ", part)][1:]


def _residual(model: Any, in_shape: Sequence[int]) -> dict[str, Parts | int]:
    found: dict[str, Parts | int] = {
        "stem": [model.conv1.out_channels],
        "stem_kernel": model.conv1.kernel_size[0],
        "stem_stride": model.conv1.stride[0],
    }
    if isinstance(pool := model.maxpool, nn.MaxPool2d):
        window = f"{pool.kernel_size} × {pool.kernel_size}, stride {pool.stride}, padding {pool.padding}"
        found["stem_pool"] = [f"max-pool ({window})"]
    for number in range(1, 5):
        blocks = [
            [layer.out_channels for layer in block.children() if isinstance(layer, nn.Conv2d)]
            for block in getattr(model, f"layer{number}")
        ]
        if any(block != blocks[0] for block in blocks):
            raise ValueError(f"the blocks of layer{number} have other channels than one another: {blocks}")
        found[f"block{number}"] = ["[", *_listed(blocks[0]), f"] × {len(blocks)}"]
    found["pool"] = ["avg-pool"]
    found["pool_kernel"] = _side_before(model, model.avgpool, in_shape)
    found["linear"] = [model.fc.out_features]
    return found


def _side_before(model: nn.Module, module: nn.Module, in_shape: Sequence[int]) -> int:
    """The side of what a module is fed: the window of a pooling over the whole image."""
    seen: list[int] = []
    hook = module.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[-1]))
    try:
        model.eval()(torch.zeros(1, *in_shape, device="meta"))
    finally:
        hook.remove()
    return seen[0]


def _plain(model: Any, in_shape: Sequence[int]) -> dict[str, Parts | int]:
    found: dict[str, Parts | int] = {}
    for number, block in enumerate(_up_to_poolings(model), start=1):
        found[f"block{number}"] = _listed(block)
    if widths := [layer.out_features for layer in model if isinstance(layer, nn.Linear)]:
        found["linear"] = _listed(widths)
    return found


def _up_to_poolings(model: nn.Sequential) -> Iterator[Parts]:
    """The channels of convolutions, each stretch with the pooling at its end."""
    block: Parts = []
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            block.append(layer.out_channels)
        elif isinstance(layer, nn.MaxPool2d):
            yield [*block, "max-pool"]
            block = []
    if block:
        yield block


def _recurrent(model: Any, in_shape: Sequence[int]) -> dict[str, Parts | int]:
    return {"linear": [model.fc.out_features], "output": ["sigmoid" if model.fc.out_features == 1 else "softmax"]}


READERS: dict[type[nn.Module], Callable[[Any, Sequence[int]], dict[str, Parts | int]]] = {
    ResNet: _residual,
    nn.Sequential: _plain,
    Recurrent: _recurrent,
}
