"""What follows from a model and its input alone: parameters, MACs, FLOPs, read from small committed records.

Torch-free: `python -m models.account --tables` counts and writes them, asking `python -m results.architecture` (which
prints JSON) for the models that the tables and figures compose.
"""

from __future__ import annotations

import functools
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from typing import Any, get_args

from data.streams import segments
from methods.counts import Allocation, allocate
from models.account import CONVENTIONS, Account
from results import document
from results.address import PAPERS, figures, select, tables
from results.plan import composed
from runner.compose import CONF
from runner.errors import Misuse
from runner.identity import parent_config

FOLDER = Path(__file__).resolve().parent / "architectures"
INPUTS = "inputs.yaml"
WRITE = "python -m models.account --tables"
SCHEMA = 1
# Where the initial weights come from changes nothing of the architecture, and asking for them would download them.
_WEIGHTS: dict[str, Any] = {"pretrained": False, "weights": None}


@dataclass(frozen=True)
class Inputs:
    """What a dataset feeds a model: the shape of one input, how many classes, how many training samples."""

    shape: tuple[int, ...]
    num_classes: int
    train_size: int


@dataclass(frozen=True)
class Layer:
    """A weight of a convolution or a linear layer; `macs` of one inference pass of one input."""

    name: str
    kind: str
    shape: tuple[int, ...]
    weights: int
    macs: int


@dataclass(frozen=True)
class Architecture:
    """Counts of a dense model. `flops`: of one inference pass of one input, by convention (models.account).

    `stages`: what papers print of its stages (models.stages); empty for most models.
    """

    parameters: int  #: everything trained
    weights: int  #: of convolutions and linear layers
    conv_weights: int
    linear_weights: int
    batch_norm_parameters: int
    biases: int  #: of convolutions and linear layers
    macs: int
    flops: Mapping[str, float]
    layers: tuple[Layer, ...]
    account: Account
    stages: Mapping[str, str | int]


def inputs(dataset: Mapping[str, Any]) -> Inputs | None:
    """Of a composed dataset section: what it says itself, else what inputs.yaml says; None where neither does.

    A sample of a text to be modelled is a segment. Of texts to be classified the shape is (different ids, length), two
    ids being no words. Held-out samples do not train. `train_subset` is left to the caller: it changes no architecture.
    """
    if {"train_tokens", "rows", "length"} <= dataset.keys():
        samples = dataset["rows"] * segments(dataset["train_tokens"], dataset["rows"], dataset["length"])
        return Inputs((dataset["length"],), int(dataset["num_classes"]), samples)
    shape = dataset.get("shape") or ((3, dataset["side"], dataset["side"]) if "side" in dataset else None)
    if "words" in dataset:
        shape = (2 + dataset["words"], dataset["length"])
    if shape and "num_classes" in dataset and "train_size" in dataset:
        return Inputs(tuple(shape), int(dataset["num_classes"]), int(dataset["train_size"]))
    known = _known().get(str(dataset["name"]))
    if known is None:
        return None
    shape = known["shape"]
    if "vocabulary" in dataset:
        shape = (2 + dataset["vocabulary"], dataset["max_length"] or shape[1])
    return Inputs(tuple(shape), known["num_classes"], known["train_size"] - (dataset.get("validation") or 0))


@functools.cache
def _known() -> Mapping[str, Any]:
    return document.load(FOLDER / INPUTS)


def request(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """What is to be counted for a composed config: {model, in_shape, num_classes, file}; None: an unknown dataset."""
    given = inputs(config["dataset"])
    if given is None:
        return None
    model = {name: _WEIGHTS.get(name, value) for name, value in config["model"].items()}
    asked = {"model": model, "in_shape": list(given.shape), "num_classes": given.num_classes}
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]
    sides = "x".join(map(str, given.shape))
    return {**asked, "file": f"{str(model['name']).replace('/', '_')}-{sides}-{given.num_classes}-{digest}.json"}


def record(config: Mapping[str, Any], folder: Path = FOLDER) -> Architecture | None:
    """The architecture of a composed config's model and dataset; None when no record of it is kept."""
    asked = request(config)
    return None if asked is None else _read(folder / asked["file"])


@functools.cache
def _read(path: Path) -> Architecture | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise Misuse(f"{path} is not readable ({error}); write it again with `{WRITE}`.") from error
    try:
        if content["schema"] != SCHEMA:
            raise Misuse(f"{path} has schema {content['schema']!r}, not {SCHEMA}; write it again with `{WRITE}`.")
        layers = tuple(
            Layer(each["name"], each["kind"], tuple(each["shape"]), each["weights"], each["macs"])
            for each in content["layers"]
        )
        counts = {name: content[name] for name in ("parameters", "weights", "batch_norm_parameters", "biases", "macs")}
        return Architecture(
            **counts,
            conv_weights=sum(layer.weights for layer in layers if layer.kind == "conv"),
            linear_weights=sum(layer.weights for layer in layers if layer.kind == "linear"),
            flops=content["flops"],
            layers=layers,
            account=Account.from_record(content),
            stages=content.get("stages", {}),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise Misuse(f"{path} is not a whole record ({error}); write it again with `{WRITE}`.") from error


def facts(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What expressions read below `architecture`: parameters, weights, macs, flops.dpf, stages.stem and so on.

    allocated.CONVENTION: the share of dense inference FLOPs that the method's allocation leaves, where it has one.
    Misuse without a record.
    """
    found = record(config)
    if found is None:
        model, dataset = config["model"]["name"], config["dataset"]["name"]
        mend = f"`{WRITE}` writes those of all tables and figures"
        if inputs(config["dataset"]) is None:
            mend = f"add the dataset to {FOLDER / INPUTS} first; then {mend}"
        raise Misuse(f"There is no record of the architecture {model} on {dataset}; {mend}.")
    told = {
        name: getattr(found, name) for name in Architecture.__dataclass_fields__ if name not in ("layers", "account")
    }
    kept = allocated(found, config["method"])
    return told if kept is None else told | {"allocated": kept}


def allocated(found: Architecture, method: Mapping[str, Any]) -> dict[str, float] | None:
    """FLOPs of inference, as a share of the dense network's, by convention, of an allocation that needs no training.

    None where the method's section names none (uniform, erk). Misuse when a keep_dense pattern matches no layer.
    """
    rule: Any = method.get("allocation")
    share = method.get("sparsity")
    if rule not in get_args(Allocation) or not isinstance(share, int | float):
        return None
    patterns = method.get("keep_dense", [])
    for pattern in patterns:
        if not any(_matches(layer, pattern) for layer in found.layers):
            raise Misuse(f"keep_dense pattern {pattern!r} matches none of the architecture's layers.")
    pruned = [layer for layer in found.layers if not any(_matches(layer, pattern) for pattern in patterns)]
    counts = allocate(rule, [layer.shape for layer in pruned], share)
    kept = dict(zip((layer.name for layer in pruned), counts, strict=True))
    return {name: found.account.flops(name, kept) / found.flops[name] for name in CONVENTIONS}


def _matches(layer: Layer, pattern: str) -> bool:
    """As `methods.allocation` matches a module: its name, or after "type:" its class."""
    kind = pattern.removeprefix("type:")
    own = "Linear" if layer.kind == "linear" else f"Conv{len(layer.shape) - 2}d"
    return fnmatchcase(layer.name.removesuffix(".weight") if kind == pattern else own, kind)


def wanted(papers: Path = PAPERS) -> list[dict[str, Any]]:
    """A `request` for every distinct architecture that the cells of tables and figures compose today, by file name.

    Those of the user's packages are left out. Misuse when a dataset's inputs are not known.
    """
    found: dict[str, dict[str, Any]] = {}
    for config in _configs(papers):
        asked = request(config)
        if asked is None:
            raise Misuse(
                f"{FOLDER / INPUTS} lacks the dataset {config['dataset']['name']}: shape, num_classes, train_size."
            )
        found[asked["file"]] = asked
    return [found[name] for name in sorted(found)]


def _configs(papers: Path) -> Iterator[Mapping[str, Any]]:
    ours = {name: path for name, path in tables(papers).items() if path.is_relative_to(papers)}
    drawn = {name: path for name, path in figures(papers).items() if path.is_relative_to(papers)}
    own = [name for name, path in drawn.items() if "table" not in document.load(path)]
    seen: set[tuple[str, ...]] = set()
    for selection in select([*ours, *own], papers):
        for slot in chain.from_iterable(map(selection.slots, (None, *_reshaping()))):
            if slot.needs or not slot.calibrated or slot.settings.kind == "derived" or slot.overrides in seen:
                continue
            seen.add(slot.overrides)
            config: dict[str, Any] | None = composed(slot).config
            while config is not None:
                yield config
                config = parent_config(config)


def _reshaping() -> list[str]:
    """The profiles under which networks see inputs of other shapes."""
    ours = {path.stem: path for path in sorted((CONF / "profile").glob("*.yaml"))}
    return [name for name, path in ours.items() if document.load(path).get("max_length")]


def main() -> int:
    """Print what is wanted, one JSON object a line; 2 and one sentence when that is not possible."""
    try:
        for asked in wanted():
            print(json.dumps(asked))
    except Misuse as misuse:
        print(misuse, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
