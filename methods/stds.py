"""STDS (Chen et al. 2022) and its schedulers LATS, S-LATS and PGH (Chen et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from methods.knob import Knob
from methods.soft_threshold import Scheduled, SoftThreshold
from methods.thresholds import Basis, Scheduler, stop


@dataclass(kw_only=True)
class STDS(SoftThreshold):
    """One global threshold grows from 0 to `final_threshold` along `scheduler`; gradients pass as if it were 0.

    `scheduler`, `learning_rate` (the basis of lats, s_lats and pgh), `beta` and `stop_slope` (of pgh) are those of
    `methods.thresholds.Threshold`. The first step is dense, as in algorithm 1 and in the official code.
    The official code of PGH goes on to the end whatever its slope, which is `stop_slope` = 0.
    """

    final_threshold: Annotated[float, "0 <= x"]
    scheduler: Scheduler = "sine"
    learning_rate: Basis = "cosine"
    beta: Annotated[float, "0 <= x <= 1"] = 1.0
    stop_slope: Annotated[float, "0 <= x"] = 0.0
    gradient: Literal["subgradient", "identity"] = "identity"

    knobs: ClassVar[tuple[Knob, ...]] = (Knob(option="final_threshold", low=1e-6, high=1e3, guess=0.1),)

    def check(self, epochs: float) -> None:
        if self.scheduler != "pgh" and (self.beta, self.stop_slope) != (1.0, 0.0):
            raise ValueError(f"beta and stop_slope belong to scheduler = pgh, not to {self.scheduler}")
        if self.scheduler in ("sine", "linear", "log2") and self.learning_rate != "cosine":
            raise ValueError(f"learning_rate = {self.learning_rate} has no effect on scheduler = {self.scheduler}")
        if self.learning_rate == "cosine":
            stop(self.beta, self.stop_slope)  # a slope that is never reached would prune nothing

    def make_source(self) -> Scheduled:
        return Scheduled(
            final=self.final_threshold,
            scheduler=self.scheduler,
            basis=self.learning_rate,
            beta=self.beta,
            stop_slope=self.stop_slope,
        )
