"""Consistency: noisy copies of an image should be classified alike, and confidently."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, NonNegativeFloat

from hydrabench.config.fields import Noise
from hydrabench.config.passes import TRAINING
from hydrabench.objectives.description import Objective, ObjectiveSettings, Workload
from hydrabench.objectives.stability import smoothed_verdicts
from hydrabench.objectives.step import StepLoss, TrainingStep

if TYPE_CHECKING:
    from torch import Tensor, nn


class ConsistencySettings(ObjectiveSettings):
    """Consistency regularization (Jeong and Shin 2020) on top of the cross entropy of noisy copies.

    consistency: weight of the divergence of the copies from their mean (the paper's lambda). entropy: weight of the
    entropy of the mean (eta). copies: noisy copies of each image (m).
    """

    name: Literal["consistency"]
    sigma: Noise
    consistency: NonNegativeFloat = 10.0
    entropy: NonNegativeFloat = 0.5
    copies: int = Field(2, ge=2)


def consistency_loss(
    network: nn.Module, x: Tensor, y: Tensor, settings: ConsistencySettings, step: TrainingStep
) -> StepLoss:
    """Return mean CE(f(x + noise), y) + lambda · mean KL(s ‖ s(x + noise)) + eta · H(s), s the mean of the softmaxes.

    Gradients flow through s. The logits are those of the first copy.

    Args:
        x: images, (B, C, H, W), in [0, 1]; y: labels, (B,).
    Source: Jeong and Shin (2020), arXiv:2006.04062, equations 9 and 10.
    """
    from torch.nn import functional

    from hydrabench.objectives.noise import SMALLEST_PROBABILITY, noises, noisy_logits

    logits = noisy_logits(network, x, noises(x, step, copies=settings.copies, sigma=settings.sigma))
    mean = logits.softmax(2).mean(0).clamp_min(SMALLEST_PROBABILITY)
    apart = (mean * (mean.log() - logits.log_softmax(2))).sum(2).mean()
    spread = -(mean * mean.log()).sum(1).mean()
    total = functional.cross_entropy(logits.flatten(0, 1), y.repeat(settings.copies))
    return StepLoss(total + settings.consistency * apart + settings.entropy * spread, logits[0])


def consistency_passes(settings: ConsistencySettings, work: Workload) -> float:  # noqa: ARG001
    """Return a pass with all gradients for every copy."""
    return settings.copies * TRAINING


CONSISTENCY = Objective(
    ConsistencySettings, consistency_loss, smoothed_verdicts, "smoothed_accuracy", consistency_passes
)
