"""Regenerate tables from the runs at hand: `python scripts/make_tables.py dsr/lenet_mnist`. No torch here."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from results.address import select
from results.collect import write_atomically
from results.command import Arguments, checked_profile, collect_runs, say
from results.fill import Sheet, fill
from results.render import FORMATS
from runner.errors import Misuse


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables. Returns 0, 1 when --strict finds an incomplete table, 2 for a mistake in the arguments."""
    parser = Arguments("make_tables.py", description="Regenerate tables from the runs at hand.")
    parser.add_argument(
        "addresses",
        nargs="*",
        metavar="ADDRESS",
        help="PAPER, PAPER/TABLE, .../ROW or .../COLUMN (default: every table)",
    )
    parser.add_runs()
    parser.add_argument("--format", choices=list(FORMATS), default="md")
    parser.add_argument("--published", action="store_true", help="show what the papers print (csv and json always do)")
    parser.add_argument("--strict", action="store_true", help="exit with 1 unless every cell is complete")
    parser.add_argument("--out", type=Path, metavar="DIR", help="also write each table to DIR/<paper>_<table>.<format>")
    try:
        options = parser.parse_args(arguments)
        profile = checked_profile(options.profile)
        selections = select(options.addresses)
        runs = collect_runs(options.runs)
        sheets = [fill(selection, runs, profile) for selection in selections]
        render = FORMATS[options.format]
        if options.out is not None:
            for sheet in sheets:
                write_atomically(options.out / _file_name(sheet, options.format), render([sheet], options.published))
    except Misuse as error:
        say([str(error)])
        return 2
    sys.stdout.write(render(sheets, options.published))
    say(runs.sentences())
    say(f"Problem: {problem}" for sheet in sheets for cell in sheet.cells.values() for problem in cell.problems)
    incomplete = [sheet for sheet in sheets if not sheet.complete]
    if options.strict:
        say(_incomplete(sheet) for sheet in incomplete)
    return 1 if options.strict and incomplete else 0


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
