"""Which channels of a network are constant: the same number everywhere, whatever the input (evaluation mode)."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
Rule = Callable[..., Tensor]
VARIES = math.nan  # arithmetic keeps it


class Constant(nn.Module):
    """What a layer whose output is constant gives: (N, ..., H, W) -> (N, C, H', W'), or (N, I) -> (N, C)."""

    def __init__(self, value: Tensor, layer: nn.Module) -> None:
        super().__init__()
        self.value = nn.Parameter(value)
        self.sides = tuple(_sides(layer)) if isinstance(layer, _ConvNd) else None

    def forward(self, x: Tensor) -> Tensor:
        sizes = list(x.shape[2:])
        if self.sides is not None:
            sizes = [(n + pad - span) // stride + 1 for n, (pad, span, stride) in zip(sizes, self.sides, strict=True)]
        # Written out, since what follows may add to it in place.
        return self.value.view(1, -1, *[1] * len(sizes)).expand(len(x), -1, *sizes).contiguous()


def _sides(conv: _ConvNd) -> Iterator[tuple[int, int, int]]:
    """Of each dimension: the padding in all, the window's extent and its stride."""
    for i, (kernel, dilation, stride) in enumerate(zip(conv.kernel_size, conv.dilation, conv.stride, strict=True)):
        span = dilation * (kernel - 1) + 1
        if isinstance(conv.padding, str):
            yield (span - 1 if conv.padding == "same" else 0), span, stride
        else:
            yield 2 * conv.padding[i], span, stride


def padded(layer: Layer) -> bool:
    """Whether a layer sees the border of the image."""
    return isinstance(layer, _ConvNd) and any(pad for pad, _, _ in _sides(layer))


def columns(layer: Layer) -> Tensor:
    """Which input channels the layer reads: (I,) booleans."""
    return (layer.weight != 0).transpose(0, 1).flatten(1).any(1)


class Constants(fx.Interpreter):
    """Per channel (dimension 1) of every intermediate result its constant value in evaluation mode, or nan: it varies.

    `inputs`, `outputs`: of every module that was called, by its name. `last`: the layers between which and the output
    there is no other one: their filters are the network's outputs.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.extra_traceback = False  # errors stay one sentence
        self.known: dict[fx.Node, Tensor] = {}
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self.last = set(self._behind(next(node for node in graph.graph.nodes if node.op == "output")))

    @classmethod
    def of(cls, model: nn.Module, inputs: Tensor) -> Constants:
        """Of the channels of a model; ValueError when it cannot be followed."""
        try:
            graph = fx.symbolic_trace(model)
        except Exception as error:  # whatever a network's code does with placeholders
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ValueError(f"the network cannot be traced without its input's values ({reason})") from error
        found = cls(graph)
        with torch.no_grad():
            found.run(inputs)
        return found

    def _behind(self, node: fx.Node) -> Iterator[str]:
        for source in node.all_input_nodes:
            if source.op == "call_module" and isinstance(self.fetch_attr(str(source.target)), LAYERS):
                yield str(source.target)
            else:
                yield from self._behind(source)

    def run_node(self, n: fx.Node) -> Any:
        out = super().run_node(n)
        if n.op == "placeholder":
            self.known[n] = torch.full((out.shape[1],), VARIES, dtype=torch.float64, device=out.device)
        elif n.op != "output":
            self.known[n] = known = self._follow(n, out)
            if not isinstance(out, Tensor) or known.shape != out.shape[1:2]:
                raise ValueError(f"the network computes {n.format_node()}, whose channels are not in dimension 1")
        return out

    def _follow(self, node: fx.Node, out: Any) -> Tensor:
        """The channels of `out`, which `node` has computed."""
        if node.op in ("call_function", "call_method") and node.target in OPERATIONS:
            args, kwargs = fx.map_arg((node.args, node.kwargs), self.known.__getitem__)
            return OPERATIONS[node.target](*args, **kwargs, out=out)
        if node.op != "call_module":
            raise ValueError(f"the network computes {node.format_node()}, through which constants cannot be followed")
        name, known = str(node.target), self.known[node.all_input_nodes[0]]
        module = self.fetch_attr(name)
        rule = next((rule for kinds, rule in MODULES if isinstance(module, kinds)), None)
        if rule is None:
            raise ValueError(f"constants cannot be followed through {name}, a {type(module).__name__}")
        if name in self.inputs and isinstance(module, (*LAYERS, _BatchNorm)):
            raise ValueError(f"the layer {name} is used twice, so its filters cannot be removed")
        self.inputs[name] = known
        self.outputs[name] = rule(known, module=module, out=out)
        return self.outputs[name]


def _layer(known: Tensor, *, module: Layer, out: Tensor) -> Tensor:
    if getattr(module, "groups", 1) != 1:
        raise ValueError(f"grouped convolutions are not compacted, and this network has {module}")
    if isinstance(module, nn.Linear) and out.dim() != 2:
        raise ValueError(f"constants cannot be followed through a linear layer on {out.dim()} dimensions")
    weight = module.weight.flatten(2) if module.weight.dim() > 2 else module.weight.unsqueeze(2)
    # Beyond the border lies 0, so that there no other constant is one.
    varies = known.isnan() | (known != 0) if padded(module) else known.isnan()
    value = weight.sum(2) @ known.masked_fill(varies, 0.0)
    value = value if module.bias is None else value + module.bias
    return value.masked_fill((weight != 0).any(2)[:, varies].any(1), VARIES)


def _batch_norm(known: Tensor, *, module: _BatchNorm, out: Tensor) -> Tensor:
    if module.running_mean is None or module.running_var is None:
        return torch.full_like(known, VARIES)  # statistics of the batch
    value = (known - module.running_mean) / (module.running_var + module.eps).sqrt()
    return value * module.weight + module.bias if module.affine else value


def _same(known: Tensor, *_: Any, out: Tensor, **__: Any) -> Tensor:
    return known


def _average(known: Tensor, *, module: Any, out: Tensor) -> Tensor:
    padding = module.padding if isinstance(module.padding, tuple) else (module.padding,)
    return known if not any(padding) else known.masked_fill(known != 0, VARIES)


def _relu(known: Tensor, *_: Any, out: Tensor, **__: Any) -> Tensor:
    return known.clamp_min(0)  # nan stays


def _flatten(known: Tensor, *_: Any, out: Tensor, **__: Any) -> Tensor:
    if out.dim() != 2:
        raise ValueError(f"constants cannot be followed through a flattening to {out.dim()} dimensions")
    return known.repeat_interleave(out.shape[1] // len(known))


def _add(a: Tensor, b: Tensor | float, *, out: Tensor) -> Tensor:
    return a + b


def _cat(parts: Iterable[Tensor], dim: int = 0, *, out: Tensor) -> Tensor:
    if dim != 1:
        raise ValueError(f"constants cannot be followed through a concatenation along dimension {dim}")
    return torch.cat(list(parts))


def _pad(known: Tensor, sides: list[int], mode: str = "constant", value: float | None = None, *, out: Tensor) -> Tensor:
    """Zeros for new channels only: the shortcut without parameters."""
    inner = 2 * (out.dim() - 2)  # the sides of the dimensions behind the channels come first
    before, after = [*sides, *[0] * 2 * out.dim()][inner : inner + 2]
    if before or any(sides[:inner]) or any(sides[inner + 2 :]) or mode != "constant" or value:
        raise ValueError(f"constants cannot be followed through a padding of {sides}")
    return F.pad(known, (0, after))


def _slice(known: Tensor, index: Any, *, out: Tensor) -> Tensor:
    """Rows and columns may be chosen, samples and channels not."""
    if not isinstance(index, tuple) or len(index) < 3 or index[:2] != (slice(None), slice(None)):
        raise ValueError(f"constants cannot be followed through the indexing {index}")
    return known


OPERATIONS: dict[Any, Rule] = {
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), _add),
    **dict.fromkeys((torch.relu, F.relu, "relu", "relu_"), _relu),
    **dict.fromkeys((torch.flatten, "flatten"), _flatten),
    **dict.fromkeys((torch.cat, torch.concat), _cat),
    F.pad: _pad,
    operator.getitem: _slice,
}
MODULES: tuple[tuple[Any, Rule], ...] = (
    (LAYERS, _layer),
    (_BatchNorm, _batch_norm),
    (nn.ReLU, _relu),
    ((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Identity), _same),
    ((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), _same),
    ((nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d), _same),
    ((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), _average),
    (nn.Flatten, _flatten),
)
