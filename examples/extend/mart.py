"""MART as a training objective: misclassified examples weigh more.

`objective: {name: mart, epsilon: 8/255}` in a recipe, with `--plugin mart.py`.
Source: Wang et al., Improving Adversarial Robustness Requires Revisiting Misclassified Examples, ICLR 2020.
"""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from hydrabench.config import Radius
from hydrabench.objectives import (
    INPUT_GRADIENT,
    OBJECTIVES,
    TRAINING,
    Objective,
    ObjectiveSettings,
    StepLoss,
    TrainingStep,
)
from hydrabench.objectives.pgd import adversarial_examples, pgd_verdicts
from hydrabench.objectives.trades import divergence
from hydrabench.threat import Norm


class MartSettings(ObjectiveSettings):
    """The `objective:` section."""

    name: Literal["mart"]
    norm: Norm = "linf"
    epsilon: Radius
    weight: NonNegativeFloat = 5.0  # lambda: of the divergence
    steps: PositiveInt = 10
    step_size: Radius | None = None  # None: a quarter of the radius


def mart_loss(network: nn.Module, x: Tensor, y: Tensor, settings: MartSettings, step: TrainingStep) -> StepLoss:
    """BCE(p(x'), y) + weight · mean (1 - p_y(x)) · KL( p(x) ‖ p(x') ), where x' are PGD examples and

    BCE(p, y) = -log p_y - log(1 - max over k != y of p_k).
    Source: equations 8, 9 and 11.
    """
    adversarial = network(adversarial_examples(network, x, y, settings, step))
    logits = network(x)
    log_p, rival = adversarial.log_softmax(1), adversarial.softmax(1).scatter(1, y[:, None], 0).amax(1)
    boosted = -log_p.gather(1, y[:, None]).squeeze(1) - (1 - rival).clamp_min(1e-12).log()
    hard = 1 - logits.softmax(1).gather(1, y[:, None]).squeeze(1)
    return StepLoss((boosted + settings.weight * hard * divergence(logits, adversarial)).mean(), logits)


def mart_passes(settings: MartSettings, _work: object) -> float:
    """The attack, and two passes with all gradients."""
    return INPUT_GRADIENT * settings.steps + 2 * TRAINING


OBJECTIVES["mart"] = Objective(MartSettings, mart_loss, pgd_verdicts, "robust_accuracy", mart_passes)
