"""Tables as LaTeX for the booktabs package, one `table` environment each."""

from __future__ import annotations

import re
from collections.abc import Sequence

from results.cell import Cell
from results.fill import Sheet
from results.render.words import legend, shown

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "[": "{[}",  # after a line's end a bracket would be read as the line end's optional argument
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "−": "$-$",
    "–": "--",
    "’": "'",
    "α": r"$\alpha$",
    "δ": r"$\delta$",
    "λ": r"$\lambda$",
}
# A power as the hyperparameter tables print it (10^{-5}), or one special character.
_TOKEN = re.compile(r"10\^\{-?\d+\}|[" + re.escape("".join(_SPECIAL)) + "]")


def render(sheets: Sequence[Sheet], published: bool) -> str:
    """All sheets, one environment after the other."""
    return "\n".join(_sheet(sheet, published) for sheet in sheets)


def escaped(text: str) -> str:
    """`text` as LaTeX that prints it."""
    return _TOKEN.sub(lambda match: _SPECIAL.get(match[0], f"${match[0]}$"), text)


def _sheet(sheet: Sheet, published: bool) -> str:
    columns = len(sheet.columns)
    lines = [
        f"% {sheet.table.address}; needs \\usepackage{{booktabs}}",
        r"\begin{table}",
        r"  \centering",
        f"  \\caption{{{escaped(sheet.title)}}}",
        f"  \\label{{tab:{sheet.table.paper}-{sheet.table.name}{f'-{sheet.profile}' if sheet.profile else ''}}}",
        f"  \\begin{{tabular}}{{l{'c' * columns}}}",
        r"    \toprule",
        _line(["", *(escaped(column.title) for column in sheet.columns)]),
        r"    \midrule",
    ]
    section = None
    for row in sheet.rows:
        if row.section != section and row.section is not None:
            if section is not None:
                lines.append(r"    \midrule")
            lines.append(f"    \\multicolumn{{{columns + 1}}}{{l}}{{\\emph{{{escaped(row.section)}}}}} \\\\")
        section = row.section
        cells = (sheet.cells.get((row.id, column.id)) for column in sheet.columns)
        lines.append(_line([escaped(row.title), *("" if cell is None else _cell(cell, published) for cell in cells)]))
    lines += [r"    \bottomrule", r"  \end{tabular}", ""]
    remarks = [*legend(sheet, published), *sheet.table.notes]
    lines += [r"  \footnotesize", *(f"  {escaped(remark)}\\\\" for remark in remarks), r"\end{table}"]
    return "\n".join(lines) + "\n"


def _cell(cell: Cell, published: bool) -> str:
    parts = shown(cell, published)
    if parts.std:
        text = f"${parts.value} \\pm {parts.std}$"
    else:
        text = f"${parts.value}$" if cell.mean is not None else _stacked(parts.value)
    text += f" ({escaped(parts.remark)})" if parts.remark else ""
    return text + (f" {escaped(f'[{parts.published}]')}" if parts.published else "")


def _stacked(text: str) -> str:
    """Epoch ranges below each other, as the papers set them: side by side they are wider than a page."""
    parts = [escaped(part) for part in text.split("; ")]
    if len(parts) == 1:
        return parts[0]
    return r"\begin{tabular}{@{}c@{}}" + r" \\ ".join(parts) + r"\end{tabular}"


def _line(entries: Sequence[str]) -> str:
    return "    " + " & ".join(entries) + r" \\"
