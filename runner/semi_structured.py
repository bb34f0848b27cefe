"""2:4 weights as torch's semi-structured tensors, which NVIDIA's sparse tensor cores compute with."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


def converted(
    model: nn.Module, compress: Callable[[Tensor], Tensor] = torch.sparse.to_sparse_semi_structured
) -> tuple[nn.Module, list[str]]:
    """A copy for inference whose linear layers and 1x1 convolutions of 2:4 weights compute with `compress`ed ones.

    Also the names of these layers. All others stay dense: those with weights that are not 2:4 along their inputs, or
    of a shape that the kernels do not take (multiples of 32 outputs and 64 inputs in fp16, PyTorch's documentation of
    torch.sparse, "Semi-Structured Sparsity"), and 3x3 convolutions, for which torch has no such kernel. Whole dense
    weights of no zeros are no 2:4 weights.
    """
    model = copy.deepcopy(model).eval()
    names = [name for name, module in model.named_modules() if _takes(module)]
    for name in names:
        owner, _, own = name.rpartition(".")
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        setattr(model.get_submodule(owner), own, SemiStructured(layer, compress))
    return model, names


def is_2_of_4(matrix: Tensor) -> bool:
    """Whether of every four consecutive entries of a row at most two are not zero: of an (outputs, inputs) matrix."""
    if matrix.shape[1] % 4:
        return False
    return bool(((matrix != 0).view(len(matrix), -1, 4).sum(2) <= 2).all())


def _takes(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        if module.kernel_size != (1, 1) or module.groups != 1 or module.padding not in ((0, 0), "valid"):
            return False
    elif not isinstance(module, nn.Linear):
        return False
    matrix = module.weight.detach().flatten(1)
    outputs, inputs = matrix.shape
    return outputs % 32 == 0 and inputs % 64 == 0 and is_2_of_4(matrix)


class SemiStructured(nn.Module):
    """A linear layer, or a 1x1 convolution as one over the channels of every pixel it keeps."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, compress: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stride = layer.stride if isinstance(layer, nn.Conv2d) else None
        self.weight = nn.Parameter(compress(layer.weight.detach().flatten(1)), requires_grad=False)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """(N, in) -> (N, out), or (N, in, H, W) -> (N, out, H', W')."""
        if self.stride is None:
            return functional.linear(x, self.weight, self.bias)
        down, across = self.stride
        pixels = x[:, :, ::down, ::across].permute(0, 2, 3, 1)  # channels_last: no copy without stride
        n, h, w, channels = pixels.shape
        y = functional.linear(pixels.reshape(-1, channels), self.weight, self.bias)
        return y.view(n, h, w, -1).permute(0, 3, 1, 2)
