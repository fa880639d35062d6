"""SmoothAdv: adversarial training of the smoothed classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import PositiveInt

from hydrabench.config import Radius
from hydrabench.config.fields import Noise
from hydrabench.config.passes import INPUT_GRADIENT, TRAINING
from hydrabench.objectives.description import Objective, ObjectiveSettings, Workload
from hydrabench.objectives.stability import smoothed_verdicts
from hydrabench.objectives.step import StepLoss, TrainingStep

if TYPE_CHECKING:
    from torch import Tensor, nn


class SmoothAdvSettings(ObjectiveSettings):
    """SmoothAdv (Salman et al. 2019): cross entropy of noisy adversarial examples of the smoothed classifier.

    epsilon: L2 radius of the attack, which grows by the schedule of the phase. steps: of the attack, each of length
    2 epsilon / steps. copies: noisy copies of each image (the paper's m).
    """

    name: Literal["smoothadv"]
    norm: Literal["l2"] = "l2"
    epsilon: Radius
    sigma: Noise
    steps: PositiveInt = 10
    copies: PositiveInt = 2


def smoothadv_loss(
    network: nn.Module, x: Tensor, y: Tensor, settings: SmoothAdvSettings, step: TrainingStep
) -> StepLoss:
    """Return the mean of CE(f(x' + noise), y) over the copies, at points x' that raise -log of the averaged softmax.

    The attack starts at the image and uses the noise that the loss uses. Where its gradient is zero it moves in a
    random direction, as its authors' does. The logits are those of the first copy.

    Args:
        x: images, (B, C, H, W), in [0, 1]; y: labels, (B,).
    Source: arXiv:1906.04584, algorithm 1 and section 4, PGD with several noises.
    """
    from torch.nn import functional

    from hydrabench.objectives.noise import climb, in_ball, noises, noisy_logits, unit_or_random

    noise = noises(x, step, copies=settings.copies, sigma=settings.sigma)
    moved = in_ball(x, step.epsilon, 2 * step.epsilon / settings.steps)
    directed = unit_or_random(step)
    points = climb(network, x, y, noise, steps=settings.steps, moved=moved, directed=directed)[-1]
    logits = noisy_logits(network, points, noise)
    total = functional.cross_entropy(logits.flatten(0, 1), y.repeat(settings.copies))
    return StepLoss(total, logits[0])


def smoothadv_passes(settings: SmoothAdvSettings, work: Workload) -> float:  # noqa: ARG001
    """Return the passes of the attack and of the loss over all copies."""
    return settings.copies * (INPUT_GRADIENT * settings.steps + TRAINING)


SMOOTHADV = Objective(SmoothAdvSettings, smoothadv_loss, smoothed_verdicts, "smoothed_accuracy", smoothadv_passes)
