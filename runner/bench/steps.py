"""What a method adds to a training step, its mask updates spread over the steps between them, and one update alone.

Processor time of one thread. A step of two samples shows what a method adds in absolute terms, since that does not
depend on the batch; the ratio is to the dense step of the whole batch.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils import prune

from methods.masks import top_mask
from runner.bench.figures import Figure, spread
from runner.compose import compose, names
from runner.device import reset
from runner.experiment import make
from runner.records import RunDirectory
from runner.timing import clocked, in_turn
from runner.trainer import Trainer


@dataclass(frozen=True)
class Case:
    """A model, its inputs, and the batch and the steps of an epoch that papers train it with."""

    model: str
    shape: str
    batch: int
    epoch: int
    #: The batch with which the difference to dense training is measured.
    small: int = 2
    #: Steps between updates of the masks here; what an update costs is spread over the method's own period.
    period: int = 8


CASES = {
    "lenet_300_100": Case("lenet_300_100", "[1,28,28]", 100, 600, small=100, period=100),
    "resnet20": Case("resnet20", "[3,32,32]", 128, 391),
    "wrn_28_2": Case("wrn_28_2", "[3,32,32]", 128, 391),
    "resnet50": Case("resnet50", "[3,64,64]", 256, 5005),
}
#: What a step may cost relative to the dense one, on LeNet and on the others.
TARGETS = {"masks": (1.15, 1.02), "feedback": (1.25, 1.05), "weights": (1.5, 1.04)}
KINDS = {
    **dict.fromkeys(("static", "set", "sm", "dsr", "rigl", "gmp", "granet", "snip", "acdc"), "masks"),
    **dict.fromkeys(("dpf", "topkast"), "feedback"),
    **dict.fromkeys(("str", "str_gs", "gpo", "stds", "lats", "s_lats", "pgh", "edge_popup", "iterand"), "weights"),
}
_UPDATE_S = 1.0  # no method's mask update of a ResNet-50 should take longer
_UPDATES_S = {"rigl": 0.6}
#: Timed beside the methods as they come: with the overrides after a name.
SELDOM = ("topkast method.period=100",)
_DENSE = ("dense", "dense again", "dense once more")
#: The peer that every user has: a mask that stays, multiplied in before every forward pass.
PEER = "torch.nn.utils.prune"
#: What public implementations of SET, SNFS, RigL, ITOP and GraNet, and parameter-transforming layers (LATS, STR,
#: edge-popup, IteRand) were found to cost on another machine; they cannot be installed from an index.
QUOTED = {"lenet_300_100": "public codes, elsewhere: masks 1.08 to 2.5, transformed weights 1.3 to 4.3"}


def methods() -> list[str]:
    """The methods that train from scratch, dense training first."""
    found = [name for name in names("method") if name != "dense" and compose([f"method={name}"])["start"] is None]
    return ["dense", *found]


def overheads(case: Case, chosen: Sequence[str], rounds: int, steps: int) -> list[Figure]:
    """Of every chosen method the ratio of its step to the dense one, in `rounds` rounds of `steps` steps each.

    A name may be followed by overrides. `PEER` is among the names that may be chosen. The dense step is the median of
    several networks': where a network's memory happens to lie changes its products' time by up to a third.
    """
    steppers = {name: Stepper(case, "dense", case.small, steps) for name in _DENSE}
    for name in chosen:
        method, *more = name.split()
        steppers[name] = Stepper(case, "dense" if name == PEER else method, case.small, steps, more=more)
        if name == PEER:
            for module in steppers[name].trainer.model.modules():
                if isinstance(module, nn.Linear | nn.Conv2d):
                    prune.random_unstructured(module, "weight", 0.9)
    whole = Stepper(case, "dense", case.batch, max(1, steps // 8))
    turns = {name: stepper.round for name, stepper in steppers.items()} | {"": whole.round}
    for turn in turns.values():
        turn()  # warm up
    taken = in_turn(turns, rounds)
    figures = []
    for name in chosen:
        ratios: list[float] = []
        walls: list[float] = []
        for clock, found in ((0, ratios), (1, walls)):
            for at, (own, full) in enumerate(zip(taken[name], taken[""], strict=True)):
                dense = statistics.median(steppers[each].amortised(taken[each][at], clock) for each in _DENSE)
                added = steppers[name].amortised(own, clock) - dense
                found.append(1 + added / whole.amortised(full, clock))
        kind = KINDS.get(name.split()[0])
        target = TARGETS[kind][case.model != "lenet_300_100"] if kind else None
        figures.append(
            spread(
                f"step of {case.model}, batch {case.batch}, relative to the dense step",
                name,
                ratios,
                "x",
                target=target,
                wall=statistics.median(walls),
                note=QUOTED.get(case.model, "") if name == PEER else "",
            )
        )
    return figures


def updates(case: Case, chosen: Sequence[str], rounds: int) -> list[Figure]:
    """Of every chosen method that changes masks in training: what one update costs, in seconds of processor time.

    The hooks of a step with an update, less those of a dense step; gradients are noise.
    """
    section = f"mask update of {case.model}, one thread"
    dense = Stepper(case, "dense", 1, 3, period=3, forward=False)
    dense.round()
    usual = statistics.median(cpu for _ in range(rounds) for cpu, _, _ in dense.round())
    figures = []
    for name in chosen:
        stepper = Stepper(case, name, 1, 3, period=3, forward=False)
        stepper.round()
        costs = [cpu - usual for _ in range(rounds) for cpu, _, changed in stepper.round() if changed]
        if costs:
            figures.append(spread(section, name, costs, "s", target=_UPDATES_S.get(name, _UPDATE_S)))
    return figures


Step = tuple[float, float, bool]  # seconds of processor time, of the wall clock, and whether the masks changed


class Stepper:
    """A run whose steps are taken one by one, on the same samples.

    `forward` false: without the network's passes, on gradients of noise. `more`: overrides.
    """

    def __init__(
        self,
        case: Case,
        method: str,
        batch: int,
        steps: int,
        period: int | None = None,
        forward: bool = True,
        more: Sequence[str] = (),
    ) -> None:
        period = period or case.period
        given = [
            f"model={case.model}",
            "dataset=synthetic",
            f"dataset.shape={case.shape}",
            f"dataset.train_size={batch * period}",
            "dataset.test_size=1",
            f"schedule.batch_size={batch}",
            "schedule.epochs=200",
            "trainer.threads=1",
            f"method={method}",
            *more,
        ]
        config = compose(given)
        self.period = _period(config["method"], case.epoch)
        if isinstance(config["method"].get("period"), int) and config["method"]["period"] > period:
            config = compose([*given, f"method.period={period}"])
        config["start"] = None
        self.trainer = Trainer(make(config), RunDirectory(tempfile.mkdtemp(prefix="regrow-bench-")))
        self.trainer.e.method.begin(self.trainer.ctx)
        self.order = torch.arange(batch)
        self.steps = steps
        self.run: Callable[[], None] = (lambda: self.trainer.step(self.order)) if forward else self._hooks
        self.timed = clocked(self._step)
        self.noise = [] if forward else [torch.randn_like(p) for p in self.trainer.model.parameters()]

    def round(self) -> list[Step]:
        """So many steps, the hooks of epochs among them."""
        ctx, method, e = self.trainer.ctx, self.trainer.e.method, self.trainer.e
        reset(e.settings.threads, e.settings.deterministic, e.precision)  # other precisions have other flags
        self.trainer.net.train()
        found = []
        for _ in range(self.steps):
            before = method.mask_changes()
            cpu, wall = self.timed()
            ctx.step += 1
            ctx.epoch = 1 + ctx.step // ctx.steps_per_epoch
            found.append((cpu, wall, method.mask_changes() != before))
        return found

    def _step(self) -> None:
        if self.trainer.ctx.step % self.trainer.ctx.steps_per_epoch == 0:
            self.trainer.e.method.on_epoch(self.trainer.ctx)
        self.run()

    def _hooks(self) -> None:
        method, ctx, optimizer = self.trainer.e.method, self.trainer.ctx, self.trainer.optimizer
        method.before_forward(ctx)
        for parameter, noise in zip(self.trainer.model.parameters(), self.noise, strict=True):
            parameter.grad = noise.clone()
        if method.before_step(ctx):
            optimizer.step()
        method.after_step(ctx)

    def amortised(self, steps: Sequence[Step], clock: int) -> float:
        """Seconds of a step by the processor's (0) or the wall clock (1), updates spread over the method's period."""
        plain = [step[clock] for step in steps if not step[2]]
        changed = [step[clock] for step in steps if step[2]]
        if not changed:
            return statistics.median(plain)
        if not plain:
            return statistics.median(changed)
        usual = statistics.median(plain)
        return usual + (statistics.median(changed) - usual) / self.period


def _period(method: dict[str, Any], epoch: int) -> float:
    """Steps between two updates of the masks as the method's own options have it; an epoch where they say nothing."""
    if isinstance(method.get("period"), int):
        return float(method["period"])
    for options in (method, *(each for each in method.values() if isinstance(each, dict))):
        if isinstance(every := options.get("every_epochs"), int | float):
            return max(1.0, every * epoch)
    return float(epoch)


def selections(rounds: int, size: int = 25_500_000) -> list[Figure]:
    """The tenth of so many weights that is largest, in seconds of processor time of one thread: of dense weights, and
    of weights nine tenths of which are exactly zero; and sorting them.
    """
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(size, generator=generator).abs()
    sparse = dense * (torch.rand(size, generator=generator) < 0.1)
    section = f"the largest tenth of {size:,} weights, one thread"
    turns = {
        "of dense weights": clocked(lambda: top_mask(dense, size // 10)),
        "of weights that are mostly zero": clocked(lambda: top_mask(sparse, size // 10 + 1)),
    }
    taken = in_turn(turns, rounds)
    sorting = in_turn({"by sorting all of them": clocked(dense.sort)}, 1)
    return [
        *(spread(section, name, [cpu for cpu, _ in each], "s", target=0.15) for name, each in taken.items()),
        *(spread(section, name, [cpu for cpu, _ in each], "s") for name, each in sorting.items()),
    ]
