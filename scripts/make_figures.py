"""Draw figures from the runs at hand: `python scripts/make_figures.py dsr/lenet_mnist`. No torch here."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from results.command import Arguments, checked_profile, collect_runs, say
from results.figure import choose, plot
from runner.errors import Misuse


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the figures and print their paths. Returns 0, 1 when one that was asked for is empty, 2 for a misuse."""
    parser = Arguments("make_figures.py", description="Draw figures from the runs at hand, as PNG and SVG.")
    parser.add_argument(
        "addresses", nargs="*", metavar="PAPER/FIGURE", help="PAPER or PAPER/FIGURE (default: every figure)"
    )
    parser.add_runs()
    parser.add_argument("--out", type=Path, default=Path("out/figures"), metavar="DIR", help="default: %(default)s")
    try:
        options = parser.parse_args(arguments)
        profile = checked_profile(options.profile)
        figures = choose(options.addresses)
        runs = collect_runs(options.runs)
    except Misuse as error:
        say([str(error)])
        return 2
    from results.draw import save  # matplotlib takes a second to load, --help and mistakes should not

    say(runs.sentences())
    drawn = empty = 0
    for figure in figures:
        try:
            plotted = plot(figure, runs, profile)
            paths = save(plotted, options.out)
        except Misuse as error:
            say([str(error)])
            empty += 1
            continue
        drawn += 1
        say(plotted.remarks)
        print("\n".join(map(str, paths)))
    # Asked for all figures, those without runs yet are only named.
    return 1 if empty and (options.addresses or not drawn) else 0


if __name__ == "__main__":
    sys.exit(main())
