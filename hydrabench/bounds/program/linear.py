"""Linear layers: what all with a weight share, dense layers, scales and sums; `convolutions` has the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import ClassVar, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from hydrabench.bounds.outward import MORE
from hydrabench.bounds.patches import Rows
from hydrabench.bounds.program.operations import Linear
from hydrabench.errors import UnsupportedLayerError

Kind = TypeVar("Kind", bound="Weighted")


@dataclass(frozen=True, eq=False)
class Weighted(Linear):
    """A linear operation with a weight; `bias` (C,) or None.

    settled: whether its tensors are constants that nobody will write to, so that what follows from them may be kept.
    """

    aliases: ClassVar[bool] = False
    weight: Tensor
    bias: Tensor | None
    settled: bool = field(default=False, kw_only=True)

    @property
    def products(self) -> int:
        """See `Operation`."""
        return prod(self.weight.shape[1:])

    def absolute(self: Kind) -> Kind:
        """See `Linear`; kept if the weight is settled."""
        return self._absolute if self.settled else replace(self, weight=self.weight.abs(), bias=None)  # type: ignore[return-value]

    @cached_property
    def _absolute(self) -> Weighted:
        return replace(self, weight=self.weight.abs(), bias=None)

    def squared(self: Kind) -> Kind:
        """See `Linear`."""
        return replace(self, weight=self.weight.square(), bias=None, settled=False)

    def narrowed(self: Kind, before: Tensor | None, after: Tensor | None) -> Kind:
        """See `Operation`; only called where `mixed_channels` has an answer."""
        weight, bias = self.weight, self.bias
        if before is not None:
            weight = weight[:, _entries(before, weight.shape[1])]
        if after is not None:
            weight, bias = weight[after], None if bias is None else bias[after]
        return replace(self, weight=weight, bias=bias)

    def _terms(self, outputs: int, constants: int) -> tuple[int, int]:
        """Terms with a weight other than 0 of a result and of a coefficient; `outputs`: the axis of output channels."""
        used = (self.weight != 0).transpose(0, outputs)
        forward = int(used.flatten(1).sum(1).max())
        return forward + MORE, int(used.sum(0).reshape(used.shape[1], -1).sum(1).max()) + constants


@dataclass(frozen=True, eq=False)
class Dense(Weighted):
    """x @ weight.T + bias over the last axis; `weight` (out, in)."""

    keeps_axes: ClassVar[bool] = True

    @property
    def matrix(self) -> tuple[Tensor, Tensor | None]:
        """See `Operation`."""
        return self.weight, self.bias

    def apply(self, x: Tensor) -> Tensor:
        """Map vectors (B, ..., in) to (B, ..., out)."""
        return F.linear(x, self.weight, self.bias)

    def terms(self, _before: Sequence[torch.Size], after: torch.Size) -> tuple[int, int]:
        """See `Linear`."""
        return self._terms(0, after.numel())

    def constant(self, _like: Sequence[Tensor]) -> Tensor | None:
        """The bias."""
        return self.bias

    def back(self, rows: Tensor, _shapes: Sequence[torch.Size]) -> tuple[Tensor]:
        """See `Linear`."""
        return (rows @ self.weight,)

    def gain(self, rows: Tensor, _shapes: Sequence[torch.Size]) -> Tensor | None:
        """See `Linear`."""
        return None if self.bias is None else (rows @ self.bias).reshape(len(rows), -1).sum(1)

    def columns(self) -> Tensor:
        """Inputs with a weight other than 0."""
        return (self.weight != 0).any(0)

    def mixed_channels(self, *, vectors: bool) -> tuple[Tensor, Tensor | None] | None:
        """See `Operation`."""
        return (self.weight, self.bias) if vectors else None


@dataclass(frozen=True, eq=False)
class Scale(Linear):
    """x * scale + shift with one pair per channel, axis 1; both (C,).

    size: |shift|, or more if it is a difference of large numbers, as of batch norm; None for |shift|.
    """

    aliases: ClassVar[bool] = False
    moves: ClassVar[bool] = True
    keeps_axes: ClassVar[bool] = True
    keeps_windows: ClassVar[bool] = True
    scale: Tensor
    shift: Tensor | None
    size: Tensor | None = None

    def apply(self, x: Tensor) -> Tensor:
        """Scale and shift every channel of (B, C, ...)."""
        found = x * per_channel(self.scale, x.ndim)
        return found if self.shift is None else found + per_channel(self.shift, x.ndim)

    def absolute(self) -> Scale:
        """See `Linear`."""
        return Scale(self.scale.abs(), None)

    def squared(self) -> Scale:
        """See `Linear`."""
        return Scale(self.scale.square(), None)

    def terms(self, _before: Sequence[torch.Size], after: torch.Size) -> tuple[int, int]:
        """See `Linear`."""
        return MORE, after[1:].numel() + after[0]

    def constant(self, like: Sequence[Tensor]) -> Tensor | None:
        """The shift."""
        return None if self.shift is None else per_channel(self.shift, like[0].ndim)

    def constant_size(self, like: Sequence[Tensor]) -> Tensor | None:
        """See `Linear`."""
        return super().constant_size(like) if self.size is None else per_channel(self.size, like[0].ndim)

    def back(self, rows: Tensor, _shapes: Sequence[torch.Size]) -> tuple[Tensor]:
        """See `Linear`."""
        return (rows * per_channel(self.scale, rows.ndim),)

    def gain(self, rows: Tensor, _shapes: Sequence[torch.Size]) -> Tensor | None:
        """See `Linear`."""
        if self.shift is None:
            return None
        return rows.reshape(*rows.shape[:2], -1).sum(2) @ self.shift.expand(rows.shape[1])

    def back_patches(
        self, rows: Rows, shapes: Sequence[torch.Size], after: torch.Size
    ) -> tuple[tuple[Rows | None, ...], Tensor | None]:
        """Patches stay."""
        rows = rows.masked(after)
        gain = self.gain(rows.coefficients, shapes)
        scale = per_channel(self.scale, rows.coefficients.ndim)
        coefficients = rows.coefficients.mul_(scale) if rows.spent else rows.coefficients * scale
        return (replace(rows, coefficients=coefficients, fresh=True),), gain

    def known_channels(self, channels: Tensor) -> Tensor:
        """See `Operation`."""
        if len(self.scale) != len(channels):  # one for each entry of a block
            return torch.full_like(channels, torch.nan)
        found = channels * self.scale
        return found if self.shift is None else found + self.shift

    def narrowed(self, _before: Tensor | None, after: Tensor | None) -> Scale:
        """See `Operation`."""
        if after is None:
            return self
        kept = _entries(after, len(self.scale))
        return Scale(*(None if part is None else part[kept] for part in (self.scale, self.shift, self.size)))  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class Add(Linear):
    """The sum of two values of the same shape."""

    aliases: ClassVar[bool] = False
    keeps_axes: ClassVar[bool] = True
    keeps_windows: ClassVar[bool] = True

    def apply(self, a: Tensor, b: Tensor) -> Tensor:
        """Add; a difference in shape is refused, because it might mix the images of a batch."""
        if a.shape[1:] != b.shape[1:]:
            raise UnsupportedLayerError(
                f"cannot bound the sum of values of shapes {(*a.shape[1:],)} and {(*b.shape[1:],)}: only values of "
                "the same shape have a rule; expand one of them, or certify the network with smoothing"
            )
        return a + b

    def absolute(self) -> Add:
        """See `Linear`."""
        return self

    def terms(self, _before: Sequence[torch.Size], _after: torch.Size) -> tuple[int, int]:
        """See `Linear`."""
        return MORE, 0

    def back(self, rows: Tensor, _shapes: Sequence[torch.Size]) -> tuple[Tensor, Tensor]:
        """Both values get the coefficients themselves."""
        return rows, rows

    def back_patches(
        self, rows: Rows, _shapes: Sequence[torch.Size], _after: torch.Size
    ) -> tuple[tuple[Rows | None, ...], Tensor | None]:
        """Patches stay; both values get the same."""
        shared = replace(rows, fresh=False)
        return (shared, shared), None

    def known_channels(self, one: Tensor, other: Tensor) -> Tensor:
        """See `Operation`."""
        return one + other


def per_channel(vector: Tensor, ndim: int) -> Tensor:
    """View a vector (C,) so that it broadcasts along axis 1 of a tensor with `ndim` axes."""
    return vector.view(-1, *[1] * (ndim - 2))


def _entries(channels: Tensor, count: int) -> Tensor:
    """Mask of the entries of channels in equal blocks, `count` in all."""
    return channels.repeat_interleave(count // len(channels))
