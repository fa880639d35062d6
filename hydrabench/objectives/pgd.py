"""Adversarial training: cross entropy on the examples that projected gradient descent finds."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Literal, Protocol

from pydantic import PositiveInt

from hydrabench.config import Radius
from hydrabench.config.passes import INPUT_GRADIENT, TRAINING
from hydrabench.objectives.description import Objective, ObjectiveSettings, Workload
from hydrabench.objectives.step import StepLoss, TrainingStep
from hydrabench.threat import Norm

if TYPE_CHECKING:
    from torch import Tensor, nn


SELECTION_STEPS = 10


class TrainingAttack(Protocol):
    """Settings of objectives that train on the examples of an attack: what there is to know of it."""

    @property
    def norm(self) -> Norm:
        """Of the ball."""

    @property
    def epsilon(self) -> Fraction:
        """The radius in pixel units."""

    @property
    def steps(self) -> int:
        """Number of steps."""

    @property
    def step_size(self) -> Fraction | None:
        """Length of a step; None for the default."""


class PgdTrainingSettings(ObjectiveSettings):
    """Adversarial training (Madry et al. 2018): cross entropy on PGD examples."""

    name: Literal["pgd"]
    norm: Norm = "linf"
    epsilon: Radius
    steps: PositiveInt = 10
    step_size: Radius | None = None  # None: epsilon / 4; in L2, 2 epsilon / steps


def pgd_loss(network: nn.Module, x: Tensor, y: Tensor, settings: PgdTrainingSettings, step: TrainingStep) -> StepLoss:
    """CE(f(x'), y), where x' maximises it in the ball. The logits are those of x'.

    Args:
        x: images, (B, C, H, W), in [0, 1]; y: labels, (B,).
    Source: Madry et al., arXiv:1706.06083, equation 2.1 and section 2.1.
    """
    from torch.nn import functional

    logits = network(adversarial_examples(network, x, y, settings, step))
    return StepLoss(functional.cross_entropy(logits, y), logits)


def adversarial_examples(
    network: nn.Module, x: Tensor, y: Tensor, settings: TrainingAttack, step: TrainingStep
) -> Tensor:
    """Points of the ball that maximise the cross entropy, from a start drawn uniformly from the ball.

    The attack runs in eval mode and differentiates with respect to the image only. The network is left in train mode.

    Returns: images, (B, C, H, W), in [0, 1].
    """
    from hydrabench.attacks import LOSSES, ascend

    network.eval()
    points = ascend(
        x,
        x + step.epsilon * step.uniform(x, norm=settings.norm),
        step.epsilon,
        lambda candidate: LOSSES["ce"](network(candidate), y),
        norm=settings.norm,
        steps=settings.steps,
        step_size=step_size(settings, settings.steps) * step.ramp,
    )
    network.train()
    return points


def pgd_verdicts(network: nn.Module, x: Tensor, y: Tensor, settings: TrainingAttack, step: TrainingStep) -> Tensor:
    """Return which images are right under PGD-10 on the cross entropy at the final radius, (B,), bool."""
    size = step_size(settings, SELECTION_STEPS)
    return survivors(network, x, y, step, norm=settings.norm, step_size=size)


def survivors(network: nn.Module, x: Tensor, y: Tensor, step: TrainingStep, *, norm: Norm, step_size: float) -> Tensor:
    """Return which images are right both clean and after PGD-10 on the cross entropy, (B,), bool."""
    import torch

    from hydrabench.attacks import pgd

    adversarial = pgd(
        network,
        x,
        y,
        step.epsilon,
        generator=step.generator,
        norm=norm,
        steps=SELECTION_STEPS,
        step_size=step_size,
    )
    with torch.no_grad():
        survived: Tensor = (network(adversarial).argmax(1) == y) & (network(x).argmax(1) == y)
    return survived


def step_size(settings: TrainingAttack, steps: int) -> float:
    """The recipe's step size; or a quarter of the radius (2/255 for 8/255), in L2 two radii over the number of steps.

    Source: HYDRA's code.
    """
    if settings.step_size is not None:
        return float(settings.step_size)
    return float(2 * settings.epsilon / steps if settings.norm == "l2" else settings.epsilon / 4)


def pgd_passes(settings: PgdTrainingSettings, work: Workload) -> float:  # noqa: ARG001
    """The steps of the attack, and a pass with all gradients."""
    return INPUT_GRADIENT * settings.steps + TRAINING


PGD = Objective(PgdTrainingSettings, pgd_loss, pgd_verdicts, "robust_accuracy", pgd_passes)
