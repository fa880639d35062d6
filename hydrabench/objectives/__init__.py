"""Training objectives: pure functions of network, batch, settings and step; and how each selects its best epoch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hydrabench.objectives.crown_ibp import crown_ibp_loss, verified_verdicts
from hydrabench.objectives.natural import clean_verdicts, natural_loss
from hydrabench.objectives.schedules import SCHEDULES, constant, cosine, linear_epsilon
from hydrabench.objectives.step import Losses, Step
from hydrabench.objectives.trades import pgd_verdicts, trades_loss


@dataclass(frozen=True)
class TrainingObjective:
    """How one objective trains and selects.

    loss: what a step minimises. verdicts: which validation images count, (B,) bool. metric: its name.
    passes_bounds: whether bounds go through the network, so that every layer must have rules.
    """

    loss: Callable[[nn.Module, Tensor, Tensor, Any, Step], Losses]
    verdicts: Callable[[nn.Module, Tensor, Tensor, Any, Step], Tensor]
    metric: str
    passes_bounds: bool = False


OBJECTIVES: dict[str, TrainingObjective] = {
    "natural": TrainingObjective(natural_loss, clean_verdicts, "clean_accuracy"),
    "trades": TrainingObjective(trades_loss, pgd_verdicts, "robust_accuracy"),
    "crown-ibp": TrainingObjective(crown_ibp_loss, verified_verdicts, "verified_accuracy", passes_bounds=True),
}

__all__ = [
    "OBJECTIVES",
    "SCHEDULES",
    "Losses",
    "Step",
    "TrainingObjective",
    "constant",
    "cosine",
    "linear_epsilon",
]
