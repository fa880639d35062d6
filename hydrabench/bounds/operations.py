"""The operations that bounds pass through: frozen, and holding the tensors that they apply right now.

Masks, running statistics and pixel normalisation are resolved before an operation is made, so a rule
sees only weights, scales and shifts. `interval.RULES` and `crown.RULES` have one entry for each class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, eq=False)
class Operation(ABC):
    """One step from a value (B, ...) to the next."""

    @abstractmethod
    def apply(self, x: Tensor) -> Tensor:
        """Return what the network computes from `x`; the operation without any bounds."""


@dataclass(frozen=True, eq=False)
class Convolution(Operation):
    """2-D cross-correlation with zero padding, the same on both sides of an axis; `bias` (C,) or None."""

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def apply(self, x: Tensor) -> Tensor:
        """Convolve images (B, C, H, W)."""
        return self.linear(x, self.weight, self.bias)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Convolve with another weight of the same geometry, such as the absolute one."""
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)


@dataclass(frozen=True, eq=False)
class Dense(Operation):
    """x @ weight.T + bias over the last axis; `weight` (out, in), `bias` (out,) or None."""

    weight: Tensor
    bias: Tensor | None

    def apply(self, x: Tensor) -> Tensor:
        """Map vectors (B, in) to (B, out)."""
        return F.linear(x, self.weight, self.bias)


@dataclass(frozen=True, eq=False)
class Scale(Operation):
    """x * scale + shift with one pair per channel, axis 1; both (C,)."""

    scale: Tensor
    shift: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """Scale and shift every channel of (B, C, ...)."""
        return x * per_channel(self.scale, x.ndim) + per_channel(self.shift, x.ndim)


@dataclass(frozen=True, eq=False)
class Relu(Operation):
    """max(x, 0), element by element."""

    def apply(self, x: Tensor) -> Tensor:
        """Rectify."""
        return x.relu()


@dataclass(frozen=True, eq=False)
class Flatten(Operation):
    """Everything but the batch axis in one axis."""

    def apply(self, x: Tensor) -> Tensor:
        """Flatten (B, ...) to (B, N)."""
        return x.flatten(1)


@dataclass(frozen=True, eq=False)
class Identity(Operation):
    """Nothing."""

    def apply(self, x: Tensor) -> Tensor:
        """Return `x` itself."""
        return x


def per_channel(vector: Tensor, ndim: int) -> Tensor:
    """View a vector (C,) so that it broadcasts along axis 1 of a tensor with `ndim` axes."""
    return vector.view(-1, *[1] * (ndim - 2))
