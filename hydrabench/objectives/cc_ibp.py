"""CC-IBP: the loss of a weighted mean of adversarial logit differences and interval bounds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from hydrabench.objectives.expressive import ExpressiveSettings, box_loss, expressive, expressive_loss
from hydrabench.objectives.step import StepLoss, TrainingStep

if TYPE_CHECKING:
    from torch import Tensor, nn


class CcIbpSettings(ExpressiveSettings):
    """CC-IBP (De Palma et al. 2024): cross entropy of w · lower bounds + (1 - w) · adversarial logit differences."""

    name: Literal["cc-ibp"]


def cc_ibp_loss(network: nn.Module, x: Tensor, y: Tensor, settings: CcIbpSettings, step: TrainingStep) -> StepLoss:
    """Return CE(-(w · lower bounds of f_y - f_j + (1 - w) · (f_y - f_j)(x')), y) with w = `settings.ibp_weight`.

    Source: arXiv:2305.13991, equation 7; the rest is said of `expressive_loss`.
    """

    def between(adversarial: Tensor, margins: Tensor, labels: Tensor) -> Tensor:
        reached = adversarial.gather(1, labels[:, None]) - adversarial
        return box_loss(settings.ibp_weight * margins + (1 - settings.ibp_weight) * reached, labels)

    return expressive_loss(network, x, y, settings, step, combined=between)


CC_IBP = expressive(CcIbpSettings, cc_ibp_loss)
