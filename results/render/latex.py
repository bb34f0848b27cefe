"""Tables as LaTeX for the booktabs package, one `table` environment each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from results.cell import Cell
from results.fill import Sheet
from results.render.words import footnote_letters, legend, shown

_GREEK = """alpha beta gamma delta varepsilon zeta eta theta kappa lambda mu nu xi pi rho sigma tau phi chi psi omega
Gamma Delta Theta Lambda Pi Sigma Phi Psi Omega"""
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
    "—": "---",
    "’": "'",
    "“": "``",
    "”": "''",
    "£": r"\pounds{}",
    "½": r"$\frac{1}{2}$",
    "★": r"$\star$",
    "⋆": r"$\star$",
    "→": r"$\to$",
    "∇": r"$\nabla$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "≈": r"$\approx$",
    "∞": r"$\infty$",
    "∈": r"$\in$",
    "√": r"$\surd$",
    "∫": r"$\int$",
    "∑": r"$\sum$",
    "⊙": r"$\odot$",
    "ℓ": r"$\ell$",
    "…": r"\ldots{}",
    "ő": r"\H{o}",
    "é": r"\'e",
    "ö": r"\"o",
    "\u0303": r"$\tilde{\;}$",
    **{chr(0x2080 + digit): f"$_{digit}$" for digit in range(10)},
    **{"⁰¹²³⁴⁵⁶⁷⁸⁹"[digit]: f"$^{digit}$" for digit in range(10)},
    **dict(zip("⁺⁻⁽⁾ᵗⁿ", ("$^+$", "$^-$", "$^($", "$^)$", "$^t$", "$^n$"), strict=True)),
    **{letter: f"$\\{name}$" for letter, name in zip("αβγδεζηθκλμνξπρστφχψωΓΔΘΛΠΣΦΨΩ", _GREEK.split(), strict=True)},
}
# A power as the hyperparameter tables print it (10^{-5}), or one special character.
_TOKEN = re.compile(r"10\^\{-?\d+\}|[" + re.escape("".join(_SPECIAL)) + "]")


#: A table of more columns is shrunk to the line's width.
WIDE = 6


def render(sheets: Sequence[Sheet], published: bool) -> str:
    """All sheets, one environment after the other."""
    return "\n".join(_sheet(sheet, published) for sheet in sheets)


def escaped(text: str) -> str:
    """`text` as LaTeX that prints it."""
    return _TOKEN.sub(lambda match: _SPECIAL.get(match[0], f"${match[0]}$"), text)


def _sheet(sheet: Sheet, published: bool) -> str:
    columns = len(sheet.columns)
    wide = columns > WIDE
    lines = [
        f"% {sheet.table.address}; needs \\usepackage{{booktabs}}" + (" and \\usepackage{graphicx}" if wide else ""),
        r"\begin{table}",
        r"  \centering",
        f"  \\caption{{{escaped(sheet.title)}}}",
        f"  \\label{{tab:{sheet.table.paper}-{sheet.table.name}{f'-{sheet.profile}' if sheet.profile else ''}}}",
        *([r"  \resizebox{\linewidth}{!}{%"] if wide else []),
        f"  \\begin{{tabular}}{{l{'c' * columns}}}",
        r"    \toprule",
        _line(["", *(escaped(column.title) for column in sheet.columns)]),
        r"    \midrule",
    ]
    letters = footnote_letters(sheet)
    section = None
    for row in sheet.rows:
        if row.section != section and row.section is not None:
            if section is not None:
                lines.append(r"    \midrule")
            lines.append(f"    \\multicolumn{{{columns + 1}}}{{l}}{{\\emph{{{escaped(row.section)}}}}} \\\\")
        section = row.section
        cells = (sheet.cells.get((row.id, column.id)) for column in sheet.columns)
        entries = ("" if cell is None else _cell(cell, published, letters) for cell in cells)
        lines.append(_line([escaped(row.title), *entries]))
    lines += [r"    \bottomrule", r"  \end{tabular}" + "}" * wide, ""]
    remarks = [escaped(remark) for remark in legend(sheet, published)]
    remarks += [f"\\textsuperscript{{{letter}}} {escaped(note)}." for note, letter in letters.items()]
    remarks += [escaped(note) for note in sheet.table.notes]
    lines += [r"  \footnotesize", *(f"  {remark}\\\\" for remark in remarks), r"\end{table}"]
    return "\n".join(lines) + "\n"


def _cell(cell: Cell, published: bool, letters: Mapping[str, str]) -> str:
    parts = shown(cell, published)
    if parts.std:
        text = f"{parts.value} \\pm {parts.std}"
        text = f"$\\mathbf{{{text}}}$" if parts.best else f"${text}$"
    else:
        text = f"${parts.value}$" if cell.mean is not None else _stacked(parts.value)
    text += f" ({escaped(parts.remark)})" if parts.remark else ""
    if cell.footnotes:
        text += f"\\textsuperscript{{{','.join(letters[note] for note in cell.footnotes)}}}"
    return text + (f" {escaped(f'[{parts.published}]')}" if parts.published else "")


def _stacked(text: str) -> str:
    """Epoch ranges below each other, as the papers set them: side by side they are wider than a page."""
    parts = [escaped(part) for part in text.split("; ")]
    if len(parts) == 1:
        return parts[0]
    return r"\begin{tabular}{@{}c@{}}" + r" \\ ".join(parts) + r"\end{tabular}"


def _line(entries: Sequence[str]) -> str:
    return "    " + " & ".join(entries) + r" \\"
