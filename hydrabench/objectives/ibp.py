"""Interval bound propagation: clean cross entropy mixed with that of interval bounds."""

from __future__ import annotations

from torch import Tensor, nn

from hydrabench.bounds import class_margins
from hydrabench.config import IbpObjective
from hydrabench.objectives.certified import certified, certified_loss, kappa_at
from hydrabench.objectives.step import Losses, Step


def ibp_loss(network: nn.Module, x: Tensor, y: Tensor, settings: IbpObjective, step: Step) -> Losses:
    """kappa · CE(f(x), y) + (1 - kappa) · CE(-interval lower bounds of f_y - f_j, y).

    kappa moves from `settings.kappa_start` to `settings.kappa_end` with the radius, 1 to 1/2 by default.

    Args:
        x: images, (B, C, H, W), in [0, 1]; y: labels, (B,).
    Source: Gowal et al., arXiv:1810.12715, section 3, the last layer elided.
    """
    return certified_loss(network, x, y, step, beta=0.0, kappa=kappa_at(step.ramp, settings))


def ibp_verdicts(network: nn.Module, x: Tensor, y: Tensor, settings: IbpObjective, step: Step) -> Tensor:  # noqa: ARG001
    """Which images interval bounds certify at the full radius, (B,), bool."""
    return certified(class_margins(network, x, y, step.epsilon, beta=0.0), y)
