"""The LaTeX of every table compiles: pdflatex with booktabs, published values shown, footnotes and bold included."""

import shutil
import subprocess
from pathlib import Path

import pytest

from results.address import select
from results.collect import LOGGED, Collection, collect
from results.fill import fill
from results.render.latex import escaped, render
from tests.test_statistics import CLEAR, sheet
from tests.test_tables import toy_sheets

LATEX = shutil.which("pdflatex")

DOCUMENT = r"""\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage{booktabs,graphicx}
\usepackage[margin=1cm]{geometry}
\extrafloats{200}
\begin{document}
%s
\end{document}
"""


def compiled(text: str, folder: Path) -> str:
    """The log of pdflatex, which must succeed."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tables.tex").write_text(DOCUMENT % text, encoding="utf-8")
    done = subprocess.run(
        [str(LATEX), "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "tables.tex"],
        cwd=folder,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=300,
    )
    errors = [line for line in done.stdout.splitlines() if line.startswith("!")]
    assert done.returncode == 0, errors
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(LATEX is None, reason="there is no pdflatex (Debian's texlive-latex-recommended)")
def test_every_table_compiles(tmp_path: Path) -> None:
    sheets = [fill(selection, collect([LOGGED])) for selection in select()]
    log = compiled("\\clearpage\n".join(render([each], published=True) for each in sheets), tmp_path)
    assert "Undefined control sequence" not in log
    assert (tmp_path / "tables.pdf").stat().st_size > 50_000


@pytest.mark.slow
@pytest.mark.skipif(LATEX is None, reason="there is no pdflatex (Debian's texlive-latex-recommended)")
def test_bold_cells_and_hostile_titles_compile(tmp_path: Path) -> None:
    hostile = r"\input{/etc/passwd} $x$ & 50 % _a_ #1 ~ ^ {}<>[] ± ×"
    sheets = [sheet(tmp_path / "a", CLEAR), *toy_sheets(tmp_path / "b", title=hostile, notes=[hostile])]
    compiled(render(sheets, published=True), tmp_path / "tex")


def test_every_character_of_every_table_is_escaped_to_ascii() -> None:
    for selection in select():
        text = render([fill(selection, Collection({}))], published=True)
        strange = {character for character in text if ord(character) > 127}
        assert not strange, (selection.table.address, strange)


def test_powers_and_superscripts() -> None:
    assert escaped("10^{-5}") == "$10^{-5}$" and escaped("10⁻⁵ η₂ 3★") == r"10$^-$$^5$ $\eta$$_2$ 3$\star$"
