"""What ranks do for test_distributed.py, in one launch: torchrun --nproc-per-node N tests/ranked.py FOLDER [SCENE ...].

Each rank writes what it saw to FOLDER/rank<k>.pt: the name of a scene -> its findings.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import streams
import torch
import torch.nn.functional as F
from test_contract import BUSY, CALM, METHODS, OURS, overrides, state_of, with_parent
from torch import Tensor

from methods.base import Context, Method
from methods.masks import digest
from runner import checkpoint
from runner.compose import compose
from runner.errors import Misuse
from runner.execute import execute
from runner.experiment import make
from runner.identity import run_dir
from runner.measuring import measuring
from runner.records import Held, RunDirectory
from runner.repeat import timeless
from runner.replicas import RanksDiffer, _tensors
from runner.trainer import Interrupted, Trainer
from runner.world import ALONE, World

# 11 samples are 6 and 5, the last 3 of an epoch 2 and 1; of three micro-batches of one sample rank 1 gets none.
UNEVEN = ("schedule.batch_size=11", "dataset.test_size=13", "trainer.eval_batch_size=3")
# Of two micro-batches of three and two streams rank 0 gets two and one, rank 1 one of each.
UNEVEN_STREAMS = ("schedule.batch_size=5", "schedule.accumulate=2", "model.dropout=0.0")
VARIANTS = {"whole": UNEVEN, "accumulated": (*UNEVEN, "schedule.accumulate=3")}
STAGE = ["method=compressed", "method.iterations=2", "method.every_epochs=1", "method.sparsity=0.8"]
TINY = ["model.hidden=[24,12]", "schedule.epochs=3", "schedule.batch_size=131", "dataset.train_subset=512"]

__all__ = ["METHODS", "MOVING", "OURS"]
MOVING = set(BUSY) - CALM
SPIKING = ["model=sew_resnet_small", "model.width=2", "dataset=synthetic", "dataset.shape=[3,16,16]",
           "dataset.train_size=16", "dataset.test_size=7", "schedule.batch_size=8", "schedule.epochs=2"]  # fmt: skip
Findings = dict[str, Any]


class Penalised(Method):
    """A penalty, which must count once whatever the number of ranks and micro-batches."""

    def penalty(self, ctx: Context) -> Tensor:
        return 0.01 * sum(weight.square().sum() for weight in self.weights.values())  # type: ignore[return-value]


def trainer(world: World, path: Path, given: list[str], stop: Callable[[], bool] = lambda: False) -> Trainer:
    return with_parent(Trainer(make(compose(given)), RunDirectory(path), stop=stop, world=world))


def trained(world: World, path: Path, given: list[str], method: Method | None = None) -> Findings:
    """The end of a run, and a digest of what must be equal on all ranks after each of its steps."""
    experiment = make(compose(given))
    if method is not None:
        experiment.method = method
    t = with_parent(Trainer(experiment, RunDirectory(path), world=world))
    digests: list[str] = []
    t.stop = lambda: digests.append(digest(_tensors(t.e.method.replicated()))) is not None  # type: ignore[misc]
    t.fit()
    return {"digests": digests, "state": state_of(t), "history": t.history}


def methods(world: World, folder: Path) -> Findings:
    found = {
        f"{method}/{variant}": trained(world, folder / method / variant, overrides(method, "lenet", *more))
        for method in METHODS
        for variant, more in VARIANTS.items()
    }
    for variant, more in VARIANTS.items():
        given = overrides("dense", "lenet", *more)
        found[f"penalised/{variant}"] = trained(world, folder / "penalised" / variant, given, Penalised())
    return found


def with_dropout(t: Trainer) -> Trainer:
    """Every rank draws from its own torch generator then."""
    t.model.fc2.register_forward_pre_hook(lambda module, inputs: F.dropout(inputs[0], 0.3, module.training))
    return t


def resumption(world: World, folder: Path) -> Findings:
    """Rank 1 alone is asked to stop, within the first epoch and within the second; a run without is the measure."""
    found: Findings = {}
    for method in METHODS:
        given = overrides(method, "digits", "schedule.batch_size=13")
        whole = with_dropout(trainer(world, folder / method / "whole", given))
        whole.fit()
        stopped = []
        for halt in (1, 4, None):
            t = with_dropout(trainer(world, folder / method / "stopped", given))
            t.stop = lambda t=t, halt=halt: world.rank == 1 and t.ctx.step == halt  # type: ignore[misc]
            torch.manual_seed(1)  # what another process would have
            try:
                t.fit()
            except Interrupted:
                stopped.append(t.ctx.step)
        found[method] = {"whole": state_of(whole), "stopped": stopped, "resumed": state_of(t)}
    return found


def statistics(world: World, folder: Path) -> Findings:
    """The running statistics before and after they are averaged at the end of an epoch."""
    t = trainer(world, folder, overrides("dense", "digits", "schedule.epochs=1"))
    before: list[dict[str, Tensor]] = []
    average = t.replicas.average_statistics

    def watched() -> None:
        before.append({name: tensor.clone() for name, tensor in t.replicas.statistics().items()})
        average()

    t.replicas.average_statistics = watched  # type: ignore[method-assign]
    t.fit()
    return {"before": before[0], "after": t.replicas.statistics()}


def evaluation(world: World, folder: Path) -> Findings:
    """How many samples were counted, and the metrics: 5 batches for 2 ranks, and 1."""
    found: Findings = {}
    for size in (3, 1000):
        given = overrides("dense", "lenet", "dataset.test_size=13", f"trainer.eval_batch_size={size}")
        t = trainer(world, folder / str(size), given)
        metrics, sums = t.e.task.metrics, []
        t.e.task.metrics = lambda total, metrics=metrics, sums=sums: sums.append(total) or metrics(total)  # type: ignore
        found[str(size)] = t.evaluate(), sums[0][0].item()
    return found


def spikes(world: World, folder: Path) -> Findings:
    """The firing rate over a test set that the ranks share: of 7 images rank 0 sees 4, and 3 one by one."""
    found: Findings = {}
    for size in (1, 4):
        given = [*SPIKING, f"trainer.eval_batch_size={size}"]
        t = trainer(world, folder / str(size), given)
        with measuring(t.model, world) as rates:
            t.evaluate()
        found[str(size)] = rates, int(t.model.sn1.chances)  # type: ignore[union-attr, arg-type]
    t = trainer(world, folder / "trained", [*SPIKING, "method=s_lats", "method.final_threshold=0.1"])
    found["history"] = [timeless(line) for line in t.fit()]
    return found


def faults(world: World, folder: Path) -> Findings:
    """Planted differences between ranks, and what they are answered with."""

    def generator(t: Trainer) -> None:
        t.ctx.rng.manual_seed(world.rank)

    def weight(t: Trainer) -> None:
        t.stop = lambda: t.ctx.step == 2 and world.rank == 1 and spoil(t.model.fc2.bias)  # type: ignore[misc]

    def momentum(t: Trainer) -> None:
        def change() -> bool:
            state = t.optimizer.state[t.model.fc1.weight]
            return t.ctx.step == 2 and world.rank == 1 and spoil(state["momentum_buffer"])

        t.stop = change  # type: ignore[method-assign]

    def mask(t: Trainer) -> None:
        """As many weights as before, one of them at another position."""

        def change() -> bool:
            if t.ctx.step == 2 and world.rank == 1:
                flat = t.e.method.mask.tensors[1].view(-1)
                kept, free = int(flat.nonzero()[0]), int((flat == 0).nonzero()[0])
                flat[kept], flat[free] = 0, 1
            return False

        t.stop = change  # type: ignore[method-assign]

    def threshold(t: Trainer) -> None:
        t.e.method.current_threshold *= 1 + world.rank

    def spoil(tensor: Tensor) -> bool:
        tensor.data[0] += 1e-6
        return False

    planted = [("set", generator), ("deepr", generator), ("dense", weight), ("dense", momentum), ("static", mask),
               ("dsr", threshold)]  # fmt: skip
    found: Findings = {}
    for method, plant in planted:
        t = trainer(world, folder / method / plant.__name__, overrides(method, "lenet"))
        plant(t)
        try:
            t.fit()
            found[f"{method}/{plant.__name__}"] = "nothing was noticed"
        except RanksDiffer as error:
            found[f"{method}/{plant.__name__}"] = str(error)
    return found


def executed(world: World, folder: Path) -> Findings:
    """A stage and its parent by `execute`; what each rank did to the file system below the runs."""
    touched: list[str] = []
    told: list[int] = []
    watching = [True]

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if watching[0] and event in ("open", "os.mkdir", "os.rename", "os.remove", "os.link", "os.truncate"):
            path = arguments[0]
            if isinstance(path, str | os.PathLike) and str(path).startswith(str(folder)):
                touched.append(f"{event} {path}")

    sys.addaudithook(audit)
    given = [*TINY, *STAGE, f"runs={folder / 'runs'}", "trainer.checkpoint_seconds=0"]
    config = compose(given)
    summary = execute(config, given, lambda line: told.append(line["epoch"]))
    again = execute(config, given, lambda line: told.append(line["epoch"]))
    watching[0] = False
    return {"summary": summary, "again": again, "told": told, "touched": touched}


def refusals(world: World, folder: Path) -> Findings:
    """Errors of one rank are everybody's."""
    found: Findings = {}

    def attempt(name: str, act: Callable[[], Any]) -> None:
        try:
            act()
            found[name] = "nothing was raised"
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"

    config = compose([*TINY, f"runs={folder}"])
    directory = RunDirectory(run_dir(config["runs"], config))

    def while_held() -> None:
        execute(config, [])

    if world.first:
        with directory.held():
            attempt("held", while_held)
    else:
        attempt("held", while_held)

    here = folder / f"data{world.rank}"
    lacking = compose(["dataset=mnist", f"runs={folder}", f"data.root={here}"])
    attempt("data", lambda: execute(lacking, []))
    attempt("batch", lambda: execute(compose([*TINY, "schedule.batch_size=1", f"runs={folder}"]), []))
    normed = [*TINY, "schedule.batch_size=128", "dataset.train_subset=387", "model.batch_norm=all"]  # the last batch: 3
    attempt("statistics", lambda: execute(compose([*normed, f"runs={folder}"]), []))
    attempt("devices", lambda: execute(compose([*TINY, "trainer.devices=3", f"runs={folder}"]), []))

    def fail(rank: int, error: Exception) -> Callable[[], None]:
        def act() -> None:
            if world.rank == rank:
                raise error

        return act

    class Odd(Exception):
        def __init__(self, one: int, two: int) -> None:
            super().__init__("no good")

    attempt("together", lambda: world.together(fail(1, Misuse("node 1 has no data."))))
    attempt("unforeseen", lambda: world.together(fail(1, OSError("broken"))))
    attempt("lead", lambda: world.lead(fail(0, Held("held"))))
    attempt("odd", lambda: world.lead(fail(0, Odd(1, 2))))
    found["lead"] = [found["lead"], world.lead(lambda: world.rank)]
    return found


def other_sizes(world: World, folder: Path) -> Findings:
    """A run begun by one process goes on with two ranks: every rank's sums and samples count once."""
    given = overrides("set", "lenet", *UNEVEN)
    if world.first:
        alone = trainer(ALONE, folder, given)
        alone.stop = lambda: alone.ctx.step == 1  # type: ignore[method-assign]
        with suppress(Interrupted):
            alone.fit()
    world.gather(None)  # rank 1 waits for the checkpoint
    t = trainer(world, folder, given)
    t.fit()
    pair = folder / "pair"
    halted = trainer(world, pair, given, lambda: halted.ctx.step == 0)
    with suppress(Interrupted):
        halted.fit()
    saved = world.lead(lambda: len(checkpoint.load(pair / "checkpoints")["others"]))  # type: ignore[index]
    return {"state": state_of(t), "history": t.history, "pair": saved}


def text_streams(world: World, folder: Path) -> Findings:
    """A language model whose five streams are dealt out: as a whole, stopped in mid-epoch, and with micro-batches."""
    root = world.lead(lambda: streams.write(folder / "text"))
    found: Findings = {}
    for name, more in {"whole": ("schedule.batch_size=5",), "accumulated": UNEVEN_STREAMS}.items():
        given = streams.overrides(root, "schedule.epochs=2", "dataset.length=22", *more)
        whole = trainer(world, folder / name / "whole", given)
        whole.fit()
        stopped = []
        for halt in (2, None):
            t = trainer(world, folder / name / "stopped", given)
            t.stop = lambda t=t, halt=halt: world.rank == 1 and t.ctx.step == halt  # type: ignore[misc]
            torch.manual_seed(1)
            try:
                t.fit()
            except Interrupted:
                stopped.append((t.ctx.step, {k: len(m[0]) for k, m in t.e.task.state_dict()["memory"].items()}))
        memories = [{str(k): m for k, m in each.e.task.state_dict()["memory"].items()} for each in (whole, t)]
        history = [timeless(line) for line in whole.history]
        found[name] = {"whole": state_of(whole), "resumed": state_of(t), "stopped": stopped, "memories": memories,
                       "history": history}  # fmt: skip
    return found


SCENES = (methods, resumption, statistics, evaluation, spikes, faults, executed, refusals, other_sizes, text_streams)


def main() -> None:
    """The named scenes (or all), one after another, in one world."""
    from runner.world import join

    world, folder = join(), Path(sys.argv[1])
    chosen = sys.argv[2:] or [scene.__name__ for scene in SCENES]
    found: Findings = {
        scene.__name__: scene(world, folder / scene.__name__) for scene in SCENES if scene.__name__ in chosen
    }
    torch.save(
        {"world": (world.rank, world.size, world.local_rank, world.local_size), **found},
        folder / f"rank{world.rank}.pt",
    )


if __name__ == "__main__":
    main()
