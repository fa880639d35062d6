"""Shared by objectives that train on certified bounds: the loss of the bounds, and the verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from hydrabench.config.passes import BOXES, TRAINING
from hydrabench.objectives.step import StepLoss, TrainingStep

if TYPE_CHECKING:
    from torch import Tensor, nn


class Mixed(Protocol):
    """Settings of objectives that mix the clean cross entropy in."""

    @property
    def kappa_start(self) -> float:
        """Its share at radius 0."""

    @property
    def kappa_end(self) -> float:
        """Its share at the full radius."""


def kappa_at(ramp: float, settings: Mixed) -> float:
    """Share of the clean cross entropy in the loss: from `kappa_start` to `kappa_end` as the radius grows."""
    return settings.kappa_start + (settings.kappa_end - settings.kappa_start) * ramp


def certified_loss(
    network: nn.Module, x: Tensor, y: Tensor, step: TrainingStep, *, beta: float, kappa: float
) -> StepLoss:
    """kappa · CE(f(x), y) + (1 - kappa) · CE(-lower bounds of f_y - f_j, y).

    With kappa = 0 the clean logits are not part of the loss, and are computed without gradients; their
    forward pass still updates the running statistics of batch norm.

    Args:
        x: images, (B, C, H, W), in [0, 1]; y: labels, (B,).
        beta: share of CROWN-IBP in the bounds, in [0, 1]; the rest are interval bounds.
        kappa: share of the clean cross entropy, in [0, 1].
    """
    import torch
    from torch.nn import functional

    from hydrabench.bounds import class_margins

    with torch.set_grad_enabled(kappa > 0):
        logits = network(x)
    lower = class_margins(network, x, y, step.epsilon, beta=beta)
    robust = functional.cross_entropy(-lower, y)
    if kappa == 0:
        return StepLoss(robust, logits)
    return StepLoss(kappa * functional.cross_entropy(logits, y) + (1 - kappa) * robust, logits)


def certified(lower: Tensor, y: Tensor) -> Tensor:
    """Return whether every margin but the zero of class y is positive: lower bounds (B, K), to (B,) bool."""
    import torch

    others = lower.scatter(1, y[:, None], torch.inf)
    return others.amin(1) > 0


def box_passes(settings: Mixed) -> float:
    """Forward passes for a clean pass, with its gradient if it is in the loss, and for boxes with theirs."""
    mixes = max(settings.kappa_start, settings.kappa_end) > 0
    return (TRAINING if mixes else 1) + TRAINING * BOXES
