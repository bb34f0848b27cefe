"""What a run can record beside its metrics (`trainer.records`), epoch by epoch. Recorders look and change nothing.

Torch is not imported: recorders call methods of the tensors that they are shown, so that whoever only asks what there
is to record (figures, submissions) reads `RECORDERS` at no cost.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from fnmatch import fnmatchcase
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar

from runner.errors import Misuse, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from methods.base import Method

log = logging.getLogger("regrow")
_INT16_END = 2**15


class Recorder:
    """Looks at a run's method before the first step and at the end of every epoch."""

    #: The metrics that it gives, as shell patterns.
    metrics: ClassVar[tuple[str, ...]] = ()

    def __init__(self, method: Method) -> None:
        self.method = method

    def begin(self) -> None:
        """Before the first step of a new run (not of a resumed one)."""

    def observe(self, epoch: int) -> dict[str, float]:
        """At the end of `epoch`, from 1: what joins the epoch's line of metrics."""
        return {}

    def series(self) -> dict[str, list[float]]:
        """At the run's end: metrics by epoch, from epoch 1, that nobody could know before."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to record the same."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""


class MaskDynamics(Recorder):
    """How the masks move. They are compared at the ends of epochs: what an epoch undoes itself is not seen.

    mask/iou: kept now and an epoch ago / kept now or an epoch ago (in epoch 1: before the first step).
    mask/flips: the share of mask elements that differ from an epoch ago.
    mask/still_changing: the share of mask elements that change once more after the epoch (Lin et al. 2020, figure 4).
    Fractions over all masks together.
    """

    metrics = ("mask/iou", "mask/flips", "mask/still_changing")

    def __init__(self, method: Method) -> None:
        super().__init__(method)
        # One int16 per mask element: 1 + the epoch of its last change (1: it never changed), negative while dropped.
        self.last: dict[str, Tensor] = {}
        self.epochs = 0

    def begin(self) -> None:
        masks = self.method.masks()
        if not masks:
            log.info("mask_dynamics has nothing to record: %s has no masks", type(self.method).__name__)
        self.last = {name: mask.short() * 2 - 1 for name, mask in masks.items()}

    def observe(self, epoch: int) -> dict[str, float]:
        masks = self.method.masks()
        if masks.keys() != self.last.keys():
            raise ValueError(f"the run began with masks of {sorted(self.last)} and now has those of {sorted(masks)}")
        self.epochs = epoch
        if not masks:
            return {}
        if epoch + 1 >= _INT16_END:
            self.last = {name: last.int() for name, last in self.last.items()}
        both = either = flips = total = 0
        for name, kept in masks.items():
            last = self.last[name]
            before = last > 0
            both += int((kept & before).count_nonzero())
            either += int((kept | before).count_nonzero())
            flips += int((kept ^ before).count_nonzero())
            total += kept.numel()
            last.masked_fill_(kept & ~before, epoch + 1).masked_fill_(before & ~kept, -epoch - 1)
        return {"mask/iou": both / either if either else 1.0, "mask/flips": flips / total}

    def series(self) -> dict[str, list[float]]:
        if not self.last:
            return {}
        counts = [0] * (self.epochs + 1)  # elements by the epoch of their last change; 0: never
        for last in self.last.values():
            found = (last.abs().int() - 1).view(-1).bincount(minlength=self.epochs + 1).tolist()
            counts = [sum(pair) for pair in zip(counts, found, strict=True)]
        changed = list(accumulate(reversed(counts)))[::-1]  # in this epoch or later
        return {"mask/still_changing": [number / changed[0] for number in [*changed[2:], 0]]}

    def state_dict(self) -> dict[str, Any]:
        return {"last": self.last, "epochs": self.epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.last, self.epochs = state["last"], state["epochs"]


class Phases(Recorder):
    """How much the mask changes from one sparse phase to the next, of a method whose dense and sparse phases alternate.

    mask/phase_change: in the first epoch of every sparse phase but the first, the share of all mask elements that
    differ from the sparse phase before (Peste et al. 2021, figures 4b, 5b and 7b; the official code divides by all
    weights of the pruned layers, too). Dense is a phase whose masks keep everything; a method that is never dense in
    between gives nothing. Masks are compared at the end of a phase's first epoch: AC/DC's do not change within one.
    """

    metrics = ("mask/phase_change",)

    def __init__(self, method: Method) -> None:
        super().__init__(method)
        self.last: dict[str, Tensor] = {}  # the masks of the sparse phase before
        self.dense = True  # whether the epoch before was

    def observe(self, epoch: int) -> dict[str, float]:
        masks = self.method.masks()
        dense = all(bool(mask.all()) for mask in masks.values())
        begins, self.dense = self.dense and not dense, dense
        if not begins:
            return {}
        line = {}
        if self.last:
            changed = sum(int((mask ^ self.last[name]).count_nonzero()) for name, mask in masks.items())
            line["mask/phase_change"] = changed / sum(mask.numel() for mask in masks.values())
        self.last = {name: mask.clone() for name, mask in masks.items()}
        return line

    def state_dict(self) -> dict[str, Any]:
        return {"last": self.last, "dense": self.dense}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.last, self.dense = state["last"], state["dense"]


class Layers(Recorder):
    """The sparsity of every prunable weight: layers:NAME of what the network computes with, mask_layers:NAME by mask.

    NAME is the weight's, without ".weight" at its end. Fractions.
    """

    metrics = ("layers:*", "mask_layers:*")

    def observe(self, epoch: int) -> dict[str, float]:
        line = {}
        for name, layer in layers(self.method).items():
            for metric, count in (("layers", layer["nonzero"]), ("mask_layers", layer["kept"])):
                line[f"{metric}:{name.removesuffix('.weight')}"] = 1 - count / layer["total"]
        return line


class Distance(Recorder):
    """How far the network as it computes is from the weights that are trained, where a method tells these apart.

    feedback/distance: ||w - C(w)||^2 / ||w||^2 over all pruned weights (Lin et al. 2020, equation 1).
    """

    metrics = ("feedback/distance",)

    def begin(self) -> None:
        if self.method.distance() is None:
            log.info("distance has nothing to record: %s trains what it computes with", type(self.method).__name__)

    def observe(self, epoch: int) -> dict[str, float]:
        distance = self.method.distance()
        return {} if distance is None else {"feedback/distance": distance}


class Diagnostics(Recorder):
    """Of what a method says of itself, the metrics of this record."""

    def observe(self, epoch: int) -> dict[str, float]:
        told = self.method.diagnostics().items()
        return {name: value for name, value in told if any(fnmatchcase(name, each) for each in self.metrics)}


class Thresholds(Diagnostics):
    """threshold:NAME at the epoch's end, and l1_penalty:NAME that its growth during the epoch implies.

    Chen et al. 2023, theorem 1: (d(t+1) - d(t)) / eta(t), here averaged over the epoch's steps with the weights eta(t).
    NAME: the layer's whose threshold it is, or "all".
    """

    metrics = ("threshold:*", "l1_penalty:*")


class GradientToDecay(Diagnostics):
    """gradient_to_decay:NAME: |grad s| / |lambda s| of trained thresholds, the geometric mean over the epoch's steps.

    Chen et al. 2023, figure 4; lambda is the weight decay of s. Without decay there is nothing to record.
    """

    metrics = ("gradient_to_decay:*",)


#: What `trainer.records` may name.
RECORDERS: dict[str, type[Recorder]] = {
    "mask_dynamics": MaskDynamics,
    "phases": Phases,
    "layers": Layers,
    "distance": Distance,
    "thresholds": Thresholds,
    "gradient_to_decay": GradientToDecay,
}


def check(names: Iterable[str]) -> None:
    """Misuse for a name that is no recorder's."""
    for name in names:
        if name not in RECORDERS:
            raise Misuse(f"trainer.records: there is no record {name!r}.{nearest(name, RECORDERS)}")


def layers(method: Method) -> dict[str, dict[str, Any]]:
    """Per prunable weight: shape, kept (mask), nonzero (effective weights), total."""
    masks = method.masks()
    return {
        name: {
            "shape": list(weight.shape),
            "kept": int(masks[name].count_nonzero()) if name in masks else weight.numel(),
            "nonzero": int(weight.count_nonzero()),
            "total": weight.numel(),
        }
        for name, weight in method.effective().items()
    }


class Recorders:
    """The recorders of one run, by their names."""

    def __init__(self, names: Iterable[str], method: Method) -> None:
        self.method = method
        self.chosen = {name: RECORDERS[name](method) for name in names}

    def begin(self) -> None:
        """Before the first step of a new run."""
        for recorder in self.chosen.values():
            recorder.begin()

    def observe(self, epoch: int) -> dict[str, float]:
        """At the end of `epoch`, from 1: what joins its line of metrics."""
        return {name: value for each in self.chosen.values() for name, value in each.observe(epoch).items()}

    def summary(self) -> dict[str, Any]:
        """For the run's summary: which records there are, and the series that are known at its end only."""
        if not self.chosen:
            return {}
        series = {name: values for each in self.chosen.values() for name, values in each.series().items()}
        return {"records": list(self.chosen), "series": series}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to record the same."""
        return {name: recorder.state_dict() for name, recorder in self.chosen.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the records that the run began with, whatever is asked for now: none is kept by halves."""
        if set(state) != set(self.chosen):
            log.warning("the run goes on recording what it began with: %s", ", ".join(state) or "nothing")
        check(state)
        self.chosen = {name: RECORDERS[name](self.method) for name in state}
        for name, recorder in self.chosen.items():
            recorder.load_state_dict(state[name])
