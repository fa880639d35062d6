"""TRADES: cross entropy plus the divergence between clean and adversarial predictions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import NonNegativeFloat, PositiveInt

from hydrabench.config import Radius
from hydrabench.config.passes import INPUT_GRADIENT, TRAINING
from hydrabench.objectives.description import Objective, ObjectiveSettings, Workload
from hydrabench.objectives.pgd import pgd_verdicts, step_size
from hydrabench.objectives.step import StepLoss, TrainingStep
from hydrabench.threat import Norm

if TYPE_CHECKING:
    from torch import Tensor, nn


START_DEVIATION = 0.001


class TradesSettings(ObjectiveSettings):
    """TRADES (Zhang et al. 2019): cross entropy + beta · KL(clean ‖ adversarial)."""

    name: Literal["trades"]
    norm: Norm = "linf"
    epsilon: Radius
    beta: NonNegativeFloat = 6.0
    steps: PositiveInt = 10
    step_size: Radius | None = None  # None: epsilon / 4; in L2, 2 epsilon / steps


def divergence(clean_logits: Tensor, logits: Tensor) -> Tensor:
    """KL( softmax(clean) ‖ softmax(other) ) per image, (B,), in nats."""
    clean, other = clean_logits.log_softmax(1), logits.log_softmax(1)
    return (clean.exp() * (clean - other)).sum(1)


def trades_loss(network: nn.Module, x: Tensor, y: Tensor, settings: TradesSettings, step: TrainingStep) -> StepLoss:
    """CE(f(x), y) + beta · mean KL( f(x) ‖ f(x') ), where x' maximises the same divergence in the ball.

    The attack runs in eval mode against fixed clean probabilities and differentiates with respect to
    the image only; the loss is computed in train mode from one clean and one adversarial forward
    pass, and its gradient flows through both. The original's code passes the clean batch twice more.

    Args:
        x: images, (B, C, H, W), in [0, 1]; y: labels, (B,).
    Source: Zhang et al., arXiv:1901.08573, equation 5 and algorithm 1; HYDRA's constants.
    """
    from torch.nn import functional

    network.eval()
    adversarial = _attack(network, x, settings, step)
    network.train()
    logits = network(x)
    regularizer = divergence(logits, network(adversarial)).mean()
    return StepLoss(functional.cross_entropy(logits, y) + settings.beta * regularizer, logits)


def _attack(network: nn.Module, x: Tensor, settings: TradesSettings, step: TrainingStep) -> Tensor:
    import torch

    from hydrabench.attacks import ascend

    with torch.no_grad():
        clean_logits = network(x)
    return ascend(
        x,
        (x + START_DEVIATION * step.normal(x)).clamp(0, 1),
        step.epsilon,
        lambda candidate: divergence(clean_logits, network(candidate)),
        norm=settings.norm,
        steps=settings.steps,
        step_size=step_size(settings, settings.steps) * step.ramp,
    )


def trades_passes(settings: TradesSettings, work: Workload) -> float:  # noqa: ARG001
    """One clean pass for the attack, its steps, and two passes with all gradients."""
    return 1 + INPUT_GRADIENT * settings.steps + 2 * TRAINING


TRADES = Objective(TradesSettings, trades_loss, pgd_verdicts, "robust_accuracy", trades_passes)
