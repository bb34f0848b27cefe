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
    "blocked": "the run it starts from has no weights: it failed, diverged or was cancelled",
    "uncalibrated": "a value of its configuration is not known yet",
    "differs": "the composed configuration says something else than the paper",
    "absent": "the paper prints nothing there",
    "beyond": "the runs' own points end before it",
}


@dataclass(frozen=True)
class Shown:
    """A cell's parts, unescaped: `value` is "" when the cell is blank; `remark` explains a value that is not whole."""

    value: str
    std: str = ""
    remark: str = ""
    published: str = ""
    best: bool = False


def shown(cell: Cell, published: bool) -> Shown:
    """The cell as words. A cell without a value shows its status, never a number from elsewhere."""
    printed = ""
    if cell.published is not None and (published or cell.status == "differs"):
        printed = cell.published.mark or cell.published.text
    if cell.status == "absent":
        return Shown(value="")
    if cell.text is not None:
        return Shown(value=cell.text, remark="differs" if cell.status == "differs" else "", published=printed)
    if cell.mean is None:
        here, wanted = cell.count()[cell.status], len(cell.seeds)
        of = f"{here}/{wanted}" if 0 < here < wanted else ""
        return Shown(value=cell.status, remark=of, published=printed)
    std = "" if cell.reach is None else f"{cell.reach:.{cell.digits}f}"
    short = f"n={cell.n}" if cell.n < len(cell.seeds) else ""
    return Shown(value=f"{cell.mean:.{cell.digits}f}", std=std, remark=short, published=printed, best=cell.best)


def footnote_letters(sheet: Sheet) -> dict[str, str]:
    """Each footnote of the sheet's cells -> its letter, in the cells' order."""
    notes = dict.fromkeys(note for cell in sheet.cells.values() for note in cell.footnotes)
    return {note: letter(number) for number, note in enumerate(notes)}


def letter(number: int) -> str:
    """0 -> a, 25 -> z, 26 -> aa."""
    return (letter(number // 26 - 1) if number >= 26 else "") + chr(ord("a") + number % 26)


def legend(sheet: Sheet, published: bool) -> list[str]:
    """Sentences: what the numbers are, and each status that occurs."""
    cells = list(sheet.cells.values())
    sentences = []
    if measured := [cell for cell in cells if cell.kind == "runs"]:
        measures = dict.fromkeys(
            f"{_metric(cell.metric or '')}{f', {cell.unit}' if cell.unit else ''}"
            f" ({'higher' if cell.direction == 'up' else 'lower'} is better)"
            for cell in measured
        )
        many = len(measures) - 4
        sentences.append("; ".join([*list(measures)[:4], *([f"and {many} more metrics"] if many > 0 else [])]) + ".")
        seeds = list(dict.fromkeys(cell.seeds for cell in measured))
        named = " or ".join(", ".join(map(str, each)) for each in seeds)
        if all(len(each) == 1 for each in seeds):
            sentences.append(f"One run a cell, seed {named}.")
        else:
            sentences.append(f"Mean ± sample standard deviation over seeds {named}.")
    if any(cell.kind == "derived" for cell in cells):
        sentences.append("Some cells are calculated from others, seed by seed.")
    if wide := [cell for cell in cells if cell.spread == "interval"]:
        titles = dict.fromkeys(column.title for column in sheet.columns for cell in wide if cell.column == column.id)
        where = "" if len(wide) == len(cells) else f" in the column(s) {', '.join(titles)}"
        sentences.append(f"±{where}: half of the mean's 95 % interval (Student's t).")
    if any(cell.kind == "config" for cell in cells):
        what = "Settings and targets are read" if measured else "Read"
        sentences.append(f"{what} from the composed configurations.")
    if sheet.table.groups and sheet.tests:
        sentences.append(
            f"Bold: the best of its comparison group beyond chance (Welch's t-test against the runner-up, "
            f"Holm-corrected over {sheet.tests} test(s), 5 %)."
        )
    if published and any(shown(cell, True).published for cell in cells):
        sentences.append("In square brackets: as the paper prints it.")
    occurring = {cell.status for cell in cells}
    for status, meaning in MEANING.items():
        if status in occurring:
            sentences.append(f"{'blank' if status == 'absent' else status}: {meaning}.")
    if needs := list(dict.fromkeys(need for cell in cells if cell.status == "needs" for need in cell.needs)):
        more = f" and {len(needs) - 12} more" if len(needs) > 12 else ""
        sentences.append(f"needs: not possible before there is {', '.join(needs[:12])}{more}.")
    return sentences


def _metric(name: str) -> str:
    part, _, metric = name.rpartition(":")
    if part == "layers":
        return f"effective sparsity of {metric} at the end"
    return f"{metric} of the {_WHEN.get(part, f'{part} record')}"


_WHEN = {"": "last epoch", "best": "best epoch at target sparsity"}
_WHEN |= {name: f"kept {name} checkpoint" for name in ("dense", "sparse")}
_WHEN |= {f"{name}_phases": f"last epoch of every {name} phase" for name in ("dense", "sparse")}
_WHEN |= {"fp32": "last epoch, evaluated in fp32", "pair": "sparse and the dense network together"}
