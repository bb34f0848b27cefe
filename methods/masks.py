"""Masks: which weights are kept. Exact selection, projection and optimizer-state reset, in one place.

Tie rule everywhere: among equal scores the one with the lower flat index (layers in model order) is kept.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Masks:
    """The masks of a list of weights, as float tensors so that applying them is one fused multiplication.

    `weights` maps parameter names to parameters; every mask starts at one. Masks change in place only: whoever holds
    a mask tensor (a parametrisation, a compiled graph) sees the update.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.names = list(weights)
        self.weights = list(weights.values())
        self.tensors = [torch.ones_like(w, requires_grad=False) for w in self.weights]
        self.masked = False  # whether `mask_grads` has masked the gradients of this step
        self.held = -1  # the changes that `loose` knows of
        self.loose: list[Tensor | None] = [None] * len(self.weights)

    @torch.no_grad()
    def set(self, index: int, mask: Tensor) -> None:
        """Replace mask `index` by the boolean `mask` (any shape with as many elements)."""
        own = self.tensors[index]
        if own.device.type == mask.device.type == "cpu":  # NumPy writes them several times as fast
            np.copyto(own.numpy(), mask.view_as(own).numpy())
            torch.autograd.graph.increment_version(own)
        else:
            own.copy_(mask.view_as(own))

    def kept(self, index: int) -> Tensor:
        """The flat boolean mask of weight `index`."""
        return _true(self.tensors[index].view(-1))

    def counts(self) -> list[int]:
        """Kept weights per layer."""
        return [ones(_true(t)) for t in self.tensors]

    def changes(self) -> int:
        """How often masks have been written to, whoever did it: torch counts the writes to a tensor."""
        return sum(t._version for t in self.tensors)

    @torch.no_grad()
    def project(self) -> None:
        """Set every dropped weight to zero."""
        if self.weights:
            torch._foreach_mul_(self.weights, self.tensors)

    @torch.no_grad()
    def hold(self, optimizer: torch.optim.Optimizer, forget: bool = False) -> None:
        """What `project` does, but sooner after a step of gradients that `mask_grads` has masked.

        Where neither gradient nor state is, an optimizer that treats each weight by itself does not move a zero: after
        the first step with new masks only those dropped weights are projected that had momentum then. `forget` the
        state of dropped weights, where nobody asks for it again: then there are none. Other optimizers ask for it
        (the trust ratio of LAMB is that of a whole layer), and they forget nothing.
        """
        masked, self.masked = self.masked, False
        if not masked or type(optimizer) not in _BY_WEIGHT:
            self.project()
            self.held = -1
        elif self.held != (changes := self.changes()):
            self.project()
            self.held, self.loose = changes, []
            for weight, mask in zip(self.weights, self.tensors, strict=True):
                states = _states(optimizer, weight)
                if forget:
                    for state in states:
                        state.mul_(mask)
                    states = []
                self.loose.append(_loose(states, mask))
        else:
            for weight, mask, loose in zip(self.weights, self.tensors, self.loose, strict=True):
                if loose is None:
                    weight.mul_(mask)
                elif loose.numel():
                    flat = weight.view(-1)
                    flat.index_copy_(0, loose, flat.index_select(0, loose).mul_(0))

    @torch.no_grad()
    def mask_grads(self) -> None:
        """Set the gradient of every dropped weight to zero, so that no momentum builds up behind the mask."""
        self.masked = True
        pairs = [(w.grad, m) for w, m in zip(self.weights, self.tensors, strict=True) if w.grad is not None]
        if pairs:
            torch._foreach_mul_([g for g, _ in pairs], [m for _, m in pairs])

    def as_dict(self) -> dict[str, Tensor]:
        """Name -> boolean mask of the weight's shape."""
        return {name: _true(t) for name, t in zip(self.names, self.tensors, strict=True)}

    def load(self, masks: Mapping[str, Tensor]) -> None:
        """Take over saved masks; ValueError when names or shapes differ."""
        if list(masks) != self.names:
            raise ValueError(f"masks of {sorted(masks)} do not fit a model with prunable weights {sorted(self.names)}")
        for index, (name, mask) in enumerate(masks.items()):
            if mask.shape != self.tensors[index].shape:
                raise ValueError(
                    f"mask of {name} has shape {tuple(mask.shape)}, not {tuple(self.tensors[index].shape)}"
                )
            self.set(index, mask)


#: Optimizers that move a weight by its own gradient, value and state alone, and a zero without gradient and state not.
_BY_WEIGHT = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RMSprop)


def _loose(states: list[Tensor], mask: Tensor) -> Tensor | None:
    """The flat positions of dropped weights that the optimizer's states of them may move; None where they are many."""
    if not states:
        return torch.empty(0, dtype=torch.long, device=mask.device)
    moved = functools.reduce(torch.logical_or, [state != 0 for state in states])
    found = moved.logical_and_(mask == 0).view(-1).nonzero().view(-1)
    return found if 16 * found.numel() <= mask.numel() else None


def _states(optimizer: torch.optim.Optimizer, weight: Tensor) -> list[Tensor]:
    """What the optimizer keeps of each element of a weight: momentum, second moments."""
    kept = optimizer.state.get(weight, {}).values()
    return [state for state in kept if isinstance(state, Tensor) and state.shape == weight.shape]


def top_mask(scores: Tensor, keep: int, pursuit: Pursuit | None = None) -> Tensor:
    """Boolean mask (flat) of exactly the `keep` largest entries of `scores`; ties go to the lower index.

    Selection, not sorting: O(n) for any n. `pursuit`, of earlier such scores, may find the threshold sooner.
    """
    flat = scores.detach().reshape(-1)
    if keep <= 0:
        return torch.zeros_like(flat, dtype=torch.bool)
    if keep >= flat.numel():
        return torch.ones_like(flat, dtype=torch.bool)
    threshold = kth_largest(flat, keep) if pursuit is None else pursuit.kth_largest(flat, keep)
    if flat.device.type == "cpu" and flat.dtype in _BITS:  # NumPy compares and counts several times as fast
        values, least = flat.numpy(), threshold.numpy()
        above = values >= least
        if np.count_nonzero(above) != keep:
            np.greater(values, least, out=above)
            above[np.flatnonzero(values == least)[: keep - np.count_nonzero(above)]] = True
        return torch.from_numpy(above)
    mask = flat > threshold
    ties = (flat == threshold).nonzero().view(-1)
    mask[ties[: keep - int(mask.count_nonzero())]] = True
    return mask


def _true(mask: Tensor) -> Tensor:
    """A float mask as booleans."""
    return torch.from_numpy(mask.numpy() != 0) if mask.device.type == "cpu" else mask != 0


def ones(mask: Tensor) -> int:
    """How many entries of a boolean mask are true."""
    return int(np.count_nonzero(mask.numpy())) if mask.device.type == "cpu" else int(mask.count_nonzero())


def kth_largest(flat: Tensor, k: int) -> Tensor:
    """The `k`-th largest of a tensor of one dimension, 1 <= k <= its size, as a tensor without dimensions.

    On the CPU by introselect over the numbers' bits, as integers, which have the order of the numbers.
    """
    if flat.device.type != "cpu" or flat.dtype not in _BITS:
        return torch.kthvalue(flat, flat.numel() - k + 1).values
    values = flat.detach().numpy()
    if values.size < 2 * _FEW and not np.isnan((ordered := np.sort(values))[-1]):
        return torch.from_numpy(np.asarray(ordered[-k]))
    often = _often(values)
    if often is not None:  # selection is slow among equal numbers, and many methods rank weights that are mostly zero
        above = values > often
        count = int(np.count_nonzero(above))
        through = count + int(np.count_nonzero(values == often))
        if k <= count:
            values = values[above]
        elif k <= through:
            return torch.tensor(often, dtype=flat.dtype)
        else:
            values, k = values[values < often], k - through
    bits = values.view(_BITS[flat.dtype])
    rest = bits.size - k
    if bits.min() >= 0:
        return torch.tensor(np.partition(bits, rest)[rest].view(values.dtype))
    folded = _folded(bits)
    folded.partition(rest)
    return torch.tensor(_folded(folded[rest : rest + 1]).view(values.dtype)[0])


class Pursuit:
    """`kth_largest` of numbers that change little from call to call: the same answer, whatever they do, but sooner.

    It expects the next answer where the last one was, or, while answers move steadily, as far from there as that was
    from the one before; and looks in an interval around it, thrice as wide to either side as it was wrong by. All
    numbers are compared with its ends, and where the answer is inside, the few that are there with it are ranked. Where
    it is not, or where they are not few, `kth_largest` is asked. What is remembered changes the time that an answer
    takes and nothing else, so that no run saves it.
    """

    def __init__(self) -> None:
        self.last = self.moved = self.expected = math.nan
        self.half = math.nan  # of the interval around `expected`, which no number is outside of now
        self.sides = np.empty((2, 0), dtype=bool)  # which numbers are above it, and below

    def kth_largest(self, flat: Tensor, k: int) -> Tensor:
        """As the function of this name."""
        if flat.device.type != "cpu" or flat.dtype not in _BITS or flat.numel() < _MANY:
            return kth_largest(flat, k)
        values = flat.detach().numpy()
        answer = self._inside(values, k)
        if answer is not None:
            self.half = max(0.9 * self.half, 3 * self._missed(float(answer)))
            return torch.from_numpy(np.asarray(answer))
        found = kth_largest(flat, k)
        missed = self._missed(float(found))
        if missed <= self.half:  # there were too many with it
            self.half /= 8
            return found
        few = np.sort(values[:: values.size // _FEW])
        at = int(np.searchsorted(few, self.last))
        least, most = (float(few[min(at + n, few.size - 1)]) - float(few[max(at - n, 0)]) for n in (2, 20))
        self.half = least if math.isnan(self.half) else min(3 * missed, most)
        return found

    def _missed(self, answer: float) -> float:
        """How far the answer is from what was expected; the next one is expected now."""
        missed, moved = abs(answer - self.expected), answer - self.last
        steady = 2 * abs(moved - self.moved) < abs(moved)
        self.last, self.moved, self.expected = answer, moved, answer + (moved if steady else 0.0)
        return missed

    def _inside(self, values: np.ndarray[Any, Any], k: int) -> Any:
        """The k-th largest if it is in the interval and one of few there, else None."""
        if self.sides.shape[1] != values.size:
            self.sides = np.empty((2, values.size), dtype=bool)
        above, below = self.sides
        with np.errstate(over="ignore"):  # an end beyond what the numbers' type can hold is infinite
            np.greater(values, self.expected + self.half, out=above)
            np.less(values, self.expected - self.half, out=below)
        rank = k - int(np.count_nonzero(above))
        where = np.flatnonzero(np.equal(above, below, out=below))  # on neither side, where NaN is, too
        if not 1 <= rank <= where.size <= values.size // 10:
            return None
        inside = values[where]
        return None if np.isnan(inside).any() else np.partition(inside, -rank)[-rank]


_BITS = {torch.float32: np.int32, torch.float64: np.int64}


def _folded(bits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Bits of floating-point numbers as integers of the same order, and back: the bits of negative ones flip."""
    size = 8 * bits.itemsize - 1
    folded: np.ndarray[Any, Any] = bits ^ ((bits >> size) & np.array(2**size - 1, dtype=bits.dtype))
    return folded


def _often(values: np.ndarray[Any, Any]) -> Any:
    """The commonest of a few numbers taken at even distances, if a fifth of them are equal to it; else None."""
    if values.size < _MANY:
        return None
    few = np.sort(values[:: values.size // _FEW])
    if np.count_nonzero(few[1:] == few[:-1]) < _FEW / 5:
        return None
    distinct, counts = np.unique(few, return_counts=True)
    most = counts.argmax()
    return distinct[most] if counts[most] > counts.sum() / 5 else None


_FEW, _MANY = 1000, 10_000


def random_positions(free: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """`count` distinct positions drawn uniformly from the true entries of the flat boolean `free` (ascending order).

    `rng` is a CPU generator, identical on every rank. ValueError when fewer than `count` are free.
    """
    if count == 0:
        return torch.empty(0, dtype=torch.long, device=free.device)
    where = free.nonzero().view(-1)
    if where.numel() < count:
        raise ValueError(f"cannot draw {count} positions from {where.numel()} free ones")
    drawn = _distinct(where.numel(), count, rng)
    return where[drawn.to(where.device)].sort().values


def _distinct(n: int, count: int, rng: torch.Generator) -> Tensor:
    """`count` distinct integers below `n`: a uniform random subset, without shuffling all n when few are wanted."""
    if 4 * count > n:
        return torch.randperm(n, generator=rng)[:count]
    chosen: dict[int, None] = {}
    while len(chosen) < count:
        chosen.update(dict.fromkeys(torch.randint(n, (count - len(chosen),), generator=rng).tolist()))
    return torch.tensor(list(chosen))


@torch.no_grad()
def reset_state(optimizer: torch.optim.Optimizer, weight: Tensor, where: Tensor) -> None:
    """Zero the optimizer's per-element state (momentum, second moments) of `weight` where the mask `where` is true.

    Independent of gradients: it works whether `zero_grad` has run or not.
    """
    for state in _states(optimizer, weight):
        state.masked_fill_(where.view_as(state), 0)


@torch.no_grad()
def reset_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Zero the momentum of every parameter: SGD's buffer, the first moment of Adam and its kin (not their scale).

    Independent of gradients, as `reset_state`.
    """
    for state in optimizer.state.values():
        for name in ("momentum_buffer", "exp_avg"):
            if isinstance(momentum := state.get(name), Tensor):
                momentum.zero_()


def digest(tensors: Mapping[str, Tensor]) -> str:
    """A short content hash of named tensors: equal digests mean bit-equal tensors."""
    h = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        h.update(name.encode())
        h.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return h.hexdigest()[:16]
