"""Training for randomized smoothing: the network should say the same under Gaussian noise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import NonNegativeFloat

from hydrabench.config.fields import Noise
from hydrabench.config.passes import TRAINING
from hydrabench.objectives.description import Objective, ObjectiveSettings, Workload
from hydrabench.objectives.step import StepLoss, TrainingStep
from hydrabench.objectives.trades import divergence

if TYPE_CHECKING:
    from torch import Tensor, nn


SELECTION_DRAWS = 10


class StabilitySettings(ObjectiveSettings):
    """Training for randomized smoothing (Carmon et al. 2019): cross entropy + beta · KL(clean ‖ noisy).

    The variant `gaussian` (Cohen et al. 2019) is the cross entropy on noisy images instead; it ignores `beta`.
    """

    name: Literal["stability"]
    sigma: Noise  # standard deviation of the noise in pixel units
    beta: NonNegativeFloat = 6.0
    variant: Literal["stability", "gaussian"] = "stability"


def stability_loss(
    network: nn.Module, x: Tensor, y: Tensor, settings: StabilitySettings, step: TrainingStep
) -> StepLoss:
    """CE(f(x), y) + beta · mean KL( f(x) ‖ f(x + sigma · ξ) ), or CE(f(x + sigma · ξ), y), the variant `gaussian`.

    One draw of ξ ~ N(0, I) for each image; noisy images are not clamped to [0, 1], nor are they when
    smoothing certifies. The gradient flows through both predictions. `gaussian` passes no clean images
    through the network: its logits are those of the noisy ones.

    Args:
        x: images, (B, C, H, W), in [0, 1]; y: labels, (B,).
    Source: Carmon et al., arXiv:1905.13736, stability training (they clamp); Cohen et al., arXiv:1902.02918,
        section 3.3.
    """
    from torch.nn import functional

    noisy = x + settings.sigma * step.normal(x)
    if settings.variant == "gaussian":
        logits = network(noisy)
        return StepLoss(functional.cross_entropy(logits, y), logits)
    logits = network(x)
    regularizer = divergence(logits, network(noisy)).mean()
    return StepLoss(functional.cross_entropy(logits, y) + settings.beta * regularizer, logits)


def smoothed_verdicts(
    network: nn.Module, x: Tensor, y: Tensor, settings: StabilitySettings, step: TrainingStep
) -> Tensor:
    """Return which images are classified correctly by the softmax averaged over ten draws of the noise, (B,), bool."""
    import torch

    with torch.no_grad():
        draws = [network(x + settings.sigma * step.normal(x)).softmax(1) for _ in range(SELECTION_DRAWS)]
    correct: Tensor = torch.stack(draws).mean(0).argmax(1) == y
    return correct


def stability_passes(settings: StabilitySettings, work: Workload) -> float:  # noqa: ARG001
    """A pass with all gradients for the noisy images, and one for the clean ones if they are in the loss."""
    return TRAINING * (2 if settings.variant == "stability" else 1)


STABILITY = Objective(StabilitySettings, stability_loss, smoothed_verdicts, "smoothed_accuracy", stability_passes)
