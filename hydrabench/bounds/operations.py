"""The operations that bounds pass through: frozen, and holding the tensors that they apply right now.

Masks, running statistics and pixel normalisation are resolved before an operation is made, so a rule
sees only weights, scales and shifts. `interval.RULES` and `crown.RULES` have one entry for each class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional as F

from hydrabench.errors import UnsupportedLayerError

Pair = tuple[int, int]  # along the last two axes, height and width


@dataclass(frozen=True, eq=False)
class Operation(ABC):
    """One step from a value (B, ...), or from several, to the next.

    relaxed: whether it is not linear, so that a pass backward needs the bounds of the value it takes.
    """

    relaxed: ClassVar[bool] = False

    @abstractmethod
    def apply(self, *values: Any, **_: Any) -> Tensor:  # Any, so that mypy accepts fixed numbers of tensors below
        """Return what the network computes from the values it takes; the operation without any bounds."""


@dataclass(frozen=True, eq=False)
class Weighted:
    """What linear operations with a weight share; `bias` (C,) or None.

    settled: whether its tensors are constants that nobody will write to, so that what follows from them may be kept.
    """

    weight: Tensor
    bias: Tensor | None
    settled: bool = field(default=False, kw_only=True)

    def absolute(self) -> Tensor:
        """|weight|."""
        return self._absolute if self.settled else self.weight.abs()

    @cached_property
    def _absolute(self) -> Tensor:
        return self.weight.abs()


@dataclass(frozen=True, eq=False)
class Convolution(Weighted, Operation):
    """2-D cross-correlation with zero padding, the same on both sides of an axis."""

    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    def apply(self, x: Tensor) -> Tensor:
        """Convolve images (B, C, H, W)."""
        return self.linear(x, self.weight, self.bias)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Convolve with another weight of the same geometry, such as the absolute one."""
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)


@dataclass(frozen=True, eq=False)
class Dense(Weighted, Operation):
    """x @ weight.T + bias over the last axis; `weight` (out, in)."""

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

    relaxed: ClassVar[bool] = True

    def apply(self, x: Tensor) -> Tensor:
        """Rectify."""
        return x.relu()


@dataclass(frozen=True, eq=False)
class MaxPool(Operation):
    """Largest value of every window; padding never wins."""

    relaxed: ClassVar[bool] = True
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair

    def apply(self, x: Tensor) -> Tensor:
        """Pool images (B, C, H, W)."""
        return F.max_pool2d(x, self.kernel, self.stride, self.padding, self.dilation)


@dataclass(frozen=True, eq=False)
class AveragePool(Operation):
    """Mean of every window, in which padding counts as zeros if `count_padding` and is left out otherwise."""

    kernel: Pair
    stride: Pair
    padding: Pair
    count_padding: bool

    def apply(self, x: Tensor) -> Tensor:
        """Pool images (B, C, H, W)."""
        return F.avg_pool2d(x, self.kernel, self.stride, self.padding, count_include_pad=self.count_padding)


@dataclass(frozen=True, eq=False)
class AdaptiveAveragePool(Operation):
    """Means of as many windows as `size` says, which cover the image evenly; None keeps the size of an axis."""

    size: tuple[int | None, int | None]

    def apply(self, x: Tensor) -> Tensor:
        """Pool images (B, C, H, W)."""
        return F.adaptive_avg_pool2d(x, self.size)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class Add(Operation):
    """The sum of two values of the same shape."""

    def apply(self, a: Tensor, b: Tensor) -> Tensor:
        """Add; a difference in shape is refused, because it might mix the images of a batch."""
        if a.shape[1:] != b.shape[1:]:
            raise UnsupportedLayerError(
                f"cannot bound the sum of values of shapes {(*a.shape[1:],)} and {(*b.shape[1:],)}: only values of "
                "the same shape have a rule; expand one of them, or certify the network with smoothing"
            )
        return a + b


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
