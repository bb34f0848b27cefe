"""A model card: what a released network is, how it was made and measured, and how to load it. Markdown."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from results.render.ledger import code, figure
from runner.compose import file, headline

_WHAT = {
    "weights.pt": "plain weights (a state dict of torch tensors, zeros exactly 0); buffers of batch norms included",
    "model.pt2": "a torch.export program of the network: it runs without its source code",
    "model.onnx": "ONNX, batch norms folded into the convolutions before them",
    "compact.pt2": "a torch.export program of the dense network that is left without the filters that are 0",
}
_SHOWN = ("test/", "validation/", "mask/sparsity", "effective/sparsity", "flops/")


def card(run: Mapping[str, Any], release: Mapping[str, Any]) -> str:
    """`run`: `results.ledger.whole`; `release`: what `runner.release.of_run` says of its files."""
    config, environment = run["config"], run["environment"]
    zero, total = (sum(counts) for counts in zip(*release["zeros"].values(), strict=True))
    profile = config.get("profile") or {}
    share = f"{100 * zero / total:.2f} % of {total:,} weights of convolutions and linear layers are 0"
    lines = [
        f"# {config['model']['name']}, {config['method']['name']}, {config['dataset']['name']}",
        "",
        f"{share}; {release['parameters']:,} parameters in all.",
        "",
        "| | |",
        "|---|---|",
    ]
    facts = {
        "Method": _choice("method", config),
        "Model": _choice("model", config),
        "Data": f"{_choice('dataset', config)}; digest {config['dataset'].get('digest')}",
        "Profile": ": ".join(str(profile[name]) for name in ("name", "says") if name in profile) or "unknown",
        "Tables that read this run": " ".join(f"`{address}`" for address in run["cells"]) or "none",
        "Run": f"key `{run['key']}`, seed {run['seed']}, {run['epochs']} epochs",
        "Commit": f"`{code(run)}`" if code(run) else "unknown",
        "Made with": ", ".join(f"{name} {version}" for name, version in (environment.get("packages") or {}).items()),
        "On": f"{environment.get('device_name') or environment.get('device')}, {environment.get('platform')}",
        "Precision of training": config.get("precision", "fp32"),
    }
    lines += [f"| {name} | {_cell(text)} |" for name, text in facts.items()]
    lines += ["", "## Measured", "", "| metric, of the last epoch | |", "|---|---|"]
    lines += [f"| {name} | {figure(value)} |" for name, value in run["final"].items() if name.startswith(_SHOWN)]
    lines += [
        "",
        "`flops/..._ratio` are relative to the dense network and its training; `mask` counts what the method keeps,",
        "`effective` what is not 0.",
        "",
        "## Recipe",
        "",
        "```bash",
        shlex.join(["python", "-m", "runner", *_science(run["overrides"])]),
        "```",
        "",
        "## Loading",
        "",
        "```python",
        *(f"{loader['line']}{_origin(loader['needs'])}" for loader in release["loaders"]),
    ]
    if "model.pt2" in release["files"]:
        lines.append('import torch; model = torch.export.load("model.pt2").module()  # without any source code')
    lines += ["```", ""]
    shape = ", ".join(map(str, release["in_shape"]))
    lines.append(f"Input: (N, {shape}); output: {release['num_classes']} logits each.")
    if release["input"]:
        lines.append(
            f"From stored pixel values subtract {_numbers(release['input']['offset'])}, then divide by "
            f"{_numbers(release['input']['scale'])} (per channel)."
        )
    lines += ["", "## Files", "", "| file | bytes | SHA-256 | |", "|---|---|---|---|"]
    for name, told in release["files"].items():
        checked = release["outputs"].get(name)
        far = (
            f"; outputs within {checked['difference']:.1e} of the largest on {checked['images']} test images"
            if checked
            else ""
        )
        lines.append(f"| {name} | {told['bytes']:,} | `{told['sha256']}` | {_WHAT[name]}{far} |")
    lines += [f"| {name} | - | - | left out: {_cell(why)} |" for name, why in release["missing"].items()]
    lines += ["", "## Zeros by layer", "", "| weight | zeros | of | |", "|---|---|---|---|"]
    for name, (none, count) in release["zeros"].items():
        lines.append(f"| {name} | {none:,} | {count:,} | {100 * none / count:.2f} % |")
    return "\n".join(lines) + "\n"


def _choice(group: str, config: Mapping[str, Any]) -> str:
    """What the file of the choice says of it, if it is that file's, and the options; names of libraries have none."""
    section = config[group]
    name, target = str(section["name"]), section.get("_target_")
    path = file(group, name)
    ours = path.is_file() and re.search(rf"^ *_target_: {re.escape(str(target))}$", path.read_text(), re.MULTILINE)
    options = {key: value for key, value in section.items() if key not in ("name", "revision", "_target_", "digest")}
    said = headline(group, name) if ours else f"`{target}`, name {name}"
    return f"{said} Options: {', '.join(f'{key} {value}' for key, value in options.items())}" if options else said


def _science(overrides: list[str]) -> list[str]:
    """Without what names places and machines."""
    return [text for text in overrides if not text.startswith(("runs=", "data.", "trainer", "logger", "cluster"))]


def _origin(library: str | None) -> str:
    return "  # the function that built it" if library is None else f"  # a model of {library}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)
