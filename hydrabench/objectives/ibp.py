"""Interval bound propagation: clean cross entropy mixed with that of interval bounds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from hydrabench.config import Radius
from hydrabench.objectives.certified import box_passes, certified, certified_loss, kappa_at
from hydrabench.objectives.description import Objective, ObjectiveSettings, Workload
from hydrabench.objectives.step import StepLoss, TrainingStep

if TYPE_CHECKING:
    from torch import Tensor, nn


class IbpSettings(ObjectiveSettings):
    """Interval bounds (Gowal et al. 2018): kappa · clean cross entropy + (1 - kappa) · that of the lower bounds."""

    name: Literal["ibp"]
    epsilon: Radius
    kappa_start: float = Field(1.0, ge=0, le=1)
    kappa_end: float = Field(0.5, ge=0, le=1)


def ibp_loss(network: nn.Module, x: Tensor, y: Tensor, settings: IbpSettings, step: TrainingStep) -> StepLoss:
    """kappa · CE(f(x), y) + (1 - kappa) · CE(-interval lower bounds of f_y - f_j, y).

    kappa moves from `settings.kappa_start` to `settings.kappa_end` with the radius, 1 to 1/2 by default.

    Args:
        x: images, (B, C, H, W), in [0, 1]; y: labels, (B,).
    Source: Gowal et al., arXiv:1810.12715, section 3, the last layer elided.
    """
    return certified_loss(network, x, y, step, beta=0.0, kappa=kappa_at(step.ramp, settings))


def ibp_verdicts(network: nn.Module, x: Tensor, y: Tensor, settings: IbpSettings, step: TrainingStep) -> Tensor:  # noqa: ARG001
    """Return which images interval bounds certify at the full radius, (B,), bool."""
    from hydrabench.bounds import class_margins

    return certified(class_margins(network, x, y, step.epsilon, beta=0.0), y)


def ibp_passes(settings: IbpSettings, work: Workload) -> float:  # noqa: ARG001
    """A clean pass and boxes."""
    return box_passes(settings)


IBP = Objective(IbpSettings, ibp_loss, ibp_verdicts, "verified_accuracy", ibp_passes, uses_bounds=True)
