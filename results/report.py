"""The HTML report: every table filled, every figure plotted, one page written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from results.address import PAPERS, select
from results.collect import Collection, write_atomically
from results.command import few
from results.figure import NotDrawn, Plotted, choose
from results.fill import Sheet, fill
from results.integrity import report
from results.plan import Compose
from results.render import html
from results.series import plot
from runner.compose import compose as compose_config

#: Names the papers; their `notes` say which short name each has here.
CITATION = Path(__file__).resolve().parents[1] / "CITATION.cff"
_SHORT_NAME = "regrow's short name: "


def write(
    path: Path,
    runs: Collection,
    addresses: Sequence[str] = (),
    profile: str | None = None,
    published: bool = True,
    compose: Compose = compose_config,
    papers: Path = PAPERS,
) -> list[Sheet]:
    """Fills the tables that the addresses mean (none: all) and writes their page to `path`, whole or not at all."""
    sheets = [fill(selection, runs, profile, compose, papers) for selection in select(addresses, papers)]
    write_atomically(path, page(sheets, runs, published, compose, papers))
    return sheets


def page(
    sheets: Sequence[Sheet],
    runs: Collection,
    published: bool = True,
    compose: Compose = compose_config,
    papers: Path = PAPERS,
) -> str:
    """The page of filled sheets, with the figures of their papers and what was found wrong with the records."""
    return html.render(
        sheets,
        runs,
        drawn(sheets, runs, compose, papers),
        findings(sheets, runs, published),
        published=published,
        papers=paper_titles(),
    )


def findings(sheets: Sequence[Sheet], runs: Collection, published: bool = True) -> list[str]:
    """What is wrong with records or cells, and which settings are not what the papers print; a sentence each."""
    cells = [cell for sheet in sheets for cell in sheet.cells.values()]
    problems = dict.fromkeys(problem for cell in cells for problem in cell.problems)
    return [
        *few(map(str, report(runs)), "python scripts/runs.py check lists all of them", limit=500),
        *(f"Problem: {problem}" for problem in problems),
        *(
            f"Note: {cell.address}: the configuration says {cell.text}, the paper {cell.published.text}."
            for cell in cells
            if published and cell.status == "differs" and cell.published is not None
        ),
    ]


def drawn(
    sheets: Sequence[Sheet], runs: Collection, compose: Compose = compose_config, papers: Path = PAPERS
) -> list[Plotted | html.Undrawn]:
    """The figures of the sheets' tables, and those with cells of their own in papers that the sheets are of."""
    tables = {sheet.table.address for sheet in sheets}
    names = {sheet.table.paper for sheet in sheets}
    profile = sheets[0].profile if sheets else None
    found: list[Plotted | html.Undrawn] = []
    for figure in choose((), papers):
        own_cells = figure.table == figure.address
        if figure.table not in tables and not (own_cells and figure.address.split("/")[0] in names):
            continue
        try:
            found.append(plot(figure, runs, profile, compose, papers))
        except NotDrawn as error:
            found.append(html.Undrawn(figure, str(error)))
    return found


def paper_titles(citation: Path = CITATION) -> dict[str, str]:
    """Short name -> "Mostafa & Wang 2019: Parameter Efficient ...", as CITATION.cff lists the papers."""
    references = yaml.safe_load(citation.read_text(encoding="utf-8"))["references"]
    titles = {}
    for paper in references:
        short = str(paper.get("notes", "")).partition(_SHORT_NAME)[2].strip()
        families = [author["family-names"] for author in paper["authors"]]
        who = " & ".join(families) if len(families) < 3 else f"{families[0]} et al."
        if short:
            titles[short] = f"{who} {paper['year']}: {paper['title']}"
    return titles
