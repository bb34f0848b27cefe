"""Times of inference: which network a record tells of, and what tables read from the records. No torch here.

Records of networks that were never trained (`runs.py engines --untrained`) lie in results/logged/engines. A run's own,
engines.json beside its other files, is read by results.record.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from results.architecture import request
from results.collect import LOGGED
from results.record import TIMES_SCHEMA as SCHEMA
from runner.errors import Misuse

FOLDER = LOGGED / "engines"
#: What makes two never trained networks the same one.
IDENTITY = ("model", "in_shape", "num_classes", "pruning", "seed")
_PRUNING = {"sparsity": 0.0, "allocation": "global", "keep_dense": []}


class Unmeasured(Misuse):
    """No record tells the times of a network: a cell that reads them is missing."""


def untrained(config: Mapping[str, Any]) -> dict[str, Any]:
    """The never trained network of a composed config: its model, inputs and seed, and how magnitude prunes it.

    Misuse for a dataset whose inputs are not known, or a method that states no sparsity (dense training: 0).
    """
    asked = request(config)
    if asked is None:
        raise Misuse(f"The inputs of the dataset {config['dataset']['name']} are not known without its data.")
    method = config["method"]
    if method["name"] != "dense" and not isinstance(method.get("sparsity"), int | float):
        raise Misuse(f"method {method['name']} states no sparsity, so magnitude cannot prune for it.")
    pruning = {name: method.get(name, default) for name, default in _PRUNING.items()}
    if not pruning["sparsity"]:
        pruning = dict(_PRUNING)  # nothing is pruned, wherever
    network = {name: asked[name] for name in ("model", "in_shape", "num_classes")}
    return {**network, "pruning": pruning, "seed": config["seed"]}


def facts(config: Mapping[str, Any], folder: Path = FOLDER) -> Mapping[str, Any]:
    """What expressions read below `engines`: ENGINE.batchN_threadsM.ms, .speedup.median ..., weights, macs.

    Unmeasured when no committed record tells of the config's never trained network; Misuse when several do.
    """
    wanted = untrained(config)
    found = [
        (path, network)
        for path, record in _records(folder)
        for network in record["networks"]
        if all(network[name] == wanted[name] for name in IDENTITY)
    ]
    pruned = wanted["pruning"]
    name = f"{wanted['model']['name']} with {pruned['sparsity']:.0%} of its weights pruned ({pruned['allocation']})"
    if not found:
        raise Unmeasured(
            f"No record in {folder.name}/ below results/logged tells the times of {name}; "
            "`python scripts/runs.py engines --untrained ADDRESS` measures them."
        )
    if len(found) > 1:
        raise Misuse(f"{found[0][0]} and {found[1][0]} both tell the times of {name}; remove one.")
    network = found[0][1]
    return {**network["times"], "weights": network["weights"], "macs": network["macs"]}


def entry(path: str, config: Mapping[str, Any]) -> Any:
    """The fact at a dotted path of `facts`; Unmeasured when the record does not tell it."""
    told: Any = facts(config)
    for name in path.split("."):
        told = told.get(name) if isinstance(told, Mapping) else None
    if told is None:
        raise Unmeasured(
            f"The record of {config['model']['name']} tells no {path}; measure it with that engine and setting."
        )
    return told


def _records(folder: Path) -> Sequence[tuple[Path, Mapping[str, Any]]]:
    stamps = [(path, path.stat().st_mtime_ns) for path in sorted(folder.glob("*.json"))]
    return _read(tuple(stamps))


@functools.lru_cache(maxsize=8)
def _read(stamps: tuple[tuple[Path, int], ...]) -> Sequence[tuple[Path, Mapping[str, Any]]]:
    records = []
    for path, _ in stamps:
        try:
            record = json.loads(path.read_text())
            networks = record["networks"]
            whole = all(name in network for network in networks for name in (*IDENTITY, "times", "weights", "macs"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Misuse(f"{path} is not a whole record of times ({error}); measure it again.") from error
        if record.get("schema") != SCHEMA or not whole:
            raise Misuse(f"{path} is no record of times of schema {SCHEMA}; measure it again.")
        records.append((path, record))
    return records
