"""A world of several ranks, on torch.distributed."""

from __future__ import annotations

import atexit
import pickle
import re
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map_only

from runner.errors import Misuse
from runner.world import Ballot, World

T = TypeVar("T")

# What gloo and NCCL say when a peer has gone; gloo says it in a plain RuntimeError.
_GONE = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe", re.IGNORECASE)


class DelayedBallot(Ballot):
    """A ballot of several ranks: each cast is counted in the background, while the next step goes on.

    Since every rank hears the result one step later, all decide alike at the same step, and none waits for it.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.counting: tuple[dist.Work, Tensor] | None = None

    def cast(self, *wishes: int) -> Sequence[int]:
        """The largest of all ranks' wishes of one step ago (zeros at first); this step's are counted for the next."""
        result = [0] * len(wishes)
        if self.counting is not None:
            work, votes = self.counting
            work.wait()
            result = votes.tolist()
        votes = torch.tensor(wishes, dtype=torch.int64)
        work = dist.all_reduce(votes, dist.ReduceOp.MAX, group=self.group, async_op=True)
        assert work is not None
        self.counting = work, votes
        return result


@dataclass
class Group(World):
    """Ranks joined by torch.distributed: NCCL between GPUs, gloo between CPUs and for everything that is no gradient.

    Construction waits for all ranks; Misuse when they do not find each other.
    """

    def __post_init__(self) -> None:
        backend = "gloo"
        if torch.cuda.is_available():
            backend = "cpu:gloo,cuda:nccl"
            # A site may show each task its own device only.
            torch.cuda.set_device(self.local_rank if torch.cuda.device_count() > 1 else 0)
        try:
            dist.init_process_group(backend, init_method=self.meeting, rank=self.rank, world_size=self.size)
            control = dist.new_group(backend="gloo")
        except (RuntimeError, ValueError) as error:
            raise Misuse(
                f"rank {self.rank} of {self.size} does not find the others at {self.meeting} "
                f"({str(error).splitlines()[0]}); MASTER_ADDR and MASTER_PORT name another place."
            ) from error
        assert isinstance(control, dist.ProcessGroup)
        self.control = control
        atexit.register(dist.destroy_process_group)

    def lead(self, act: Callable[[], T]) -> T:
        told: list[Any] = [None]
        error: Exception | None = None
        if self.first:
            try:
                result = act()
                told = [(_on_cpu(result), None)]
            except Exception as raised:
                told, error = [(None, _portable(raised))], raised
        dist.broadcast_object_list(told, src=0, group=self.control)
        theirs, their_error = told[0]
        if their_error is not None:
            raise error or their_error
        return result if self.first else theirs

    def together(self, act: Callable[[], T]) -> T:
        error: Exception | None = None
        try:
            result = act()
        except Exception as raised:
            error = raised
        errors = self.gather(None if error is None else _portable(error))
        if error is not None:
            raise error
        for rank, theirs in enumerate(errors):
            if isinstance(theirs, Misuse):
                raise Misuse(f"rank {rank}: {theirs}")
            if theirs is not None:
                raise RuntimeError(f"rank {rank}: {type(theirs).__name__}: {theirs}")
        return result

    def gather(self, value: T) -> list[T]:
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, _on_cpu(value), group=self.control)
        return found

    def sum(self, tensor: Tensor | None) -> Tensor:
        found = [each for each in self.gather(tensor) if each is not None]
        return torch.stack(found).sum(0)

    @torch.no_grad()
    def average(self, tensors: Sequence[Tensor]) -> None:
        if not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.size
        for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def ballot(self) -> Ballot:
        return DelayedBallot(self.control)

    def replicate(self, model: nn.Module) -> nn.Module:
        with warnings.catch_warnings():
            # Newer versions want another name for it, which older ones do not know.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            return DistributedDataParallel(model, broadcast_buffers=False)

    def unsynchronised(self, net: nn.Module) -> AbstractContextManager[Any]:
        return net.no_sync()  # type: ignore[operator]

    def lost(self, error: BaseException) -> bool:
        return isinstance(error, dist.DistError) or (
            isinstance(error, RuntimeError) and _GONE.search(str(error)) is not None
        )


def _on_cpu(value: Any) -> Any:
    """The value with all tensors in it on the CPU: a device is no place that other ranks know."""
    return tree_map_only(Tensor, lambda tensor: tensor.cpu(), value)


def _portable(error: Exception) -> Exception:
    """The error itself if it can travel to other ranks, else one that says the same."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever its class makes of being pickled
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
