"""Exp-IBP: a weighted geometric mean of the adversarial loss and the loss of interval bounds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from hydrabench.objectives.expressive import ExpressiveSettings, expressive, expressive_loss
from hydrabench.objectives.step import StepLoss, TrainingStep

if TYPE_CHECKING:
    from torch import Tensor, nn

SMALLEST_LOSS = 1e-30  # of a loss: the power of 0 has no finite gradient


class ExpIbpSettings(ExpressiveSettings):
    """Exp-IBP (De Palma et al. 2024): (loss of the boxes)^w · (loss of the adversarial examples)^(1 - w)."""

    name: Literal["exp-ibp"]


def exp_ibp_loss(network: nn.Module, x: Tensor, y: Tensor, settings: ExpIbpSettings, step: TrainingStep) -> StepLoss:
    """Return CE(-lower bounds of f_y - f_j, y)^w · CE(f(x'), y)^(1 - w), w = `settings.ibp_weight`, image by image.

    Source: arXiv:2305.13991, equation 9; the rest is said of `expressive_loss`.
    """
    from torch.nn import functional

    def product(adversarial: Tensor, margins: Tensor, labels: Tensor) -> Tensor:
        boxes = functional.cross_entropy(-margins, labels, reduction="none").clamp_min(SMALLEST_LOSS)
        attacked = functional.cross_entropy(adversarial, labels, reduction="none").clamp_min(SMALLEST_LOSS)
        return (boxes**settings.ibp_weight * attacked ** (1 - settings.ibp_weight)).mean()

    return expressive_loss(network, x, y, settings, step, combined=product)


EXP_IBP = expressive(ExpIbpSettings, exp_ibp_loss)
