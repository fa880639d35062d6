"""Training for randomized smoothing: the network should say the same under Gaussian noise."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from hydrabench.config import StabilityObjective
from hydrabench.objectives.step import Losses, Step
from hydrabench.objectives.trades import divergence

SELECTION_DRAWS = 10


def stability_loss(network: nn.Module, x: Tensor, y: Tensor, settings: StabilityObjective, step: Step) -> Losses:
    """CE(f(x), y) + beta · mean KL( f(x) ‖ f(x + sigma · ξ) ), or CE(f(x + sigma · ξ), y), the variant `gaussian`.

    One draw of ξ ~ N(0, I) for each image; noisy images are not clamped to [0, 1], nor are they when
    smoothing certifies. The gradient flows through both predictions. `gaussian` passes no clean images
    through the network: its logits are those of the noisy ones.

    Args:
        x: images, (B, C, H, W), in [0, 1]; y: labels, (B,).
    Source: Carmon et al., arXiv:1905.13736, stability training (they clamp); Cohen et al., arXiv:1902.02918,
        section 3.3; reference/hydra.md section 1.4.
    """
    noisy = x + settings.sigma * step.normal(x)
    if settings.variant == "gaussian":
        logits = network(noisy)
        return Losses(functional.cross_entropy(logits, y), logits)
    logits = network(x)
    regularizer = divergence(logits, network(noisy)).mean()
    return Losses(functional.cross_entropy(logits, y) + settings.beta * regularizer, logits)


def smoothed_verdicts(network: nn.Module, x: Tensor, y: Tensor, settings: StabilityObjective, step: Step) -> Tensor:
    """Which images are classified correctly by the softmax averaged over ten draws of the noise, (B,), bool."""
    with torch.no_grad():
        draws = [network(x + settings.sigma * step.normal(x)).softmax(1) for _ in range(SELECTION_DRAWS)]
    correct: Tensor = torch.stack(draws).mean(0).argmax(1) == y
    return correct
