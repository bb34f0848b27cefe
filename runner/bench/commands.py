"""How long the commands take that train nothing: reading many runs, planning all papers' cells, and starting."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from runner.bench.figures import Figure, spread
from runner.compose import compose
from runner.execute import execute
from runner.identity import run_dir

ROOT = Path(__file__).resolve().parents[2]
RUNS, EPOCHS = 10_000, 50
READ = "from results.collect import collect; found = collect([{root!r}]).runs; assert len(found) == {runs}, len(found)"
PLAN = """
from results.address import select, tables
from results.command import remembered
from results.plan import plan
with remembered():
    papers = sorted({name.split("/")[0] for name in tables()})
    assert plan([slot for one in select(papers) for slot in one.slots()])
"""


def tables(rounds: int, runs: int = RUNS) -> list[Figure]:
    """Reading a folder of so many runs, of 50 epochs each, and planning every cell of all papers, in seconds of the
    wall clock, Python's start left out: in processes of their own, first without a cache, then with it.
    """
    found = []
    with tempfile.TemporaryDirectory(prefix="regrow-bench-") as folder:
        _many(Path(folder) / "runs", runs)
        read = READ.format(root=str(Path(folder) / "runs"), runs=runs)
        tasks = {
            f"{runs:,} runs of {EPOCHS} epochs read": (read, 4.0, 0.3),
            "every cell of all papers planned": (PLAN, 10.0, 1.0),
        }
        time.sleep(2.1)  # files that may still change within their time stamps are not indexed
        for name, (code, cold, warm) in tasks.items():
            taken: dict[str, list[float]] = {"first": [], "again": []}
            for turn in range(rounds):
                place = {"REGROW_CACHE": f"{folder}/cache{turn}"}
                for times in taken.values():
                    times.append(_inside(code, place))
            for (which, times), target in zip(taken.items(), (cold, warm), strict=True):
                found.append(spread("tables, wall clock", f"{name}, {which}", times, "s", target=target))
    return found


def starts(rounds: int) -> list[Figure]:
    """`--help`, and a whole run of two epochs of the digits, in seconds of the wall clock."""
    found: dict[str, tuple[list[float], float]] = {
        "python -m runner --help": ([], 0.5),
        "python -m runner, two epochs of the digits": ([], 5.0),
    }
    with tempfile.TemporaryDirectory(prefix="regrow-bench-") as folder:
        for turn in range(rounds):
            short = ["dataset=digits", "schedule.epochs=2", f"runs={folder}/{turn}"]
            for words, (times, _) in zip((["--help"], short), found.values(), strict=True):
                began = time.perf_counter()
                _python(["-m", "runner", *words], {})
                times.append(time.perf_counter() - began)
    return [spread("start, wall clock", name, times, "s", target=target) for name, (times, target) in found.items()]


def _many(root: Path, runs: int) -> None:
    """So many run directories: a real one, and copies of it with other seeds."""
    given = ["dataset=digits", "dataset.train_subset=20", f"schedule.epochs={EPOCHS}", "trainer.threads=1"]
    config = compose([*given, f"runs={root}", "model.hidden=[8]"])
    execute(config, given)
    first = run_dir(root, config)
    names = ("config.yaml", "summary.json", "metrics.jsonl", "environment.json", "overrides.json")
    texts = {name: (first / name).read_text() for name in names}
    for seed in range(1, runs):
        folder = first.with_name(f"seed{seed}")
        folder.mkdir()
        for name, text in texts.items():
            text = re.sub(r'^(seed: | +"seed": )0\b', rf"\g<1>{seed}", text, flags=re.MULTILINE)
            (folder / name).write_text(text)


def _inside(code: str, variables: Mapping[str, str]) -> float:
    """Seconds that the code takes in a new process, once Python has started."""
    timed = f"import time\nbegan = time.perf_counter()\n{code}\nprint('took', time.perf_counter() - began)"
    return float(_python(["-c", timed], variables).split("took ")[1])


def _python(words: list[str], variables: Mapping[str, str]) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run([sys.executable, *words], env=environment, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{words} ended with {done.returncode}: {done.stderr}")
    return done.stdout
