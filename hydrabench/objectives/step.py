"""What an objective is given besides the batch, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Step:
    """epsilon: radius of this step in pixel units. ramp: `epsilon` over the final radius, in [0, 1].

    generator: on the CPU, fresh for every step.
    """

    epsilon: float
    ramp: float
    generator: torch.Generator


@dataclass(frozen=True)
class Losses:
    """total: scalar to minimise. logits: of the clean images, (B, K), for the accuracy that is logged."""

    total: Tensor
    logits: Tensor
