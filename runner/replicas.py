"""The copies of a run on its ranks: what must be equal is compared bit for bit, what may differ is averaged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from methods.base import Context, Method
from runner.errors import Misuse
from runner.world import World

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_VOTE = 2**62  # a ballot's fingerprint stays in a range that has a negative of every number


class RanksDiffer(RuntimeError):
    """A tensor that must be the same on every rank is not."""


class Replicas:
    """One rank's model, optimizer and method, beside those of the others.

    Gradients are averaged and random numbers of methods drawn from one generator, so that weights, optimizer state,
    masks, thresholds and scores stay identical. A method that draws or measures on its own breaks that silently; here
    it is noticed.
    """

    def __init__(
        self, world: World, model: nn.Module, optimizer: torch.optim.Optimizer, method: Method, ctx: Context
    ) -> None:
        self.world = world
        self.model = model
        self.optimizer = optimizer
        self.method = method
        self.ctx = ctx
        self.ballot = world.ballot()
        self.masks_seen = -1
        self.print = 0

    def check_statistics(self, smallest: int) -> None:
        """Misuse when batch normalisation has too few samples on some rank; `smallest`: of all (micro-)batches."""
        if self.statistics() and smallest // self.world.size < 2:
            raise Misuse(
                f"batch normalisation needs two samples on every rank, but {self.world.size} ranks share batches as "
                f"small as {smallest} (an epoch's last one, or micro-batches); take fewer devices, or "
                f"schedule.drop_last=true."
            )

    def decide(self, stop: bool, due: bool) -> tuple[bool, bool]:
        """After a step: whether some rank was asked to stop, and whether a checkpoint is due. All decide alike.

        A change of the masks is compared on the way: RanksDiffer (in worlds of several) when they are not the same.
        """
        if self.world.size == 1:
            return stop, due
        if (seen := self.method.mask_changes()) != self.masks_seen:
            self.masks_seen = seen
            self.print = sum(fingerprints(self.method.replicated()).values()) % _VOTE
        # The largest print and, by the largest negative, the smallest: equal when all are.
        stopped, saved, largest, smallest = self.ballot.cast(stop, due, self.print, -self.print)
        if largest != -smallest:
            self.compare(self.method.replicated())
            raise RanksDiffer(f"the masks were not the same on all ranks after step {self.ctx.step}")
        return bool(stopped), bool(saved)

    def compare_everything(self) -> None:
        """RanksDiffer unless weights, buffers, optimizer state and the method's tensors are the same on all ranks."""
        if self.world.size == 1:
            return
        trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        # A method's own parameters, such as thresholds, are not the model's: they go by their place.
        names: dict[Tensor, str] = {parameter: str(place) for place, parameter in enumerate(trained)}
        names |= {parameter: name for name, parameter in self.model.named_parameters()}
        own = self.statistics()
        self.compare(
            {
                **self.method.replicated(),
                "model": {name: tensor for name, tensor in self.model.state_dict().items() if name not in own},
                "optimizer": {names[parameter]: state for parameter, state in self.optimizer.state.items()},
                "rng": self.ctx.rng.get_state(),
            }
        )

    def compare(self, state: Mapping[str, Any]) -> None:
        """RanksDiffer names the first of these tensors (however nested) that is not the same everywhere, and ranks."""
        everybodys = self.world.gather(fingerprints(state))
        for name in dict.fromkeys(name for theirs in everybodys for name in theirs):
            found = [theirs.get(name) for theirs in everybodys]
            if others := [rank for rank, each in enumerate(found) if each != found[0]]:
                raise RanksDiffer(
                    f"{name} is not the same on rank 0 and on rank {', '.join(map(str, others))} after step "
                    f"{self.ctx.step}; whatever changes it must draw from ctx.rng and use synchronised gradients"
                )

    def statistics(self) -> dict[str, Tensor]:
        """The running statistics of normalisation layers, which each rank gathers from its own samples."""
        if self.world.size == 1:
            return {}
        layers = ((path, module) for path, module in self.model.named_modules() if isinstance(module, _NormBase))
        buffers = {f"{path}.{name}": t for path, module in layers for name, t in module.named_buffers(recurse=False)}
        return {name: tensor for name, tensor in buffers.items() if tensor.is_floating_point()}

    def average_statistics(self) -> None:
        """Give all ranks the mean of their running statistics."""
        self.world.average(list(self.statistics().values()))


def fingerprints(state: Any) -> dict[str, int]:
    """A 64-bit number of the bits of every tensor and number in nested mappings and lists, by the path to each.

    The sum of the elements' bits, each times an odd pseudo-random weight of its position, modulo 2^64, computed where
    the tensor lies: a change of a single element always shows, any other one with near certainty.
    """
    sums = {name: _weighted_sum(tensor.detach()) for name, tensor in _tensors(state).items()}
    devices = {tensor.device for tensor in sums.values()}
    found: dict[str, int] = {}
    for device in devices:  # one transfer for all tensors of a device
        here = {name: tensor for name, tensor in sums.items() if tensor.device == device}
        found |= zip(here, torch.stack(list(here.values())).tolist(), strict=True)
    return {name: found[name] for name in sums}


def _weighted_sum(tensor: Tensor) -> Tensor:
    bits = tensor.contiguous().view(-1)
    bits = bits.view(_BITS[bits.element_size()]).to(torch.int64)
    bits = bits ^ (bits >> 32)  # float64's round numbers have high bits only, of which the product would lose most
    weights = _weights(bits.numel(), bits.device)
    return (bits * weights).sum() + bits.numel()


def _weights(count: int, device: torch.device) -> Tensor:
    """`count` odd numbers without a pattern: after SplitMix64 (Steele et al. 2014), its shifts arithmetic here."""
    mixed = torch.arange(1, count + 1, device=device) * -0x61C8864680B583EB
    mixed = (mixed ^ (mixed >> 30)) * -0x40A7B892E31B1A47
    mixed = (mixed ^ (mixed >> 27)) * -0x6B2FB644ECCEEE15
    return (mixed ^ (mixed >> 31)) | 1


def _tensors(state: Any, path: str = "") -> dict[str, Tensor]:
    """The tensors and numbers in nested mappings and lists, by the path to each."""
    if isinstance(state, Tensor):
        return {path: state}
    if isinstance(state, int | float):
        return {path: torch.tensor(state, dtype=torch.float64)}
    pairs: Iterable[tuple[Any, Any]] = ()
    if isinstance(state, Mapping):
        pairs = state.items()
    elif isinstance(state, list | tuple):
        pairs = enumerate(state)
    return {
        name: tensor
        for key, value in pairs
        for name, tensor in _tensors(value, f"{path}/{key}" if path else str(key)).items()
    }
