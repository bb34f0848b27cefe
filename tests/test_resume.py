"""Resumption is bit-exact wherever a run is killed: every method, precision and kind of data, a hundred random kills.

Compared with the uninterrupted run: metrics, summary, and the last checkpoint, which holds weights, masks, the
optimizer's and the method's state, every generator, the sums and the position. Wall-clock fields are left out.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runner import checkpoint
from runner.compose import compose, names
from runner.execute import REQUEUE, execute
from runner.identity import parent_config, run_dir
from runner.records import RunDirectory
from runner.trainer import Interrupted
from tests.killing import PLACES, Outcome, outcome, run_and_die
from tests.test_contract import BUSY

METHODS = names("method")
PRECISIONS = ("fp32", "bf16", "fp16")
DIGITS = ["dataset=digits", "dataset.train_subset=36", "schedule.batch_size=10"]
# What a run can hold that resumption may forget: each kind has something that the others lack.
KINDS = {
    "plain": [*DIGITS, "model.hidden=[20,10]"],
    "accumulated": [*DIGITS, "model.hidden=[20,10]", "schedule.accumulate=3"],
    "recorded": [*DIGITS, "model.hidden=[20,10]", "model.batch_norm=all", "trainer.records=[mask_dynamics,layers]"],
    "dropout": [*DIGITS, "model=wrn_28_2", "model.depth=10", "model.width=1", "model.dropout=0.3"],
    "streamed": ["dataset=imagenet", "dataset.num_classes=3", "dataset.train_size=12", "dataset.test_size=6",
                 "dataset.side=16", "dataset.resize=20", "model.hidden=[8]", "schedule.batch_size=4"],
}  # fmt: skip
# Four steps an epoch (three of the streamed kind); parents of stages, too, must learn in so few.
LENGTH = ["schedule.epochs=3", "schedule.lr=0.05"]
PARENT = "['method=dense','schedule.epochs=3','schedule.lr=0.05','schedule.batch_size=4']"
ADAM = ["schedule.optimizer={_target_: torch.optim.AdamW}"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with 12 training and 6 test images."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("pictures")
    for part, count in (("train", 4), ("val", 2)):
        for label in range(3):
            folder = root / "imagenet" / part / f"n0000000{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = 80 * label + rng.integers(80, size=(24 + number, 30 - label, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.JPEG")
    return root


def overrides(method: str, kind: str, precision: str, *more: str) -> list[str]:
    given = [*KINDS[kind], *LENGTH, f"precision={precision}", f"method={method}", *BUSY.get(method, [])]
    return [*given, *([f"start.parent={PARENT}"] if method == "compressed" else []), *more]


def straight(given: list[str], root: Path) -> list[Outcome]:
    """Run without an interruption; what came out, of the parents too."""
    config = compose([*given, f"runs={root}"])
    execute(config, [])
    return outcomes(config)


def outcomes(config: dict[str, Any]) -> list[Outcome]:
    """What came out of a run and of those that it starts from."""
    found = []
    stage: dict[str, Any] | None = config
    while stage is not None:
        found.append(outcome(run_dir(stage["runs"], stage)))
        stage = parent_config(stage)
    return found


def same(given: list[str], root: Path, resumed: dict[str, Any]) -> None:
    whole = straight(given, root)
    found = outcomes(resumed)
    assert len(found) == len(whole)
    for (metrics, digest, summary), (metrics0, digest0, summary0) in zip(found, whole, strict=True):
        assert metrics == metrics0
        assert summary == summary0
        assert digest == digest0


def killed_at(given: list[str], root: Path, places: list[tuple[str, int]]) -> tuple[dict[str, Any], list[int]]:
    """Run, be killed at each of these places in turn, and run to the end; the configuration and the exit statuses."""
    config = compose([*given, f"runs={root}", "trainer.checkpoint_seconds=0"])
    ends = [run_and_die(config, place, at) for place, at in places]
    assert set(ends) <= {-signal.SIGKILL, 0}
    execute(config, [])
    return config, ends


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_resumes_bit_for_bit(tmp_path: Path, method: str) -> None:
    """At a random step, within a mask update, within a checkpoint, after a line of metrics, and within a stage."""
    rng = random.Random(method)
    given = overrides(method, "plain", "fp32")
    places = [("before a step", rng.randint(2, 4)), ("before the last one is in place", rng.randint(1, 3)),
              ("after a line of metrics", 1)]  # fmt: skip
    places += [] if method == "dense" else [("within a mask update", rng.randint(1, 3))]
    config, ends = killed_at(given, tmp_path / "killed", places)
    assert ends.count(-signal.SIGKILL) >= 3
    same(given, tmp_path / "whole", config)


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_in_every_precision(tmp_path: Path, method: str, precision: str) -> None:
    """With an optimizer of two moments and a step count, besides: between two steps, and in the midst of a mask's."""
    rng = random.Random(method + precision)
    for kind, more in (("plain", ADAM), ("dropout", [])):
        given = overrides(method, kind, precision, *more)
        places = [("after a step", rng.randint(1, 7)), ("before a step", rng.randint(2, 5))]
        places += [] if method == "dense" else [("within a mask update", rng.randint(1, 2))]
        config, ends = killed_at(given, tmp_path / kind, places)
        assert -signal.SIGKILL in ends
        same(given, tmp_path / f"whole {kind}", config)


@pytest.mark.parametrize("place", PLACES)
def test_a_kill_at_every_place_that_writes(tmp_path: Path, place: str) -> None:
    """At its first visit and at its third, where it has one: the file is old or new, and the run goes on from it."""
    given = overrides("set", "plain", "fp32")
    ends = []
    for at in (1, 3):
        config, (end,) = killed_at(given, tmp_path / str(at), [(place, at)])
        ends.append(end)
        path = run_dir(config["runs"], config)
        checkpoints = sorted(file.name for file in (path / "checkpoints").iterdir() if not file.name.startswith("."))
        assert checkpoints == [checkpoint.LAST, checkpoint.PREVIOUS]
        same(given, tmp_path / "whole", config)
    assert ends[0] == -signal.SIGKILL or place in ("while metrics are cut", "after metrics are cut")


@pytest.mark.parametrize("place", ["while metrics are cut", "after metrics are cut"])
def test_a_kill_while_metrics_are_cut(tmp_path: Path, place: str) -> None:
    """They are cut by a run that was killed between an epoch's line and the checkpoint after it."""
    given = overrides("set", "plain", "fp32")
    config, ends = killed_at(given, tmp_path / "killed", [("after a line of metrics", 2), (place, 1)])
    assert ends == [-signal.SIGKILL] * 2
    same(given, tmp_path / "whole", config)


@pytest.mark.parametrize("place", ["before the summary is there", "after the summary is there"])
@pytest.mark.parametrize("generation", [1, 2])
def test_a_kill_between_two_stages(tmp_path: Path, place: str, generation: int) -> None:
    """The first or the second of three generations is about to be complete, or is, and the next one has not begun."""
    own = ["method=gmp", "method.iterations=2", "method.every_epochs=1", "method.sparsity=0.5", *LENGTH]
    middle = ",".join(repr(text) for text in own)
    start = f'start={{parent: [{middle},"start={{parent: {PARENT}}}"], take: mask}}'
    given = overrides("static", "plain", "fp32", "method.sparsity=0.5", start)
    config, ends = killed_at(given, tmp_path / "killed", [(place, generation)])
    assert ends == [-signal.SIGKILL]
    same(given, tmp_path / "whole", config)
    assert len(outcomes(config)) == 3


@pytest.mark.parametrize("damage", ["torn", "flipped", "empty", "gone"])
def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    given = overrides("dsr", "plain", "fp32")
    config = compose([*given, f"runs={tmp_path / 'killed'}", "trainer.checkpoint_seconds=0"])
    assert run_and_die(config, "before a step", 8) == -signal.SIGKILL
    path = run_dir(config["runs"], config)
    last = path / "checkpoints" / checkpoint.LAST
    blob = bytearray(last.read_bytes())
    if damage == "gone":
        last.unlink()
    else:
        blob[len(blob) // 3] ^= 16
        whole = bytes(blob)
        last.write_bytes({"torn": whole[: len(whole) // 2], "flipped": whole, "empty": b""}[damage])
    execute(config, [])
    log = (path / "log.txt").read_text()
    assert ("last.pt is damaged" in log and "Trying the one before" in log) == (damage != "gone")
    assert "resumed at epoch 2, step 6" in log  # of the seven that it had made
    same(given, tmp_path / "whole", config)


def test_two_damaged_checkpoints_cost_all_steps_and_no_truth(tmp_path: Path) -> None:
    given = overrides("set", "plain", "fp32")
    config = compose([*given, f"runs={tmp_path / 'killed'}", "trainer.checkpoint_seconds=0"])
    assert run_and_die(config, "before a step", 8) == -signal.SIGKILL
    path = run_dir(config["runs"], config)
    for file in (path / "checkpoints").iterdir():
        file.write_bytes(b"torn")
    execute(config, [])
    assert "resumed" not in (path / "log.txt").read_text()
    same(given, tmp_path / "whole", config)


def scenarios(rng: random.Random) -> Iterator[tuple[str, list[str]]]:
    """Runs of all kinds, by turns, of methods and precisions by chance; every fourth is a stage."""
    turn = 0
    while True:
        for kind in KINDS:
            method, precision = rng.choice(METHODS), rng.choice(PRECISIONS)
            more = [f"seed={turn}", *(ADAM if rng.random() < 0.3 and kind != "dropout" else [])]
            if turn % 4 == 3 and method != "dense":
                more.append(f"start={{parent: {PARENT}, take: weights}}")
            yield kind, overrides(method, kind, precision, *more)
            turn += 1


def killed_from_outside(config: dict[str, Any], seconds: float) -> int:
    """Execute in a forked process and kill it after a while, wherever it is then; its exit status."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            execute(config, [])
            code = 0
        except Interrupted:
            code = REQUEUE
        finally:
            os._exit(code)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.slow
def test_a_hundred_random_kills(tmp_path: Path, pictures: Path) -> None:
    """A hundred SIGKILLs, three or so a run: at random visits of random places, and some at any moment from outside."""
    rng = random.Random(20)
    kills = dict.fromkeys([*PLACES, "from outside"], 0)
    for number, (kind, chosen) in enumerate(scenarios(rng)):
        given = [*chosen, *([f"data.root={pictures}"] if kind == "streamed" else [])]
        root = tmp_path / str(number)
        config = compose([*given, f"runs={root / 'killed'}", "trainer.checkpoint_seconds=0"])
        for _ in range(4):
            if rng.random() < 0.15:
                place, end = "from outside", killed_from_outside(config, rng.uniform(0.02, 0.4))
            else:
                place = rng.choice(list(PLACES))
                end = run_and_die(config, place, rng.randint(1, 6))
            assert end in (0, -signal.SIGKILL), (number, place)
            kills[place] += end == -signal.SIGKILL
        execute(config, [])
        same(given, root / "whole", config)
        if sum(kills.values()) >= 100:
            break
    assert sum(map(bool, kills.values())) > 0.8 * len(kills), kills
    assert number > 2 * len(KINDS)


def test_a_run_that_is_complete_survives_a_second_command_and_its_death(tmp_path: Path) -> None:
    given = overrides("set", "plain", "fp32")
    config, _ = killed_at(given, tmp_path, [])
    path = run_dir(config["runs"], config)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert run_and_die(config, "before a step", 1) == 0
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    assert (RunDirectory(path).summary() or {})["status"] in ("completed", "diverged")
