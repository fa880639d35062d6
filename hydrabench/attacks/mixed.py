"""Gradients in bfloat16 beside logits in full precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class MixedGradients(nn.Module):
    """A network whose logits are those of full precision, and whose gradients are those of a bfloat16 pass.

    A pass with gradients is two: one without them in the precision of the images, whose logits decide losses and
    verdicts, and one under autocast that is only differentiated. So rounding can mislead the search, not a verdict.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.training = network.training

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of `images`, (B, C, H, W)."""
        if not (torch.is_grad_enabled() and images.requires_grad):
            logits: Tensor = self.network(images)
            return logits
        with torch.no_grad():
            exact = self.network(images)
        with torch.autocast(images.device.type, dtype=torch.bfloat16):
            rough = self.network(images)
        shown: Tensor = _Shown.apply(exact, rough.to(exact.dtype))
        return shown


class _Shown(torch.autograd.Function):
    """The first of two tensors, with the gradient of the second."""

    @staticmethod
    def forward(_context: Any, exact: Tensor, rough: Tensor) -> Tensor:  # noqa: ARG004
        return exact.clone()

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, gradient
