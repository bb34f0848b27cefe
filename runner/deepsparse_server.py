"""DeepSparse behind a pipe: a JSON request a line on stdin, a JSON answer a line on stdout, arrays in .npy files.

Run by the Python of an environment that has deepsparse, numpy and nothing of regrow (`make deepsparse`).
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
from typing import Any


def main() -> int:
    """Answer until stdin ends."""
    # What the library prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import numpy as np
    from deepsparse import compile_model, cpu

    sessions: list[Any] = []

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        command = request["command"]
        if command == "about":
            return {"version": importlib.metadata.version("deepsparse"), "instructions": cpu.cpu_architecture().isa}
        if command == "open":
            engine = compile_model(request["file"], batch_size=request["batch"], num_cores=request["threads"])
            if engine.num_cores != request["threads"]:
                return {"error": f"it would compute with {engine.num_cores} core(s), not {request['threads']}"}
            sessions.append(engine)
            return {"session": len(sessions) - 1, "own": engine.fraction_of_supported_ops}
        if command == "close":
            sessions[request["session"]] = None
            return {}
        engine, images = sessions[request["session"]], [np.load(request["images"])]
        if command == "run":
            np.save(request["outputs"], engine.run(images)[0])
            return {}
        if request["warm"]:
            engine.run(images)
        began = time.perf_counter()
        for _ in range(request["passes"]):
            engine.run(images)
        return {"seconds": (time.perf_counter() - began) / request["passes"]}

    for line in sys.stdin:
        try:
            told = answer(json.loads(line))
        except Exception as error:
            told = {"error": (str(error).strip() or type(error).__name__).splitlines()[0]}
        print(json.dumps(told), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
