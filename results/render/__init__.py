"""Sheets as text: Markdown, LaTeX, CSV and JSON. A format is a function (sheets, show published) -> text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from results.fill import Sheet
from results.render import cells, csv, latex, markdown

FORMATS: dict[str, Callable[[Sequence[Sheet], bool], str]] = {
    "md": markdown.render,
    "tex": latex.render,
    "csv": csv.render,
    "json": cells.render,
}
