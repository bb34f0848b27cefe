"""The numbers that every method gave when they were last looked at: `python -m tests.golden` writes them anew.

Eight steps on two networks, beside the run's key. A change of code that changes numbers under an old key shows up in
tests/test_golden.py: either it was not meant, or the `revision` of what changed is to be raised, and this run again.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from runner.compose import compose
from runner.identity import key
from tests.test_contract import METHODS, OURS, overrides, trainer

FILE = Path(__file__).with_name("golden.json")
NAMES = [name for name in METHODS if name in OURS]
MODELS = ("digits", "wrn")
_NUMBERS = ("train/loss", "test/loss", "mask/sparsity", "effective/sparsity")


def trajectory(method: str, model: str) -> dict[str, Any]:
    """The key, the numbers of each epoch, and how many weights each layer's mask keeps at the end."""
    config = compose(overrides(method, model))
    with tempfile.TemporaryDirectory() as folder:
        t = trainer(config, Path(folder))
        t.fit()
    return {
        "key": key(config),
        "epochs": [[float(f"{line[name]:.8g}") for name in _NUMBERS] for line in t.history],
        "kept": {name: int(mask.sum()) for name, mask in t.e.method.masks().items()},
    }


def main() -> int:
    """Write all of them; those of other keys are gone."""
    found = {f"{method} {model}": trajectory(method, model) for method in NAMES for model in MODELS}
    FILE.write_text("{\n" + ",\n".join(f"{json.dumps(n)}: {json.dumps(v)}" for n, v in found.items()) + "\n}\n")
    print(f"{len(found)} trajectories are in {FILE}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
