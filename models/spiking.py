"""Layers of spiking neurons over time steps, on spikingjelly's dynamics and surrogate gradient; their firing rate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

Neuron = Literal["if", "lif"]


class Neurons(nn.Module):
    """A layer of spiking neurons: currents (T N, ...) -> spikes (T N, ...) of 0 and 1; T = `timesteps` come first.

    In every step t a membrane charges to h, fires where that reaches the threshold 1, and is set to 0 where it fired
    (hard reset): h[t] = v[t-1] + x[t] ("if", integrate and fire) or h[t] = v[t-1] + (x[t] - v[t-1]) / tau ("lif",
    leaky); s[t] = [h[t] >= 1]; v[t] = (1 - s[t]) h[t]. The gradient of s is that of spikingjelly's arc tangent
    surrogate, 1 / (1 + (pi z)^2) of z = h - 1; the reset's s is held constant in it (official codes: detach_reset).

    Membranes are at 0 before the first step of every forward pass and forgotten after the last: no state outlives a
    batch, none is in a checkpoint. They are float32 whatever the currents' precision, which is that of the spikes.

    While `counting`, `fired` counts the spikes and `chances` the neurons x steps x inputs that might have been one.
    ValueError for neurons that cannot be.
    """

    fired: Tensor
    chances: Tensor

    def __init__(self, timesteps: int, neuron: Neuron = "if", tau: float = 2.0) -> None:
        super().__init__()
        try:
            from spikingjelly.activation_based.surrogate import ATan
        except ImportError:
            raise ValueError("spiking networks need spikingjelly: pip install 'regrow[spiking]'") from None
        if timesteps < 1:
            raise ValueError(f"timesteps is 1 or more, not {timesteps}")
        if neuron not in get_args(Neuron):
            raise ValueError(f"neuron is 'if' or 'lif', not {neuron!r}")
        if not (tau > 1 and math.isfinite(tau)):
            raise ValueError(f"tau is a number above 1, not {tau:g}")
        self.timesteps, self.neuron, self.tau = timesteps, neuron, tau
        self.surrogate = ATan(alpha=2.0)  # spikingjelly's own alpha, which the official codes leave as it is
        self.counting = False
        self.register_buffer("fired", torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer("chances", torch.zeros((), dtype=torch.int64), persistent=False)

    def extra_repr(self) -> str:
        """The options, as PyTorch prints modules."""
        return f"{self.neuron}, timesteps={self.timesteps}" + (f", tau={self.tau:g}" if self.neuron == "lif" else "")

    def forward(self, currents: Tensor) -> Tensor:
        """Currents (T N, ...) -> spikes (T N, ...)."""
        return self.fire(currents.unflatten(0, (self.timesteps, -1)))

    def constant(self, current: Tensor) -> Tensor:
        """The same current (N, ...) in all steps -> spikes (T N, ...)."""
        return self.fire(current.unsqueeze(0).expand(self.timesteps, *current.shape))

    def fire(self, currents: Tensor) -> Tensor:
        """Currents (T, N, ...) -> spikes (T N, ...), in memory as a step's currents are."""
        from spikingjelly.activation_based import functional

        # spikingjelly stacks the steps as contiguous tensors: channels that lie last in memory are shown to it as last.
        step = currents[0]
        last = step.dim() == 4 and not step.is_contiguous() and step.is_contiguous(memory_format=torch.channels_last)
        if last:
            currents = currents.permute(0, 1, 3, 4, 2)
        rest = torch.zeros_like(currents[0], dtype=torch.float32)
        given: dict[str, Any] = {"v_threshold": 1.0, "v_reset": 0.0, "detach_reset": True}
        given |= {"surrogate_function": self.surrogate}
        if self.neuron == "lif":
            spikes, _, _ = functional.lif_multi_step(currents, rest, self.tau, decay_input=True, **given)
        else:
            spikes, _, _ = functional.if_multi_step(currents, rest, **given)
        if self.counting:
            self.fired += spikes.count_nonzero()
            self.chances += spikes.numel()
        spikes = spikes.flatten(0, 1)
        return spikes.permute(0, 3, 1, 2) if last else spikes


class Spiking(nn.Module):
    """A network with layers of neurons, which measures their firing rate where whoever runs it asks for that."""

    def neurons(self) -> Iterator[Neurons]:
        """All layers of neurons."""
        return (module for module in self.modules() if isinstance(module, Neurons))

    def begin_measuring(self) -> None:
        """Count from 0 on."""
        for layer in self.neurons():
            layer.fired.zero_()
            layer.chances.zero_()
            layer.counting = True

    def end_measuring(self) -> Tensor:
        """What has been counted since: (spikes, chances) of all layers, which add up over batches and processes."""
        counted = torch.stack([torch.stack([layer.fired, layer.chances]) for layer in self.neurons()]).sum(0)
        for layer in self.neurons():
            layer.counting = False
        return counted

    def measured(self, counted: Tensor) -> dict[str, float]:
        """spikes/firing_rate: the number of spikes per neuron and time step, averaged over all inputs.

        "Obtained by averaging the number of spikes across timesteps and spiking neurons" (Chen et al. 2023, appendix
        G.2): every neuron counts alike, those of large layers and of shortcuts included, at its own output: what a
        block's addition makes of two spikes is not counted again. The paper's official code does not compute it.
        """
        fired, chances = counted.tolist()
        return {"spikes/firing_rate": fired / chances}
