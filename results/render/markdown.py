"""Tables as GitHub-flavoured Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from results.cell import Cell
from results.fill import Sheet
from results.render.words import footnote_letters, legend, shown


def render(sheets: Sequence[Sheet], published: bool) -> str:
    """All sheets, one below the other."""
    return "\n".join(_sheet(sheet, published) for sheet in sheets)


def _sheet(sheet: Sheet, published: bool) -> str:
    lines = [f"## {_escaped(sheet.title)}", "", f"`{sheet.table.address}`", ""]
    lines.append(_line(["", *(_escaped(column.title) for column in sheet.columns)]))
    lines.append("|" + "---|" * (len(sheet.columns) + 1))
    letters = footnote_letters(sheet)
    section = None
    for row in sheet.rows:
        if row.section != section and row.section is not None:
            lines.append(_line([f"**{_escaped(row.section)}**", *("" for _ in sheet.columns)]))
        section = row.section
        cells = (sheet.cells.get((row.id, column.id)) for column in sheet.columns)
        entries = ("" if cell is None else _cell(cell, published, letters) for cell in cells)
        lines.append(_line([_escaped(row.title), *entries]))
    lines += ["", *(_escaped(sentence) + "  " for sentence in legend(sheet, published))]
    lines += [f"<sup>{letter}</sup> {_escaped(note)}.  " for note, letter in letters.items()]
    if sheet.table.notes:
        lines += ["", *(f"- {_escaped(note)}" for note in sheet.table.notes)]
    return "\n".join(line.rstrip() if not line.endswith("  ") else line for line in lines) + "\n"


def _cell(cell: Cell, published: bool, letters: Mapping[str, str]) -> str:
    parts = shown(cell, published)
    text = _escaped(parts.value) + (f" ± {parts.std}" if parts.std else "")
    text = f"**{text}**" if parts.best else text
    text += f" ({parts.remark})" if parts.remark else ""
    if cell.footnotes:
        text += f"<sup>{','.join(letters[note] for note in cell.footnotes)}</sup>"
    return text + (f" [{_escaped(parts.published)}]" if parts.published else "")


def _line(entries: Sequence[str]) -> str:
    return "| " + " | ".join(entries) + " |"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")
