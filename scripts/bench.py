"""Time everything that regrow promises to do fast, beside the plain PyTorch step or the peer that it is measured by.

`python scripts/bench.py [SECTION ...] [--rounds N] [--out FILE]`. Variants are measured in turn, round by round, in one
process: a figure is the median over rounds, with its range, beside what it should reach; those that miss it are named
at the end. Times of one machine mean little, and on a shared one less: run it alone. The record says what it ran on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import Misuse, nearest

if TYPE_CHECKING:
    from runner.bench.figures import Figure
    from runner.bench.steps import Case

SECTIONS = {
    "steps": "what each method adds to a training step",
    "updates": "one mask update of a ResNet-50",
    "selection": "the largest of 25.5 million weights",
    "loop": "the trainer's loop beside a bare one",
    "precision": "bf16, channels_last and torch.compile, of dense and sparse steps",
    "side": "small runs side by side",
    "data": "images a second, beside torchvision's loaders",
    "tables": "reading 10,000 runs, planning every cell",
    "start": "the first second of the commands",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    sections = "\n".join(f"  {name:<10} {what}" for name, what in SECTIONS.items())
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\nsections:\n{sections}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", metavar="SECTION", help="default: all of them")
    parser.add_argument("--model", nargs="+", metavar="M", help="of the steps and precision (default: all)")
    parser.add_argument("--method", nargs="+", metavar="M", help="of the steps, updates and precision")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="rounds over all variants (default: 7)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write a record there")
    options = parser.parse_args(arguments)
    try:
        return _measure(options)
    except Misuse as misuse:
        print(f"regrow: {misuse}", file=sys.stderr)
        return 2


def _measure(options: Any) -> int:
    if options.rounds < 1:
        raise Misuse(f"--rounds {options.rounds} should be 1 or above.")
    chosen = options.sections or list(SECTIONS)
    for name in chosen:
        if name not in SECTIONS:
            raise Misuse(f"There is no section {name!r}.{nearest(name, SECTIONS)}")

    from runner.bench.figures import shown
    from runner.bench.record import record
    from runner.device import reset

    figures: list[Figure] = []
    for name in dict.fromkeys(chosen):
        print(f"{SECTIONS[name]} ...", file=sys.stderr)
        reset(1, True, "fp32")
        figures += _SECTIONS[name](options)
    print(shown(figures), end="")
    if options.out is not None:
        record(figures, options.out, options.rounds)
        print(f"The record is {options.out}.", file=sys.stderr)
    return 0


def _steps(options: Any) -> list[Figure]:
    from runner.bench.steps import PEER, SELDOM, methods, overheads

    chosen = [*_methods(options, methods()), *(() if options.method else (*SELDOM, PEER))]
    found = []
    for case in _cases(options, ("lenet_300_100", "resnet20", "wrn_28_2")):
        found += overheads(case, chosen, options.rounds, max(24, 2 * case.period))
    return found


def _cases(options: Any, models: Sequence[str]) -> list[Case]:
    from runner.bench.steps import CASES

    for model in options.model or ():
        if model not in CASES:
            raise Misuse(f"There are no steps of {model!r} to time.{nearest(model, CASES)}")
    return [CASES[model] for model in options.model or models]


def _updates(options: Any) -> list[Figure]:
    from runner.bench.steps import CASES, methods, updates

    return updates(CASES["resnet50"], _methods(options, methods()), min(options.rounds, 3))


def _methods(options: Any, known: Sequence[str]) -> list[str]:
    for name in options.method or ():
        if name not in known:
            raise Misuse(f"{name!r} is no method that trains from scratch.{nearest(name, known)}")
    return [name for name in options.method or known if name != "dense"]


def _selection(options: Any) -> list[Figure]:
    from runner.bench.steps import selections

    return selections(options.rounds)


def _loop(options: Any) -> list[Figure]:
    from runner.bench.loop import loops
    from runner.bench.steps import CASES

    return [loops(CASES["lenet_300_100"], options.rounds, 600), loops(CASES["resnet20"], options.rounds, 4)]


def _precision(options: Any) -> list[Figure]:
    from runner.bench.precision import METHODS, precisions
    from runner.bench.steps import methods

    found = []
    for case in _cases(options, ("resnet20", "wrn_28_2")):
        found += precisions(case, _methods(options, methods()) if options.method else METHODS, options.rounds)
    return found


def _side(options: Any) -> list[Figure]:
    from runner.bench.side import batched, side_by_side
    from runner.bench.steps import CASES

    found = [side_by_side(CASES["lenet_300_100"], options.rounds, 400)]
    return [*found, *(batched(seeds, options.rounds, 60) for seeds in (3, 8))]


def _data(options: Any) -> list[Figure]:
    from runner.bench.loading import large_images, small_images
    from runner.cluster import cores

    threads = min(2, cores())
    return small_images(options.rounds, threads) + large_images(options.rounds, threads)


def _tables(options: Any) -> list[Figure]:
    from runner.bench.commands import tables

    return tables(min(options.rounds, 3))


def _start(options: Any) -> list[Figure]:
    from runner.bench.commands import starts

    return starts(options.rounds)


_SECTIONS: dict[str, Callable[[Any], list[Figure]]] = {
    "steps": _steps,
    "updates": _updates,
    "selection": _selection,
    "loop": _loop,
    "precision": _precision,
    "side": _side,
    "data": _data,
    "tables": _tables,
    "start": _start,
}


if __name__ == "__main__":
    sys.exit(main())
