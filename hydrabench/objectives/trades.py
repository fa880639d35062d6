"""TRADES: cross entropy plus the divergence between clean and adversarial predictions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from hydrabench.attacks import ascend, pgd
from hydrabench.config import TradesObjective
from hydrabench.objectives.step import Losses, Step

START_DEVIATION = 0.001
SELECTION_STEPS = 10


def divergence(clean_logits: Tensor, logits: Tensor) -> Tensor:
    """KL( softmax(clean) ‖ softmax(other) ) per image, (B,), in nats."""
    clean, other = clean_logits.log_softmax(1), logits.log_softmax(1)
    return (clean.exp() * (clean - other)).sum(1)


def trades_loss(network: nn.Module, x: Tensor, y: Tensor, settings: TradesObjective, step: Step) -> Losses:
    """CE(f(x), y) + beta · mean KL( f(x) ‖ f(x') ), where x' maximises the same divergence in the ball.

    The attack runs in eval mode against fixed clean probabilities and differentiates with respect to
    the image only; the loss is computed in train mode from one clean and one adversarial forward
    pass, and its gradient flows through both. The original's code passes the clean batch twice more.

    Args:
        x: images, (B, C, H, W), in [0, 1]; y: labels, (B,).
    Source: Zhang et al., arXiv:1901.08573, equation 5 and algorithm 1; HYDRA's constants.
    """
    network.eval()
    adversarial = _attack(network, x, settings, step)
    network.train()
    logits = network(x)
    regularizer = divergence(logits, network(adversarial)).mean()
    return Losses(functional.cross_entropy(logits, y) + settings.beta * regularizer, logits)


def _attack(network: nn.Module, x: Tensor, settings: TradesObjective, step: Step) -> Tensor:
    with torch.no_grad():
        clean_logits = network(x)
    return ascend(
        x,
        (x + START_DEVIATION * step.normal(x)).clamp(0, 1),
        step.epsilon,
        lambda candidate: divergence(clean_logits, network(candidate)),
        norm=settings.norm,
        steps=settings.steps,
        step_size=_step_size(settings) * step.ramp,
    )


def _step_size(settings: TradesObjective) -> float:
    """The recipe's step size, or a quarter of the radius (2/255 for 8/255)."""
    return float(settings.epsilon / 4 if settings.step_size is None else settings.step_size)


def pgd_verdicts(network: nn.Module, x: Tensor, y: Tensor, settings: TradesObjective, step: Step) -> Tensor:
    """Which images survive PGD-10 on the cross entropy at the final radius, (B,), bool; misclassified ones do not."""
    adversarial = pgd(
        network,
        x,
        y,
        step.epsilon,
        generator=step.generator,
        norm=settings.norm,
        steps=SELECTION_STEPS,
        step_size=_step_size(settings),
    )
    with torch.no_grad():
        survived: Tensor = (network(adversarial).argmax(1) == y) & (network(x).argmax(1) == y)
    return survived
