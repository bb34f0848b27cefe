"""Gradients over training batches outside of the training itself: for methods that score weights before they prune."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import count
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from data.order import derive

if TYPE_CHECKING:
    from runner.trainer import Trainer

Grads = dict[str, Tensor]


def mean_grads(trainer: Trainer, batches: int) -> Grads:
    """The mean over `batches` training batches of the loss's gradient at the present weights, by parameter name.

    Batches are of the schedule's size, in an order and with augmentations that no epoch of the training has. The
    network is in training mode; its buffers, the random number generators, the task's state and all gradients are left
    as they were found. Parameters that the loss does not reach have none. Every rank gets the mean over all ranks'
    samples.
    """
    e = trainer.e
    number = min(batches, trainer.ctx.steps_per_epoch)
    order = e.data.order(e.seed, 0)
    chosen = order.split(e.schedule.batch_size)[:number]
    return _measured(trainer, [(batch, number, ("score", index)) for index, batch in enumerate(chosen)])


def grad_samples(trainer: Trainer, samples: int, batch: int) -> Iterator[Grads]:
    """`samples` gradients one after the other, each the mean over `batch` training samples, by parameter name.

    They are drawn without replacement until the training set is through, then anew, in orders and with augmentations
    that are functions of the seed and the step alone: asked again in the same step, the same ones come. A batch larger
    than the schedule's micro-batch is measured in parts of that size. Only one gradient is held at a time, and nothing
    is changed in between: see `mean_grads`. In an fp16 run these are fp32, since there is no loss scale here.
    """
    e = trainer.e
    seed = derive(e.seed, "samples", trainer.ctx.step)
    size = -(-e.schedule.batch_size // e.schedule.accumulate)
    rounds = (e.data.order(seed, number) for number in count())
    drawn = next(rounds)
    for index in range(samples):
        while len(drawn) < batch:
            drawn = torch.cat([drawn, next(rounds)])
        mine, drawn = drawn[:batch], drawn[batch:]
        parts = mine.chunk(-(-batch // size))
        names = ("samples", trainer.ctx.step, index)
        yield _measured(
            trainer, [(part, batch / len(part), (*names, number)) for number, part in enumerate(parts)], half=False
        )


def _measured(
    trainer: Trainer, parts: Sequence[tuple[Tensor, float, tuple[str | int, ...]]], half: bool = True
) -> Grads:
    """The sum of the gradients of the mean losses over `parts`: (samples, what it is divided by, its seed's names).

    `half`: whether to compute in fp16 where the run does.
    """
    t, e = trainer, trainer.e
    buffers = {name: buffer.clone() for name, buffer in t.model.named_buffers()}
    training, before, task = t.net.training, [p.grad for p in t.model.parameters()], e.task.state_dict()
    devices = [e.device] if e.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.enable_grad():
        t.net.train()
        t.optimizer.zero_grad(set_to_none=True)
        for indices, divisor, names in parts:
            mine, weight = t.world.share(indices)
            with t.autocast() if half or e.precision != "fp16" else nullcontext():
                loss, _ = e.task.loss(t.net, e.data.batch(mine, t.own_seed(*names)))
            (loss * (weight / divisor)).backward()
    found = {name: p.grad for name, p in t.model.named_parameters() if p.grad is not None}
    for parameter, grad in zip(t.model.parameters(), before, strict=True):
        parameter.grad = grad
    with torch.no_grad():
        for name, buffer in t.model.named_buffers():
            buffer.copy_(buffers[name])
    e.task.load_state_dict(task)
    t.net.train(training)
    return found
