"""Compaction: a network whose pruned filters are zero becomes a smaller dense one with the same outputs.

A filter of zeros still has an effect: its batch norm turns 0 into a constant, so does a bias, and the ReLU of that may
not be 0. So three things are done in turn until nothing changes, in float64 and on a copy:

1. `Constants` follows through the traced network which channels are the same number everywhere, whatever the input.
2. `fold` takes what a layer makes of a constant channel into its bias, and makes the channel's column zero. A
   convolution with padding sees the constant end at the image's border; its constant channels become one, which stays.
3. `remove` takes away every channel that no layer reads any more (all columns zero). torch-pruning's dependency graph
   (Fang et al. 2023, https://github.com/VainF/Torch-Pruning) says which channels only go together: those that are
   added or concatenated. So a channel of a residual stream goes if all that is added to it is constant.

At last a layer whose whole output is constant (a residual branch that vanished) becomes that `Constant`.
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from methods.constants import LAYERS, Constant, Constants, Layer, columns, padded

#: In float64 two ways to compute the same thing differ by rounding only; a mistake differs by far more.
TOLERANCE = 1e-9
NOWHERE = -1  # the number of a channel that the dependency graph does not know


def compacted(model: nn.Module, example: Tensor) -> nn.Module:
    """A smaller copy of `model`, in evaluation mode, with its outputs up to rounding; filters of zeros are left out.

    `example`: a batch of inputs, of which only the shape, without the batch, matters. What cannot be left out exactly
    stays. ValueError for a network that cannot be followed: one whose computation depends on its input's values, with
    an operation that is not known here, grouped convolutions, or layers that are used twice. `model` stays as it is.
    """
    like = next(model.parameters())
    work = copy.deepcopy(model).cpu().double().eval().requires_grad_(True)
    rng = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, *example.shape[1:], generator=rng, dtype=torch.float64)
    with torch.no_grad():
        wanted = work(inputs)
    work = spelt_out(work, Constants.of(work, inputs))
    while True:
        constants = Constants.of(work, inputs)
        channels = coupled(work, inputs, constants)
        fold(work, constants, channels)
        if not remove(work, channels):
            break
    for name, value in Constants.of(work, inputs).outputs.items():
        layer = work.get_submodule(name)
        if isinstance(layer, (*LAYERS, _BatchNorm)) and not bool(value.isnan().any()):
            _replace(work, name, Constant(value.clone(), layer))
    with torch.no_grad():
        error = float((work(inputs) - wanted).abs().max() / wanted.abs().max().clamp_min(1e-300))
    if not error < TOLERANCE:
        raise ValueError(
            f"the compact network's outputs are off by {error:.1g} of the largest, more than rounding; "
            "this architecture cannot be compacted"
        )
    return work.to(like.device, like.dtype)


def filters(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Layer -> (its filters, those of them that are all zero); a `Constant` is no layer and has none."""
    layers = {name: module.weight.detach() for name, module in model.named_modules() if isinstance(module, LAYERS)}
    return {name: (len(w), len(w) - int(w.flatten(1).any(1).sum())) for name, w in layers.items()}


def constant_channels(model: nn.Module, example: Tensor) -> dict[str, int]:
    """Of the channels that layers read and that are constant, a channel counted once for each layer that reads it:

    `zero`: those that are 0; `biased`: others, which a bias can stand for; `bordered`: others, read with padding.
    """
    work = copy.deepcopy(model).cpu().double().eval()
    constants = Constants.of(work, torch.zeros(2, *example.shape[1:], dtype=torch.float64))
    counts = {"zero": 0, "biased": 0, "bordered": 0}
    for name, value in constants.inputs.items():
        if isinstance(layer := work.get_submodule(name), LAYERS):
            known = ~value.isnan() & columns(layer)
            counts["zero"] += int((known & (value == 0)).sum())
            counts["bordered" if padded(layer) else "biased"] += int((known & (value != 0)).sum())
    return counts


@dataclass
class Channel:
    """What can only be removed together: filters of the layers `written` and input channels of the layers `read`.

    (layer, index) each. `root` is the layer and the filter by which the dependency graph knows the channel. `stays`:
    it is an output of the network, or is not whole in the graph.
    """

    root: tuple[str, int]
    written: list[tuple[str, int]]
    read: list[tuple[str, int]]
    stays: bool


def spelt_out(model: nn.Module, constants: Constants) -> nn.Module:
    """The same network, where a padding with channels of zeros is the concatenation of a 1x1 convolution by zeros.

    The dependency graph understands that, and in the end the convolution becomes a `Constant`. Without such a padding
    this is the model itself, else the traced one (its layers are the model's).
    """
    traced = constants.module
    assert isinstance(traced, fx.GraphModule)
    pads = [node for node in traced.graph.nodes if node.target is F.pad]
    for number, node in enumerate(pads):
        source = node.args[0]
        wide, narrow = len(constants.known[node]), len(constants.known[source])
        zeros = nn.Conv2d(narrow, wide - narrow, 1, bias=False, dtype=torch.float64)
        nn.init.zeros_(zeros.weight)
        traced.add_submodule(f"zeros{number}", zeros)
        with traced.graph.inserting_before(node):
            new = traced.graph.call_module(f"zeros{number}", (source,))
            node.replace_all_uses_with(traced.graph.call_function(torch.cat, ((source, new), 1)))
        traced.graph.erase_node(node)
    traced.recompile()
    for name in ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"):
        setattr(traced, name, getattr(model, name))
    return traced if pads else model


@dataclass
class Coupled:
    """The channels of a model and torch-pruning's dependency graph, which removes them."""

    graph: Any
    all: list[Channel]


def coupled(model: nn.Module, inputs: Tensor, constants: Constants) -> Coupled:
    """Every channel between two layers, by torch-pruning's dependency graph."""
    import torch_pruning

    graph = torch_pruning.DependencyGraph().build_dependency(model, (inputs,), verbose=False)
    names = {module: name for name, module in model.named_modules()}
    found = []
    for group in graph.get_all_groups():
        root = group[0].dep.target.module
        each = [Channel((names[root], i), [], [], False) for i in range(len(root.weight))]
        for item in group:
            layer = item.dep.target.module
            if not isinstance(layer, LAYERS):
                continue
            writes = graph.is_out_channel_pruning_fn(item.dep.handler)
            for index, at in zip(item.idxs, item.root_idxs, strict=True):
                channel = each[at]
                (channel.written if writes else channel.read).append((names[layer], index))
                channel.stays |= index >= layer.weight.shape[0 if writes else 1]
                channel.stays |= writes and names[layer] in constants.last
        found += each
    return Coupled(graph, found)


@torch.no_grad()
def fold(model: nn.Module, constants: Constants, channels: Coupled) -> None:
    """Make the columns of constant channels zero wherever a bias or another column can take their effect over."""
    layers: dict[str, Layer] = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LAYERS) and name in constants.inputs
    }
    for name, layer in layers.items():
        value = constants.inputs[name]
        layer.weight[:, value == 0] = 0.0
        if not padded(layer):
            _to_bias(layer, value)
    bordered = {name: _read(layer, constants.inputs[name]) for name, layer in layers.items() if padded(layer)}
    places = {place: number for number, channel in enumerate(channels.all) for place in channel.read}
    # A channel that stays anyway, or else one that many layers can take, is to stand for the others.
    stay = {n for n, channel in enumerate(channels.all) if channel.stays or _varies(channel, layers, constants)}
    stay.add(NOWHERE)
    readers = Counter(places.get((name, index), NOWHERE) for name, each in bordered.items() for index in each)
    for name, each in bordered.items():
        if each:
            value, numbers = constants.inputs[name], {index: places.get((name, index), NOWHERE) for index in each}
            rank = {i: (n in stay, readers[n], abs(float(value[i]))) for i, n in numbers.items()}
            one = max(each, key=rank.__getitem__)
            stay.add(numbers[one])
            _to_column(layers[name].weight, value, each, one)


def _read(layer: Layer, value: Tensor) -> list[int]:
    """The channels that the layer reads and that are a constant other than 0."""
    return ((value != 0) & ~value.isnan() & columns(layer)).nonzero().view(-1).tolist()


def _to_bias(layer: Layer, value: Tensor) -> None:
    if each := _read(layer, value):
        effect = layer.weight[:, each].flatten(2).sum(2) if layer.weight.dim() > 2 else layer.weight[:, each]
        effect = effect @ value[each]
        layer.bias = nn.Parameter(effect if layer.bias is None else layer.bias + effect)
        layer.weight[:, each] = 0.0


def _to_column(weight: Tensor, value: Tensor, each: list[int], one: int) -> None:
    others = [index for index in each if index != one]
    share = (value[others] / value[one]).view(1, -1, *[1] * (weight.dim() - 2))
    weight[:, one] += (weight[:, others] * share).sum(1)
    weight[:, others] = 0.0


def _varies(channel: Channel, layers: dict[str, Layer], constants: Constants) -> bool:
    """Whether some layer reads the channel while it is not constant there."""
    return any(
        bool(constants.inputs[name][index].isnan()) and bool(layers[name].weight[:, index].any())
        for name, index in channel.read
    )


@torch.no_grad()
def remove(model: nn.Module, channels: Coupled) -> bool:
    """Remove every channel that no layer reads, but one of each layer; whether anything has changed."""
    layers: dict[str, Layer] = {name: m for name, m in model.named_modules() if isinstance(m, LAYERS)}
    read = {name: columns(layer).tolist() for name, layer in layers.items()}
    left = {name: len(layer.weight) for name, layer in layers.items()}
    gone: dict[str, list[int]] = {}
    changed = False
    for channel in channels.all:
        if channel.stays or any(read[name][index] for name, index in channel.read):
            continue
        if all(left[name] > 1 for name, _ in channel.written):
            gone.setdefault(channel.root[0], []).append(channel.root[1])
            for name, _ in channel.written:
                left[name] -= 1
            continue
        # A layer has at least one filter; this one need not read anything, since nobody reads it.
        for name, index in channel.written:
            changed |= bool(layers[name].weight[index].any())
            layers[name].weight[index] = 0.0
    for name, indices in gone.items():
        layer = layers[name]
        pruner = channels.graph.get_pruner_of_module(layer)
        channels.graph.get_pruning_group(layer, pruner.prune_out_channels, indices).prune()
    return changed or bool(gone)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)
