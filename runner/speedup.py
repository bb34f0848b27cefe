"""What compaction gives: a finished run's network with its zero filters and without them, compared and timed."""

from __future__ import annotations

import importlib.metadata
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from methods.compaction import constant_channels, filters
from models.account import account
from runner.device import reset, synchronize
from runner.environment import describe
from runner.errors import Misuse
from runner.identity import Config
from runner.repeat import finished
from runner.timing import interleaved

SCHEMA = 1
#: Outputs that differ by more than this share of the largest one differ by more than single precision's rounding.
ROUNDING = 1e-4
_LEAST_S = 0.1  # of the dense network in one round


def measure(path: Path, config: Config, steps: int, batch: int, rounds: int) -> dict[str, Any]:
    """The record of the comparison, in fp32 on the device and with the threads of `config`.

    Outputs are compared on the whole test set, times taken for inference of `batch` test images, `rounds` times each
    in turn. Misuse when the run's last checkpoint cannot be had, or its network not be compacted.
    """
    trainer = finished(path, config, steps)
    e, dense = trainer.e, trainer.model.eval()
    reset(e.settings.threads, False, "fp32")
    first = next(iter(e.data.test_batches(batch)))[0]
    try:
        compact = e.method.finalize(dense, compact=True, example=first)
        constant = constant_channels(dense, first)
    except ValueError as error:
        raise Misuse(f"{path} cannot be compacted: {error}.") from None
    outputs = compared(dense, compact, (inputs for inputs, *_ in e.data.test_batches(batch)))
    timed = first[torch.arange(batch, device=first.device) % len(first)]
    # As many passes as the dense network takes a while for, so that the clock does not matter.
    began = time.perf_counter()
    _passes(dense, timed, 3)()  # the first passes of a network are slower
    passes = max(1, math.ceil(_LEAST_S / ((time.perf_counter() - began) / 3)))
    _passes(compact, timed, 3)()
    variants = {"compact": _passes(compact, timed, passes), "dense": _passes(dense, timed, passes)}
    ratio = interleaved(variants, "compact", rounds)["dense"]
    sizes = {name: account(model, e.data.in_shape) for name, model in (("dense", dense), ("compact", compact))}
    before, after = filters(dense).values(), filters(compact).values()
    return {
        "schema": SCHEMA,
        "key": e.key,
        "seed": e.seed,
        "precision": "fp32",
        "config": {name: config[name] for name in ("dataset", "model", "method")},
        "parameters": {name: size.parameters for name, size in sizes.items()},
        "macs": {name: size.macs for name, size in sizes.items()},
        "filters": {
            "all": sum(count for count, _ in before),
            "zero": sum(zero for _, zero in before),
            "left": sum(count for count, _ in after),
            "zero_left": sum(zero for _, zero in after),
        },
        "constant_channels": constant,
        "outputs": outputs,
        "speedup": {"median": ratio["ratio"], "least": ratio["least"], "greatest": ratio["greatest"]},
        "timing": {
            "batch": batch,
            "passes": passes,
            "rounds": rounds,
            "in_shape": list(e.data.in_shape),
        },
        "environment": {
            **describe(str(e.device), e.settings.threads),
            **machine(),
            "torch_pruning": importlib.metadata.version("torch-pruning"),
        },
    }


@torch.no_grad()
def compared(
    dense: Callable[[Tensor], Tensor], compact: Callable[[Tensor], Tensor], batches: Iterable[Tensor]
) -> dict[str, Any]:
    """How far the outputs lie apart at most, as a share of the largest one, and how many classifications differ."""
    count, other, largest, apart = 0, 0, 0.0, 0.0
    for images in batches:
        a, b = dense(images), compact(images)
        count += len(images)
        other += int((a.argmax(1) != b.argmax(1)).sum())
        largest = max(largest, float(a.abs().max()))
        apart = max(apart, float((a - b).abs().max()))
    difference = apart / largest if largest else apart
    return {"images": count, "difference": difference, "other_predictions": other, "equal": difference < ROUNDING}


def _passes(model: nn.Module, images: Tensor, count: int) -> Callable[[], None]:
    @torch.inference_mode()
    def run() -> None:
        for _ in range(count):
            model(images)
        synchronize(images.device)

    return run


def machine() -> dict[str, Any]:
    """The processor, which times depend on: its name where Linux tells it, its vector instructions, its cores."""
    names: list[str] = []
    if (info := Path("/proc/cpuinfo")).exists():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
    capability = torch.backends.cpu.get_cpu_capability()
    return {"processor": names[0] if names else None, "instructions": capability}
