"""SmoothMix: mix images with unrestricted adversarial examples of the smoothed classifier, and soften their labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from hydrabench.config.fields import Noise
from hydrabench.config.passes import INPUT_GRADIENT, TRAINING
from hydrabench.objectives.description import Objective, ObjectiveSettings, Workload
from hydrabench.objectives.stability import smoothed_verdicts
from hydrabench.objectives.step import StepLoss, TrainingStep

if TYPE_CHECKING:
    from torch import Tensor, nn


class SmoothMixSettings(ObjectiveSettings):
    """SmoothMix (Jeong et al. 2021): cross entropy of noisy copies, and divergence of mixed images from mixed labels.

    weight: of the divergence (the paper's eta), reached after `ramp_epochs`. steps, step_size: of the attack, which no
    ball restricts; step_size is an L2 length in pixel units. copies: noisy copies of each image (m). one_step: mix with
    the adversarial example after one step, within `step_size`, instead of the image itself.
    """

    name: Literal["smoothmix"]
    sigma: Noise
    weight: NonNegativeFloat = 5.0
    steps: PositiveInt = 4
    step_size: PositiveFloat = 0.5
    copies: PositiveInt = 2
    one_step: bool = False
    ramp_epochs: PositiveInt = 10


def smoothmix_loss(
    network: nn.Module, x: Tensor, y: Tensor, settings: SmoothMixSettings, step: TrainingStep
) -> StepLoss:
    """Return mean CE(f(x0 + noise), y) + eta · mean [argmax s = y] KL(t ‖ s(x_mix + noise)).

    s is the mean softmax of the noisy copies of x0, the image or its one-step adversarial example; x_T is the last
    point of the attack, u uniform in [0, 1/2] for each image, x_mix = (1 - u) x0 + u x_T and t = (1 - u) s + u / K.
    Gradients flow through t. The logits are those of the first copy.

    Args:
        x: images, (B, C, H, W), in [0, 1]; y: labels, (B,).
    Source: Jeong et al. (2021), arXiv:2111.09277, algorithm 1.
    """
    import torch
    from torch.nn import functional

    from hydrabench.objectives.noise import SMALLEST_PROBABILITY, climb, in_ball, noises, noisy_logits

    share = min(1.0, (step.epoch + 1) / settings.ramp_epochs)
    noise = noises(x, step, copies=settings.copies, sigma=settings.sigma)
    mixing = step.mine(torch.rand(step.total(x), generator=step.generator) / 2).to(x)
    size = settings.step_size
    visited = climb(network, x, y, noise, steps=settings.steps, moved=lambda p, g: (p + size * g).clamp(0, 1))
    first = in_ball(x, size * share, 0.0)(visited[0], torch.zeros_like(x)) if settings.one_step else x

    logits = noisy_logits(network, first, noise)
    mean = logits.softmax(2).mean(0)
    per_image = mixing.view(-1, *[1] * (x.ndim - 1))
    mixed = noisy_logits(network, (1 - per_image) * first + per_image * visited[-1], noise)
    target = (1 - mixing[:, None]) * mean + mixing[:, None] / mean.shape[1]
    apart = (target * (target.clamp_min(SMALLEST_PROBABILITY).log() - mixed.log_softmax(2))).sum(2).mean(0)
    right = (mean.argmax(1) == y).to(apart)
    total = functional.cross_entropy(logits.flatten(0, 1), y.repeat(settings.copies))
    return StepLoss(total + settings.weight * share * (right * apart).mean(), logits[0])


def smoothmix_passes(settings: SmoothMixSettings, work: Workload) -> float:  # noqa: ARG001
    """Return the passes of the attack, of the copies and of the mixed copies."""
    return settings.copies * (INPUT_GRADIENT * settings.steps + 2 * TRAINING)


SMOOTHMIX = Objective(SmoothMixSettings, smoothmix_loss, smoothed_verdicts, "smoothed_accuracy", smoothmix_passes)
