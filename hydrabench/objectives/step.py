"""The step that an objective is given besides the batch, and the loss that it returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hydrabench.threat import Norm

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class TrainingStep:
    """The facts of one optimizer step for its objective, and the random numbers that belong to it.

    epsilon: radius of this step in pixel units.
    ramp: `epsilon` over the final radius, in [0, 1].
    generator: on the CPU, fresh for every step.
    rows: which images of the whole batch the objective is given, None for all. A batch that is split over processes or
        into micro-batches draws the same noise as one that is not.
    whole: number of images of the whole batch, None if `rows` is.
    memory: tensors that an objective keeps from step to step.
    epoch: 0-based pass over the training images.
    ramp_epochs: epochs over which the radius grows, 1 if it never does.
    """

    epsilon: float
    ramp: float
    generator: torch.Generator
    rows: slice | None = None
    whole: int | None = None
    memory: dict[str, Tensor] = field(default_factory=dict)
    epoch: int = 0
    ramp_epochs: int = 1

    def normal(self, x: Tensor) -> Tensor:
        """Draw standard normal noise for images `x`, (B, ...), of their type and on their device."""
        import torch

        return self.mine(torch.randn((self.total(x), *x.shape[1:]), generator=self.generator)).to(x)

    def uniform(self, x: Tensor, *, norm: Norm = "linf") -> Tensor:
        """Draw a point of the unit ball of `norm` for each of the images `x`, (B, ...), uniformly."""
        from hydrabench.attacks import unit_noise

        return self.mine(unit_noise((self.total(x), *x.shape[1:]), norm=norm, generator=self.generator)).to(x)

    def total(self, x: Tensor) -> int:
        """Images of the whole batch of the step, of which `x` are those at hand."""
        if self.rows is None:
            return len(x)
        assert self.whole is not None, "rows of a whole batch, whose size is known"
        return self.whole

    def mine(self, values: Tensor) -> Tensor:
        """Of `values` with a row for each image of the whole batch, those of the images at hand, as a view."""
        return values if self.rows is None else values[self.rows]


@dataclass(frozen=True)
class StepLoss:
    """The loss that the loop minimises, and what it logs.

    total: scalar to minimise, a mean over the images at hand. Weighted by their numbers of images, the totals of
        micro-batches add up to that of the batch.
    logits: (B, K), for the logged accuracy: of the clean images, or of the images that the objective trains on if it
        passes no clean ones through the network.
    after: called once the gradients of `total` have been computed; None: nothing to do.
    """

    total: Tensor
    logits: Tensor
    after: Callable[[], None] | None = None
