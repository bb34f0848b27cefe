"""Small runs side by side: two processes of one thread each beside one process of two threads, and several seeds of one
network as a batch of networks beside one after another.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from runner.bench.figures import Figure, spread
from runner.bench.steps import Case, Stepper
from runner.timing import clocked, in_turn

_state: dict[Any, Any] = {}  # of a worker process: a stepper by its number of threads, and the gate


def side_by_side(case: Case, rounds: int, steps: int) -> Figure:
    """Steps a second of two dense runs of one thread each, together, relative to those of one run of two threads; by
    the wall clock, in turn, on two cores.
    """
    ratios = []
    context = get_context("spawn")
    gate = context.Barrier(2)
    with ProcessPoolExecutor(2, context, _build, (case, steps, gate)) as pool:
        for _ in range(rounds):
            together = max(pool.map(_take, ((1, True),) * 2))
            alone = pool.submit(_take, (2, False)).result()
            ratios.append(2 * alone / together)
    name = f"{case.model}, batch {case.batch}: 2 processes of 1 thread, to 1 of 2"
    return spread("small runs, steps a second", name, ratios, "x", target=1.4, at_most=False)


def _build(case: Case, steps: int, gate: Any) -> None:
    for threads in (1, 2):
        _state[threads] = Stepper(case, "dense", case.batch, steps, more=[f"trainer.threads={threads}"])
        _state[threads].round()
    _state["gate"] = gate


def _take(asked: tuple[int, bool]) -> float:
    """Seconds that a round takes with so many threads; `together`: both processes begin at once."""
    threads, together = asked
    if together:
        _state["gate"].wait(60)
    began = time.perf_counter()
    _state[threads].round()
    return time.perf_counter() - began


def batched(seeds: int, rounds: int, steps: int) -> Figure:
    """Dense steps a second of so many LeNet-300-100 as one batched model, relative to those of one after another; of
    processor time of one thread. In their own processes runs need nothing from each other, so that the batch should win
    by 2 to be worth its own code; the note says how far its weights are from theirs after the steps, at most.
    """
    layers = _layers(seeds)
    generator = torch.Generator().manual_seed(seeds)
    samples = torch.rand(seeds, 100, 784, generator=generator)
    labels = torch.randint(10, (seeds, 100), generator=generator)
    together = [tensor.clone() for tensor in layers]
    alone = [[tensor[seed].clone() for tensor in layers] for seed in range(seeds)]
    batch = _trained(together, lambda: _loss_of_all(together, samples, labels))
    singles = [_trained(own, _loss_of(own, samples[seed], labels[seed])) for seed, own in enumerate(alone)]

    def in_batch() -> None:
        for _ in range(steps):
            batch()

    def one_by_one() -> None:
        for single in singles:
            for _ in range(steps):
                single()

    in_batch()
    one_by_one()
    pairs = [(both[i], each) for i, own in enumerate(alone) for both, each in zip(together, own, strict=True)]
    apart = max(float((both - each).detach().abs().max()) for both, each in pairs)
    taken = in_turn({"batch": clocked(in_batch), "single": clocked(one_by_one)}, rounds)
    ratios = [single / batch for (single, _), (batch, _) in zip(taken["single"], taken["batch"], strict=True)]
    name = f"lenet_300_100, batch 100: {seeds} seeds as one batched model, to one after another"
    note = f"weights differ by {apart:.0e} at most after {steps} steps"
    return spread("small runs, steps a second", name, ratios, "x", target=2.0, at_most=False, note=note)


def _layers(seeds: int) -> list[Tensor]:
    """Weights (seeds, outputs, inputs) and biases (seeds, outputs) of all layers."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for wide, out in ((784, 300), (300, 100), (100, 10)):
        found += [torch.randn(seeds, out, wide, generator=generator) * (2 / wide) ** 0.5, torch.zeros(seeds, out)]
    return found


def _trained(parameters: list[Tensor], loss: Callable[[], Tensor]) -> Callable[[], None]:
    """A step of SGD with momentum."""
    optimizer = torch.optim.SGD([p.requires_grad_() for p in parameters], lr=0.01, momentum=0.9, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def _loss_of(layers: list[Tensor], samples: Tensor, labels: Tensor) -> Callable[[], Tensor]:
    def loss() -> Tensor:
        hidden = samples
        for weight, bias in zip(layers[:-2:2], layers[1:-2:2], strict=True):
            hidden = F.relu(F.linear(hidden, weight, bias))
        return F.cross_entropy(F.linear(hidden, layers[-2], layers[-1]), labels)

    return loss


def _loss_of_all(layers: list[Tensor], samples: Tensor, labels: Tensor) -> Tensor:
    """The sum of the seeds' losses."""
    hidden = samples
    for index in range(0, len(layers), 2):
        hidden = torch.baddbmm(layers[index + 1][:, None], hidden, layers[index].transpose(1, 2))
        hidden = hidden if index == len(layers) - 2 else F.relu(hidden)
    return F.cross_entropy(hidden.flatten(0, 1), labels.flatten(), reduction="sum") / samples.shape[1]
