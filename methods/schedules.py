"""Values that change over a run: learning rates, periods, temperatures, sparsity. Pure Python: no torch.

Epochs are counted from 1 where a paper prints them (`"1:25 -> 0.1"` is the first 25 epochs); a position in a run is a
float number of finished epochs, so that position 0 is the first step and `epochs` the end.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

Epochs = Annotated[float, "0 <= x"]
"""Type of all epoch-valued fields. Their names end in `epochs`, `epoch` or `milestones`: `stretch` finds them so."""

_ENTRY = re.compile(r"\s*(\d+)\s*:\s*(\d+)\s*->\s*([-+.\deE]+)\s*")
_EPOCH_FIELD = re.compile(r"(^|_)(epochs?|milestones)$")


@dataclass(frozen=True)
class EpochRanges:
    """A value per range of epochs, as in "1:25 -> 100, 26:50 -> 200": 1-based, inclusive, without gaps."""

    pairs: tuple[tuple[tuple[int, int], float], ...]

    @staticmethod
    def parse(text: str | float) -> EpochRanges:
        """Read epoch ranges; a plain number means that value in every epoch.

        Raises ValueError when the text is not of that form, does not begin at epoch 1, has a gap or an overlap.
        """
        if not isinstance(text, str):
            return EpochRanges((((1, _FOREVER), float(text)),))
        pairs = []
        expected = 1
        for entry in text.split(","):
            match = _ENTRY.fullmatch(entry)
            try:
                first, last, value = int(match[1]), int(match[2]), float(match[3])  # type: ignore[index]
            except (TypeError, ValueError):
                raise ValueError(f"{entry.strip()!r} is not an epoch range of the form '1:25 -> 0.1'") from None
            if first != expected or last < first:
                raise ValueError(f"epoch range '{first}:{last}' should begin at epoch {expected} and not end before it")
            pairs.append(((first, last), value))
            expected = last + 1
        return EpochRanges(tuple(pairs))

    @property
    def last_epoch(self) -> int:
        return self.pairs[-1][0][1]

    def at(self, epoch: int) -> float:
        """The value in 1-based `epoch`; IndexError past the last range."""
        for (_, last), value in self.pairs:
            if epoch <= last:
                return value
        raise IndexError(f"epoch {epoch} lies after the last range, which ends at {self.last_epoch}")

    def __str__(self) -> str:
        return ", ".join(f"{first}:{last} -> {value:.12g}" for (first, last), value in self.pairs)


_FOREVER = 10**9


@dataclass(frozen=True)
class LearningRate:
    """The learning rate at a step: a base (number or epoch ranges), decayed, with a linear warm-up before it.

    `changes`: "step", or "epoch" for a rate that is the same throughout an epoch: that of its first step, and in the
    warm-up that of its end, so that the first epoch does not stand still. The last `final_epochs` have the rate
    `final`, and a cosine ends where they begin.
    """

    base: EpochRanges
    epochs: float
    decay: str = "none"
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    end: float = 0.0
    warmup_epochs: float = 0.0
    warmup_from: float = 0.0
    final_epochs: float = 0.0
    final: float = 0.0
    from_epoch: float = 0.0
    changes: str = "step"

    def at(self, position: float) -> float:
        """`position`: finished epochs of the run, which begins `from_epoch` epochs after the schedule's beginning."""
        position += self.from_epoch
        base = self.base.at(int(position) + 1)
        if self.changes == "epoch":
            position = float(int(position))
        if position < self.warmup_epochs:
            done = position if self.changes == "step" else min(position + 1, self.warmup_epochs)
            return self.warmup_from + (base - self.warmup_from) * done / self.warmup_epochs
        if self.final_epochs and position >= self.epochs - self.final_epochs:
            return self.final
        if self.decay == "step":
            return base * self.gamma ** sum(position >= milestone for milestone in self.milestones)
        if self.decay == "cosine":
            progress = (position - self.warmup_epochs) / (self.epochs - self.warmup_epochs - self.final_epochs)
            return self.end + (base - self.end) * 0.5 * (1 + math.cos(math.pi * progress))
        return base


def learning_rate(schedule: Mapping[str, Any]) -> LearningRate:
    """The learning rate that a `schedule` section describes."""
    return LearningRate(
        base=EpochRanges.parse(schedule["lr"]),
        epochs=schedule.get("lr_epochs") or schedule.get("lr_from_epoch", 0.0) + schedule["epochs"],
        decay=schedule["decay"],
        milestones=tuple(schedule["milestones"]),
        gamma=schedule["gamma"],
        end=schedule["lr_end"],
        warmup_epochs=schedule["warmup_epochs"],
        warmup_from=schedule["warmup_from"],
        final_epochs=schedule.get("final_epochs", 0.0),
        final=schedule.get("final_lr", 0.0),
        from_epoch=schedule.get("lr_from_epoch", 0.0),
        changes=schedule.get("lr_changes", "step"),
    )


def cubic(initial: float, final: float, progress: float) -> float:
    """Zhu & Gupta 2017, equation 1: s_f + (s_i - s_f) (1 - progress)^3, with progress clipped to [0, 1]."""
    return final + (initial - final) * (1 - min(max(progress, 0.0), 1.0)) ** 3


def lottery_parent(sparsity: float, rate: float) -> list[str]:
    """The overrides of the run that a round of iterative magnitude pruning starts from (conf/method/lottery.yaml).

    Each round keeps the share 1 - `rate`, so that the rounds reach the sparsities 1 - (1 - rate)^n and last `sparsity`,
    which may lie between two of them. The first round's parent is dense.
    """
    numbers = all(isinstance(value, int | float) for value in (sparsity, rate))
    if not numbers or not 0 < sparsity < 1 or not 0 < rate < 1:  # the method will say so, with its option's name
        return ["method=dense"]
    rounds = math.ceil(math.log(1 - sparsity) / math.log(1 - rate) - 1e-9)
    if rounds < 2:
        return ["method=dense"]
    return ["method=lottery", f"method.sparsity={1 - (1 - rate) ** (rounds - 1):.12g}", f"method.rate={rate:.12g}"]


def rewound_parent(sparsity: float, rate: float, rewind_epochs: float) -> list[str]:
    """The overrides of the run that a round of conf/method/lottery_rewound.yaml starts from.

    The rounds are those of `lottery_parent`; before the first one stands a round of `sparsity` 0, dense, whose parent
    is the beginning of the training, its first `rewind_epochs`.
    """
    numbers = all(isinstance(value, int | float) for value in (sparsity, rate, rewind_epochs))
    if not numbers or not rewind_epochs > 0 or not 0 < rate < 1:  # the method will say so, with its option's name
        return ["method=dense"]
    if sparsity == 0:
        return ["method=dense", f"schedule.until_epoch={rewind_epochs:.12g}"]
    before = lottery_parent(sparsity, rate)[1:] or ["method.sparsity=0", f"method.rate={rate:.12g}"]
    return ["method=lottery_rewound", *before, f"method.rewind_epochs={rewind_epochs:.12g}"]


def difference(whole: Any, part: Any) -> Any:
    """`whole` - `part`, for conf/: the epochs before the last phase, say. What is no number is left to others."""
    numbers = all(isinstance(value, int | float) for value in (whole, part))
    return whole - part if numbers else whole


def imp_parent(sparsity: float, rounds: int) -> list[str]:
    """The overrides of the run that the last of `rounds` equal rounds of magnitude pruning starts from.

    Every round keeps the share (1 - `sparsity`)^(1 / rounds) (conf/method/imp.yaml). The first one's parent is dense.
    """
    numbers = isinstance(sparsity, int | float) and isinstance(rounds, int)
    if not numbers or not 0 < sparsity < 1 or rounds < 2:  # what is impossible the method will say
        return ["method=dense"]
    before = 1 - (1 - sparsity) ** ((rounds - 1) / rounds)
    return ["method=imp", f"method.sparsity={before:.12g}", f"method.rounds={rounds - 1}"]


def step_of(epochs: float, steps_per_epoch: int) -> int:
    """The number of finished steps that lies nearest to a (fractional) number of finished epochs."""
    return math.floor(epochs * steps_per_epoch + 0.5)


def is_epoch_field(name: str) -> bool:
    """Whether a configuration field of this name holds epochs (see `Epochs`)."""
    return bool(_EPOCH_FIELD.search(name))


def is_epoch_ranges(value: Any) -> bool:
    """Whether a configuration value is written as epoch ranges."""
    return isinstance(value, str) and "->" in value and _ENTRY.fullmatch(value.split(",")[0]) is not None


def stretch(config: Any, factor: float) -> Any:
    """Scale every epoch-valued field of a configuration by `factor`: the one function behind every profile.

    The total `epochs` becomes a whole number, at least 1. Epoch ranges keep at least one epoch each while there are
    enough epochs for all; with fewer, each epoch takes the value of the paper's epoch that it stands for. Other fields
    (ramps, warm-ups, milestones) scale exactly, to fractions of an epoch. Step-valued fields are left alone.
    """
    if factor == 1:
        return config
    if isinstance(config, dict):
        return {key: _stretch_field(key, value, factor) for key, value in config.items()}
    if isinstance(config, list):
        return [stretch(item, factor) for item in config]
    return _stretch_ranges(config, factor) if is_epoch_ranges(config) else config


def _stretch_field(name: str, value: Any, factor: float) -> Any:
    if is_epoch_field(name):
        if isinstance(value, list):
            return [round(item * factor, 6) for item in value]
        if isinstance(value, int | float) and not isinstance(value, bool):
            return whole_epochs(value, factor) if name == "epochs" else round(value * factor, 6)
    return stretch(value, factor)


def whole_epochs(epochs: float, factor: float) -> int:
    """`epochs * factor` rounded to a whole number, at least 1."""
    return max(1, math.floor(epochs * factor + 0.5))


def whole_ends(ends: Sequence[float], total: int) -> list[int]:
    """Where parts of a run end, in whole epochs: nearest to `ends` (ascending), but each part has an epoch.

    The last part ends at `total`, which must be at least the number of parts.
    """
    whole: list[int] = []
    for index, end in enumerate(ends):
        earliest = (whole[-1] if whole else 0) + 1
        latest = total - (len(ends) - 1 - index)
        whole.append(min(max(math.floor(end + 0.5), earliest), latest))
    return whole


def _stretch_ranges(text: str, factor: float) -> str:
    ranges = EpochRanges.parse(text)
    total = whole_epochs(ranges.last_epoch, factor)
    count = len(ranges.pairs)
    if total < count:
        values = [ranges.at(min(math.ceil((epoch - 0.5) / factor), ranges.last_epoch)) for epoch in range(1, total + 1)]
        return str(EpochRanges(tuple(((e, e), v) for e, v in enumerate(values, start=1))))
    ends = whole_ends([last * factor for (_, last), _value in ranges.pairs], total)
    starts = [1, *(end + 1 for end in ends[:-1])]
    return str(EpochRanges(tuple(((s, e), v) for s, e, (_, v) in zip(starts, ends, ranges.pairs, strict=True))))


def apportion(total: int, weights: Sequence[float], caps: Sequence[int] | None = None) -> list[int]:
    """Split `total` items in proportion to `weights`, exactly, never above `caps` (largest remainder method).

    Where a cap binds, the surplus is split again among the others. Ties go to the earlier entry.
    Raises ValueError when the caps together hold fewer than `total`.
    """
    room = [total] * len(weights) if caps is None else list(caps)
    if sum(room) < total:
        raise ValueError(f"{total} items do not fit into caps that hold {sum(room)} together")
    counts = [0] * len(weights)
    left = total
    while left:
        free = [i for i in range(len(weights)) if counts[i] < room[i]]
        mass = sum(weights[i] for i in free)
        quota = {i: left * (weights[i] / mass if mass > 0 else 1 / len(free)) for i in free}
        full = [i for i in free if counts[i] + quota[i] >= room[i]]
        if full:
            for i in full:
                left -= room[i] - counts[i]
                counts[i] = room[i]
            continue
        for i in free:
            counts[i] += math.floor(quota[i])
        left -= sum(math.floor(q) for q in quota.values())
        for i in sorted(free, key=lambda i: (math.floor(quota[i]) - quota[i], i))[:left]:
            counts[i] += 1
        left = 0
    return counts
