"""Expressive losses: between the loss of an adversarial example and that of interval bounds.

`mtl-ibp`, `cc-ibp` and `exp-ibp` differ in how they combine the two; weight 0 is adversarial training, 1 is IBP.
Source: De Palma et al. (2024), arXiv:2305.13991.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from hydrabench.config import Radius
from hydrabench.config.passes import BOXES, INPUT_GRADIENT, TRAINING
from hydrabench.objectives.certified import certified
from hydrabench.objectives.description import Objective, ObjectiveSettings, Workload
from hydrabench.objectives.step import StepLoss, TrainingStep

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hydrabench.bounds import TrainingBounds

    # From the logits of adversarial examples, (B, K), lower bounds of f_y - f_j, (B, K), and labels to the loss.
    Combined = Callable[[Tensor, Tensor, Tensor], Tensor]


class BoxSettings(ObjectiveSettings):
    """Settings of the objectives that train on adversarial examples and on interval bounds.

    steps: of the attack. step_size: length of its first step as a multiple of its radius; 10 with a single step is
    FGSM from a random start. regularization: weight, at radius 0, of the penalties on wide boxes and unbalanced
    neurons, which falls to 0 as the radius grows. l1: weight of the sum of the absolute weights of all convolutions and
    linear layers.
    """

    epsilon: Radius
    steps: PositiveInt = 8
    step_size: PositiveFloat = 0.25
    regularization: NonNegativeFloat = 0.5
    l1: NonNegativeFloat = 0.0


class ExpressiveSettings(BoxSettings):
    """Settings of the expressive losses.

    ibp_weight: the papers' alpha, from adversarial training (0) to IBP (1). attack_factor: radius of the attack as a
    multiple of epsilon.
    """

    ibp_weight: float = Field(ge=0, le=1)
    attack_factor: PositiveFloat = 1.0


def expressive_loss(
    network: nn.Module, x: Tensor, y: Tensor, settings: ExpressiveSettings, step: TrainingStep, *, combined: Combined
) -> StepLoss:
    """Return `combined` of adversarial logits and interval bounds, plus penalties. The logits are those of `x`.

    Batch norm passes the clean images, for its running statistics, and then the adversarial examples, whose mean and
    variance the bounds take, too.

    Args:
        x: images, (B, C, H, W), in [0, 1]; y: labels, (B,).
    Source: arXiv:2305.13991, section 4 and appendix F.
    """
    import torch

    from hydrabench.bounds import training_bounds
    from hydrabench.objectives.examples import strongest_examples

    radius = settings.attack_factor * step.epsilon
    points = strongest_examples(
        network, x, y, step, epsilon=radius, steps=settings.steps, step_size=settings.step_size * radius
    )
    with torch.no_grad():
        logits = network(x)
    adversarial = network(points)
    bounds = training_bounds(network, x, y, step.epsilon, statistics=points)
    return StepLoss(combined(adversarial, bounds.margins, y) + penalties(network, bounds, settings, step), logits)


def penalties(network: nn.Module, bounds: TrainingBounds, settings: BoxSettings, step: TrainingStep) -> Tensor:
    """Return the regulariser of the boxes, whose weight falls with the radius, and the L1 norm of the weights.

    Source: arXiv:2103.17268, section 3; arXiv:2305.13991, appendix F.
    """
    import torch
    from torch import nn

    from hydrabench.bounds import regularizer
    from hydrabench.masking import used_modules

    total = bounds.margins.new_zeros(())
    weight = settings.regularization * (1 - step.ramp)
    if weight and step.epsilon > 0:
        total = total + weight * regularizer(bounds)
    if settings.l1:
        layers = [layer for _, layer in used_modules(network) if isinstance(layer, nn.Conv2d | nn.Linear)]
        total = total + settings.l1 * torch.stack([layer.weight.abs().sum() for layer in layers]).sum()
    return total


def box_loss(margins: Tensor, y: Tensor) -> Tensor:
    """Return the mean cross entropy of the worst logits of boxes: CE(-margins, y)."""
    from torch.nn import functional

    return functional.cross_entropy(-margins, y)


def box_verdicts(network: nn.Module, x: Tensor, y: Tensor, settings: BoxSettings, step: TrainingStep) -> Tensor:  # noqa: ARG001
    """Return which images CROWN-IBP certifies at the full radius, (B,), bool.

    Boxes alone certify few images of networks that are trained for complete verification.
    """
    import torch

    from hydrabench.bounds import class_margins

    with torch.no_grad():
        return certified(class_margins(network, x, y, step.epsilon, beta=1.0), y)


def expressive_passes(settings: BoxSettings, work: Workload) -> float:  # noqa: ARG001
    """Return the passes of the attack, of the clean images, of the examples, and of the boxes."""
    visited = settings.steps > 1  # the last point is compared with those before it
    return INPUT_GRADIENT * settings.steps + visited + 1 + TRAINING + TRAINING * BOXES


def expressive(settings: type[ExpressiveSettings], loss: Callable[..., StepLoss]) -> Objective:
    """Return the description of an objective that combines the two losses as `loss` does."""
    return Objective(settings, loss, box_verdicts, "verified_accuracy", expressive_passes, uses_bounds=True)
