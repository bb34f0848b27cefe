"""A sweeper of Hydra's that tunes an option by a grid (Lin et al. 2020, A.2): `-m hydra/sweeper=lr_grid`.

Each combination of the other options that the command line sweeps has a grid of its own; of several seeds the mean
decides. Runs are read from their records, so that the same command, given again, repeats none that is complete and goes
on with the others. All that was tried goes into a record, which is a calibration record (`results.calibration`): in
results/calibrations it makes a cell runnable whose overrides hold `schedule.lr=???`.
"""

from __future__ import annotations

import math
import re
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from methods.schedules import is_epoch_ranges
from results.address import find_slot
from results.calibration import CALIBRATIONS, Question, ask, path_of, spelt, write
from results.files import Unusable
from results.grid import Grid, Spacing
from results.record import Record, read_directory
from results.search import Trial
from results.settings import BEST, Target
from runner.build import build, locate
from runner.compose import CONF, compose, parse
from runner.errors import Misuse, nearest
from runner.identity import Config, run_dir
from runner.launcher import INTERRUPTED, LAUNCHER, REFUSED, Here, hand_over, job, launcher_of, make_launcher, prepared

SWEEPER = "hydra/sweeper"
_WHERE = "hydra.sweeper"
_DONE = ("completed", "diverged")
# What of a command line says where and how it runs, and nothing of what it measures.
_MACHINE = ("cluster", "data", "logger", "runs", "trainer")


def sweep(overrides: Sequence[str], options: Sequence[str]) -> int:
    """Sweep by the sweeper that `options` (overrides of Hydra's own) name; its exit code. Misuse for a mistake."""
    name = launcher_of(options, (SWEEPER, f"{_WHERE}.", LAUNCHER, "hydra.launcher."))
    chosen = {override.key_or_group: override.value() for override in parse(options)}
    known = sorted(path.stem for path in (CONF / SWEEPER).glob("*.yaml"))
    if SWEEPER not in chosen:
        raise Misuse(f"{_WHERE}.* are settings of a sweeper; choose one, {SWEEPER}={known[0]}.")
    if chosen[SWEEPER] not in known:
        raise Misuse(f"there is no {SWEEPER} {str(chosen[SWEEPER])!r}.{nearest(str(chosen[SWEEPER]), known)}")
    machine = [text for text in overrides if text.startswith("runs=")]
    with prepared(options, compose(machine)["runs"]) as (context, settings):
        sweeper = build(_section(settings), _WHERE)
        sweeper.launcher_name = name if LAUNCHER in chosen else ""
        sweeper.setup(hydra_context=context, task_function=job, config=settings)
        return int(sweeper.sweep(list(overrides)))


def _section(settings: DictConfig) -> dict[str, Any]:
    section = OmegaConf.to_container(settings.hydra.sweeper, resolve=True)
    assert isinstance(section, dict)
    return {str(name): value for name, value in section.items()}


@dataclass
class Variant:
    """A grid over the parameter, under overrides of its own (another optimizer, say)."""

    name: str
    overrides: tuple[str, ...]
    grid: Grid
    runs: dict[float, list[dict[str, Any]]] = field(default_factory=dict)  #: value -> its runs, as the record has them


@dataclass
class Search:
    """What is asked of one combination of the other options: the best value of the parameter, over some seeds."""

    question: Question
    seeds: tuple[int, ...]
    profile: str
    home: Path  #: the folder of its record
    variants: list[Variant]

    @property
    def best(self) -> tuple[Variant, Trial] | None:
        """The variant and the trial that are best; the first of equal ones. None when all have diverged."""
        found = [(variant, variant.grid.best) for variant in self.variants]
        finite = [(variant, trial) for variant, trial in found if trial is not None]
        return max(finite, key=lambda pair: pair[0].grid.score(pair[1]), default=None)

    def overrides(self, variant: Variant, value: float, seed: int) -> list[str]:
        """Those of a run."""
        return [*self.question.overrides_at(value, variant.overrides), f"seed={seed}"]


class GridSweeper(Sweeper):
    """Tunes `parameter` on a grid that goes on while the best lies at an edge; conf/hydra/sweeper says what all is."""

    def __init__(
        self,
        *,
        parameter: str,
        values: list[float],
        step: float | None = None,
        ratio: float | None = None,
        low: float | None = None,
        high: float | None = None,
        max_values: Annotated[int, "1 <= x"] = 12,
        metric: str | None = None,
        direction: Literal["up", "down"] | None = None,
        variants: dict[str, Any] | None = None,
        record: str | None = None,
    ) -> None:
        self.parameter = parameter
        self.metric, self.direction = metric, direction
        self.record = None if record is None else Path(record)
        own = {"values": values, "step": step, "ratio": ratio, "low": low, "high": high, "max_values": max_values}
        self.spacings = _spacings(own, variants)
        self.launcher_name = ""  #: none: one after the other in this process
        self.launcher: Launcher = Here()

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Make the launcher."""
        if self.launcher_name:
            self.launcher = make_launcher(self.launcher_name, hydra_context, task_function, config)

    def sweep(self, arguments: list[str]) -> int:
        """Tune; `arguments` are the overrides of the command line, swept ones among them.

        Returns 0 when every grid has its best inside, 1 when one has not or a run failed, 2 when one was refused (its
        data are not there, say), 75 when interrupted (what runs is saved). Misuse for a mistake, found before anything
        begins where that is possible.
        """
        searches = self._searches(arguments)
        begun = 0
        while wanted := self._wanted(searches):
            batch = self._check(wanted)
            missing = [overrides for overrides, path in batch.items() if _ended(path) is None]
            if missing:
                names = [f"{self.parameter} = {spelt(value)}" for value in dict.fromkeys(v for _, _, v in wanted)]
                by = f" by {LAUNCHER}={self.launcher_name}" if self.launcher_name else ""
                _say(f"{len(missing)} run(s){by}: {', '.join(names)}")
                codes = hand_over(self.launcher, self.launcher_name, missing, begun)
                begun += len(missing)
                if sentence := _lacking(batch, INTERRUPTED in codes):
                    _say(sentence)
                    return next((code for code in (INTERRUPTED, REFUSED) if code in codes), 1)
            for search, variant, value in wanted:
                self._tell(search, variant, value)
        return max(self._conclude(search) for search in searches)

    # What is asked

    def _searches(self, arguments: list[str]) -> list[Search]:
        from runner.__main__ import _cells, _expand

        if any(o.is_sweep_override() and o.get_key_element() == self.parameter for o in map(_parsed, arguments)):
            raise Misuse(f"{self.parameter} is what is tuned; its values are {_WHERE}.values.")
        found: dict[str, Search] = {}
        for combination in _expand(arguments):
            addresses = [text.removeprefix("cell=") for text in combination if text.startswith("cell=")]
            target = find_slot(addresses[0]).settings.target if addresses else None
            asks = target if target is not None and isinstance(target.value, str) else None
            for overrides in _cells(combination, self.parameter):
                self._add(found, overrides, asks)
        return list(found.values())

    def _add(self, found: dict[str, Search], overrides: list[str], cell: Target | None) -> None:
        """A search for these overrides, or one more seed of the one that there is."""
        keys = [override.key_or_group for override in parse(overrides)]
        known = tuple(text for text, key in zip(overrides, keys, strict=True) if text != f"{self.parameter}=???")
        config = compose(known)
        _check_number(config, self.parameter)
        others = tuple(text for text, key in zip(overrides, keys, strict=True) if key not in ("seed", self.parameter))
        target = self._target(config, cell)
        question = ask(others, self.parameter, target, compose)
        if question.id in found:
            search = found[question.id]
            search.seeds = tuple(dict.fromkeys((*search.seeds, config["seed"])))
            return
        up = target.value == BEST["up"]
        home = self.record or (CALIBRATIONS if target is cell else Path(config["runs"]) / "sweeps")
        profile = config["profile"]["name"]
        variants = [Variant(name, also, Grid(spacing, up)) for name, (also, spacing) in self.spacings.items()]
        found[question.id] = Search(question, (config["seed"],), profile, home, variants)

    def _target(self, config: Config, cell: Target | None) -> Target:
        """The metric and whether its highest or its lowest value is looked for: as said here, by the cell, the task."""
        task = locate(config["task"]["_target_"], "task")
        directions: Mapping[str, str] = getattr(task, "directions", {})
        metric = self.metric or (cell.metric if cell is not None else f"test/{getattr(task, 'metric', '')}")
        if self.direction is None and cell is not None and cell.metric == metric:
            return cell
        direction = self.direction or directions.get(metric.split("/")[-1])
        if direction is None:
            raise Misuse(f"which way {metric} is better is not known; say {_WHERE}.direction=up or down.")
        return Target(metric, BEST[direction])

    def _wanted(self, searches: Sequence[Search]) -> list[tuple[Search, Variant, float]]:
        return [(search, variant, value) for search in searches
                for variant in search.variants for value in variant.grid.wanted()]  # fmt: skip

    def _check(self, wanted: Sequence[tuple[Search, Variant, float]]) -> dict[tuple[str, ...], Path]:
        """The runs of these values, by their overrides, and where they lie; Misuse for a value that cannot be."""
        from runner.experiment import validate  # loads torch

        batch = {}
        for search, variant, value in wanted:
            for seed in search.seeds:
                overrides = search.overrides(variant, value, seed)
                try:
                    config = compose(overrides)
                    validate(config)
                except Misuse as misuse:
                    bounds = f"{_WHERE}.low and {_WHERE}.high keep a grid within bounds"
                    raise Misuse(f"{self.parameter} = {spelt(value)}: {str(misuse).rstrip('.')}; {bounds}.") from None
                batch[tuple(overrides)] = run_dir(config["runs"], config)
        return batch

    # What came of it

    def _tell(self, search: Search, variant: Variant, value: float) -> None:
        """Tell the grid the mean over the seeds: nan if one has diverged."""
        runs: list[dict[str, Any]] = []
        for path in self._check([(search, variant, value)]).values():
            record = _ended(path)
            assert record is not None  # _lacking has looked
            reached = record.value(search.question.metric) if record.status == "completed" else math.nan
            if reached is None:
                known = [*((record.summary or {}).get("final") or {})]
                what = f"the run {path} has no metric {search.question.metric!r}"
                raise Misuse(f"{what}.{nearest(search.question.metric, known)}")
            key, seed = record.identity
            runs.append({"key": key, "seed": seed, "status": record.status, "reached": reached})
        variant.runs[value] = runs
        variant.grid.tell(value, statistics.fmean(run["reached"] for run in runs))

    def _conclude(self, search: Search) -> int:
        """Print and write what was tried and what is chosen; the exit code."""
        question, best = search.question, search.best
        contained = best is not None and best[0].grid.contained
        what = f"{question.knob} for the {question.target} {question.metric} of {question.folder}"
        lines = [f"{what} ({len(search.seeds)} seed(s)): {shlex.join(question.overrides)}"]
        for variant in search.variants:
            if len(search.variants) > 1:
                lines.append(f"  {variant.name}: {variant.grid.ended}")
            for trial in variant.grid.trials:
                each = [run["reached"] for run in variant.runs[trial.value]]
                shown = f"{trial.reached:.4f}" if trial.finite else "diverged"
                spread = f" ± {statistics.stdev(each):.4f}" if trial.finite and len(each) > 1 else ""
                mark = "  <- best" if best == (variant, trial) else ""
                lines.append(f"  {spelt(trial.value):>10}  {shown}{spread}{mark}")
        sentence = self._sentence(search, best, contained)
        path = path_of(question, search.home)
        if _first():
            write(path, self._record(search, best, contained, sentence))
        for line in (*lines, f"{sentence} Record: {path}"):
            _say(line)
        return 0 if contained else 1

    def _sentence(self, search: Search, best: tuple[Variant, Trial] | None, contained: bool) -> str:
        question = search.question
        count = sum(len(variant.grid.trials) for variant in search.variants)
        if best is None:
            return f"Nothing is chosen: all {count} values of {question.knob} have diverged."
        variant, trial = best
        chosen = " ".join((*variant.overrides, f"{question.knob}={spelt(trial.value)}"))
        reached = f"the {question.target} {question.metric} of {count} values, {trial.reached:.4f}"
        if contained:
            return f"{chosen} gives {reached}."
        full = len(variant.grid.values) >= variant.grid.spacing.max_values
        bound = "low" if trial.value == variant.grid.values[0] else "high"
        mend = f"raise {_WHERE}.max_values" if full else f"move {_WHERE}.{bound}"
        return f"Nothing is chosen: {chosen} gives {reached}, but {variant.grid.ended}; {mend}."

    def _record(
        self, search: Search, best: tuple[Variant, Trial] | None, contained: bool, sentence: str
    ) -> dict[str, Any]:
        question = search.question
        return {
            "knob": question.knob,
            "metric": question.metric,
            "target": question.target,
            "profile": search.profile,
            "overrides": [text for text in question.overrides if re.split(r"[.=/]", text)[0] not in _MACHINE],
            "seeds": list(search.seeds),
            "grids": [
                {
                    "name": variant.name,
                    "overrides": list(variant.overrides),
                    "ended": variant.grid.ended,
                    "tried": [
                        {"value": trial.value, "reached": trial.reached, "runs": variant.runs[trial.value]}
                        for trial in variant.grid.trials
                    ],
                }
                for variant in search.variants
            ],
            "hit": contained,
            "with": list(best[0].overrides) if best is not None and contained else [],
            "value": best[1].value if best is not None and contained else None,
            "reached": None if best is None else best[1].reached,
            "sentence": sentence,
        }


def _spacings(own: Mapping[str, Any], variants: Mapping[str, Any] | None) -> dict[str, tuple[tuple[str, ...], Spacing]]:
    """The grid of each variant, its overrides beside it; one without a name where there are no variants."""
    known = ["overrides", *(each.name for each in fields(Spacing))]
    found = {}
    for name, given in (variants or {"": {}}).items():
        where = f"{_WHERE}.variants.{name}" if name else _WHERE
        if given is None:  # variants.NAME=null takes one out
            continue
        if not isinstance(given, Mapping):
            raise Misuse(f"{where} = {given!r} should be a section: {{overrides: [...], values: [...]}}.")
        for option in given:
            if option not in known:
                raise Misuse(f"there is no option '{where}.{option}'.{nearest(str(option), known)}")
        overrides = given.get("overrides", [])
        if not isinstance(overrides, list) or not all(isinstance(text, str) for text in overrides):
            raise Misuse(f"{where}.overrides = {overrides!r} should be a list of overrides, KEY=VALUE.")
        parse(overrides)
        try:
            found[name] = tuple(overrides), Spacing(**{**own, **{n: given[n] for n in given if n != "overrides"}})
        except (ValueError, TypeError) as error:
            raise Misuse(f"{where}.{error}.") from None
    if not found:
        raise Misuse(f"{_WHERE}.variants has none left; give one, or variants=null.")
    return found


def _check_number(config: Config, parameter: str) -> None:
    """Misuse when the configuration has no such option, or one that is no number."""
    node: Any = config
    for part in parameter.split("."):
        if not isinstance(node, dict) or part not in node:
            compose([f"{parameter}=0"])  # says what there is instead
            raise Misuse(f"there is no option {parameter!r} here; {_WHERE}.parameter names what is tuned.")
        node = node[part]
    if is_epoch_ranges(node):
        raise Misuse(
            f"{parameter} = {node!r} is no number here, and a grid of numbers would replace all of it; "
            f"say {parameter}=0.1, any number, if it may, or tune another {_WHERE}.parameter."
        )
    if node is not None and (isinstance(node, bool) or not isinstance(node, int | float)):
        raise Misuse(f"{parameter} = {node!r} is no number; {_WHERE}.parameter names the number to tune.")


def _parsed(text: str) -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(text)
    except HydraException:
        raise Misuse(f"{text!r} is not an override; write key=value or key=a,b,c.") from None


def _ended(path: Path) -> Record | None:
    """The record of a run that is not to be repeated; None while it is missing, interrupted or failed."""
    if not (path / "summary.json").exists():
        return None
    try:
        record, _ = read_directory(path)
    except Unusable as error:
        raise Misuse(f"{path}: {error}.") from None
    return record if record.status in _DONE else None


def _lacking(batch: Mapping[tuple[str, ...], Path], interrupted: bool) -> str | None:
    """A sentence when runs of a batch have not come to an end."""
    lacking = [path for path in batch.values() if _ended(path) is None]
    if not lacking:
        return None
    if interrupted:
        return "Interrupted; what was running is saved. The same command goes on from there."
    log = lacking[0] / "log.txt"
    where = f" (log: {log})" if log.exists() else ""
    return f"{len(lacking)} of {len(batch)} run(s) have not ended well, such as {lacking[0]}{where}; " \
        "nothing is chosen. The same command tries them again."  # fmt: skip


def _first() -> bool:
    from runner.__main__ import _speaks

    return _speaks()


def _say(line: str) -> None:
    if _first():
        print(line, flush=True)
