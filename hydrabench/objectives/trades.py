"""TRADES: cross entropy plus the divergence between clean and adversarial predictions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from hydrabench.attacks import ascend
from hydrabench.config import TradesObjective
from hydrabench.objectives.pgd import step_size
from hydrabench.objectives.step import Losses, Step

START_DEVIATION = 0.001


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
        step_size=step_size(settings, settings.steps) * step.ramp,
    )
