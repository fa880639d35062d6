"""Operations that move entries: flatten, reshape, permute, slice, join, pad, repeat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from hydrabench.bounds.patches import Rows
from hydrabench.bounds.program.operations import Linear
from hydrabench.errors import UnsupportedLayerError


def image_axis(axis: int, ndim: int) -> int:
    """An axis of a value with `ndim` axes, counted from the front; the batch axis is refused."""
    if axis % ndim == 0:
        raise UnsupportedLayerError(
            f"cannot bound what joins, splits, squeezes or adds axis {axis} of {ndim}: it is that of the batch; "
            "use the axes of an image, or certify it with smoothing"
        )
    return axis % ndim


class Rearrangement(Linear):
    """Every entry of the result is an entry of a value, or 0; nothing is computed."""

    moves: ClassVar[bool] = True

    def absolute(self) -> Rearrangement:
        """No weight is negative."""
        return self

    def terms(self, _before: Sequence[torch.Size], _after: torch.Size) -> tuple[int, int]:
        """Nothing is rounded."""
        return 0, 0


@dataclass(frozen=True, eq=False)
class Identity(Rearrangement):
    """Nothing."""

    same_places: ClassVar[bool] = True
    keeps_axes: ClassVar[bool] = True
    keeps_windows: ClassVar[bool] = True

    def apply(self, x: Tensor) -> Tensor:
        """Return `x` itself."""
        return x

    def back(self, rows: Tensor, _shapes: Sequence[torch.Size]) -> tuple[Tensor]:
        """Coefficients stay."""
        return (rows,)

    def back_patches(
        self, rows: Rows, _shapes: Sequence[torch.Size], _after: torch.Size
    ) -> tuple[tuple[Rows | None, ...], Tensor | None]:
        """Patches stay."""
        return (rows,), None

    def known_channels(self, channels: Tensor) -> Tensor:
        """They stay."""
        return channels


@dataclass(frozen=True, eq=False)
class Flatten(Rearrangement):
    """Everything but the batch axis in one axis."""

    same_places: ClassVar[bool] = True
    makes_vectors: ClassVar[bool] = True

    def apply(self, x: Tensor) -> Tensor:
        """Flatten (B, ...) to (B, N)."""
        return x.flatten(1)

    def back(self, rows: Tensor, shapes: Sequence[torch.Size]) -> tuple[Tensor]:
        """See `Linear`."""
        return (rows.reshape(len(rows), *shapes[0][1:]),)

    def known_channels(self, channels: Tensor) -> Tensor:
        """They stay, each a block of entries."""
        return channels


@dataclass(frozen=True, eq=False)
class Reshape(Rearrangement):
    """The entries of each image in other axes.

    shape: from the shapes of the values, batch axis included, to the axes of an image; -1 once at most. Of further
    values only the shape counts.
    """

    shape: Callable[..., Sequence[int]]

    def apply(self, x: Tensor, *others: Tensor) -> Tensor:
        """Reshape every image of (B, ...)."""
        axes: list[int] = [*self.shape(x.shape, *(other.shape for other in others))]
        entries = x.shape[1:].numel()
        known = prod(size for size in axes if size != -1)
        if axes.count(-1) == 1 and known:
            axes[axes.index(-1)] = entries // known
        if prod(iter(axes)) != entries or any(size < 0 for size in axes):
            raise UnsupportedLayerError(
                f"cannot bound a reshape of images of shape {(*x.shape[1:],)} to {(*axes,)}: it mixes the images of a "
                "batch; keep the batch axis, as in x.view(x.size(0), -1), or certify it with smoothing"
            )
        return x.reshape(len(x), *axes)

    def back(self, rows: Tensor, shapes: Sequence[torch.Size]) -> tuple[Tensor | None, ...]:
        """See `Linear`."""
        return (rows.reshape(len(rows), *shapes[0][1:]), *[None] * (len(shapes) - 1))


@dataclass(frozen=True, eq=False)
class Permute(Rearrangement):
    """The axes in another order; the batch axis stays the first. order: from how many axes there are to their order."""

    order: Callable[[int], Sequence[int]]

    def apply(self, x: Tensor) -> Tensor:
        """Permute the axes of (B, ...)."""
        order = self.order(x.ndim)
        if order[0] != 0:
            raise UnsupportedLayerError(
                f"cannot bound a permutation of the axes to {(*order,)}: it moves the batch axis; "
                "certify it with smoothing"
            )
        return x.permute(*order)

    def back(self, rows: Tensor, _shapes: Sequence[torch.Size]) -> tuple[Tensor]:
        """The other way round."""
        order = [*self.order(rows.ndim)]
        return (rows.permute(*(order.index(axis) for axis in range(rows.ndim))),)


@dataclass(frozen=True, eq=False)
class Part(Rearrangement):
    """Some entries of every image. take: what picks them from (B, ...), such as an index, a chunk, or a crop."""

    take: Callable[[Tensor], Tensor]

    def apply(self, x: Tensor) -> Tensor:
        """Take the part of every image of (B, ...)."""
        return self.take(x)


@dataclass(frozen=True, eq=False)
class Join(Rearrangement):
    """Values side by side along an axis, which is not the batch axis."""

    aliases: ClassVar[bool] = False
    moves: ClassVar[bool] = False
    axis: int

    def apply(self, *values: Tensor) -> Tensor:
        """Join values (B, ...)."""
        axis = image_axis(self.axis, values[0].ndim)
        return torch.cat(values, axis)

    def back(self, rows: Tensor, shapes: Sequence[torch.Size]) -> tuple[Tensor | None, ...]:
        """Take the coefficients apart."""
        axis = image_axis(self.axis, rows.ndim)
        return (*torch.split(rows, [shape[axis] for shape in shapes], axis),)

    def back_patches(
        self, rows: Rows, shapes: Sequence[torch.Size], after: torch.Size
    ) -> tuple[tuple[Rows | None, ...], Tensor | None]:
        """Patches of joined channels are taken apart, too."""
        if image_axis(self.axis, len(after)) != 1:
            return super().back_patches(rows, shapes, after)
        parts = torch.split(rows.coefficients, [shape[1] for shape in shapes], 1)
        return tuple(replace(rows, coefficients=part) for part in parts), None


@dataclass(frozen=True, eq=False)
class Pad(Rearrangement):
    """A constant around every image. pads: as for `torch.nn.functional.pad`, never of the batch axis."""

    aliases: ClassVar[bool] = False
    pads: tuple[int, ...]
    value: float = 0.0

    def apply(self, x: Tensor) -> Tensor:
        """Pad (B, ...)."""
        if len(self.pads) >= 2 * x.ndim:
            raise UnsupportedLayerError(f"cannot bound padding by {self.pads}: it pads the batch axis")
        return F.pad(x, self.pads, value=self.value)

    def absolute(self) -> Pad:
        """With zeros."""
        return self if self.value == 0 else Pad(self.pads)

    def squared(self) -> Pad:
        """See `Linear`."""
        return self.absolute()

    def constant(self, like: Sequence[Tensor]) -> Tensor | None:
        """The padding around an image of zeros."""
        return None if self.value == 0 else self.apply(torch.zeros_like(like[0][:1]))


@dataclass(frozen=True, eq=False)
class Repeat(Rearrangement):
    """Every entry as often as nearest-neighbour upsampling shows it. settings: of `torch.nn.functional.interpolate`."""

    aliases: ClassVar[bool] = False
    moves: ClassVar[bool] = False
    settings: tuple[tuple[str, Any], ...]

    def apply(self, x: Tensor) -> Tensor:
        """Upsample (B, C, ...)."""
        return F.interpolate(x, **dict(self.settings))

    def terms(self, before: Sequence[torch.Size], after: torch.Size) -> tuple[int, int]:
        """Coefficients of all copies of an entry are added up on the way back."""
        return 0, prod(-(-new // old) + 1 for old, new in zip(before[0][1:], after[1:], strict=True))
