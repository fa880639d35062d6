"""CROWN-IBP: cross entropy of certified lower bounds, moving from CROWN-IBP towards interval bounds."""

from __future__ import annotations

from torch import Tensor, nn

from hydrabench.bounds import class_margins
from hydrabench.config import CrownIbpObjective
from hydrabench.objectives.certified import certified, certified_loss, kappa_at
from hydrabench.objectives.step import Losses, Step


def crown_ibp_loss(network: nn.Module, x: Tensor, y: Tensor, settings: CrownIbpObjective, step: Step) -> Losses:
    """CE(-lower bounds of f_y - f_j, y) with bounds beta · CROWN-IBP + (1 - beta) · IBP, and a share of CE(f(x), y).

    beta falls from 1 at radius 0 to `settings.beta_end` at the full radius: beta = 1 - ramp · (1 -
    beta_end). The share kappa of the clean cross entropy moves from `settings.kappa_start` to
    `settings.kappa_end` likewise; both are 0 by default, as in HYDRA.

    Args:
        x: images, (B, C, H, W), in [0, 1]; y: labels, (B,).
    Source: Zhang et al., arXiv:1906.06316, equation 12.
    """
    beta = 1 - step.ramp * (1 - settings.beta_end)
    return certified_loss(network, x, y, step, beta=beta, kappa=kappa_at(step.ramp, settings))


def crown_ibp_verdicts(network: nn.Module, x: Tensor, y: Tensor, settings: CrownIbpObjective, step: Step) -> Tensor:
    """Which images the bound of the last training step certifies at the full radius, (B,), bool."""
    return certified(class_margins(network, x, y, step.epsilon, beta=settings.beta_end), y)
