"""`python -m runner <overrides>`: one run; with `-m`, a sweep; `cell=PAPER/TABLE/ROW/COLUMN`, a table's cell."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

USAGE = """\
python -m runner [OVERRIDE ...]                  one run
python -m runner -m OVERRIDE=A,B [...]           a sweep: every combination, one after the other
python -m runner -m hydra/launcher=submitit_slurm hydra.launcher.timeout_min=240 [...]
                                                 a sweep by a launcher of Hydra's: it waits for its
                                                 jobs, which compose when they start; nothing is frozen
                                                 (scripts/submit.py returns at once, and freezes)
python -m runner -m hydra/launcher=pool [...]    a sweep on this machine's cluster.workers processes
python -m runner -m hydra/sweeper=lr_grid [seed=0,1,2] [hydra/launcher=...] [...]
                                                 tune schedule.lr: a linear grid that goes on while the
                                                 best lies at an edge; see conf/hydra/sweeper/lr_grid.yaml
                                                 (hydra.sweeper.values, step, metric, max_values ...)
python -m runner cell=PAPER/TABLE/ROW/COLUMN     the runs of one table cell

Overrides are key=value: a group's option (method=dsr, experiment=dsr/lenet_mnist) or a
single setting (method.sparsity=0.9, schedule.epochs=20, seed=3). A completed run is not
repeated, an interrupted one resumes. Runs go to runs/ (runs=DIR or REGROW_RUNS), data come
from data.root=DIR or REGROW_DATA, choices from conf/ and from the packages of your own that
REGROW_PACKAGES=my_pkg,other allows (CONTRIBUTING.md).

  --help            this text and the choices of every group, a line each
  --cfg             print the resolved configuration, its key and its directory; train nothing
"""


def main(arguments: list[str]) -> int:
    """The command line; returns the exit code (0 done, 1 failed, 2 misuse, 3 diverged, 75 interrupted and saved)."""
    from runner.errors import Misuse

    flags = {a for a in arguments if a.startswith("-")}
    overrides = [a for a in arguments if not a.startswith("-")]
    try:
        if flags & {"-h", "--help"}:
            return _help()
        if unknown := flags - {"-m", "--multirun", "--cfg"}:
            raise Misuse(f"there is no flag {min(unknown)}; see python -m runner --help.")
        hydras = [o for o in overrides if o.startswith(("hydra/", "hydra."))]
        overrides = [o for o in overrides if o not in hydras]
        if any(o.startswith(("hydra/sweeper", "hydra.sweeper.")) for o in hydras) and "--cfg" not in flags:
            if not flags & {"-m", "--multirun"}:
                raise Misuse(f"{hydras[0]} is for sweeps; add -m.")
            from runner.sweeper import sweep as tune  # loads Hydra's plugins

            return tune(overrides, hydras)
        sweep = _expand(overrides) if flags & {"-m", "--multirun"} else [overrides]
        jobs = [job for each in sweep for job in _cells(each)]
        if "--cfg" in flags:
            return max(_show(job) for job in jobs)
        if not hydras:
            return _run(jobs)
        if not flags & {"-m", "--multirun"}:
            raise Misuse(f"{hydras[0]} is for sweeps; add -m.")
        from runner.launcher import launch  # loads Hydra's plugins

        return launch(jobs, hydras)
    except Misuse as misuse:
        if _speaks():
            from runner.secrecy import redacted

            print(f"regrow: {redacted(str(misuse))}", file=sys.stderr)
        return 2


def _speaks() -> bool:
    """Whether this process reports: rank 0 of those that torchrun or srun started, or the only one."""
    from runner.world import ALONE, recognised

    return (recognised(os.environ) or ALONE).first


def _help() -> int:
    """The manual: how to call it, and a line for every choice of every group."""
    from runner.compose import groups, headline, names

    choices = {group: names(group) for group in sorted(groups(), key=_place)}
    print(USAGE)
    width = max(100, shutil.get_terminal_size().columns)
    for group, every in choices.items():
        print(f"\n{group}=")
        wide = max(map(len, every))
        for name in every:
            said = textwrap.shorten(headline(group, name), width - wide - 4, placeholder=" ...")
            print(f"  {name:<{wide}}  {said}".rstrip())
    return 0


def _place(group: str) -> tuple[int, str]:
    """What is chosen most often comes first."""
    first = ("experiment", "method", "model", "dataset", "schedule", "task", "profile")
    return (first.index(group) if group in first else len(first), group)


def _expand(overrides: list[str]) -> list[list[str]]:
    """Every combination of a sweep, in Hydra's grammar (a,b,c; range(0,5); choice(x,y); glob is not supported)."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    from runner.errors import Misuse

    choices = []
    for text in overrides:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException:
            raise Misuse(f"{text!r} is not an override; write key=value or key=a,b,c.") from None
        if override.is_sweep_override():
            key = override.get_key_element()
            choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            choices.append([text])
    return [list(job) for job in itertools.product(*choices)]


def _cells(overrides: list[str], tuned: str | None = None) -> list[list[str]]:
    """Replace cell=ADDRESS by the overrides of the cell's runs: one per seed, or the one seed that is named.

    `tuned`: the option that may be an open knob of the cell.
    """
    addresses = [o.removeprefix("cell=") for o in overrides if o.startswith("cell=")]
    others = [o for o in overrides if not o.startswith("cell=")]
    if not addresses:
        return [overrides]
    from results.address import find_slot
    from results.calibration import applied
    from runner.compose import compose
    from runner.errors import Misuse

    jobs = []
    for address in addresses:
        slot = find_slot(address)
        if slot.knob != f"{tuned}=???":
            slot, _ = applied(slot, compose)
        if slot.settings.kind != "runs":
            source = "other cells" if slot.settings.kind == "derived" else "the configuration"
            raise Misuse(f"{address} is read from {source}; there is nothing to run.")
        if slot.needs:
            raise Misuse(f"{address} cannot run yet: it needs {', '.join(slot.needs)}.")
        knob = (slot.knob or "").removesuffix("???")
        if knob and knob != f"{tuned}=" and not any(o.startswith(knob) for o in others):
            best = slot.settings.target is not None and isinstance(slot.settings.target.value, str)
            tune = f"python -m runner -m hydra/sweeper=lr_grid hydra.sweeper.parameter={knob[:-1]} cell={address}"
            command = tune if best else f"python scripts/calibrate.py {address}"
            raise Misuse(f"{address} has the open knob {knob}; {command} finds its value.")
        named = any(o.startswith("seed=") for o in others)
        seeds = [] if named else [f"seed={seed}" for seed in slot.settings.seeds or ()]
        jobs += [[*slot.overrides, *seed, *others] for seed in ([[s] for s in seeds] or [[]])]
    return jobs


def _show(overrides: list[str]) -> int:
    from omegaconf import OmegaConf

    from runner.compose import compose
    from runner.identity import key, run_dir

    config = compose(overrides)
    print(f"# key {key(config)}, directory {run_dir(config['runs'], config)}")
    print(OmegaConf.to_yaml(OmegaConf.create(config)), end="")
    return 0


def _run(jobs: list[list[str]]) -> int:
    from runner.compose import compose

    configs = [compose(job) for job in jobs]  # all of them before anything starts
    from runner.execute import REQUEUE, execute
    from runner.experiment import validate
    from runner.failure import foreseen
    from runner.identity import run_dir
    from runner.progress import Live
    from runner.trainer import Interrupted

    for config in configs:
        validate(config)
    say: Callable[[str], None] = _say if _speaks() else lambda line: None
    code = 0
    for config, overrides in zip(configs, jobs, strict=True):
        say(f"{run_dir(config['runs'], config)}")
        try:
            if _speaks():
                with Live(_metrics) as live:
                    summary = execute(config, overrides, live)
            else:
                summary = execute(config, overrides)
        except Interrupted:
            say("  interrupted and saved; the same command resumes it")
            return REQUEUE
        except Exception as error:
            if (sentence := foreseen(error)) is None:
                raise
            say(f"  failed: {sentence}")
            return 1
        final = summary["final"]
        say(f"  {summary['status']}: {_metrics(final)}" + (f" ({summary['reason']})" if summary["reason"] else ""))
        say(f"  {_cost(final)}")
        say(f"  its layers and its tables: python scripts/runs.py show {run_dir(config['runs'], config)}")
        code = max(code, 0 if summary["status"] == "completed" else 3)
    return code


def _say(line: str) -> None:
    from runner.untrusted import printable

    print(printable(line), flush=True)  # a recorded reason may be anything


def _cost(line: dict[str, Any]) -> str:
    """What the run's network does and what its training took, as the last epoch's line has it."""
    told = []
    if "effective/sparsity" in line:
        told.append(f"{100 * float(line['effective/sparsity']):.4g} % of the weights are zero")
    ratios = {name: line.get(f"flops/{name}_ratio") for name in ("inference", "training")}
    if known := [f"{name} {float(value):.3g}" for name, value in ratios.items() if value is not None]:
        told.append(f"FLOPs relative to dense: {', '.join(known)}")
    if "time/training_s" in line:
        told.append(f"{float(line['time/training_s']):.1f} s of training")
    return "; ".join(told)


def _metrics(line: Mapping[str, Any]) -> str:
    shown = {name: value for name, value in line.items() if name.startswith(("train/", "test/", "mask/sparsity"))}
    return "  ".join(f"{name} {float(value):.4g}" for name, value in shown.items())  # recorded ones may be "nan"


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it quietly, and no training
    sys.exit(main(sys.argv[1:]))
