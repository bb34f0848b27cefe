"""Resumption is bit-exact wherever a run is killed: every method, precision and kind of data, a hundred random kills.

Compared with the uninterrupted run: metrics, summary, and the last checkpoint, which holds weights, masks, the
optimizer's and the method's state, every generator, the sums and the position. Wall-clock fields are left out.
"""

from __future__ import annotations

import functools
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
from runner.compose import compose
from runner.execute import execute
from runner.identity import parent_config, run_dir
from runner.records import RunDirectory
from tests.killing import PLACES, Outcome, end_of, forked, outcome, run_and_die
from tests.test_contract import BUSY, METHODS

PRECISIONS = ("fp32", "bf16", "fp16")
DIGITS = ["dataset=digits", "dataset.train_subset=36", "schedule.batch_size=10"]
# What a run can hold that resumption may forget: each kind has something that the others lack.
KINDS = {
    "plain": [*DIGITS, "model.hidden=[20,10]"],
    "accumulated": [*DIGITS, "model.hidden=[20,10]", "schedule.accumulate=3"],
    "recorded": [*DIGITS, "model.hidden=[20,10]", "model.batch_norm=all", "schedule.l2=1e-3",
                 "trainer.records=[mask_dynamics,layers,thresholds,gradient_to_decay]"],
    "dropout": [*DIGITS, "model=wrn_28_2", "model.depth=10", "model.width=1", "model.dropout=0.3"],
    "streamed": ["dataset=imagenet", "dataset.num_classes=3", "dataset.train_size=12", "dataset.test_size=6",
                 "dataset.side=16", "dataset.resize=20", "model.hidden=[8]", "schedule.batch_size=4"],
}  # fmt: skip
# Four steps an epoch (three of the streamed kind). Parents of stages must learn something, whatever the network, the
# precision and the seed: at this rate and length all of 317 drawn at random did, with SGD and AdamW, to a loss of 1.48.
LENGTH = ["schedule.epochs=3", "schedule.lr=0.05"]
LEARNS = "'schedule.epochs=16','schedule.lr=0.03','schedule.batch_size=6'"
PARENT = f"['method=dense',{LEARNS}]"
ADAM = {"_target_": "torch.optim.AdamW", "betas": [0.9, 0.99]}


@pytest.fixture(scope="module", autouse=True)
def warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A first run loads much of torch, once here and not in every forked process."""
    execute(composed(overrides("dense", "plain", "fp32"), tmp_path_factory.mktemp("warm"), ADAM), [])


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
    return [*given, *parents(method), *more]


@functools.cache
def parents(method: str) -> list[str]:
    """The override that gives a stage a short parent, of the method that it has by itself; of tickets, the second."""
    if method.startswith("lottery"):
        name = "lottery_rewound" if method == "lottery_rewound" else "lottery"
        first = f"'method={name}','method.sparsity=0.2',{LEARNS},\"start.parent={PARENT}\""
        return ["method.sparsity=0.36", f"start.parent=[{first}]"]
    if method == "imp":
        first = f"'method=imp','method.sparsity=0.2','method.rounds=1',{LEARNS},\"start.parent={PARENT}\""
        return ["method.sparsity=0.36", "method.rounds=2", f"start.parent=[{first}]"]
    if compose([f"method={method}"])["start"] is None:
        return []
    mild = f"method.sparsity={0.1 if 'structured' in method else 0.3}"  # a parent that is no better than chance is none
    own = compose([f"method={method}", mild])["start"]["overrides"]
    before = own[0].removeprefix("method=")
    assert own[0] != before
    length = ["schedule.epochs=16", "schedule.lr=0.03", "schedule.batch_size=6"]
    learns = LEARNS.replace("'", "").split(",") if before == "dense" else length
    return [mild, f"start.parent={[*own, *BUSY.get(before, []), *learns]}"]


def composed(given: list[str], root: Path, optimizer: dict[str, Any] | None = None) -> dict[str, Any]:
    """The configuration below this runs root, with another optimizer in the place of SGD if there is one."""
    config = compose([*given, f"runs={root}"])
    return config if optimizer is None else {**config, "schedule": {**config["schedule"], "optimizer": optimizer}}


def often(config: dict[str, Any]) -> dict[str, Any]:
    """With a checkpoint after every step."""
    return {**config, "trainer": {**config["trainer"], "checkpoint_seconds": 0}}


def outcomes(config: dict[str, Any]) -> list[Outcome]:
    """What came out of a run and of those that it starts from."""
    found = []
    stage: dict[str, Any] | None = config
    while stage is not None:
        found.append(outcome(run_dir(stage["runs"], stage)))
        stage = parent_config(stage)
    return found


def same(resumed: dict[str, Any], root: Path) -> None:
    """Run the same without an interruption below `root`, and compare what came out, of the parents too."""
    straight = {**resumed, "runs": str(root), "trainer": {**resumed["trainer"], "checkpoint_seconds": 60}}
    execute(straight, [])
    whole, found = outcomes(straight), outcomes(resumed)
    assert len(found) == len(whole)
    for (metrics, digest, summary), (metrics0, digest0, summary0) in zip(found, whole, strict=True):
        assert metrics == metrics0
        assert summary == summary0
        assert digest == digest0


def killed_at(config: dict[str, Any], places: list[tuple[str, int]]) -> list[int]:
    """Run, be killed at each of these places in turn, and run to the end; the exit statuses."""
    config = often(config)
    ends = [run_and_die(config, place, at) for place, at in places]
    assert set(ends) <= {-signal.SIGKILL, 0}
    execute(config, [])
    return ends


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_resumes_bit_for_bit(tmp_path: Path, method: str) -> None:
    """At a random step, within a mask update, within a checkpoint, after a line of metrics, and within a stage."""
    rng = random.Random(method)
    given = overrides(method, "plain", "fp32")
    places = [("before a step", rng.randint(2, 4)), ("before the last one is in place", rng.randint(1, 3)),
              ("after a line of metrics", 1)]  # fmt: skip
    places += [] if method == "dense" else [("within a mask update", rng.randint(1, 3))]
    config = composed(given, tmp_path / "killed")
    ends = killed_at(config, places)
    assert ends.count(-signal.SIGKILL) >= 3
    same(config, tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_in_every_precision(tmp_path: Path, method: str, precision: str) -> None:
    """With an optimizer of two moments and a step count, besides: between two steps, and in the midst of a mask's."""
    rng = random.Random(method + precision)
    for kind, optimizer in (("plain", ADAM), ("dropout", None)):
        config = composed(overrides(method, kind, precision), tmp_path / kind, optimizer)
        places = [("after a step", rng.randint(1, 7)), ("before a step", rng.randint(2, 5))]
        places += [] if method == "dense" else [("within a mask update", rng.randint(1, 2))]
        assert -signal.SIGKILL in killed_at(config, places)
        same(config, tmp_path / f"whole {kind}")


@pytest.mark.parametrize("place", PLACES)
def test_a_kill_at_every_place_that_writes(tmp_path: Path, place: str) -> None:
    """At its first visit and at its third, where it has one: the file is old or new, and the run goes on from it."""
    given = overrides("set", "plain", "fp32")
    ends = []
    for at in (1, 3):
        config = composed(given, tmp_path / str(at))
        (end,) = killed_at(config, [(place, at)])
        ends.append(end)
        path = run_dir(config["runs"], config)
        checkpoints = sorted(file.name for file in (path / "checkpoints").iterdir() if not file.name.startswith("."))
        assert checkpoints == [checkpoint.LAST, checkpoint.PREVIOUS]
        same(config, tmp_path / "whole")
    assert ends[0] == -signal.SIGKILL or place in ("while metrics are cut", "after metrics are cut")


@pytest.mark.parametrize("place", ["while metrics are cut", "after metrics are cut"])
def test_a_kill_while_metrics_are_cut(tmp_path: Path, place: str) -> None:
    """They are cut by a run that was killed between an epoch's line and the checkpoint after it."""
    given = overrides("set", "plain", "fp32")
    config = composed(given, tmp_path / "killed")
    ends = killed_at(config, [("after a line of metrics", 2), (place, 1)])
    assert ends == [-signal.SIGKILL] * 2
    same(config, tmp_path / "whole")


@pytest.mark.parametrize("place", ["before the summary is there", "after the summary is there"])
@pytest.mark.parametrize("generation", [1, 2])
def test_a_kill_between_two_stages(tmp_path: Path, place: str, generation: int) -> None:
    """The first or the second of three generations is about to be complete, or is, and the next one has not begun."""
    own = ["method=gmp", "method.iterations=2", "method.every_epochs=1", "method.sparsity=0.5", *LENGTH]
    middle = ",".join(repr(text) for text in own)
    start = f'start={{parent: [{middle},"start={{parent: {PARENT}}}"], take: mask}}'
    given = overrides("static", "plain", "fp32", "method.sparsity=0.5", start)
    config = composed(given, tmp_path / "killed")
    ends = killed_at(config, [(place, generation)])
    assert ends == [-signal.SIGKILL]
    same(config, tmp_path / "whole")
    assert len(outcomes(config)) == 3


@pytest.mark.parametrize("damage", ["torn", "flipped", "empty", "gone"])
def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    given = overrides("dsr", "plain", "fp32")
    config = often(composed(given, tmp_path / "killed"))
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
    same(config, tmp_path / "whole")


def test_two_damaged_checkpoints_cost_all_steps_and_no_truth(tmp_path: Path) -> None:
    given = overrides("set", "plain", "fp32")
    config = often(composed(given, tmp_path / "killed"))
    assert run_and_die(config, "before a step", 8) == -signal.SIGKILL
    path = run_dir(config["runs"], config)
    for file in (path / "checkpoints").iterdir():
        file.write_bytes(b"torn")
    execute(config, [])
    assert "resumed" not in (path / "log.txt").read_text()
    same(config, tmp_path / "whole")


def scenarios(rng: random.Random) -> Iterator[tuple[str, list[str], dict[str, Any] | None]]:
    """Runs of all kinds, by turns, of methods, precisions and optimizers by chance; every fourth is a stage."""
    turn = 0
    while True:
        for kind in KINDS:
            staged = kind != "streamed"  # twelve images teach a parent nothing, and then it has diverged
            method = rng.choice([name for name in METHODS if staged or not parents(name)])
            more, precision = [f"seed={turn}"], rng.choice(PRECISIONS)
            if not parents(method) and staged and turn % 4 == 3 and method != "dense":
                more.append(f"start={{parent: {PARENT}, take: weights}}")
            if parents(method) or len(more) > 1:
                precision = rng.choice(PRECISIONS[:2])  # fp16 leaves out the first steps, too many for a short parent
            yield kind, overrides(method, kind, precision, *more), rng.choice([None, None, ADAM])
            turn += 1


def killed_from_outside(config: dict[str, Any], seconds: float) -> int:
    """Execute in a forked process and kill it after a while, wherever it is then; its exit status."""
    child = forked(lambda: execute(config, []))
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return end_of(child)


@pytest.mark.slow
def test_a_hundred_random_kills(tmp_path: Path, pictures: Path) -> None:
    """A hundred SIGKILLs, three or so a run: at random visits of random places, and some at any moment from outside."""
    rng = random.Random(20)
    kills = dict.fromkeys([*PLACES, "from outside"], 0)
    for number, (kind, chosen, optimizer) in enumerate(scenarios(rng)):
        given = [*chosen, *([f"data.root={pictures}"] if kind == "streamed" else [])]
        root = tmp_path / str(number)
        config = often(composed(given, root / "killed", optimizer))
        for _ in range(4):
            if rng.random() < 0.15:
                place, end = "from outside", killed_from_outside(config, rng.uniform(0.02, 0.4))
            else:
                place = rng.choice(list(PLACES))
                end = run_and_die(config, place, rng.randint(1, 6))
            assert end in (0, -signal.SIGKILL), (number, place)
            kills[place] += end == -signal.SIGKILL
        execute(config, [])
        same(config, root / "whole")
        if sum(kills.values()) >= 100:
            break
    assert sum(map(bool, kills.values())) > 0.8 * len(kills), kills
    assert number > 2 * len(KINDS)


def test_a_run_that_is_complete_survives_a_second_command_and_its_death(tmp_path: Path) -> None:
    given = overrides("set", "plain", "fp32")
    config = composed(given, tmp_path)
    killed_at(config, [])
    path = run_dir(config["runs"], config)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert run_and_die(config, "before a step", 1) == 0
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    assert (RunDirectory(path).summary() or {})["status"] in ("completed", "diverged")
