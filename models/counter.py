"""Counting while a model computes: every multiply-accumulate is attributed to the weight that took part in it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from models.account import Account, Layer

aten = torch.ops.aten
CONVOLUTIONS = (aten.convolution, aten._convolution)
# Operator -> positions of the two arguments it multiplies.
FACTORS = {
    **dict.fromkeys((*CONVOLUTIONS, aten.mm, aten.bmm), (0, 1)),
    **dict.fromkeys((aten.addmm, aten.baddbmm), (1, 2)),
}


class Attribution(TorchDispatchMode):
    """While active, adds the multiply-accumulates of convolutions and matrix products to the weight they use.

    Works below the modules: `find` recognises a weight by its memory, so products that bypass a module's forward
    (multi-head attention, functional calls) and weights used twice are counted. A weight that a module computes on the
    fly (parametrizations, standardised convolutions) is recognised by the module that is `running`. Products of two
    activations belong to no weight and are counted under the name None.
    """

    def __init__(self, find: Callable[[Tensor], str | None]) -> None:
        super().__init__()
        self.find = find
        self.running: list[str] = []
        self.macs: Counter[str | None] = Counter()
        self.written: Counter[str] = Counter()  # output elements
        self.outputs: dict[str, tuple[int, ...]] = {}  # shape of the last output, without the batch
        self.groups: dict[str, int] = {}  # of weights used by a convolution
        self.relu = 0  # elements
        self.pooling = 0  # window elements read

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if packet in FACTORS:
            macs = flop_registry[packet](*args, **(kwargs or {}), out_val=out) // 2  # PyTorch counts 2 per MAC
            found = (self.find(args[position]) for position in FACTORS[packet])
            name = next((known for known in found if known), self.running[-1] if self.running else None)
            self.macs[name] += macs
            if name is not None:
                self.written[name] += out.numel()
                self.outputs[name] = tuple(out.shape[1:])
                if packet in CONVOLUTIONS:
                    self.groups[name] = args[8]
        elif packet in (aten.relu, aten.relu_):
            self.relu += out.numel()
        elif packet in (aten.max_pool2d_with_indices, aten.avg_pool2d):
            values = out[0] if isinstance(out, tuple) else out
            window = list(args[1])  # a single number stands for a square
            self.pooling += values.numel() * math.prod(window if len(window) == 2 else window * 2)
        return out


class Weights:
    """The named weights of a model: those of convolution and linear modules, then all other parameters."""

    def __init__(self, model: nn.Module) -> None:
        self.modules: dict[str, nn.Module] = {}
        self.tensors: dict[str, Tensor] = {}  # also keeps alive what a parametrized module computed for us
        self.places: dict[int, list[str]] = {}  # memory -> names of the tensors in it
        self.parameters = dict(model.named_parameters())
        for path, module in model.named_modules():
            if isinstance(module, (_ConvNd, nn.Linear)) and self.find(module.weight) is None:
                name = f"{path}.weight" if path else "weight"
                self.modules[name] = module
                self._add(name, module.weight)
        for name, parameter in self.parameters.items():
            if self.find(parameter) is None:
                self._add(name, parameter)

    def _add(self, name: str, tensor: Tensor) -> None:
        self.tensors[name] = tensor
        self.places.setdefault(_memory(tensor), []).append(name)

    def find(self, tensor: Tensor) -> str | None:
        """The name of the weight that `tensor` is, or is a view into."""
        for name in self.places.get(_memory(tensor), ()):
            weight = self.tensors[name]
            if 0 <= tensor.storage_offset() - weight.storage_offset() < weight.numel():
                return name
        return None

    def biases(self, name: str) -> int:
        """Elements of the bias that goes with a weight."""
        module = self.modules.get(name)
        if module is not None:
            return module.bias.numel() if isinstance(module.bias, Tensor) else 0
        own, found, _ = name.rpartition("weight")  # multi-head attention: in_proj_weight, in_proj_bias
        parameter = self.parameters.get(f"{own}bias") if found else None
        return 0 if parameter is None else parameter.numel()


def count(model: nn.Module, in_shape: tuple[int, ...]) -> Account:
    """One forward pass of zeros (1, *in_shape), in inference mode, on the model's device ("meta" included).

    A model whose input is no image has an `example(in_shape)`, the arguments of its forward pass, and gets those. One
    that says `steps_alike` of itself, whose input is a sequence of in_shape[-1] steps, is counted at one and at two
    steps alone: every further step costs what the second one does.

    The model is left as it was: training flags, hooks and buffers. What `forward` cannot process it raises itself.
    """
    if getattr(model, "steps_alike", False) and in_shape[-1] > 2:
        one, two = (_pass(model, (*in_shape[:-1], steps)) for steps in (1, 2))
        return _continued(one, two, in_shape)
    return _pass(model, in_shape)


def _continued(one: Account, two: Account, in_shape: tuple[int, ...]) -> Account:
    """The account at in_shape[-1] steps from those at one and at two: what is counted grows by the same every step."""

    def at(field: str, first: Any, second: Any) -> int:
        return getattr(first, field) + (in_shape[-1] - 1) * (getattr(second, field) - getattr(first, field))

    layers = tuple(
        replace(a, macs=at("macs", a, b), bias_adds=at("bias_adds", a, b))
        for a, b in zip(one.layers, two.layers, strict=True)
    )
    grows = ("batch_norm_elements", "relu_elements", "pooling_operations", "activation_macs")
    return replace(one, in_shape=in_shape, layers=layers, **{field: at(field, one, two) for field in grows})


def _pass(model: nn.Module, in_shape: tuple[int, ...]) -> Account:
    """What one forward pass costs, as it is run."""
    weights = Weights(model)
    attribution = Attribution(weights.find)
    norm_elements = 0

    def enter(module: nn.Module, _: Any) -> None:
        attribution.running.append(running[module])

    def leave(module: nn.Module, _: Any, out: Tensor) -> None:
        attribution.outputs[attribution.running.pop()] = tuple(out.shape[1:])

    def norm(module: nn.Module, args: tuple[Tensor, ...], _: Any) -> None:
        nonlocal norm_elements
        norm_elements += args[0].numel()

    running = {module: name for name, module in weights.modules.items()}
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    hooks = [module.register_forward_pre_hook(enter) for module in running]
    hooks += [module.register_forward_hook(leave) for module in running]
    hooks += [module.register_forward_hook(norm) for module in norms]
    like = next(model.parameters())
    # A model whose input is no image says itself what it is to be fed.
    example: Any = getattr(model, "example", None)
    zeros = (torch.zeros(1, *in_shape, dtype=like.dtype, device=like.device),)
    fed = zeros if example is None else example(in_shape)
    try:
        with _inference(model), attribution:
            model(*fed)
    finally:
        for hook in hooks:
            hook.remove()

    used = [name for name in weights.tensors if name in weights.modules or name in attribution.macs]
    layers = []
    for name in used:
        tensor, biases = weights.tensors[name], weights.biases(name)
        module = weights.modules.get(name)
        convolution = isinstance(module, _ConvNd) or name in attribution.groups
        layers.append(
            Layer(
                name=name,
                kind="conv" if convolution else "linear",
                shape=tuple(tensor.shape),
                groups=attribution.groups.get(name, getattr(module, "groups", 1)),
                weights=tensor.numel(),
                biases=biases,
                macs=attribution.macs[name],
                bias_adds=attribution.written[name] if biases else 0,
                output=attribution.outputs.get(name, ()),
            )
        )
    return Account(
        in_shape=tuple(in_shape),
        layers=tuple(layers),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        batch_norm_parameters=sum(parameter.numel() for module in norms for parameter in module.parameters()),
        batch_norm_elements=norm_elements,
        relu_elements=attribution.relu,
        pooling_operations=attribution.pooling,
        activation_macs=attribution.macs[None],
    )


@contextmanager
def _inference(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, with attention computed through plain matrix products."""
    flags = [(module, module.training) for module in model.modules()]
    fused = torch.backends.mha.get_fastpath_enabled()
    model.eval()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        # Outside of PyTorch's inference_mode: there composite operators would reach the counter undecomposed.
        with torch.inference_mode(False), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, training in flags:
            module.training = training


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # an address would be 0 for every tensor on "meta"
