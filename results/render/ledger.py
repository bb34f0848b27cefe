"""Runs as text: a list of them, one whole, two compared. The mappings are those of results.ledger."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from results import number
from runner.compare import ABSENT
from runner.progress import duration
from runner.records import spell
from runner.untrusted import printable

#: The columns of a list; `profile` only where a run has one that changes it.
COLUMNS = (
    "dataset",
    "model",
    "method",
    "key",
    "seed",
    "status",
    "profile",
    "epochs",
    "test",
    "sparsity",
    "wall",
    "code",
)


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Lines with two spaces between aligned columns."""
    rows = [list(map(printable, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(f"{line.rstrip()}\n" for line in lines)


def listed(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line per run under a line of titles; nothing for no runs."""
    profiles = any(row["profile"] not in (None, "full") for row in rows)
    shown = [column for column in COLUMNS if column != "profile" or profiles]
    return columns([shown, *([_entry(row, column) for column in shown] for row in rows)]) if rows else ""


def release(found: Mapping[str, Any]) -> str:
    """The files of a released network, and those that could not be made."""
    rows = [[name, f"{file['bytes']:,} bytes"] for name, file in found["files"].items()]
    rows += [[name, f"left out: {why}"] for name, why in found["missing"].items()]
    return columns(rows)


def compact(found: Mapping[str, Any]) -> str:
    """What a record of `runner.speedup` says: sizes, filters, outputs, times."""
    rows = [["", "dense", "compact", "ratio"]]
    for name, title in (("parameters", "parameters"), ("macs", "MACs")):
        dense, small = found[name]["dense"], found[name]["compact"]
        rows.append([title, f"{dense:,}", f"{small:,}", f"{dense / small:.2f}" if small else "-"])
    filters, constant, outputs = found["filters"], found["constant_channels"], found["outputs"]
    rows.append(["filters", f"{filters['all']:,}", f"{filters['left']:,}", ""])
    rows.append(["zero filters", f"{filters['zero']:,}", f"{filters['zero_left']:,}", ""])
    speedup, timing, machine = found["speedup"], found["timing"], found["environment"]
    return columns(rows) + (
        f"Constant channels read: {constant['zero']} are 0, {constant['biased']} went into biases, "
        f"{constant['bordered']} are seen to end at the border.\n"
        f"Outputs on {outputs['images']} test images: {outputs['difference']:.1e} apart at most, of the largest; "
        f"{outputs['other_predictions']} other prediction(s).\n"
        f"Inference of {timing['batch']} images in {found['precision']}: {speedup['median']:.2f} times as fast "
        f"[{speedup['least']:.2f}, {speedup['greatest']:.2f}], the median of {timing['rounds']} rounds "
        f"({machine['device']}, {machine['threads']} thread(s), torch {machine['packages']['torch']}).\n"
    )


def export(found: Mapping[str, Any]) -> str:
    """What `runner.export` says of an exported network."""
    zeros, outputs, versions = found["zeros"], found["outputs"], found["versions"]
    share = zeros["model"] / zeros["weights"] if zeros["weights"] else 0.0
    return (
        f"{zeros['model']:,} of {zeros['weights']:,} weights are 0 ({share:.2%}), and all of them in the exported "
        f"network ({zeros['exported']:,} there).\n"
        f"Outputs on {outputs['images']} test images: {outputs['difference']:.1e} apart at most, of the largest; "
        f"{outputs['other_predictions']} other prediction(s) (fp32, ONNX Runtime {versions['onnxruntime']} and torch "
        f"{versions['torch']}).\n"
        f"Opset {found['opset']}, {found['bytes'] / 1e6:.1f} MB.\n"
    )


def engines(found: Mapping[str, Any]) -> str:
    """What a record of `runner.inference` says: times and their ratios to the dense network's, engine by engine."""
    if "networks" in found:
        networks = [(_pruned(network), network["times"]) for network in found["networks"]]
    else:
        networks = [("sparse" if "dense" in found else "dense", found["times"])]
        networks += [("dense", found["dense"]["times"])] if "dense" in found else []
    rows = [["network", "engine", "setting", "ms", "[least, greatest]", "dense / it", "[least, greatest]", "outputs"]]
    for name, times in networks:
        for engine, settings in times.items():
            for setting, time in settings.items():
                ratio = time["speedup"]
                rows.append(
                    [
                        name,
                        f"{engine} {found['engines'][engine]['version']}",
                        setting,
                        f"{time['ms']:.2f}",
                        f"[{time['least']:.2f}, {time['greatest']:.2f}]",
                        f"{ratio['median']:.2f}",
                        f"[{ratio['least']:.2f}, {ratio['greatest']:.2f}]",
                        f"{time['difference']:.1e} apart{'' if time['equal'] else ': not equal'}",
                    ]
                )
    machine = found["environment"]
    return columns(rows) + (
        f"Medians of {found['rounds']} rounds in each of {found['openings']} openings, in turn, in "
        f"{found['precision']} on {machine['cores']} core(s) of "
        f"{machine['processor']} ({machine['instructions']}).\n"
        + (f"The networks were {found['weights']}.\n" if "weights" in found and "networks" in found else "")
        + (f"Dense: {found['baseline']}.\n" if "baseline" in found else "")
    )


def _pruned(network: Mapping[str, Any]) -> str:
    pruning = network["pruning"]
    if not pruning["sparsity"]:
        return f"{network['model']['name']} dense"
    return f"{network['model']['name']} {pruning['sparsity']:.0%} {pruning['allocation']}"


def whole(run: Mapping[str, Any]) -> str:
    """A run: what it is, its final and best metrics, its layers, environment and configuration."""
    parts = [columns([[f"{name}:", text] for name, text in _facts(run).items() if text])]
    epochs = [("last", run["final"])] + ([("best", run["best"])] if run["best"] else [])
    names = [name for name in dict.fromkeys(name for _, metrics in epochs for name in metrics) if name != "epoch"]
    titles = ["", *(f"{which}: epoch {metrics.get('epoch', '-')}" for which, metrics in epochs)]
    parts.append(columns([titles, *([name, *(figure(metrics.get(name)) for _, metrics in epochs)] for name in names)]))
    if run["layers"]:
        parts.append(columns([["layer", "shape", "kept", "total", "sparsity", "nonzero"], *_layers(run["layers"])]))
    for title in ("environment", "config"):
        parts.append(f"# {title}\n" + yaml.safe_dump(run[title], sort_keys=False, width=120))
    return "\n".join(parts)


def difference(found: Mapping[str, Any]) -> str:
    """Where two runs differ, and their final metrics."""
    runs = [found["a"], found["b"]]
    facts = [["", "a", "b"], *([name, *(str(run[name]) for run in runs)] for name in ("path", "key", "seed", "status"))]
    parts = [columns(facts)]
    for title, entries in (
        ("configuration that is part of the key", [entry for entry in found["config"] if entry["science"]]),
        ("seed and machine", [entry for entry in found["config"] if not entry["science"]]),
        ("environment", found["environment"]),
    ):
        lines = [[entry["path"], _value(entry["a"]), _value(entry["b"])] for entry in entries]
        parts.append(f"# {title}{'' if lines else ': the same'}\n" + (columns(lines) if lines else ""))
    lines = [["", "a", "b", "b - a"]]
    for entry in found["final"]:
        a, b = number.read(entry["a"]), number.read(entry["b"])
        lines.append([entry["metric"], figure(a), figure(b), "-" if a is None or b is None else f"{b - a:+.6g}"])
    return "\n".join([*parts, "# final metrics\n" + columns(lines)])


def figure(value: Any) -> str:
    """A number to six digits; a dash for none."""
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def code(row: Mapping[str, Any]) -> str | None:
    """The commit that made a run, marked where the code had changes that were not committed."""
    return None if row["commit"] is None else str(row["commit"])[:9] + "-dirty" * bool(row["dirty"])


def _entry(row: Mapping[str, Any], column: str) -> str:
    text = {
        "epochs": f"{row['epochs']}/{row['of_epochs']}",
        "test": row["metric"] and f"{row['metric'].removeprefix('test/')} {figure(row['value'])}",
        "sparsity": figure(row["sparsity"]),
        "wall": None if row["wall_s"] is None else duration(row["wall_s"]),
        "code": code(row),
    }.get(column, row.get(column))
    return "-" if text is None else str(text)


def _facts(run: Mapping[str, Any]) -> dict[str, str | None]:
    parent = run["parent"]
    if parent is not None:
        place = f"{parent['path']}, {parent['status']}" if parent["path"] else "not among these runs"
        parent = f"{parent['key']}/seed{parent['seed']} gave its {parent['take']} ({place})"
    took = None if run["wall_s"] is None else f"{duration(run['wall_s'])}, {run['started']} to {run['ended']}"
    return {
        "run": run["name"],
        "path": run["path"],
        "status": f"{run['status']} ({run['reason']})" if run["reason"] else run["status"],
        "epochs": f"{_entry(run, 'epochs')}" + (f", {run['steps']} steps" if run["steps"] else ""),
        "time": took,
        "code": code(run),
        "parent": parent,
        "cells": " ".join(run["cells"]) or "none of the tables reads it",
        "overrides": shlex.join(run["overrides"]),
    }


def _layers(layers: Mapping[str, Mapping[str, Any]]) -> Iterable[list[str]]:
    counted = ("kept", "total", "nonzero")
    sums = {name: sum(layer[name] for layer in layers.values()) for name in counted}
    for name, layer in {**layers, "all": {"shape": [], **sums}}.items():
        kept, total, nonzero = (layer[part] for part in counted)
        sparsity = f"{1 - kept / total:.6f}" if total else "-"
        yield [name, "x".join(map(str, layer["shape"])), f"{kept:,}", f"{total:,}", sparsity, f"{nonzero:,}"]


def _value(value: Any) -> str:
    return ABSENT if value == ABSENT else json.dumps(spell(value))
