"""Times of inference in the engines: networks against the dense one, in turn, their outputs compared first."""

from __future__ import annotations

import copy
import math
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data.order import derive
from methods.allocation import prunable_weights
from methods.ranking import ranked
from models.account import account
from results.engines import untrained
from results.record import TIMES_SCHEMA as SCHEMA
from runner.build import build
from runner.cluster import cores
from runner.device import reset
from runner.engines import Array, Engine, Network, Session, apart, start
from runner.environment import describe
from runner.errors import Misuse
from runner.export import exported, zeros
from runner.identity import Config
from runner.repeat import finished
from runner.speedup import machine
from runner.timing import in_turn

# A variant's turn takes this long at least, so that the clock does not matter; a pass shorter than this comes after one
# that does not count, since the caches hold another variant's weights.
_TURN_S = 0.2
_IMAGES = 8  # that set an untrained network's batch norms
_SETTING = re.compile(r"(\d+)x(\d+)")
#: What a record of untrained networks says of their weights.
UNTRAINED = (
    "never trained: drawn from the seed, pruned by magnitude, batch norm's statistics those of random images; "
    "they have times, and no accuracy"
)
TWIN = "the same network with random numbers in place of its zeros"


@dataclass(frozen=True)
class Setting:
    """How many images at a time, with how many threads (cores)."""

    batch: int
    threads: int

    @property
    def name(self) -> str:
        return f"batch{self.batch}_threads{self.threads}"


@dataclass(frozen=True)
class Plan:
    """How often each network is opened in each engine, and timed while it is open.

    Where memory comes to lie, and what an engine picks by trying, is settled when it opens a network: some openings are
    faster than others for as long as they last.
    """

    openings: int
    rounds: int


def settings_of(texts: Sequence[str] | None) -> list[Setting]:
    """BATCHxTHREADS each; by default 1 and 64 images with every core of this machine. Misuse for more than these.

    A time of four threads that share two cores is none of four cores.
    """
    here = cores()
    if not texts:
        return [Setting(1, here), Setting(64, here)]
    found = []
    for text in texts:
        match = _SETTING.fullmatch(text)
        if match is None or "0" in match.groups():
            raise Misuse(f"--setting {text} should be BATCHxTHREADS, such as 64x{here}.")
        found.append(Setting(int(match[1]), int(match[2])))
        if found[-1].threads > here:
            raise Misuse(f"--setting {text} asks for {match[2]} cores, and this machine has {here}.")
    return found


def measure_run(
    path: Path,
    config: Config,
    steps: int,
    engines: Sequence[str],
    settings: Sequence[Setting],
    plan: Plan,
) -> dict[str, Any]:
    """The record of a finished run's network, against the dense twin of it, on test images. In fp32.

    Misuse when the run's last checkpoint cannot be had, or its network not be exported.
    """
    trainer = finished(path, config, steps)
    e = trainer.e
    sparse = e.method.finalize(trainer.model).eval().cpu()
    networks = {"sparse": sparse}
    if any(bool((weight == 0).any()) for weight in prunable_weights(sparse).values()):
        networks["dense"] = twin(sparse, e.seed)
    needed = max(setting.batch for setting in settings)
    images = next(iter(e.data.test_batches(needed)))[0]
    if not isinstance(images, Tensor) or not images.is_floating_point():
        raise Misuse(f"{path} is no run on images; only those have times of inference.")
    images = images.cpu()[torch.arange(needed) % len(images)]
    started = start(engines)
    try:
        told = _measure(networks, next(reversed(networks)), images.numpy(), started, settings, plan)
        about = {name: engine.about for name, engine in started.items()}
    finally:
        _close(started)
    return {
        "schema": SCHEMA,
        "key": e.key,
        "seed": e.seed,
        "precision": "fp32",
        "config": {name: config[name] for name in ("dataset", "model", "method")},
        "baseline": TWIN if "dense" in networks else "itself: no weight of it is 0",
        "in_shape": list(e.data.in_shape),
        **_sizes(sparse, e.data.in_shape),
        **told["sparse"],
        **({"dense": told["dense"]} if "dense" in networks else {}),
        **asdict(plan),
        "engines": about,
        "environment": environment(settings),
    }


def measure_untrained(
    configs: Iterable[Config],
    engines: Sequence[str],
    settings: Sequence[Setting],
    plan: Plan,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """The record of the never trained networks of composed configs, each against the unpruned one of its model."""
    families = distinct(configs)
    found: list[dict[str, Any]] = []
    started = start(engines)
    try:
        for family in families:
            models = {f"{number}": drawn(each) for number, each in enumerate(family)}
            shape = family[0]["in_shape"]
            generator = torch.Generator().manual_seed(derive(family[0]["seed"], "images"))
            images = torch.randn(max(each.batch for each in settings), *shape, generator=generator).numpy()
            told = _measure(models, "0", images, started, settings, plan, say)
            found += [
                {**each, **_sizes(models[name], shape), **told[name]} for name, each in zip(models, family, strict=True)
            ]
        about = {name: engine.about for name, engine in started.items()}
    finally:
        _close(started)
    return {
        "schema": SCHEMA,
        "weights": UNTRAINED,
        "precision": "fp32",
        **asdict(plan),
        "networks": found,
        "engines": about,
        "environment": environment(settings),
    }


def distinct(configs: Iterable[Config]) -> list[list[dict[str, Any]]]:
    """The never trained networks of composed configs, each once, by what they are apart from their pruning.

    The first of every such list is the unpruned one, whether it is asked for or not.
    """
    families: list[list[dict[str, Any]]] = []
    for config in configs:
        network = untrained(config)
        dense = {**network, "pruning": {"sparsity": 0.0, "allocation": "global", "keep_dense": []}}
        family = next((each for each in families if each[0] == dense), None)
        if family is None:
            families.append(family := [dense])
        if network not in family:
            family.append(network)
    return families


@torch.no_grad()
def drawn(network: Mapping[str, Any]) -> nn.Module:
    """A network of `results.engines.untrained` in inference mode: the weights that a run of its seed starts from, all
    but the largest zero; batch norm's statistics are set by random images, so that every layer's outputs are of the
    size of a trained network's.
    """
    reset(cores(), True, "fp32")
    torch.manual_seed(derive(network["seed"], "model"))
    shape = tuple(network["in_shape"])
    model: nn.Module = build(network["model"], "model", num_classes=network["num_classes"], in_shape=shape)
    pruning = network["pruning"]
    if pruning["sparsity"]:
        try:
            weights = prunable_weights(model, pruning["keep_dense"])
        except ValueError as error:
            raise Misuse(f"method: {error}.") from None
        tensors = [weight.detach() for weight in weights.values()]
        shapes = [tuple(weight.shape) for weight in tensors]
        masks = ranked(torch._foreach_abs(tensors), shapes, pruning["allocation"], pruning["sparsity"])
        for weight, mask in zip(tensors, masks, strict=True):
            weight.mul_(mask.view_as(weight))
        _refuse_empty(network, [name for name, mask in zip(weights, masks, strict=True) if not mask.any()])
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the statistics of this batch alone
    generator = torch.Generator().manual_seed(derive(network["seed"], "statistics"))
    model.train()(torch.randn(_IMAGES, *shape, generator=generator))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


def _refuse_empty(network: Mapping[str, Any], weights: Sequence[str]) -> None:
    """Misuse when layers have nothing left: an engine that skips zeros would be timed at computing nothing."""
    if weights:
        layers = ", ".join(name.removesuffix(".weight") for name in weights)
        raise Misuse(
            f"Magnitude ({network['pruning']['allocation']}) leaves nothing of {layers} in a "
            f"{network['model']['name']} that was never trained, since initial weights are of another size in each "
            "layer. Take method.allocation=erk or uniform, or a trained run."
        )


@torch.no_grad()
def twin(model: nn.Module, seed: int) -> nn.Module:
    """A copy whose weights of 0 are random numbers, as large as the layer's others: what is left of the time if nothing
    is skipped. Its outputs mean nothing.
    """
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(derive(seed, "twin"))
    for weight in prunable_weights(model).values():
        zero = weight == 0
        size = weight.square().sum().div((~zero).sum().clamp(min=1)).sqrt()
        noise = torch.randn(weight.shape, generator=generator) * (size if size > 0 else 1e-3)
        weight.data[zero] = noise[zero]
    return model


def _measure(
    models: Mapping[str, nn.Module],
    baseline: str,
    images: Array,
    engines: Mapping[str, Engine],
    settings: Sequence[Setting],
    plan: Plan,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, dict[str, Any]]:
    """{name: {zeros, times: {engine: {setting: what was measured}}}} of networks of one architecture.

    `images`: as many as the largest batch.
    """
    found: dict[str, dict[str, Any]] = {name: {"times": {engine: {} for engine in engines}} for name in models}
    with tempfile.TemporaryDirectory(prefix="regrow-engines-") as folder:
        networks = {}
        for name, model in models.items():
            proto = exported(model, torch.from_numpy(images[:2]))
            found[name]["zeros"] = zeros(model, proto)
            networks[name] = Network(model, Path(folder, f"{name}.onnx"))
            networks[name].file.write_bytes(proto.SerializeToString())
        for setting in settings:
            began = os.getloadavg()[0]
            inputs = np.ascontiguousarray(images[: setting.batch])
            wanted = {name: _torch(model, inputs) for name, model in models.items()}
            seconds: dict[str, dict[str, list[list[float]]]] = {
                engine: {name: [] for name in models} for engine in engines
            }
            for opening in range(1, plan.openings + 1):
                sessions: dict[tuple[str, str], Session] = {}
                turns: dict[str, Callable[[], float]] = {}
                for engine_name, engine in engines.items():
                    for name, network in networks.items():
                        session = engine.open(network, setting.batch, setting.threads)
                        sessions[engine_name, name] = session
                        told, turn = _prepared(session, inputs, wanted[name], engine.rounding)
                        before = found[name]["times"][engine_name].get(setting.name, told)
                        told["difference"] = max(told["difference"], before["difference"])
                        told["equal"] = told["equal"] and before["equal"]
                        found[name]["times"][engine_name][setting.name] = told
                        turns[f"{engine_name}/{name}"] = turn
                say(
                    f"{setting.name}: {len(turns)} sessions are open (opening {opening} of {plan.openings}); "
                    f"{plan.rounds} rounds follow."
                )
                taken = in_turn(turns, plan.rounds)
                for (engine_name, name), session in sessions.items():
                    seconds[engine_name][name].append(taken[f"{engine_name}/{name}"])
                    session.close()
            load = [round(began, 2), round(os.getloadavg()[0], 2)]
            for engine_name, of_engine in seconds.items():
                for name, own in of_engine.items():
                    ratios = [
                        [d / s for d, s in zip(*each, strict=True)]
                        for each in zip(of_engine[baseline], own, strict=True)
                    ]
                    found[name]["times"][engine_name][setting.name] |= {
                        **_spread([1000 * each for opening in own for each in opening], "ms"),
                        "speedup": _spread([each for opening in ratios for each in opening], "median"),
                        "speedup_by_opening": [_digits(statistics.median(opening)) for opening in ratios],
                        "load": load,
                    }
    return found


def _prepared(
    session: Session, inputs: Array, wanted: Array, rounding: float
) -> tuple[dict[str, Any], Callable[[], float]]:
    """What a record says of a session, its outputs compared with the wanted ones; and a turn of it, in seconds."""
    clock = time.perf_counter()
    difference = apart(session.outputs(inputs), wanted)
    one = time.perf_counter() - clock
    if one < _TURN_S:  # the first pass of a session is slower
        one = session.seconds(inputs, 1, warm=True)
    passes = max(1, math.ceil(_TURN_S / one))
    told = {"passes": passes, "difference": difference, "equal": difference < rounding, **session.facts}
    return told, partial(session.seconds, inputs, passes, warm=one < _TURN_S)


def _spread(values: Sequence[float], name: str) -> dict[str, float]:
    """Median, least and greatest, in four digits."""
    three = {name: statistics.median(values), "least": min(values), "greatest": max(values)}
    return {each: _digits(value) for each, value in three.items()}


def _digits(value: float) -> float:
    return float(f"{value:.4g}")


@torch.inference_mode()
def _torch(model: nn.Module, images: Array) -> Array:
    return np.asarray(model(torch.from_numpy(images)).numpy())


def _sizes(model: nn.Module, in_shape: Sequence[int]) -> dict[str, Any]:
    """Weights of convolutions and linear layers, and multiply-accumulates of one image: all, and not with a zero."""
    counted = account(model, tuple(in_shape))
    weights = prunable_weights(model)
    left = {name: int(weight.count_nonzero()) for name, weight in weights.items()}
    listed = {layer.name for layer in counted.layers}
    macs = counted.layer_macs({name: count for name, count in left.items() if name in listed})
    return {
        "weights": {"all": sum(weight.numel() for weight in weights.values()), "left": sum(left.values())},
        "macs": {"all": counted.macs, "left": round(sum(macs.values()))},
    }


def environment(settings: Sequence[Setting]) -> dict[str, Any]:
    """Versions, commit, the processor, its cores that this process may use, and how politely it used them."""
    told = describe("cpu", max(setting.threads for setting in settings))
    return {**told, **machine(), "cores": cores(), "niceness": os.nice(0)}


def _close(engines: Mapping[str, Engine]) -> None:
    for engine in engines.values():
        engine.close()
