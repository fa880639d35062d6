"""What an objective is given besides the batch, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Step:
    """What one optimizer step tells its objective, and the random numbers that belong to it.

    epsilon: radius of this step in pixel units. ramp: `epsilon` over the final radius, in [0, 1].
    generator: on the CPU, fresh for every step. rows: which images of the step's whole batch the objective is
    given; a batch that is split over processes, or into parts that fit into memory, draws the same noise as
    one that is not. None: all of them. whole: images of the whole batch, None if `rows` is.
    """

    epsilon: float
    ramp: float
    generator: torch.Generator
    rows: slice | None = None
    whole: int | None = None

    def normal(self, x: Tensor) -> Tensor:
        """Draw standard normal noise for images `x`, (B, ...), of their type and on their device."""
        if self.rows is None:
            return torch.randn(x.shape, generator=self.generator).to(x)
        assert self.whole is not None, "rows of a whole batch, whose size is known"
        return torch.randn((self.whole, *x.shape[1:]), generator=self.generator)[self.rows].to(x)


@dataclass(frozen=True)
class Losses:
    """total: scalar to minimise, a mean over images. logits: of the clean images, (B, K), for the logged accuracy."""

    total: Tensor
    logits: Tensor
