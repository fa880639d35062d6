"""CROWN-IBP: cross entropy of certified lower bounds, moving from CROWN-IBP towards interval bounds."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from hydrabench.bounds import class_margins
from hydrabench.config import CrownIbpObjective
from hydrabench.objectives.step import Losses, Step


def crown_ibp_loss(network: nn.Module, x: Tensor, y: Tensor, settings: CrownIbpObjective, step: Step) -> Losses:
    """CE(-lower bounds of f_y - f_j, y) with bounds beta · CROWN-IBP + (1 - beta) · IBP.

    beta falls from 1 at radius 0 to `settings.beta_end` at the full radius: beta = 1 - ramp · (1 -
    beta_end). The clean logits are not part of the loss (kappa = 0, as in HYDRA); their forward pass
    updates the running statistics of batch norm.

    Args:
        x: images, (B, C, H, W), in [0, 1]; y: labels, (B,).
    Source: Zhang et al., arXiv:1906.06316, equation 12.
    """
    with torch.no_grad():
        logits = network(x)
    beta = 1 - step.ramp * (1 - settings.beta_end)
    lower = class_margins(network, x, y, step.epsilon, beta=beta)
    return Losses(functional.cross_entropy(-lower, y), logits)


def verified_verdicts(network: nn.Module, x: Tensor, y: Tensor, settings: CrownIbpObjective, step: Step) -> Tensor:
    """Which images the bound of the last training step certifies at the full radius, (B,), bool."""
    lower = class_margins(network, x, y, step.epsilon, beta=settings.beta_end)
    others = lower.scatter(1, y[:, None], torch.inf)
    return others.amin(1) > 0
