"""What bf16, channels_last and torch.compile bring to a whole training step, dense and sparse."""

from __future__ import annotations

from collections.abc import Sequence

from runner.bench.figures import Figure, spread
from runner.bench.steps import Case, Stepper
from runner.timing import in_turn

BF16 = ("precision=bf16", "memory_format=channels_last")
KINDS = {"bf16, channels_last": BF16, "bf16, channels_last, compiled": (*BF16, "trainer.compile=true")}
METHODS = ("set", "rigl", "dpf", "topkast", "s_lats", "str", "edge_popup")
#: What a dense step should take of one in fp32, by kind; a sparse method's gain may be this factor less.
DENSE = {"resnet20": (0.48, 0.39), "wrn_28_2": (0.34, 0.28)}
SHARE = 1.03


def precisions(case: Case, chosen: Sequence[str], rounds: int, steps: int = 2) -> list[Figure]:
    """A step of the whole batch relative to one in fp32, of dense training and of every chosen method, mask updates
    spread over the method's period; processor time of one thread.
    """
    variants = {
        (name, kind): Stepper(case, name, case.batch, steps, more=more)
        for name in ("dense", *chosen)
        for kind, more in {"": (), **KINDS}.items()
    }
    for stepper in variants.values():
        stepper.round()  # warm up, and compile
    taken = in_turn({variant: stepper.round for variant, stepper in variants.items()}, rounds)
    found = []
    for place, kind in enumerate(KINDS):
        section = f"step of {case.model}, batch {case.batch}, {kind}, relative to fp32"
        gains = {
            name: [
                variants[name, kind].amortised(fast, 0) / variants[name, ""].amortised(slow, 0)
                for fast, slow in zip(taken[name, kind], taken[name, ""], strict=True)
            ]
            for name in ("dense", *chosen)
        }
        dense = spread(section, "dense", gains["dense"], "x", target=DENSE.get(case.model, (None, None))[place])
        found.append(dense)
        found += [spread(section, name, gains[name], "x", target=SHARE * dense.value) for name in chosen]
    return found
