"""MACER: maximise the certified radius of the smoothed classifier, without an attack."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from hydrabench.config.fields import Noise
from hydrabench.config.passes import TRAINING
from hydrabench.objectives.description import Objective, ObjectiveSettings, Workload
from hydrabench.objectives.stability import smoothed_verdicts
from hydrabench.objectives.step import StepLoss, TrainingStep

if TYPE_CHECKING:
    from torch import Tensor, nn

ADDED = 1e-10  # to a probability whose logarithm is taken


class MacerSettings(ObjectiveSettings):
    """MACER (Zhai et al. 2020): the loss of the smoothed classifier, plus a hinge on its certified radius.

    weight: of the hinge (the paper's lambda). gamma: the radius, in units of sigma / 2, up to which it counts. beta:
    inverse temperature of the softmax in the radius. copies: noisy copies of each image (k).
    """

    name: Literal["macer"]
    sigma: Noise
    weight: NonNegativeFloat = 12.0
    gamma: PositiveFloat = 8.0
    beta: PositiveFloat = 16.0
    copies: int = Field(16, ge=2)


def macer_loss(network: nn.Module, x: Tensor, y: Tensor, settings: MacerSettings, step: TrainingStep) -> StepLoss:
    """Return the mean of -log(mean softmax of y) + lambda · (sigma / 2) · (gamma - xi) over images.

    With q the mean of softmax(beta f(x + noise)) and q1 >= q2 its two largest entries, xi is Phi^-1(q1) - Phi^-1(q2).
    The second term counts where q1 belongs to class y and xi is finite and at most gamma. The logits are those of the
    first copy.

    Args:
        x: images, (B, C, H, W), in [0, 1]; y: labels, (B,).
    Source: Zhai et al. (2020), arXiv:2001.02378, algorithm 1.
    """
    from torch.nn import functional

    from hydrabench.objectives.noise import noises, noisy_logits

    logits = noisy_logits(network, x, noises(x, step, copies=settings.copies, sigma=settings.sigma))
    losses = functional.nll_loss((logits.softmax(2).mean(0) + ADDED).log(), y, reduction="sum")
    radius = _missing_radius((settings.beta * logits).softmax(2).mean(0), y, settings)
    return StepLoss((losses + settings.weight * settings.sigma / 2 * radius) / len(x), logits[0])


def _missing_radius(mean: Tensor, y: Tensor, settings: MacerSettings) -> Tensor:
    """Return the sum of gamma - xi over the images that count; mean: averaged probabilities, (B, K)."""
    import torch

    largest, classes = mean.double().topk(2, dim=1)
    with torch.no_grad():
        quantiles = torch.special.ndtri(largest)
        xi = quantiles[:, 0] - quantiles[:, 1]
        counts = (classes[:, 0] == y) & xi.isfinite() & (xi.abs() <= settings.gamma)
    quantiles = torch.special.ndtri(largest[counts])  # again, because an infinite quantile has no usable gradient
    missing: Tensor = settings.gamma - (quantiles[:, 0] - quantiles[:, 1])
    return missing.sum().to(mean)


def macer_passes(settings: MacerSettings, work: Workload) -> float:  # noqa: ARG001
    """Return a pass with all gradients for every copy."""
    return settings.copies * TRAINING


MACER = Objective(MacerSettings, macer_loss, smoothed_verdicts, "smoothed_accuracy", macer_passes)
