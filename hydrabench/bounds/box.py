"""A box around every value of a program."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hydrabench.errors import UnsupportedLayerError


@dataclass(frozen=True, eq=False)
class Interval:
    """A box around every value: `center` (B, ...), and `width` = upper - lower, of the same shape and >= 0."""

    center: Tensor
    width: Tensor

    @classmethod
    def between(cls, lower: Tensor, upper: Tensor) -> Interval:
        """The box from `lower` to `upper`."""
        return cls(torch.lerp(lower, upper, 0.5), upper - lower)

    @classmethod
    def taking(cls, lower: Tensor, upper: Tensor) -> Interval:
        """The same box in the storage of two corners that nobody else needs.

        Fresh memory costs more than the arithmetic on small batches; autograd may need the corners as they are.
        """
        if lower.requires_grad or upper.requires_grad:
            return cls.between(lower, upper)
        width = upper.sub_(lower)
        return cls(lower.add_(width, alpha=0.5), width)

    def lower(self) -> Tensor:
        """Return the lower corner, a new tensor."""
        return self.center.sub(self.width, alpha=0.5)

    def upper(self) -> Tensor:
        """Return the upper corner, a new tensor."""
        return self.center.add(self.width, alpha=0.5)

    def images(self, part: slice | Tensor) -> Interval:
        """Return the boxes of some images, given by a slice or their numbers."""
        return Interval(self.center[part], self.width[part])


def images(x: Tensor, name: str, ndim: int = 4) -> Tensor:
    """Return `x` itself, if it has as many axes as a batch of images; torch takes the batch axis for channels if not.

    Raises: UnsupportedLayerError if it has not; `name` says what needs them.
    """
    if x.ndim != ndim:
        raise UnsupportedLayerError(f"cannot bound {name} of {x.ndim} axes: it needs {ndim}, the batch axis included")
    return x


def channels_last(images: Tensor) -> Tensor:
    """The same images (B, C, H, W) in the layout in which a CPU convolves fastest."""
    if images.ndim != 4 or images.device.type != "cpu":
        return images
    return images.contiguous(memory_format=torch.channels_last)
