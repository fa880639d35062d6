"""Ordinary training: cross entropy on clean images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from hydrabench.config.passes import TRAINING
from hydrabench.objectives.description import Objective, ObjectiveSettings
from hydrabench.objectives.step import StepLoss, TrainingStep

if TYPE_CHECKING:
    from torch import Tensor, nn


class NaturalSettings(ObjectiveSettings):
    """Cross entropy on clean images."""

    name: Literal["natural"]


def natural_loss(network: nn.Module, x: Tensor, y: Tensor, settings: NaturalSettings, step: TrainingStep) -> StepLoss:  # noqa: ARG001
    """Cross entropy of the clean logits.

    Args:
        x: images, (B, C, H, W), in [0, 1]; y: labels, (B,).
    """
    from torch.nn import functional

    logits = network(x)
    return StepLoss(functional.cross_entropy(logits, y), logits)


def clean_verdicts(network: nn.Module, x: Tensor, y: Tensor, settings: NaturalSettings, step: TrainingStep) -> Tensor:  # noqa: ARG001
    """Return which images are classified correctly, (B,), bool."""
    correct: Tensor = network(x).argmax(1) == y
    return correct


NATURAL = Objective(NaturalSettings, natural_loss, clean_verdicts, "clean_accuracy", lambda _settings, _work: TRAINING)
