"""Find the knob of cells that ask for a sparsity: `python scripts/calibrate.py PAPER/TABLE/ROW/COLUMN`.

A few short runs bracket the target and narrow it down, one or two runs at the cell's own length confirm it. What was
tried, and how far off it ended, goes into a record under results/calibrations; committed, it makes the cells runnable.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from methods.knob import Knob
from results.address import PAPERS, select
from results.calibration import CALIBRATIONS, Question, path_of, question, read, spelt, write
from results.command import Arguments, checked_profile, remembered, say
from results.fill import FULL
from results.search import Search, confirm, search
from runner.compose import compose, names, parse
from runner.errors import Misuse
from runner.identity import key


@dataclass
class Asked:
    """A question, the cells that ask it and the seed of its runs."""

    question: Question
    seed: int
    cells: list[str] = field(default_factory=list)


@remembered()
def main(arguments: Sequence[str] | None = None, papers: Path = PAPERS, root: Path = CALIBRATIONS) -> int:
    """Calibrate; returns 0 when every target is hit, 1 when one is not, 2 for a mistake, 75 when interrupted."""
    try:
        options = _parser().parse_intermixed_args(arguments)
        overrides = _overrides(options)
        profile = checked_profile(options.profile)
        asked = _questions(_addresses(options), profile, overrides, papers)
    except Misuse as misuse:
        say([str(misuse)])
        return 2
    if not asked:
        print("Nothing to calibrate: none of these cells has an open knob.")
        return 0
    missed = 0
    try:
        for each in asked:
            path = path_of(each.question, root)
            if path.exists() and read(path)["value"] is not None and not options.force:
                print(f"{path} has the answer already; --force asks again.")
                continue
            if options.dry_run:
                print(f"{each.question.knob} for {each.question.metric} = {each.question.target:g}: {each.cells}")
                continue
            record = _calibrate(each, profile, overrides, options)
            write(path, record)
            print(f"{record['sentence']} Record: {path}")
            missed += not record["hit"]
    except Misuse as misuse:
        say([str(misuse)])
        return 2
    except _interruption() as interruption:
        say([f"Interrupted ({type(interruption).__name__}); the same command goes on from the runs that are saved."])
        return 75
    return 1 if missed else 0


def _parser() -> Arguments:
    parser = Arguments(
        "calibrate.py",
        description="Find the value of a method's knob at which a cell's target is reached. Runs on this machine, one "
        "after the other; completed runs are not repeated.",
    )
    parser.add_argument("words", nargs="+", metavar="ADDRESS | KEY=VALUE", help="cells, and overrides of every run")
    parser.add_argument(
        "--profile", metavar="P", help="calibrate the cells of this profile: " + ", ".join(names("profile"))
    )
    parser.add_argument(
        "--search", metavar="P", default="tenth", help="the search runs' profile (default: %(default)s)"
    )
    parser.add_argument("--tolerance", type=float, default=0.003, help="how far off is a hit (default: %(default)s)")
    parser.add_argument("--budget", type=int, default=8, metavar="N", help="search runs at most (default: %(default)s)")
    parser.add_argument(
        "--confirm", type=int, default=4, metavar="N", help="runs at full length (default: %(default)s)"
    )
    parser.add_argument("--guess", type=float, metavar="X", help="the first value (default: the method's)")
    parser.add_argument("--runs", metavar="DIR", help="the runs root (default: runs, or REGROW_RUNS)")
    parser.add_argument(
        "--accept", action="store_true", help="let the cells use the nearest value, even off the target"
    )
    parser.add_argument("--force", action="store_true", help="calibrate anew what has a record")
    parser.add_argument("--dry-run", action="store_true", help="say what is to be calibrated; run nothing")
    return parser


def _addresses(options: Any) -> list[str]:
    addresses = [word for word in options.words if "=" not in word]
    if not addresses:
        raise Misuse("say which cells: an address such as lats/table3/str_256/a90.")
    for name, low in (("budget", 1), ("confirm", 1)):
        if getattr(options, name) < low:
            raise Misuse(f"--{name} {getattr(options, name)} should be {low} or above.")
    if not options.tolerance > 0:
        raise Misuse(f"--tolerance {options.tolerance} should be above 0.")
    return addresses


def _overrides(options: Any) -> list[str]:
    checked_profile(options.search)
    given = [word for word in options.words if "=" in word]
    for override in parse(given):
        if override.key_or_group in ("seed", "profile"):
            raise Misuse(f"{override.input_line}: calibration takes the table's first seed, and --profile.")
    return [*given, *([] if options.runs is None else [f"runs='{options.runs}'"])]


def _questions(addresses: list[str], profile: str | None, overrides: list[str], papers: Path) -> list[Asked]:
    """The distinct questions of the addressed cells; those that need what is not there yet are named and left out."""
    found: dict[str, Asked] = {}
    for selection in select(addresses, papers):
        for slot in selection.slots(profile):
            if slot.knob is None or slot.settings.kind != "runs":
                continue
            if slot.needs:
                print(f"{slot.address} needs {', '.join(slot.needs)}, which is not there yet.")
                continue
            asked = question(slot, compose)
            if isinstance(asked.target, str):
                print(
                    f"{slot.address} asks for the {asked.target} {asked.metric}: python -m runner -m "
                    f"hydra/sweeper=lr_grid hydra.sweeper.parameter={asked.knob} cell={slot.address} finds it."
                )
                continue
            seeds = slot.settings.seeds or (0,)
            found.setdefault(asked.id, Asked(asked, seeds[0])).cells.append(slot.address)
    return list(found.values())


def _calibrate(asked: Asked, profile: str | None, overrides: list[str], options: Any) -> dict[str, Any]:
    """Search, confirm, and the record of both."""
    tried: list[dict[str, Any]] = []
    own, target = profile or FULL, asked.question.target
    assert isinstance(target, float)  # _questions leaves out what is tuned for the best
    knob = _knob(asked, overrides, options.guess)

    def measure(value: float, at: str) -> float:
        trial = _measure(asked, value, at, overrides)
        tried.append(trial)
        print(
            f"  {asked.question.knob} = {spelt(value)} ({at}): {asked.question.metric} = {trial['reached']:.4f}",
            flush=True,
        )
        return float(trial["reached"])

    print(f"{asked.question.knob} for {asked.question.metric} = {target:g} ({', '.join(asked.cells[:3])}):", flush=True)
    found = search(lambda value: measure(value, options.search), knob, target, options.tolerance, options.budget)
    long = found
    if options.search != own and found.best is not None:
        long = confirm(lambda value: measure(value, own), found, options.confirm)
    best = long.best
    return {
        "cells": asked.cells,
        "knob": asked.question.knob,
        "metric": asked.question.metric,
        "target": target,
        "tolerance": options.tolerance,
        "profile": own,
        "overrides": list(asked.question.overrides),
        "tried": tried,
        "hit": long.hit,
        "value": best.value if best is not None and (long.hit or options.accept) else None,
        "reached": None if best is None else best.reached,
        "search": found.ended,
        "sentence": _sentence(asked, long, len(tried)),
    }


def _sentence(asked: Asked, found: Search, runs: int) -> str:
    """How it ended; `found`: the runs at full length, or the search where there are none."""
    name, metric, target, best = asked.question.knob, asked.question.metric, found.target, found.best
    if best is None:
        return f"No value of {name} gave a {metric} within {runs} run(s): {found.ended}."
    off = f"{metric} = {best.reached:.4f} where {target:g} was asked for (off by {best.reached - target:+.4f})"
    if found.hit:
        return f"{name} = {spelt(best.value)} reaches {off}, after {runs} run(s)."
    nearest = f"the nearest value, {name} = {spelt(best.value)}, reaches {off}"
    return f"Not calibrated: {nearest}: {found.ended}, and {found.placed}."


def _knob(asked: Asked, overrides: list[str], guess: float | None) -> Knob:
    """What the method declares of the option, from `guess` on unless None; Misuse when it declares none such."""
    from runner.build import locate

    config = compose([*asked.question.overrides_at(1.0), *overrides])
    method: Any = locate(config["method"]["_target_"], "method")
    declared = {f"method.{knob.option}": knob for knob in method.knobs}
    if asked.question.knob not in declared:
        raise Misuse(
            f"the method {config['method']['name']} declares {' and '.join(declared) or 'none'} as its knob, not "
            f"{asked.question.knob}."
        )
    knob = declared[asked.question.knob]
    if guess is None:
        return knob
    try:
        return replace(knob, guess=guess)
    except ValueError as error:
        raise Misuse(f"--guess {guess:g}: {error}.") from error


def _measure(asked: Asked, value: float, profile: str, overrides: list[str]) -> dict[str, Any]:
    """One run with the knob at `value`; `reached` is nan when it failed or its loss is not finite."""
    from results import number
    from runner.execute import execute

    chosen = [*asked.question.overrides_at(value), f"profile={profile}", *overrides, f"seed={asked.seed}"]
    config = compose(chosen)
    summary = execute(config, chosen)
    reached, loss = math.nan, number.read(summary["final"].get("train/loss"))
    if loss is not None and math.isfinite(loss):
        found = number.read(summary["final"].get(asked.question.metric))
        if found is None:
            raise Misuse(f"the run {key(config)} has ended without the metric {asked.question.metric}.")
        reached = found
    return {
        "value": value,
        "profile": profile,
        "seed": asked.seed,
        "key": key(config),
        "status": summary["status"],
        "reached": reached,
    }


def _interruption() -> type[BaseException]:
    from runner.trainer import Interrupted

    return Interrupted


if __name__ == "__main__":
    sys.exit(main())
