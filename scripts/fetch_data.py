"""Download a public dataset into the data root and verify it: `python scripts/fetch_data.py mnist [--root DIR]`."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from data.fetch import fetch, missing
from data.sources import SOURCES
from runner.errors import nearest


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch the named datasets. Returns 0 when all are there, 1 when one could not be had, 2 for an unknown name."""
    parser = argparse.ArgumentParser(description="Download public datasets and verify them by their digests.")
    parser.add_argument("datasets", nargs="+", metavar="DATASET", help=", ".join(SOURCES))
    parser.add_argument(
        "--root",
        type=Path,
        default=Path(os.environ.get("REGROW_DATA") or "datasets"),
        help="the data root, REGROW_DATA or else ./datasets by default; a dataset gets a folder of its own in it",
    )
    options = parser.parse_args(arguments)
    for name in options.datasets:
        if name not in SOURCES:
            print(f"There is no dataset '{name}' to fetch.{nearest(name, list(SOURCES))}", file=sys.stderr)
            return 2
    for name in options.datasets:
        source = SOURCES[name]
        place = f"{options.root / source.folder} (files verified: {len(source.files)})"
        try:
            if missing(source, options.root):
                fetch(source, options.root, say=print)
                print(f"{name} is in {place}")
            else:
                print(f"{name} is already in {place}")
        except OSError as error:
            print(f"{name}: {error}.", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
