"""What is wrong with the records behind the tables, and what their reader should know: all of it, in a fixed order."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from results.collect import Collection

#: The kinds of findings, the gravest first. Up to epochs_disagree a record, or a part of one, cannot be trusted.
KINDS = (
    "conflict",  # two records of one run tell different results
    "foreign_key",  # a record does not hash to the directory it lies in
    "foreign_seed",
    "truncated",
    "malformed",
    "unreadable",
    "missing_file",
    "epochs_disagree",  # the metrics and the summary tell of different numbers of epochs
    "not_a_number",  # a completed run has a final metric that is not finite
    "dirty_tree",  # a run from a tree with uncommitted changes
    "interrupted",  # a run that was broken off, and that nobody is going on with
    "duplicate",  # two records of one run that agree
)


#: Those of which a number may be wrong or lost; the others are to be known.
GRAVE = KINDS[: KINDS.index("not_a_number") + 1]


class Finding(NamedTuple):
    """One thing to know of a record; `sentence` says it without the path."""

    kind: str
    path: Path
    sentence: str

    @property
    def grave(self) -> bool:
        """Whether a number may be wrong or lost by it."""
        return self.kind in GRAVE

    def __str__(self) -> str:
        return f"{'Problem' if self.grave else 'Note'}: {self.path}: {self.sentence}"


def report(collection: Collection) -> list[Finding]:
    """Everything found, the gravest kind first, then by path. No file is opened for it."""
    findings = [Finding(each.kind, each.path, each.what) for each in (*collection.problems, *collection.remarks)]
    for duplicate in collection.duplicates:
        kind = "duplicate" if duplicate.agrees else "conflict"
        findings.append(Finding(kind, duplicate.other, duplicate.sentence))
    for record in collection.runs.values():
        if record.status == "interrupted":
            epoch = record.metrics[-1].get("epoch") if record.metrics else None
            when = "before its first epoch ended" if epoch is None else f"after epoch {epoch}"
            findings.append(Finding("interrupted", record.path, f"was broken off {when}; run again, it goes on."))
    return sorted(findings, key=lambda finding: (KINDS.index(finding.kind), finding.path, finding.sentence))
