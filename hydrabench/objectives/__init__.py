"""Training objectives: pure functions of network, batch, settings and step; and how each selects its best epoch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hydrabench.objectives.crown_ibp import crown_ibp_loss, crown_ibp_verdicts
from hydrabench.objectives.free import free_loss, free_repeats, free_verdicts
from hydrabench.objectives.ibp import ibp_loss, ibp_verdicts
from hydrabench.objectives.mixtrain import mixtrain_loss, mixtrain_verdicts
from hydrabench.objectives.natural import clean_verdicts, natural_loss
from hydrabench.objectives.pgd import pgd_loss, pgd_verdicts
from hydrabench.objectives.schedules import EPSILON_SCHEDULES, SCHEDULES, constant, cosine, linear_epsilon
from hydrabench.objectives.stability import smoothed_verdicts, stability_loss
from hydrabench.objectives.step import Losses, Step
from hydrabench.objectives.trades import trades_loss


def once(settings: Any) -> int:  # noqa: ARG001 - asked of every objective alike
    """Number of steps in a row that most objectives train on each minibatch."""
    return 1


@dataclass(frozen=True)
class TrainingObjective:
    """How one objective trains and selects.

    loss: what a step minimises. verdicts: which validation images count, (B,) bool. metric: its name.
    passes_bounds: whether bounds go through the network, so that every layer must have rules.
    repeats: how often in a row its settings train on each minibatch.
    """

    loss: Callable[[nn.Module, Tensor, Tensor, Any, Step], Losses]
    verdicts: Callable[[nn.Module, Tensor, Tensor, Any, Step], Tensor]
    metric: str
    passes_bounds: bool = False
    repeats: Callable[[Any], int] = once


OBJECTIVES: dict[str, TrainingObjective] = {
    "natural": TrainingObjective(natural_loss, clean_verdicts, "clean_accuracy"),
    "trades": TrainingObjective(trades_loss, pgd_verdicts, "robust_accuracy"),
    "pgd": TrainingObjective(pgd_loss, pgd_verdicts, "robust_accuracy"),
    "free": TrainingObjective(free_loss, free_verdicts, "robust_accuracy", repeats=free_repeats),
    "stability": TrainingObjective(stability_loss, smoothed_verdicts, "smoothed_accuracy"),
    "ibp": TrainingObjective(ibp_loss, ibp_verdicts, "verified_accuracy", passes_bounds=True),
    "crown-ibp": TrainingObjective(crown_ibp_loss, crown_ibp_verdicts, "verified_accuracy", passes_bounds=True),
    "mixtrain": TrainingObjective(mixtrain_loss, mixtrain_verdicts, "verified_accuracy", passes_bounds=True),
}

__all__ = [
    "EPSILON_SCHEDULES",
    "OBJECTIVES",
    "SCHEDULES",
    "Losses",
    "Step",
    "TrainingObjective",
    "constant",
    "cosine",
    "linear_epsilon",
]
