"""Theorem A.1 of Chijiwa et al. 2021 as an experiment: the width that is needed for an error, beside the theorem's.

The mathematics is in methods.approximation. A record is plain JSON data; `markdown` and `draw` show it. No torch here.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from methods import approximation
from results import files
from results.statistics import clopper_pearson
from runner.errors import Misuse

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

SCHEMA = 1
HARDEST = "hardest"
_MEMORY = 1.0  # GiB for the weights of one neuron per input and sign, of all repetitions


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is asked. `targets`: "hardest" (the one weight 1), or the sizes of random networks, 2-2-1; 1-1 is a weight.

    `draws`: the R to measure at; `most`: the neurons per input and sign up to which widths are tried. Misuse for a
    value that makes no sense.
    """

    targets: Sequence[str] = ("1-1", HARDEST, "2-2-1")
    draws: Sequence[int] = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 100)
    error: float = 0.1
    failure: float = 0.05
    repetitions: int = 10_000
    most: int = 100_000
    seed: int = 0

    def __post_init__(self) -> None:
        for name, given in (("targets", self.targets), ("draws", self.draws)):
            if len(set(given)) < len(given) or not given:
                raise Misuse(f"{name} are {', '.join(map(str, given)) or 'none'}; give each once, and one at least.")
        for name in ("error", "failure"):
            if not 0 < getattr(self, name) < 1:
                raise Misuse(f"{name} is {getattr(self, name):g}; it lies between 0 and 1, as in the theorem's lemmas.")
        for name, number in (
            ("draws", min(self.draws, default=0)),
            ("repetitions", self.repetitions),
            ("most", self.most),
        ):
            if number < 1:
                raise Misuse(f"{name} is {number}; it is a whole number from 1.")
        if self.seed < 0:
            raise Misuse(f"seed is {self.seed}; it is a whole number from 0.")
        for target in self.targets:
            gib = max(a * b for a, b in pairwise(sizes(target))) * 16 * max(self.draws) * self.repetitions / 2**30
            if gib > _MEMORY:
                raise Misuse(f"{target} takes {gib:.1f} GiB a neuron; fewer repetitions or draws, or smaller sizes.")


def sizes(target: str) -> tuple[int, ...]:
    """d_0 ... d_l of a target; Misuse for a text that is none."""
    if target == HARDEST:
        return 1, 1
    found = tuple(map(int, target.split("-"))) if re.fullmatch(r"\d+(-\d+)+", target) else ()
    if not found or min(found) < 1:
        raise Misuse(
            f"'{target}' is no target: give '{HARDEST}', or the sizes of a network from its input to its output, as in "
            "2-2-1."
        )
    return found


def measure(settings: Settings) -> Iterator[dict[str, Any]]:
    """A row for every target and number of draws, as it is measured; each from random numbers of its own.

    theorem: its n. proof: the least n that holds the proof's choice, whatever the target. measured: the least n at
    which the share 1 - failure of the repetitions has its error, None above `most`; low and high: the n between which
    it lies with 95 % confidence, by Clopper & Pearson's interval of that share. failed: the repetitions without, at the
    theorem's n (at `most`, where that is less).
    """
    s = settings
    for target in s.targets:
        of, weight = sizes(target), 1.0 if target == HARDEST else None
        for draws in s.draws:
            rng = np.random.default_rng([s.seed, draws, int(weight is not None), *of])
            drawn = approximation.targets(of, s.repetitions, rng, weight)
            first = np.sort(approximation.first_widths(drawn, s.error, draws, rng, s.most))
            theorem = approximation.bound(of, s.error, s.failure, draws)
            yield {
                "target": target,
                "draws": draws,
                "theorem": theorem,
                "proof": approximation.sufficient(of, s.error, s.failure, draws),
                **dict(zip(("measured", "low", "high"), _widths(first, s), strict=True)),
                "failed": int((first > min(theorem, s.most)).sum()),
            }


def _widths(first: NDArray[np.int64], settings: Settings) -> list[int | None]:
    """The width needed and the ends of its interval, from the repetitions' widths in order."""
    trials, share = len(first), 1 - settings.failure

    def width(enough: Callable[[int], bool]) -> int | None:
        if not enough(trials):
            return None
        needed = int(first[approximation.least(lambda count: enough(min(count, trials))) - 1])
        return needed if needed <= settings.most else None

    return [
        width(lambda count: count >= share * trials * (1 - 1e-12)),
        width(lambda count: clopper_pearson(count, trials)[1] >= share),
        width(lambda count: clopper_pearson(count, trials)[0] >= share),
    ]


def record(settings: Settings, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What is kept of a measurement."""
    s = settings
    asked = {"error": s.error, "failure": s.failure, "repetitions": s.repetitions, "most": s.most, "seed": s.seed}
    return {"schema": SCHEMA, **asked, "numpy": np.__version__, "rows": list(rows)}


def text(content: Mapping[str, Any]) -> str:
    """The record's JSON, a line a row."""
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in content.items() if name != "rows"]
    rows = ",\n".join(f"  {json.dumps(row)}" for row in content["rows"])
    return "{\n" + ",\n".join([*lines, f'"rows": [\n{rows}\n]']) + "\n}\n"


def read(path: Path) -> dict[str, Any]:
    """A record that was written; Misuse when it is none."""
    try:
        content = files.json_file(path)
        if content.get("schema") != SCHEMA:
            raise Misuse(f"{path} has schema {content.get('schema')!r}, not {SCHEMA}; measure again.")
        wanted = {"target", "draws", "theorem", "proof", "measured", "low", "high", "failed"}
        whole = all(row.keys() == wanted for row in content["rows"]) and content["rows"]
        if not whole or not {"error", "failure", "repetitions", "most", "seed"} <= content.keys():
            raise Misuse(f"{path} is not a whole record of the theorem; measure again.")
    except files.Unusable as error:
        raise Misuse(f"{path} {error}.") from error
    except (AttributeError, KeyError, TypeError) as error:
        raise Misuse(f"{path} is not a whole record of the theorem; measure again.") from error
    return content


def markdown(content: Mapping[str, Any]) -> str:
    """The record as tables, one a target."""
    error, share, most = f"{content['error']:g}", f"{1 - content['failure']:g}", f"{content['most']:,}"
    heads = ["R", "theorem A.1", "proof's choice", "measured", "95 % interval", "theorem / measured", "failures"]
    lines = [
        "# The width of a random network that holds a target (Chijiwa et al. 2021, theorem A.1)",
        "",
        "n: neurons per input and sign, so that a hidden layer is 2 d n wide, d its inputs. Wanted: an L2 error up to "
        f"{error} for all inputs in [-1, 1], with a probability of {share}, when every weight, uniform in [-1, 1], may "
        "be drawn R times.",
    ]
    for target, rows in _by_target(content):
        lines += ["", f"## {_title(target)}", "", f"| {' | '.join(heads)} |", f"|{'---:|' * len(heads)}"]
        for row in rows:
            ratio = row["theorem"] / (row["measured"] or np.inf)
            cells = [
                *(_whole(row[name], content) for name in ("draws", "theorem", "proof", "measured")),
                f"{_whole(row['low'], content)} to {_whole(row['high'], content)}",
                f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.1f}" if ratio else "",
                f"{row['failed']:,}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    notes = (
        "theorem A.1: the n that it asks for, in the layer where that is greatest.",
        "proof's choice: the n with which the choice of its proof exists, exactly, for weights hardest to hit. Where "
        "that is more, the proof does not reach the theorem: it counts the R² pairs of a weight into a neuron and one "
        "out of it as independent, and R draws of each are not.",
        f"measured: the n with which {share} of {content['repetitions']:,} random networks have the error, every "
        "weight of the target taking the neuron that comes nearest; the interval is Clopper and Pearson's. With "
        "several inputs or layers the error is a bound, so that less may do.",
        f"failures: how many of those networks miss the error at the theorem's n (at {most}, where that is less: "
        "wider ones were not tried).",
    )
    return "\n".join([*lines, "", *(f"- {note}" for note in notes)]) + "\n"


def _by_target(content: Mapping[str, Any]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    return [(target, list(rows)) for target, rows in groupby(content["rows"], lambda row: row["target"])]


def _title(target: str) -> str:
    if target == HARDEST:
        return "the weight 1, the hardest to hit"
    return "a random weight" if target == "1-1" else f"random networks {target}"


def _whole(width: int | None, content: Mapping[str, Any]) -> str:
    return f"> {content['most']:,}" if width is None else f"{width:,}"


def save(content: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write theorem.json, theorem.md and theorem.png into a folder; Misuse when it does not take them."""
    from results.collect import write_atomically

    paths = [folder / f"theorem.{end}" for end in ("json", "md", "png")]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(paths[0], text(content))
        write_atomically(paths[1], markdown(content))
        draw(content).savefig(paths[2], dpi=200)
    except OSError as error:
        raise Misuse(f"{folder} does not take the results: {error.strerror}.") from error
    return paths


def draw(content: Mapping[str, Any]) -> Canvas:
    """Widths against R, a panel for targets of the same sizes."""
    import matplotlib as mpl
    from matplotlib.figure import Figure as Canvas

    from results.draw import COLOURS, MARKERS, STYLE

    panels: dict[tuple[int, ...], list[tuple[str, list[Mapping[str, Any]]]]] = {}
    for target, rows in _by_target(content):
        panels.setdefault(sizes(target), []).append((target, rows))
    with mpl.rc_context(STYLE):
        canvas = Canvas(figsize=(1.4 + 4.3 * len(panels), 4.6), layout="constrained")
        every = canvas.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        place = 0
        for axes, (of, targets) in zip(every, panels.items(), strict=True):
            rows = targets[0][1]
            _line(axes, rows, "theorem", color="black", linestyle="--", label="theorem A.1")
            _line(axes, rows, "proof", color="black", linestyle=":", label="its proof's choice, exactly")
            for target, rows in targets:
                look = {"color": COLOURS[place], "marker": MARKERS[place], "label": f"measured: {_title(target)}"}
                _measured(axes, rows, look)
                place += 1
            axes.set(xscale="log", yscale="log", xlabel="R, draws of every weight")
            axes.set_title("one weight" if of == (1, 1) else f"networks {'-'.join(map(str, of))}")
            draws = sorted({row["draws"] for _, rows in targets for row in rows})
            ticks = [draw for draw in draws if f"{draw}"[0] in "125" and not f"{draw}"[1:].strip("0")] or draws
            axes.set_xticks(ticks, [f"{draw}" for draw in ticks])
            axes.minorticks_off()
            axes.legend(loc="upper right")
        every[0].set_ylabel("n, neurons per input and sign")
        title = (
            f"Width for an error of {content['error']:g} with probability {1 - content['failure']:g}: measured, and "
        )
        title = textwrap.fill(title + "theorem A.1's (Chijiwa et al. 2021)", 52 * len(panels))
        canvas.suptitle(title, fontsize=11, fontweight="bold")
    return canvas


def _line(axes: Axes, rows: Sequence[Mapping[str, Any]], name: str, **look: Any) -> None:
    axes.plot([row["draws"] for row in rows], [row[name] for row in rows], **look)


def _measured(axes: Axes, rows: Sequence[Mapping[str, Any]], look: Mapping[str, Any]) -> None:
    """With the interval where both of its ends are known; a width that was not reached is left out."""
    known = [row for row in rows if row["measured"] is not None]
    widths = [row["measured"] for row in known]
    below = [0 if row["low"] is None else row["measured"] - row["low"] for row in known]
    above = [0 if row["high"] is None else row["high"] - row["measured"] for row in known]
    axes.errorbar([row["draws"] for row in known], widths, yerr=[below, above], capsize=2.5, elinewidth=1, **look)
