"""What the command lines of tables and figures share: their arguments, the run roots, one sentence per mistake."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from results import parsed, wandb
from results.collect import LOGGED, Collection, collect, merged
from results.fill import FULL
from runner import compose as composition
from runner.compose import compose, names
from runner.errors import Misuse, nearest
from runner.untrusted import printable


class Arguments(argparse.ArgumentParser):
    """An argument parser whose every complaint is a Misuse: one sentence, no usage block."""

    def error(self, message: str) -> NoReturn:
        raise Misuse(f"{message}; {self.prog} --help lists the arguments.{self._meant(message)}")

    def _meant(self, message: str) -> str:
        """The nearest option, or the nearest choice, to what a complaint begins with."""
        if unknown := re.match(r"unrecognized arguments: (--[\w-]+)", message):
            name, options = unknown[1], list(self._option_string_actions)
        elif unknown := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)$", message):
            name, options = unknown[1], re.findall(r"[\w-]+", unknown[2])
        else:
            return ""
        meant = nearest(name, options)
        return meant if meant.startswith(" Did") else ""

    def add_runs(self) -> None:
        """--runs, --from and --profile."""
        self.add_argument(
            "--runs",
            nargs="+",
            type=Path,
            metavar="DIR",
            help="folders to search for runs, each run once (default: the runs root and results/logged)",
        )
        self.add_from()
        self.add_argument(
            "--profile", metavar="P", help="the same cells at reduced cost: " + ", ".join(names("profile"))
        )

    def add_from(self) -> None:
        """--from."""
        self.add_argument(
            "--from",
            dest="sources",
            action="append",
            default=[],
            metavar="wandb:ENTITY/PROJECT",
            help="the runs that logger=wandb has sent there, in place of the default folders, or with those of --runs; "
            "may be given again",
        )


@contextmanager
def remembered() -> Iterator[None]:
    """Around a whole command: table files that were parsed and cells that were composed before are not done again."""
    with parsed.remembered(), composition.remembered():
        yield


def checked_profile(profile: str | None) -> str | None:
    """The profile, None for the paper's own settings; Misuse names the nearest one."""
    if profile is not None and profile not in names("profile"):
        raise Misuse(f"There is no profile '{profile}'.{nearest(profile, names('profile'))}")
    return None if profile == FULL else profile


def collect_runs(roots: list[Path] | None, sources: Sequence[str] = ()) -> Collection:
    """The runs below `roots` and those of W&B projects; without either, those of the default roots.

    A root that was asked for must exist, the default ones need not yet.
    """
    if roots is None:
        roots = [] if sources else [path for path in (Path(compose()["runs"]), LOGGED) if path.is_dir()]
    for root in roots:
        if not root.is_dir():
            raise Misuse(f"There is no folder '{root}' to search for runs; addresses go before --runs.")
    found = collect(roots)
    return merged([found, *map(wandb.collect, dict.fromkeys(sources))]) if sources else found


def few(sentences: Iterable[str], where: str, limit: int = 20) -> list[str]:
    """At most `limit` sentences, and how many more there are and where."""
    every = list(sentences)
    return every if len(every) <= limit else [*every[:limit], f"... and {len(every) - limit} more; {where}."]


def say(sentences: Iterable[str]) -> None:
    """One sentence a line to the standard error stream; the standard output stream is the result's."""
    for sentence in sentences:
        print(printable(sentence), file=sys.stderr)


def show(text: str, end: str = "\n") -> None:
    """The result to the standard output stream: whatever stands in a record, a terminal shows and does not obey it."""
    print(printable(text, lines=True), end=end)
