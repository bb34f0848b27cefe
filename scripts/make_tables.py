"""Regenerate tables from the runs at hand: `python scripts/make_tables.py dsr/lenet_mnist`. No torch here."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from results.address import select
from results.collect import Collection, write_atomically
from results.command import Arguments, checked_profile, collect_runs, few, remembered, say, show
from results.fill import Sheet, fill
from results.render import FORMATS
from runner.errors import Misuse

HTML = "html"
CHECK = "python scripts/runs.py check lists all of them"


@remembered()
def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables. Returns 0, 1 when --strict finds an incomplete table, 2 for a mistake in the arguments."""
    try:
        options = _parser().parse_args(arguments)
        profile = checked_profile(options.profile)
        selections = select(options.addresses)
        runs = collect_runs(options.runs, options.sources)
        sheets = [fill(selection, runs, profile) for selection in selections]
        if options.format == HTML:
            text = _page(sheets, runs, options.out)
        else:
            render = FORMATS[options.format]
            for sheet in sheets if options.out is not None else ():
                write_atomically(options.out / _file_name(sheet, options.format), render([sheet], options.published))
            text = render(sheets, options.published)
    except Misuse as error:
        say([str(error)])
        return 2
    show(text, end="")
    say(few(runs.sentences(), CHECK))
    say(few(dict.fromkeys(f"Problem: {p}" for s in sheets for c in s.cells.values() for p in c.problems), CHECK))
    incomplete = [sheet for sheet in sheets if not sheet.complete]
    if options.strict:
        say(_incomplete(sheet) for sheet in incomplete)
    return 1 if options.strict and incomplete else 0


def _parser() -> Arguments:
    parser = Arguments("make_tables.py", description="Regenerate tables from the runs at hand.")
    parser.add_argument(
        "addresses",
        nargs="*",
        metavar="ADDRESS",
        help="PAPER, PAPER/TABLE, .../ROW or .../COLUMN (default: every table)",
    )
    parser.add_runs()
    parser.add_argument("--format", choices=[*FORMATS, HTML], default="md", help=f"{HTML}: one page, with the figures")
    parser.add_argument(
        "--published", action="store_true", help="show what the papers print (csv, json and html always do)"
    )
    parser.add_argument("--strict", action="store_true", help="exit with 1 unless every cell is complete")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="also write each table to DIR/<paper>_<table>.<format>; html is one page, DIR/index.html",
    )
    return parser


def _page(sheets: Sequence[Sheet], runs: Collection, out: Path | None) -> str:
    """The page, or where it lies: nobody wants megabytes in a terminal."""
    from results.report import page  # jinja2 and matplotlib take a second to load, the other formats do not need them

    text = page(sheets, runs)
    if out is None:
        return text
    write_atomically(out / "index.html", text)
    return f"{out / 'index.html'}\n"


def _file_name(sheet: Sheet, ending: str) -> str:
    """A profile has a file of its own, so that its numbers never replace those of the paper's settings."""
    profile = f".{sheet.profile}" if sheet.profile else ""
    return f"{sheet.table.paper}_{sheet.table.name}{profile}.{ending}"


def _incomplete(sheet: Sheet) -> str:
    open_cells = [cell for cell in sheet.cells.values() if not cell.settled]
    named = ", ".join(f"{cell.row}/{cell.column} ({cell.status})" for cell in open_cells[:3])
    more = ", ..." if len(open_cells) > 3 else ""
    return f"{sheet.table.address} is incomplete: {len(open_cells)} of {len(sheet.cells)} cells, {named}{more}."


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends the program quietly
    sys.exit(main())
