"""What every option of conf/method must hold to, on several models: a new method inherits these tests."""

from __future__ import annotations

import math
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from data.order import derive
from methods.allocation import kept_of
from methods.base import Method
from methods.knob import share
from methods.lottery import Ticket
from methods.masks import digest
from runner import checkpoint
from runner.build import locate, mismatch
from runner.compose import CONF, compose, file, names
from runner.errors import Misuse
from runner.execute import execute
from runner.experiment import make, validate
from runner.identity import run_dir
from runner.records import RunDirectory
from runner.trainer import Interrupted, Trainer

# All methods, or those that --method names; of a package of the user's own their class says what is expected.
METHODS = tuple(os.environ.get("REGROW_TEST_METHODS", "\n".join(names("method"))).splitlines())
OURS = {path.stem for path in (CONF / "method").glob("*.yaml")}

# Two epochs of four steps; the last batch of an epoch is smaller.
RUN = ["schedule.batch_size=10", "schedule.epochs=2", "schedule.lr=0.05"]
NOISE = ["dataset=synthetic", "dataset.train_size=36", "dataset.test_size=12"]
MODELS = {
    "lenet": [*RUN, *NOISE, "dataset.shape=[1,4,4]", "model.hidden=[20,10]"],
    "digits": [*RUN, "dataset=digits", "dataset.train_subset=36", "model.hidden=[20,10]", "model.batch_norm=all"],
    "wrn": [*RUN, *NOISE, "dataset.shape=[3,8,8]", "model=wrn_28_2", "model.depth=10", "model.width=1"],
    "timm": [*RUN, *NOISE, "dataset.shape=[3,32,32]", "model=timm", "model.name=test_resnet"],
}
# The one of a library takes seconds with every method.
EACH_MODEL = [pytest.param(name, marks=[pytest.mark.slow] if name == "timm" else []) for name in MODELS]

# So that much happens within eight steps.
BUSY: dict[str, list[str]] = {
    "set": ["method.count=60", "method.period=2", "method.stop=1.0"],
    "dsr": ["method.count=60", "method.period=2", "method.stop=1.0", "method.threshold=0.02"],
    "deepr": ["method.temperature=0.01"],
    "gmp": ["method.iterations=4", "method.every_epochs=0.5"],
    "compressed": ["method.iterations=4", "method.every_epochs=0.5"],
    "incremental": ["method.iterations=4", "method.every_epochs=0.5"],
    "dpf": ["method.period=2", "method.end_epoch=1.5"],
    "dpf_structured": ["method.period=2", "method.end_epoch=1.5"],
    "sfp": ["method.end_epoch=2"],
    "sm": [],
    "edge_popup": ["method.pruned=0.6", "method.rounding=nearest"],
    "iterand": ["method.pruned=0.6", "method.rounding=nearest", "method.period=3", "method.rate=0.5"],
    "quantised": ["method.bits=3"],
    # Eight steps like all others; what a budget of FLOPs does is tests/test_ledger.py's.
    "lottery_flops": ["schedule.budget=epochs"],
    "retrain_mask_flops": ["schedule.budget=epochs"],
    "lottery_rewound": ["schedule.from_epoch=0"],
    "acdc": [],
    "rigl": ["method.period=2", "method.stop=1.0", "method.from_start=true"],
    "topkast": ["method.period=2"],
    "topkast_powerprop": ["method.period=2"],
    "woodfisher": [
        *["method.start_epoch=0", "method.iterations=4", "method.every_epochs=0.5", "method.initial_sparsity=0"],
        *["method.fisher_samples=3", "method.fisher_batch=8", "method.block_size=50"],
    ],
    "granet": ["method.iterations=4", "method.every_epochs=0.5"],
    "probmask": ["method.start_epoch=0", "method.end_epoch=1.5", "method.score_lr=0.2", "method.inference=top"],
    "optg": [],
    "sparsevd": ["method.kl_weight=0.01", "method.end_epoch=1", "method.log_alpha_threshold=0.5"],
    "stds": ["method.final_threshold=0.1"],
    "lats": ["method.final_threshold=0.1"],
    "s_lats": ["method.final_threshold=0.1", "method.learning_rate=run"],
    "pgh": ["method.final_threshold=0.1"],
    "str": ["method.s_init=-3"],
    "str_gs": ["method.s_init=-3"],
    "gpo": ["method.s_init=-3", "method.beta_decay=2"],
}
if told := os.environ.get("REGROW_TEST_BUSY", "").splitlines():
    BUSY |= dict.fromkeys(set(METHODS) - OURS, told)
# Their masks and state never change.
CALM = {"lottery_flops", "lottery_rewound", "retrain_mask_flops"}
# The masks of these do not move within the few steps of a test, or are no state of theirs.
MOVING = set(BUSY) - {"quantised", "sparsevd", "gpo", *CALM}
# Their sparsity is a share of filters.
STRUCTURED = {"dpf_structured", "sfp"}
# Their masks are the support of what they compute with.
SOFT = {"stds", "lats", "s_lats", "pgh", "str", "str_gs"}
# No masks are part of their state.
UNMASKED = {"dense", "quantised", "acdc_dense", "sparsevd", "gpo", *SOFT}
# Options that may be negative.
SIGNED = {"s_init"}

# The first 8 bytes of the SHA-256 of these texts as a number, halved.
SEEDS = {
    "0/method": 510620674091478798,
    "1/method": 2188528013633990486,
    "0/augment/3/1": 4827859216948175850,
}


def overrides(method: str, model: str, *more: str) -> list[str]:
    return [*MODELS[model], f"method={method}", *BUSY.get(method, []), *more]


def trainer(config: dict[str, Any], path: Path, stop: Callable[[], bool] = lambda: False) -> Trainer:
    return with_parent(Trainer(make(config), RunDirectory(path), stop=stop))


def with_parent(t: Trainer) -> Trainer:
    """The trainer; of a method that cannot do without a parent, after one that is dense and has learnt nothing."""
    if isinstance(t.e.method, Ticket):
        t.adopted = {}, t.e.method.effective()
    return t


def kept_at_the_end(t: Trainer, config: dict[str, Any]) -> int:
    """How many weights the method's sparsity leaves, whatever they are counted in.

    Of a user's method that is not told a share of the weights (`knobs`) nobody knows it beforehand.
    """
    if config["method"]["name"] not in OURS and t.e.method.knobs != share():
        return int(t.densities()["mask"][0])
    if config["method"]["name"] in SOFT:
        limits = [float(d) for d in t.e.method.source.values()]  # type: ignore[attr-defined]
        pairs = zip(t.e.method.dense, limits * (len(t.e.method.dense) // len(limits)), strict=True)  # type: ignore[attr-defined]
        return sum(int((w.abs() > torch.tensor(d, dtype=w.dtype)).sum()) for w, d in pairs)
    shapes = [tuple(weight.shape) for weight in t.e.method.effective().values()]
    if (pruned := config["method"].get("pruned")) is not None:  # a share of every layer
        return sum(kept_of(math.prod(shape), pruned) for shape in shapes)
    sparsity, name = config["method"].get("sparsity", 0.0), config["method"]["name"]
    if name in UNMASKED:
        sparsity = 0.0
    if name not in STRUCTURED:
        return kept_of(sum(math.prod(shape) for shape in shapes), sparsity)
    if name == "sfp":
        return sum(kept_of(shape[0], sparsity) * math.prod(shape[1:]) for shape in shapes)
    filters = [mask.flatten(1) for mask in t.e.method.masks().values()]
    assert all(bool((f.all(1) == f.any(1)).all()) for f in filters), "filters are kept or dropped as a whole"
    kept = [int(f.any(1).sum()) for f in filters]
    assert sum(kept) == kept_of(sum(shape[0] for shape in shapes), sparsity)
    return sum(k * math.prod(shape[1:]) for k, shape in zip(kept, shapes, strict=True))


def state_of(t: Trainer) -> dict[str, Tensor]:
    """Every tensor that the run's future depends on, by name."""
    flat: dict[str, Tensor] = {}

    def collect(value: Any, name: str) -> None:
        if isinstance(value, Tensor):
            flat[name] = value.detach().clone()
        elif isinstance(value, dict):
            for key, item in value.items():
                collect(item, f"{name}/{key}")
        elif isinstance(value, list | tuple):
            collect(dict(enumerate(value)), name)
        else:
            flat[name] = torch.tensor(list(repr(value).encode()))

    collect(t.model.state_dict(), "model")
    collect(t.optimizer.state_dict(), "optimizer")
    collect(t.e.method.state_dict(), "method")
    collect(t.ctx.rng.get_state(), "rng")
    collect(torch.get_rng_state(), "torch")
    collect([{k: v for k, v in line.items() if not k.startswith("time/")} for line in t.history], "history")
    return flat


@cache
def finished(method: str, model: str, seed: int = 0) -> dict[str, Tensor]:
    """The final state of an uninterrupted run."""
    with tempfile.TemporaryDirectory() as folder:
        t = trainer(compose(overrides(method, model, f"seed={seed}")), Path(folder))
        t.fit()
        return state_of(t)


@pytest.mark.parametrize("model", EACH_MODEL)
@pytest.mark.parametrize("method", METHODS)
def test_masks_are_exact_and_weights_zero_outside_after_every_step(method: str, model: str, tmp_path: Path) -> None:
    seen: list[list[int]] = []
    digests = set()

    def check() -> bool:
        masks, weights = t.e.method.masks(), dict(t.model.named_parameters())
        for name, mask in masks.items():
            assert mask.dtype == torch.bool and mask.shape == weights[name].shape
            assert int(weights[name].detach()[~mask].count_nonzero()) == 0, name
        for name, weight in t.e.method.effective().items():
            assert weight.shape == weights[name].shape and not weight.requires_grad
        seen.append([int(mask.sum()) for mask in masks.values()])
        digests.add(digest(masks))
        return False

    config = compose(overrides(method, model))
    t = trainer(config, tmp_path, check)
    t.fit()
    assert len(seen) == 8
    total = sum(weight.numel() for weight in t.e.method.effective().values())
    kept, whole = t.densities()["mask"]
    assert whole == total and kept == kept_at_the_end(t, config)
    if method in ("static", "set", "deepr", "rigl", "topkast", "topkast_powerprop"):
        assert all(counts == seen[0] for counts in seen)
    exact = (
        "dsr",
        "sm",
        "oneshot",
        "lottery",
        "lottery_flops",
        "lottery_rewound",
        "imp",
        "retrain_mask",
        "retrain_mask_flops",
        "snip",
    )
    if method in (*exact, "edge_popup", "iterand"):
        assert {sum(counts) for counts in seen} == {kept}
    if method == "acdc":  # an epoch of each
        assert [sum(counts) for counts in seen] == [total] * 4 + [kept] * 4
    if method == "dpf":  # refreshes after 2, 4, 6 and 8 steps, the ramp ends after 6
        ramp = [0, 2, 2, 4, 4, 6, 6, 6]
        assert [sum(c) for c in seen] == [kept_of(total, 0.9 - 0.9 * (1 - i / 6) ** 3) for i in ramp]
    if method == "granet":
        ramp = [0, 1, 1, 2, 2, 3, 3, 4]
        assert [sum(c) for c in seen] == [kept_of(total, 0.9 - 0.4 * (1 - i / 4) ** 3) for i in ramp]
    if method == "probmask":  # after every step, until 6 of 8
        assert [sum(c) for c in seen] == [kept_of(total, 0.9 - 0.9 * (1 - min(i / 6, 1)) ** 3) for i in range(1, 9)]
    if method == "optg":  # sigmoid(-1) and sigmoid(0) of it during the two epochs, and all of it at last
        halves = [kept_of(total, 0.9 / (1 + math.e)), kept_of(total, 0.45)]
        assert [sum(c) for c in seen] == [halves[0]] * 4 + [halves[1]] * 3 + [kept]
    if method in ("gmp", "compressed", "incremental", "woodfisher"):
        ramp = [0, 1, 1, 2, 2, 3, 3, 4]  # prunings after 2, 4, 6 and 8 steps
        assert [sum(c) for c in seen] == [kept_of(total, 0.9 - 0.9 * (1 - i / 4) ** 3) for i in ramp]
    if method in OURS or method in MOVING:
        assert (len(digests) > 1) == (method in MOVING)
    line = t.history[-1]
    assert line["mask/sparsity"] == pytest.approx(1 - kept / total, abs=1e-12)
    dropped = sum(int((~mask).sum()) for mask in t.e.method.masks().values())
    assert line["mask/parameters"] == sum(p.numel() for p in t.model.parameters()) - dropped
    nonzero = sum(int(weight.count_nonzero()) for weight in t.e.method.effective().values())
    assert line["effective/sparsity"] == pytest.approx(1 - nonzero / total, abs=1e-12)


@pytest.mark.parametrize("model", EACH_MODEL)
@pytest.mark.parametrize("method", METHODS)
def test_n_steps_and_n_more_equal_2n(method: str, model: str, tmp_path: Path) -> None:
    """Stopped within an epoch, at its end, and within the next one; each time continued from the checkpoint."""
    config = compose(overrides(method, model))
    for turn, halt in enumerate([4, None] if model == "timm" else [2, 4, 7, None]):
        t = trainer(config, tmp_path)
        t.stop = lambda t=t, halt=halt: t.ctx.step == halt  # type: ignore[misc]
        torch.manual_seed(turn)  # what another process would have
        if halt is None:
            t.fit()
        else:
            with pytest.raises(Interrupted):
                t.fit()
    found, expected = state_of(t), finished(method, model)
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
    metrics = RunDirectory(tmp_path).metrics_path.read_text().splitlines()
    assert len(metrics) == 2


@pytest.fixture
def restored_flags() -> Iterator[None]:
    before = torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    yield
    torch.set_default_dtype(before[0])
    torch.use_deterministic_algorithms(before[1], warn_only=True)
    torch.set_num_threads(before[2])


def test_runs_in_one_process_do_not_know_of_each_other(tmp_path: Path, restored_flags: None) -> None:
    """Every method after every other one, in both orders, from disturbed global state."""
    expected = {method: digest(finished(method, "lenet")) for method in METHODS}
    for turn, order in enumerate([METHODS, tuple(reversed(METHODS))]):
        for method in order:
            torch.manual_seed(turn)
            np.random.seed(turn)
            random.seed(turn)
            torch.set_default_dtype(torch.float64)
            torch.use_deterministic_algorithms(False)
            t = trainer(compose(overrides(method, "lenet")), tmp_path / f"{turn}{method}")
            t.fit()
            assert digest(state_of(t)) == expected[method], (turn, method)


@pytest.mark.parametrize("method", METHODS)
def test_masks_are_a_function_of_the_seed(method: str) -> None:
    def masks(seed: int) -> str:
        state = finished(method, "lenet", seed)
        return digest({name: value for name, value in state.items() if name.startswith("method/masks/")})

    def weights(seed: int) -> str:
        return digest({k: v for k, v in finished(method, "lenet", seed).items() if k.startswith("model/")})

    assert weights(0) != weights(1)
    has_masks = any(name.startswith("method/masks/") for name in finished(method, "lenet"))
    assert (masks(0) != masks(1)) == has_masks
    assert method not in OURS or has_masks == (method not in UNMASKED)


@pytest.mark.parametrize("model", EACH_MODEL)
@pytest.mark.parametrize("method", METHODS)
def test_names_are_canonical_and_finalize_keeps_the_outputs(method: str, model: str, tmp_path: Path) -> None:
    config = compose(overrides(method, model))
    plain = list(make(config).model.state_dict())
    t = trainer(config, tmp_path)
    t.fit()
    state = t.model.state_dict()
    assert set(plain) <= set(state)
    assert not any(part in name for name in state for part in ("module.", "parametrizations", "_orig_mod"))
    assert set(t.e.method.masks()) <= set(t.e.method.effective()) <= set(dict(t.model.named_parameters()))
    images = next(t.e.data.test_batches(8))[0]
    t.model.eval()
    with torch.no_grad():
        before = t.model(images)
        final = t.e.method.finalize(t.model).eval()
        after = final(images)
    assert torch.equal(before, after)
    assert list(final.state_dict()) == plain
    masks = t.e.method.masks()
    for name, weight in final.named_parameters():
        if name in masks:
            assert int(weight.detach()[~masks[name]].count_nonzero()) == 0


def test_the_trainer_calls_the_hooks_in_order(tmp_path: Path) -> None:
    calls: list[tuple[Any, ...]] = []

    class Watched(Method):
        def __getattribute__(self, name: str) -> Any:
            found = super().__getattribute__(name)
            if name in ("begin", "on_epoch", "before_forward", "penalty", "before_step", "after_step"):

                def hook(ctx: Any) -> Any:
                    grads = [p.grad is not None for p in t.model.parameters()]
                    weights = digest(dict(t.model.named_parameters()))
                    calls.append((name, ctx.step, ctx.epoch, round(ctx.lr, 9), all(grads), weights))
                    return found(ctx)

                return hook
            return found

    experiment = make(compose([*MODELS["lenet"], 'schedule.lr="1:1 -> 0.5, 2:2 -> 0.25"']))
    experiment.method = Watched()
    t = Trainer(experiment, RunDirectory(tmp_path))
    t.fit()
    assert (t.ctx.steps_per_epoch, t.ctx.total_steps) == (4, 8)
    assert calls.pop(0)[:3] == ("begin", 0, 1)
    for step in range(8):
        epoch, lr = 1 + step // 4, 0.5 if step < 4 else 0.25
        if step % 4 == 0:
            assert calls.pop(0)[:3] == ("on_epoch", step, epoch)
        forward, penalty, before, after = (calls.pop(0) for _ in range(4))
        assert forward[:4] == ("before_forward", step, epoch, lr)
        assert penalty[:5] == ("penalty", step, epoch, lr, False)
        assert before[:5] == ("before_step", step, epoch, lr, True)  # the gradients are there,
        assert before[5] == forward[5]  # the weights have not moved yet,
        assert after[:4] == ("after_step", step, epoch, lr)
        assert after[5] != before[5]  # and now they have
    assert calls == []


def test_the_penalty_counts_and_before_step_can_leave_out_the_step(tmp_path: Path) -> None:
    class Skips(Method):
        def penalty(self, ctx: Any) -> Tensor:
            return 3.0 * sum(w.sum() for w in self.weights.values())

        def before_step(self, ctx: Any) -> bool:
            self.grads = [w.grad.clone() for w in self.weights.values() if w.grad is not None]
            return ctx.step != 0

    found = {}
    for kind in (Method, Skips):
        experiment = make(compose([*MODELS["lenet"], "schedule.epochs=1", "schedule.batch_size=36"]))
        experiment.method = kind()
        t = Trainer(experiment, RunDirectory(tmp_path / kind.__name__))
        start = {name: p.detach().clone() for name, p in t.model.named_parameters()}
        t.fit()
        moved = {name: not torch.equal(p, start[name]) for name, p in t.model.named_parameters()}
        found[kind] = t.e.method, moved, t, start
    assert all(found[Method][1].values())
    assert not any(found[Skips][1].values())
    for plain, weight in zip(found[Skips][0].grads, found[Method][0].weights.values(), strict=True):  # type: ignore[attr-defined]
        assert torch.allclose(plain, weight.grad + 3.0, atol=1e-6)


def test_the_seeds_of_a_run_by_hand(tmp_path: Path) -> None:
    """Seed 0 is a seed like any other."""
    assert derive(0, "method") == SEEDS["0/method"]
    assert derive(1, "method") == SEEDS["1/method"]
    assert derive(0, "augment", 3, 1) == SEEDS["0/augment/3/1"]
    for seed in (0, 1):
        t = trainer(compose([*MODELS["lenet"], f"seed={seed}", "schedule.epochs=1"]), tmp_path / str(seed))
        assert t.ctx.rng.initial_seed() == derive(seed, "method")
        t.fit()
        assert torch.initial_seed() == derive(seed, "train")


# Bad input


def numeric(method: str) -> list[str]:
    """The options with a number in conf/method, read without composing: this runs at every collection."""
    option: Any = OmegaConf.to_container(OmegaConf.load(file("method", method)), resolve=False)
    section = option.get("method", option)
    return [k for k, v in section.items() if type(v) in (int, float) and k not in ("revision", *SIGNED)]


def negative(method: str, option: str) -> bool:
    """Whether an option states a range, and that has -1 in it."""
    hint = get_type_hints(locate(compose([f"method={method}"])["method"]["_target_"], "method"), include_extras=True)
    stated = get_args(hint[option])[1:]
    return any(isinstance(each, str) for each in stated) and mismatch(-1, hint[option]) is None


def problem(method: str, option: str, value: str) -> str:
    """The sentence that this value of an option gets."""
    with pytest.raises(Misuse) as caught:
        validate(compose([f"method={method}", f"method.{option}={value}"]))
    return str(caught.value)


@pytest.mark.parametrize(("method", "option"), [(m, option) for m in METHODS for option in numeric(m)])
def test_every_numeric_option_is_range_checked(method: str, option: str) -> None:
    if method in OURS or not negative(method, option):
        assert problem(method, option, "-1").startswith(f"method.{option} = -1 should be in the range")
    assert problem(method, option, "much").startswith(f"method.{option} = 'much' should be")
    assert problem(method, option, "true").startswith(f"method.{option} = True should be")
    assert problem(method, option, "null").startswith(f"method.{option} = None should be")


@pytest.mark.parametrize("method", [m for m in METHODS if "sparsity" in numeric(m)])
@pytest.mark.parametrize("value", ["1.2", "-0.1", "1", "1.0", "nan", "inf"])
def test_an_impossible_sparsity_is_refused(method: str, value: str) -> None:
    assert "method.sparsity = " in problem(method, "sparsity", value)
    assert "should be in the range 0 <= x < 1" in problem(method, "sparsity", value)


@pytest.mark.parametrize(
    ("method", "option", "value"),
    [
        *[(m, "stop", v) for m in ("set", "dsr") for v in ("1.01", "-0.01")],
        *[(m, "period", v) for m in ("set", "dsr") for v in ("0", '"1:20 -> 100, 21:40 -> 0.5"')],
        *[(m, "count", v) for m in ("set", "dsr") for v in ("0", "1.5")],
        *[("dsr", "tolerance", "1"), ("dsr", "threshold", "0")],
        *[("deepr", "temperature", '"1:20 -> 1e-5, 21:40 -> -1e-5"'), ("deepr", "rebirth", "some")],
        *[("gmp", "iterations", "0"), ("gmp", "iterations", "2.5"), ("gmp", "allocation", "evenly")],
        ("static", "allocation", "global"),
    ],
)
def test_values_beyond_the_range_name_their_option(method: str, option: str, value: str) -> None:
    assert problem(method, option, value).startswith(f"method.{option} = ")


@pytest.mark.parametrize("method", METHODS)
def test_an_unknown_option_names_the_nearest(method: str) -> None:
    config = compose([f"method={method}"])
    config["method"]["keep_dens"] = []
    with pytest.raises(Misuse, match=r"there is no option 'method\.keep_dens'\. Did you mean 'keep_dense'\?"):
        validate(config)


@pytest.mark.parametrize("method", [m for m in METHODS if "sparsity" in numeric(m)])
def test_a_missing_option_is_named(method: str) -> None:
    config = compose([f"method={method}"])
    del config["method"]["sparsity"]
    with pytest.raises(Misuse, match=r"method\.sparsity is missing"):
        validate(config)


@pytest.mark.parametrize("method", METHODS)
def test_a_pattern_that_matches_no_layer_is_misuse(method: str, tmp_path: Path) -> None:
    config = compose(overrides(method, "lenet", "method.keep_dense=[fc4]"))
    with pytest.raises(Misuse, match="'fc4' matches none of the layers fc1, fc2, fc3"):
        trainer(config, tmp_path)


@pytest.mark.parametrize("method", [m for m in METHODS if "layer_floor" in numeric(m)])
def test_a_floor_that_cannot_be_held_is_misuse_before_the_first_step(method: str, tmp_path: Path) -> None:
    config = compose(overrides(method, "lenet", "method.layer_floor=25"))  # 62 of 620 weights are kept
    with pytest.raises(Misuse, match="a floor of 25 weights per layer needs 75, but only 62 are kept"):
        trainer(config, tmp_path)


# The layout in memory


@pytest.mark.parametrize("method", METHODS)
def test_channels_last_changes_the_layout_and_no_mask(method: str, tmp_path: Path) -> None:
    layouts = []
    begun = []
    for layout in ("contiguous", "channels_last"):
        t = trainer(compose(overrides(method, "wrn", f"memory_format={layout}")), tmp_path / layout)
        t.model.group2[0].conv1.register_forward_hook(
            lambda module, inputs, output: layouts.append(output.is_contiguous(memory_format=torch.channels_last))
        )
        t.stop = lambda t=t: begun.append(digest(t.e.method.masks())) is not None  # type: ignore[misc]
        t.fit()
        for name, mask in t.e.method.masks().items():
            assert int(t.e.method.effective()[name][~mask].count_nonzero()) == 0
        assert t.densities()["mask"][0] == kept_at_the_end(t, compose(overrides(method, "wrn")))
    assert not any(layouts[: len(layouts) // 2]) and all(layouts[len(layouts) // 2 :])
    assert len(begun) == 16 and begun[0] == begun[8]


# Stages


PARENTS = {
    "set": ["method=set", "method.sparsity=0.5", "method.count=50", "method.period=1", "schedule.epochs=3"],
    "gmp": ["method=gmp", "method.sparsity=0.5", "method.iterations=2", "schedule.epochs=3"],
    "dense": ["method=dense", "schedule.epochs=3"],
}
# Nothing moves: the state at the end of the child's run is the one it began with.
STILL = {
    "static": [],
    "set": ["method.period=1000"],
    "dsr": ["method.period=1000"],
    "deepr": [],
    "gmp": ["method.iterations=1", "method.every_epochs=1"],
}


def stage(method: str, parent: str, take: str, path: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]]:
    """The last checkpoints of a stage that does not learn and of its parent, and the weights both were made with."""
    start = "start={parent: [" + ",".join(f'"{o}"' for o in PARENTS[parent]) + f"], take: {take}}}"
    given = ["dataset.train_subset=300", "model.hidden=[20,10]", f"method={method}", "method.sparsity=0.5"]
    given += [*STILL[method], "schedule.epochs=1", "schedule.lr=0", start, f"runs={path}"]
    config = compose(given)
    execute(config, given)
    parent_dir = run_dir(path, compose([*given[:2], *PARENTS[parent], f"runs={path}"]))
    child, old = (checkpoint.read(d / "checkpoints" / checkpoint.LAST) for d in (run_dir(path, config), parent_dir))
    return child, old, make(config).model.state_dict()


@pytest.mark.parametrize("parent", ["set", "gmp"])
@pytest.mark.parametrize("method", STILL)
def test_a_stage_with_its_parents_mask_has_all_of_the_masked_initial_weights(
    method: str, parent: str, tmp_path: Path
) -> None:
    child, old, initial = stage(method, parent, "mask", tmp_path)
    assert digest(child["method"]["masks"]) == digest(old["method"]["masks"])
    for name, mask in old["method"]["masks"].items():
        assert torch.equal(child["model"][name], torch.where(mask, initial[name], 0.0)), name
    if method == "deepr":
        for name, sign in child["method"]["signs"].items():
            assert torch.equal(sign < 0, initial[name] < 0)
            assert (
                child["method"]["active"][name].tolist()
                == child["method"]["masks"][name].view(-1).nonzero().view(-1).tolist()
            )


@pytest.mark.parametrize("method", STILL)
def test_a_stage_with_its_parents_weights_masks_those(method: str, tmp_path: Path) -> None:
    child, old, _ = stage(method, "dense", "weights", tmp_path)
    for name, mask in child["method"]["masks"].items():
        assert torch.equal(child["model"][name], torch.where(mask, old["model"][name], 0.0)), name
    if method == "deepr":  # its signs are those of the weights it starts from
        for name, sign in child["method"]["signs"].items():
            assert torch.equal(sign < 0, old["model"][name] < 0)


@pytest.mark.parametrize("method", ["static", "gmp"])
def test_a_parent_without_masks_has_none_to_take(method: str, tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="do not fit a model with prunable weights"):
        stage(method, "dense", "mask", tmp_path)


def test_dense_training_takes_no_mask(tmp_path: Path) -> None:
    start = "start={parent: [" + ",".join(f'"{o}"' for o in PARENTS["gmp"]) + "], take: mask}"
    given = ["dataset.train_subset=300", "model.hidden=[20,10]", "schedule.epochs=1", start, f"runs={tmp_path}"]
    with pytest.raises(Misuse, match="Method has no masks to take over"):
        execute(compose(given), given)
