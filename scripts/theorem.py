"""Measure the width that theorem A.1 of Chijiwa et al. 2021 is about: `python scripts/theorem.py`. No torch here.

For targets and numbers R of draws: the theorem's width, that of its proof's choice, and the measured one; as JSON, as a
Markdown table and as a plot. The default settings take less than a minute.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from results.command import Arguments, say
from runner.errors import Misuse


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure (or read a record), write theorem.json, theorem.md and theorem.png, print their paths; 2 for a misuse."""
    from results import theorem

    given = {field.name: field.default for field in fields(theorem.Settings)}
    parser = Arguments("theorem.py", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument(
        "--targets",
        nargs="+",
        default=given["targets"],
        metavar="SIZES",
        help="1-1: a random weight; hardest: the weight 1; 2-2-1: random networks of these sizes (default: all three)",
    )
    parser.add_argument(
        "--draws", nargs="+", type=int, default=given["draws"], metavar="R", help=f"default: {_spelt(given['draws'])}"
    )
    parser.add_argument("--error", type=float, default=given["error"], help="to be reached (default: %(default)s)")
    parser.add_argument(
        "--failure", type=float, default=given["failure"], help="the probability not to (default: %(default)s)"
    )
    parser.add_argument(
        "--repetitions",
        type=int,
        default=given["repetitions"],
        metavar="N",
        help="random networks (default: %(default)s)",
    )
    parser.add_argument(
        "--most", type=int, default=given["most"], metavar="N", help="the greatest width to try (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=given["seed"], help="default: %(default)s")
    parser.add_argument("--record", type=Path, metavar="FILE", help="show this record and measure nothing")
    parser.add_argument("--out", type=Path, default=Path("out/theorem"), metavar="DIR", help="default: %(default)s")
    try:
        options = vars(parser.parse_args(arguments))
        out, path = options.pop("out"), options.pop("record")
        if path is None:
            settings = theorem.Settings(**options)
            rows = []
            for row in theorem.measure(settings):
                rows.append(row)
                say([f"{row['target']}, R = {row['draws']}: {row['measured']} (theorem A.1: {row['theorem']})"])
            content = theorem.record(settings, rows)
        else:
            content = theorem.read(path)
        print("\n".join(map(str, theorem.save(content, out))))
    except Misuse as error:
        say([str(error)])
        return 2
    return 0


def _spelt(numbers: object) -> str:
    return " ".join(map(str, numbers)) if isinstance(numbers, tuple) else str(numbers)


if __name__ == "__main__":
    sys.exit(main())
