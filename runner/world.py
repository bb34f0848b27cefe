"""The ranks that train one run together: who they are, and what they do as one. No torch here.

A world of one is a plain object, so that the trainer goes one way whatever the number of ranks; `runner.group.Group` is
a world of several.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from runner.errors import Misuse

if TYPE_CHECKING:
    from torch import Tensor, nn

T = TypeVar("T")

_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# Ports for the ranks of a SLURM step to meet at: below those that Linux and SLURM hand out.
_FIRST_PORT, _PORTS = 15000, 15000


class Ballot:
    """What the ranks decide together after every step. Alone: what is wished for happens."""

    def cast(self, *wishes: int) -> Sequence[int]:
        """The largest of all ranks' wishes."""
        return wishes


@dataclass
class World:
    """`rank` of `size`, the `local_rank`th of `local_size` on its node; `meeting`: where torch.distributed starts."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    meeting: str = ""

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which alone looks at the run directory, writes and reports."""
        return self.rank == 0

    def lead(self, act: Callable[[], T]) -> T:
        """Rank 0 does this; its result, or what it raises, is everybody's."""
        return act()

    def together(self, act: Callable[[], T]) -> T:
        """Everybody does this; when one of them raises, all do."""
        return act()

    def gather(self, value: T) -> list[T]:
        """Everybody's value, by rank, on every rank."""
        return [value]

    def sum(self, tensor: Tensor | None) -> Tensor:
        """The sum of everybody's tensors, in the order of the ranks; a rank without one gives None."""
        assert tensor is not None
        return tensor

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Put the mean over the ranks in the place of these floating-point tensors."""

    def ballot(self) -> Ballot:
        """A new ballot; every rank takes one at the same point."""
        return Ballot()

    def replicate(self, model: nn.Module) -> nn.Module:
        """The model with gradients that are averaged over the ranks."""
        return model

    def unsynchronised(self, net: nn.Module) -> AbstractContextManager[Any]:
        """Within it, gradients of `replicate`'s model only add up on each rank: more micro-batches follow."""
        return nullcontext()

    def share(self, samples: Tensor) -> tuple[Tensor, float]:
        """This rank's part of a (micro-)batch, and the weight of its mean loss.

        With these weights the average over the ranks is the mean over the batch, however unequal the parts. A rank for
        which nothing is left takes a sample along with weight 0, since every rank has to run the network.
        """
        if self.size == 1:
            return samples, 1.0
        mine = samples.tensor_split(self.size)[self.rank]
        return (mine if len(mine) else samples[:1]), len(mine) * self.size / len(samples)

    def lost(self, error: BaseException) -> bool:
        """Whether this error says that another rank is gone."""
        return False


ALONE = World()


@functools.cache
def join() -> World:
    """The world that this process belongs to by its environment, joined at the first call; Misuse when that fails."""
    found = recognised(os.environ)
    if found is None:
        return ALONE
    from runner.group import Group  # loads torch

    return Group(**asdict(found))


def recognised(environ: Mapping[str, str]) -> World | None:
    """The world that torchrun or srun has put this process in; None outside of one, or in a world of one.

    Misuse when the environment contradicts itself.
    """
    world = _of_torchrun(environ) or _of_srun(environ)
    if world is not None and not (0 <= world.rank < world.size and 0 <= world.local_rank < world.local_size):
        raise Misuse(
            f"the environment says rank {world.rank} of {world.size}, local rank {world.local_rank} of "
            f"{world.local_size}, which cannot be."
        )
    return world


def _of_torchrun(environ: Mapping[str, str]) -> World | None:
    if _number(environ, "WORLD_SIZE") <= 1 or "RANK" not in environ:
        return None
    if missing := [name for name in _TORCHRUN if name not in environ]:
        raise Misuse(f"RANK and WORLD_SIZE are set, but not {' and '.join(missing)}; start the ranks with torchrun.")
    size = _number(environ, "WORLD_SIZE")
    return World(
        rank=_number(environ, "RANK"),
        size=size,
        local_rank=_number(environ, "LOCAL_RANK", _number(environ, "RANK")),
        local_size=_number(environ, "LOCAL_WORLD_SIZE", size),
        meeting="env://",
    )


def _of_srun(environ: Mapping[str, str]) -> World | None:
    """One rank per task of a step. A batch script has no SLURM_STEP_NUM_TASKS, an interactive shell has one task."""
    size = _number(environ, "SLURM_STEP_NUM_TASKS")
    if size <= 1 or "SLURM_PROCID" not in environ:
        return None
    sizes = _tasks_per_node(environ.get("SLURM_STEP_TASKS_PER_NODE", str(size)))
    step = 31 * _number(environ, "SLURM_JOB_ID") + _number(environ, "SLURM_STEP_ID")
    address = environ.get("MASTER_ADDR") or first_host(environ.get("SLURM_STEP_NODELIST", "127.0.0.1"))
    port = _number(environ, "MASTER_PORT", _FIRST_PORT + step % _PORTS)
    return World(
        rank=_number(environ, "SLURM_PROCID"),
        size=size,
        local_rank=_number(environ, "SLURM_LOCALID"),
        local_size=sizes[_number(environ, "SLURM_NODEID") % len(sizes)],
        meeting=f"tcp://{address}:{port}",
    )


def _number(environ: Mapping[str, str], name: str, otherwise: int = 0) -> int:
    text = environ.get(name)
    if text is None:
        return otherwise
    if not text.isdecimal():
        raise Misuse(f"{name} = {text!r} in the environment should be a whole number.")
    return int(text)


def first_host(nodes: str) -> str:
    """The first host of SLURM's list: n0 of n[0-1,5], gpu-a07 of gpu-a[07-12]x is gpu-a07x, a of a,b."""
    match = re.match(r"([^\[,]+)(?:\[(\w+)[^\]]*\])?([^,\[]*)", nodes)
    if match is None:
        raise Misuse(f"SLURM_STEP_NODELIST = {nodes!r} in the environment names no host.")
    return "".join(part or "" for part in match.groups())


def _tasks_per_node(text: str) -> list[int]:
    """Of SLURM's 2(x3),1: [2, 2, 2, 1]."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise Misuse(f"SLURM_STEP_TASKS_PER_NODE = {text!r} in the environment is not understood.")
        found += [int(match[1])] * int(match[2] or 1)
    return found
