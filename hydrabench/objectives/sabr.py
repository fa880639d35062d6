"""SABR: interval bounds over a small box around an adversarial example inside the ball."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from hydrabench.config.passes import BOXES, INPUT_GRADIENT, TRAINING
from hydrabench.objectives.description import Objective, Workload
from hydrabench.objectives.expressive import BoxSettings, box_loss, box_verdicts, penalties
from hydrabench.objectives.step import StepLoss, TrainingStep

if TYPE_CHECKING:
    from torch import Tensor, nn


class SabrSettings(BoxSettings):
    """SABR (Mueller et al. 2023): the loss of interval bounds over small boxes around adversarial examples.

    box: half the side of a small box as a share of epsilon (the paper's lambda); 1 is IBP. shrinking: factor on the
    upper bound in front of an unstable ReLU, 1 for none; training only.
    """

    name: Literal["sabr"]
    box: float = Field(gt=0, le=1)
    shrinking: float = Field(1.0, gt=0, le=1)
    step_size: float = Field(0.5, gt=0)


def sabr_loss(network: nn.Module, x: Tensor, y: Tensor, settings: SabrSettings, step: TrainingStep) -> StepLoss:
    """Return CE(-lower bounds of f_y - f_j over the small box, y), plus penalties. The logits are those of `x`.

    With tau = `settings.box` · epsilon and x' the adversarial example, the small box has the centre
    clamp(x', x - epsilon + tau, x + epsilon - tau) and half the side tau. It lies in the ball. Batch norm takes the
    mean and variance of the clean images.

    Args:
        x: images, (B, C, H, W), in [0, 1]; y: labels, (B,).
    Source: arXiv:2210.04871, equation 4 and section 4.
    """
    import torch

    from hydrabench.bounds import training_bounds
    from hydrabench.objectives.examples import small_centres, strongest_examples

    points = strongest_examples(
        network,
        x,
        y,
        step,
        epsilon=step.epsilon,
        steps=settings.steps,
        step_size=settings.step_size * step.epsilon,
        decays=True,
    )
    with torch.no_grad():
        logits = network(x)
    half = settings.box * step.epsilon
    bounds = training_bounds(
        network, small_centres(points, x, step.epsilon, half), y, half, statistics=x, shrinking=settings.shrinking
    )
    return StepLoss(box_loss(bounds.margins, y) + penalties(network, bounds, settings, step), logits)


def sabr_passes(settings: SabrSettings, work: Workload) -> float:  # noqa: ARG001
    """Return the passes of the attack, of the clean images and of the boxes."""
    return INPUT_GRADIENT * settings.steps + (settings.steps > 1) + 1 + TRAINING * BOXES


SABR = Objective(SabrSettings, sabr_loss, box_verdicts, "verified_accuracy", sabr_passes, uses_bounds=True)
