"""Training with feedback from a quantised network: DPF's scheme with a k-bit quantiser in place of the mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from methods.reparam import Feedback


@dataclass(kw_only=True)
class Quantised(Feedback):
    """The network computes with weights of `bits` bits per layer: 2^bits - 1 evenly spaced levels, zero among them.

    C(w) = d round(w / d), d = max|w| / (2^(bits - 1) - 1) of the layer, halves to even. Lin et al. 2020, section 4,
    name quantisers as other compressors of their scheme and train none; the levels are ours.
    """

    bits: Annotated[int, "2 <= x <= 16"] = 4

    @torch.no_grad()
    def compress(self) -> None:
        largest = torch.stack(torch._foreach_norm(self.computed, float("inf")))
        steps = list((largest / (2 ** (self.bits - 1) - 1)).clamp_(min=torch.finfo(largest.dtype).tiny).unbind())
        torch._foreach_div_(self.computed, steps)
        torch._foreach_round_(self.computed)
        torch._foreach_mul_(self.computed, steps)
