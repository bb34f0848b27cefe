"""What the trainer's own loop costs beside a bare loop of forward, backward and optimizer step."""

from __future__ import annotations

import statistics
import tempfile

import torch
import torch.nn.functional as F

from data.augment import crop_flip
from runner.bench.figures import Figure, spread
from runner.bench.steps import CASES, Case
from runner.compose import compose
from runner.experiment import make
from runner.records import RunDirectory
from runner.timing import clocked, in_turn
from runner.trainer import Trainer

TARGETS = {"lenet_300_100": 1.10, "resnet20": 1.02}


def loops(case: Case, rounds: int, steps: int) -> Figure:
    """Dense training: whole epochs of the trainer (data, augmentation, schedules, sums, a line of metrics, a test of
    one image) relative to as many steps of the same optimizer on a batch that lies ready. Processor time, one thread.
    """
    given = [
        f"model={case.model}",
        "dataset=synthetic",
        f"dataset.shape={case.shape}",
        f"dataset.train_size={case.batch * steps}",
        "dataset.test_size=1",
        f"schedule.batch_size={case.batch}",
        "schedule.epochs=100000",
        "trainer.threads=1",
        "trainer.checkpoint_seconds=100000",
    ]
    trainer = Trainer(make(compose(given)), RunDirectory(tempfile.mkdtemp(prefix="regrow-bench-")))
    if case.shape == CASES["resnet20"].shape:
        trainer.e.data.augment = crop_flip(4, "zero")  # type: ignore[attr-defined]
    trainer.e.method.begin(trainer.ctx)

    def ours() -> None:
        trainer.batch = 0
        trainer.train_epoch()
        trainer.ctx.epoch += 1

    bare = make(compose(given))
    model = bare.method.setup(bare.model)
    optimizer = bare.schedule.make_optimizer(bare.method, model)
    images, labels = bare.data.batch(torch.arange(case.batch), 0)

    def plain() -> None:
        model.train()
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()

    for run in (ours, plain):
        run()  # warm up
    taken = in_turn({"ours": clocked(ours), "bare": clocked(plain)}, rounds)
    cpu, wall = (
        [own[clock] / bare[clock] for own, bare in zip(taken["ours"], taken["bare"], strict=True)] for clock in (0, 1)
    )
    return spread(
        "the trainer's loop, relative to a bare one",
        f"{case.model}, batch {case.batch}",
        cpu,
        "x",
        target=TARGETS.get(case.model),
        wall=statistics.median(wall),
    )
