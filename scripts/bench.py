"""Time every method's training step against the dense step, and mask selection against a sort, as ratios.

`python scripts/bench.py [--model lenet_300_100 ...] [--rounds N] [--steps N] [--json]`. The variants are measured
interleaved, round by round, in one process: a ratio is the median over rounds, with its range. Times of single machines
mean little; the ratios travel better.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from runner.timing import interleaved

SHAPES = {"lenet_300_100": "[1,28,28]", "resnet50": "[3,224,224]"}
BATCHES = {"lenet_300_100": 100, "resnet50": 8}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["lenet_300_100", "wrn_28_2"], help="options of conf/model")
    parser.add_argument("--rounds", type=int, default=5, help="rounds over all variants")
    parser.add_argument("--steps", type=int, default=None, help="steps per variant and round (default: by model)")
    parser.add_argument("--json", action="store_true", help="print the measurements as JSON")
    options = parser.parse_args()

    from runner.errors import Misuse

    try:
        found = [measure_steps(model, options.rounds, options.steps) for model in options.model]
        found.append(measure_selection(options.rounds))
    except Misuse as misuse:
        print(f"regrow: {misuse}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        for table in found:
            show(table)
    return 0


def measure_steps(model: str, rounds: int, steps: int | None) -> dict[str, Any]:
    """Step time of every method on synthetic data, relative to the dense step."""
    from runner.compose import names

    batch = BATCHES.get(model, 100)
    steps = steps or (200 if model == "lenet_300_100" else 3)
    shape = SHAPES.get(model, "[3,32,32]")
    variants: dict[str, Callable[[], None]] = {}
    for method in ("dense", *(name for name in names("method") if name != "dense")):
        variants[method] = _stepper(model, method, batch, shape, steps)
    return {
        "title": f"{model}, batch {batch}, {steps} steps a round",
        "baseline": "dense",
        "ratios": interleaved(variants, "dense", rounds),
        **machine(),
    }


def _stepper(model: str, method: str, batch: int, shape: str, steps: int) -> Callable[[], None]:
    import torch

    from runner.compose import compose
    from runner.experiment import make
    from runner.records import RunDirectory
    from runner.trainer import Trainer

    overrides = [f"model={model}", "dataset=synthetic", f"dataset.shape={shape}", f"dataset.train_size={batch * 4}"]
    config = compose([*overrides, f"method={method}", f"schedule.batch_size={batch}", "schedule.epochs=1000000"])
    config["start"] = None  # a stage's step is timed without its parent
    trainer = Trainer(make(config), RunDirectory(tempfile.mkdtemp(prefix="regrow-bench-")))
    trainer.e.method.begin(trainer.ctx)
    order = torch.arange(batch)

    def run() -> None:
        trainer.net.train()
        for _ in range(steps):
            trainer.step(order)
            trainer.ctx.step += 1
        if trainer.e.device.type == "cuda":
            torch.cuda.synchronize()

    run()  # warm up
    return run


def measure_selection(rounds: int, size: int = 25_000_000) -> dict[str, Any]:
    """Exact global top-k over as many weights as ResNet-50 has, relative to sorting them."""
    import torch

    from methods.masks import top_mask

    scores = torch.rand(size, generator=torch.Generator().manual_seed(0))
    if torch.cuda.is_available():
        scores = scores.cuda()

    def finish(function: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            function()
            if scores.is_cuda:
                torch.cuda.synchronize()

        return run

    variants = {"sort": finish(lambda: scores.sort()), "top_mask": finish(lambda: top_mask(scores, size // 10))}
    ratios = interleaved(variants, "sort", min(rounds, 3))
    return {"title": f"keep 10 % of {size:,} weights", "baseline": "sort", "ratios": ratios, **machine()}


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"device": device, "threads": torch.get_num_threads(), "torch": torch.__version__}


def show(table: dict[str, Any]) -> None:
    """One table of ratios."""
    print(f"\n{table['title']} ({table['device']}, {table['threads']} thread(s), torch {table['torch']})")
    print(f"  {'':<12} time relative to {table['baseline']}: median [least, greatest]")
    for name, found in table["ratios"].items():
        print(f"  {name:<12} {found['ratio']:.2f}  [{found['least']:.2f}, {found['greatest']:.2f}]")


if __name__ == "__main__":
    sys.exit(main())
