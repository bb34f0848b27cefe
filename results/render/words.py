"""What every readable format says in the same words: a cell's number or status, the legend below a table."""

from __future__ import annotations

from dataclasses import dataclass

from results.cell import Cell
from results.fill import Sheet

MEANING = {
    "partial": "n = runs that have a value",
    "missing": "no completed run",
    "running": "a run is going on",
    "failed": "a run ended with an error",
    "diverged": "training did not converge",
    "blocked": "the run it starts from failed or diverged",
    "uncalibrated": "a value of its configuration is not known yet",
    "differs": "the composed configuration says something else than the paper",
    "absent": "the paper prints nothing there",
}


@dataclass(frozen=True)
class Shown:
    """A cell's parts, unescaped: `value` is "" when the cell is blank; `remark` explains a value that is not whole."""

    value: str
    std: str = ""
    remark: str = ""
    published: str = ""


def shown(cell: Cell, published: bool) -> Shown:
    """The cell as words. A cell without a value shows its status, never a number from elsewhere."""
    printed = ""
    if cell.published is not None and (published or cell.status == "differs"):
        printed = cell.published.mark or cell.published.text
    if cell.text is not None:
        blank = cell.status == "absent"
        return Shown(
            value="" if blank else cell.text,
            remark="differs" if cell.status == "differs" else "",
            published="" if blank else printed,
        )
    if cell.mean is None:
        here, wanted = cell.count()[cell.status], len(cell.seeds)
        of = f"{here}/{wanted}" if 0 < here < wanted else ""
        return Shown(value=cell.status, remark=of, published=printed)
    std = "" if cell.std is None else f"{cell.std:.{cell.digits}f}"
    short = f"n={cell.n}" if cell.n < len(cell.seeds) else ""
    return Shown(value=f"{cell.mean:.{cell.digits}f}", std=std, remark=short, published=printed)


def legend(sheet: Sheet, published: bool) -> list[str]:
    """Sentences: what the numbers are, and each status that occurs."""
    cells = list(sheet.cells.values())
    sentences = []
    if sheet.table.kind == "runs":
        measures = dict.fromkeys(
            f"{_metric(cell.metric or '')}{f', {cell.unit}' if cell.unit else ''}"
            f" ({'higher' if cell.direction == 'up' else 'lower'} is better)"
            for cell in cells
        )
        sentences.append(f"{'; '.join(measures)}.")
        seeds = list(dict.fromkeys(cell.seeds for cell in cells))
        named = " or ".join(", ".join(map(str, each)) for each in seeds)
        if all(len(each) == 1 for each in seeds):
            sentences.append(f"One run a cell, seed {named}.")
        else:
            sentences.append(f"Mean ± sample standard deviation over seeds {named}.")
    else:
        sentences.append("Read from the composed configurations.")
    if published and any(shown(cell, True).published for cell in cells):
        sentences.append("In square brackets: as the paper prints it.")
    occurring = {cell.status for cell in cells}
    for status, meaning in MEANING.items():
        if status in occurring:
            sentences.append(f"{'blank' if status == 'absent' else status}: {meaning}.")
    return sentences


def _metric(name: str) -> str:
    part, _, metric = name.rpartition(":")
    when = "best epoch at target sparsity" if part == "best" else "last epoch"
    return f"{metric} of the {when}"
