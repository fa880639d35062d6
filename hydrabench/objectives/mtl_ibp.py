"""MTL-IBP: a weighted mean of the adversarial loss and the loss of interval bounds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from hydrabench.objectives.expressive import ExpressiveSettings, box_loss, expressive, expressive_loss
from hydrabench.objectives.step import StepLoss, TrainingStep

if TYPE_CHECKING:
    from torch import Tensor, nn


class MtlIbpSettings(ExpressiveSettings):
    """MTL-IBP (De Palma et al. 2024): w · loss of the boxes + (1 - w) · loss of the adversarial examples."""

    name: Literal["mtl-ibp"]


def mtl_ibp_loss(network: nn.Module, x: Tensor, y: Tensor, settings: MtlIbpSettings, step: TrainingStep) -> StepLoss:
    """Return w · CE(-lower bounds of f_y - f_j, y) + (1 - w) · CE(f(x'), y) with w = `settings.ibp_weight`.

    Source: arXiv:2305.13991, equation 8; the rest is said of `expressive_loss`.
    """
    from torch.nn import functional

    def mean(adversarial: Tensor, margins: Tensor, labels: Tensor) -> Tensor:
        attacked = functional.cross_entropy(adversarial, labels)
        return settings.ibp_weight * box_loss(margins, labels) + (1 - settings.ibp_weight) * attacked

    return expressive_loss(network, x, y, settings, step, combined=mean)


MTL_IBP = expressive(MtlIbpSettings, mtl_ibp_loss)
