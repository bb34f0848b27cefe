"""Draw figures from the runs at hand: `python scripts/make_figures.py dsr/lenet_mnist`. No torch here."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from results.command import Arguments, checked_profile, collect_runs, remembered, say
from results.figure import NotDrawn, choose
from results.series import plot
from runner.errors import Misuse


@remembered()
def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the figures and print their paths.

    Returns 0, 1 when there is nothing yet to draw of one that was asked for by its own address, 2 for a misuse.
    """
    try:
        options = _parser().parse_args(arguments)
        profile = checked_profile(options.profile)
        figures = choose(options.addresses)
        runs = collect_runs(options.runs, options.sources)
    except Misuse as error:
        say([str(error)])
        return 2
    say(runs.sentences())
    code = 0
    for figure in figures:
        try:
            plotted = plot(figure, runs, profile)
            from results.draw import save  # matplotlib takes a second to load; what draws nothing should not wait

            paths = save(plotted, options.out)
        except NotDrawn as reason:
            say([str(reason)])
            code = max(code, int(figure.address in options.addresses))
            continue
        except Misuse as error:
            say([str(error)])
            code = 2
            continue
        say(plotted.remarks)
        print("\n".join(map(str, paths)))
    return code


def _parser() -> Arguments:
    parser = Arguments("make_figures.py", description="Draw figures from the runs at hand, as PNG and SVG.")
    parser.add_argument(
        "addresses", nargs="*", metavar="PAPER/FIGURE", help="PAPER or PAPER/FIGURE (default: every figure)"
    )
    parser.add_runs()
    parser.add_argument("--out", type=Path, default=Path("out/figures"), metavar="DIR", help="default: %(default)s")
    return parser


if __name__ == "__main__":
    sys.exit(main())
