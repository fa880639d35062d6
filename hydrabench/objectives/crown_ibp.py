"""CROWN-IBP: cross entropy of certified lower bounds, moving from CROWN-IBP towards interval bounds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from hydrabench.config import Radius
from hydrabench.config.passes import TRAINING
from hydrabench.objectives.certified import box_passes, certified, certified_loss, kappa_at
from hydrabench.objectives.description import Objective, ObjectiveSettings, Workload
from hydrabench.objectives.step import StepLoss, TrainingStep

if TYPE_CHECKING:
    from torch import Tensor, nn


class CrownIbpSettings(ObjectiveSettings):
    """CROWN-IBP (Zhang et al. 2020): cross entropy of the lower bounds, from CROWN-IBP to `beta_end` of it.

    `beta_end` 0 ends in plain IBP, 1 stays with CROWN-IBP. The share of the clean cross entropy moves from
    `kappa_start` to `kappa_end`; HYDRA uses none.
    """

    name: Literal["crown-ibp"]
    epsilon: Radius
    beta_end: float = Field(0.0, ge=0, le=1)
    kappa_start: float = Field(0.0, ge=0, le=1)
    kappa_end: float = Field(0.0, ge=0, le=1)


def crown_ibp_loss(
    network: nn.Module, x: Tensor, y: Tensor, settings: CrownIbpSettings, step: TrainingStep
) -> StepLoss:
    """CE(-lower bounds of f_y - f_j, y) with bounds beta · CROWN-IBP + (1 - beta) · IBP, and a share of CE(f(x), y).

    beta falls from 1 at radius 0 to `settings.beta_end` at the full radius: beta = 1 - ramp · (1 -
    beta_end). The share kappa of the clean cross entropy moves from `settings.kappa_start` to
    `settings.kappa_end` likewise; both are 0 by default, as in HYDRA.

    Args:
        x: images, (B, C, H, W), in [0, 1]; y: labels, (B,).
    Source: Zhang et al., arXiv:1906.06316, equation 12.
    """
    beta = 1 - step.ramp * (1 - settings.beta_end)
    return certified_loss(network, x, y, step, beta=beta, kappa=kappa_at(step.ramp, settings))


def crown_ibp_verdicts(
    network: nn.Module, x: Tensor, y: Tensor, settings: CrownIbpSettings, step: TrainingStep
) -> Tensor:
    """Return which images the bound of the last training step certifies at the full radius, (B,), bool."""
    from hydrabench.bounds import class_margins

    return certified(class_margins(network, x, y, step.epsilon, beta=settings.beta_end), y)


def crown_ibp_passes(settings: CrownIbpSettings, work: Workload) -> float:
    """A clean pass, boxes, and one pass back for every rival class while beta is above 0."""
    share = 1.0 if settings.beta_end > 0 else work.ramp
    return box_passes(settings) + TRAINING * share * (work.classes - 1)


CROWN_IBP = Objective(
    CrownIbpSettings, crown_ibp_loss, crown_ibp_verdicts, "verified_accuracy", crown_ibp_passes, uses_bounds=True
)
