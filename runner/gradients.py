"""Gradients over training batches outside of the training itself: for methods that score weights before they prune."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from runner.trainer import Trainer


def mean_grads(trainer: Trainer, batches: int) -> dict[str, Tensor]:
    """The mean over `batches` training batches of the loss's gradient at the present weights, by parameter name.

    Batches are of the schedule's size, in an order and with augmentations that no epoch of the training has. The
    network is in training mode; its buffers, the random number generators, the task's state and all gradients are left
    as they were found. Parameters that the loss does not reach have none. Every rank gets the mean over all ranks'
    samples.
    """
    t, e = trainer, trainer.e
    count = min(batches, t.ctx.steps_per_epoch)
    order = e.data.order(e.seed, 0)
    buffers = {name: buffer.clone() for name, buffer in t.model.named_buffers()}
    carried = e.task.state_dict()
    training, before = t.net.training, [p.grad for p in t.model.parameters()]
    devices = [e.device] if e.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        t.net.train()
        t.optimizer.zero_grad(set_to_none=True)
        for index, batch in enumerate(order.split(e.schedule.batch_size)[:count]):
            mine, weight = t.world.share(batch)
            with t.autocast():
                loss, _ = e.task.loss(t.net, e.data.batch(mine, t.own_seed("score", index)))
            (loss * (weight / count)).backward()
    found = {name: p.grad for name, p in t.model.named_parameters() if p.grad is not None}
    for parameter, grad in zip(t.model.parameters(), before, strict=True):
        parameter.grad = grad
    with torch.no_grad():
        for name, buffer in t.model.named_buffers():
            buffer.copy_(buffers[name])
    e.task.load_state_dict(carried)
    t.net.train(training)
    return found
