"""Lines below and above an operation that is not linear, as every pass backward uses them.

An operation says which lines hold on a box of what it takes; `Sloped` and `Picked` carry coefficients along them. The
choices are `lines` (CROWN's adaptive slopes), `strip` (the same slope below and above: symbolic intervals) and
`rounded_lines` (float64, rounded outward: `sound`), all methods of `program.operations.Relaxed`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hydrabench.bounds.kernels import products, relax_, relaxed
from hydrabench.bounds.patches import Rows, row_products


@dataclass(frozen=True, eq=False)
class Lines(ABC):
    """Two affine functions of the values v that an operation takes, one below its result and one above it.

    low, high: their constants, (B, *result); None for 0.
    """

    low: Tensor | None
    high: Tensor | None

    @abstractmethod
    def images(self, part: slice | Tensor) -> Lines:
        """The lines of some images, given by a slice or their numbers."""

    @abstractmethod
    def back(
        self, rows: Tensor, shapes: Sequence[torch.Size], *, spent: bool = False
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Carry coefficients of the result, (B, S, *result), to the values: positive ones below, negative ones above.

        Args:
            shapes: of the values, batch axis included. spent: nobody else reads `rows`, which may be written over.
        Returns: coefficients of each value, (B, S, *value); what the constants gain, (B, S).
        """

    @abstractmethod
    def back_along(self, rows: Rows, shapes: Sequence[torch.Size]) -> tuple[Rows, ...]:
        """Carry rows along the slopes of a strip, which are those of both lines."""

    @abstractmethod
    def along(self, *values: Tensor) -> Tensor:
        """Return what the line above, without its constant, makes of values, (B, *result)."""

    @abstractmethod
    def reach(self, *sizes: Tensor) -> Tensor:
        """A bound of what |slopes| of either line, 1 at least, make of |values|: (B, *result), from (B, *value)."""

    @abstractmethod
    def absolute(self) -> Lines:
        """Lines whose slope above is the absolute one, so that `along` makes widths of widths."""

    @property
    @abstractmethod
    def sums(self) -> int:
        """Return how many coefficients are added up, at most, to give one of a value."""

    def carried(self, rows: Rows, shapes: Sequence[torch.Size]) -> tuple[tuple[Rows, ...], Tensor]:
        """Carry rows as `back` does, those of one image after the other. Returns also what constants gain, (R,)."""
        rows = rows.whole(self._result_shape())
        image = rows.image.repeat(len(rows.coefficients) // len(rows.image))
        parts, order = [], []
        for number in torch.unique(image).tolist():
            mine = (image == number).nonzero().squeeze(1)
            here = self.images(slice(number, number + 1))
            found, gain = here.back(rows.coefficients[mine].unsqueeze(0), [torch.Size((1, *s[1:])) for s in shapes])
            parts.append((*(part.squeeze(0) for part in found), gain.squeeze(0)))
            order.append(mine)
        back = torch.cat(order).argsort()
        *coefficients, gains = (torch.cat(pieces).index_select(0, back) for pieces in zip(*parts, strict=True))
        return tuple(Rows(part, rows.image) for part in coefficients), gains

    def half(self) -> Tensor:
        """Half the height of a strip, (B, *result)."""
        return (self._high() - self.low) / 2 if self.low is not None else self._high() / 2

    def middle(self) -> Tensor:
        """The constant of the line in the middle of a strip, (B, *result)."""
        return (self._high() + self.low) / 2 if self.low is not None else self._high() / 2

    def height(self) -> Tensor:
        """The larger one of the absolute constants, (B, *result)."""
        return self._high().abs() if self.low is None else torch.maximum(self._high().abs(), self.low.abs())

    def _high(self) -> Tensor:
        assert self.high is not None, "only the line below may pass through 0 by definition"
        return self.high

    def _result_shape(self) -> torch.Size:
        return self._high().shape


@dataclass(frozen=True, eq=False)
class Sloped(Lines):
    """Lines for results that each depend on one entry of each value: sum of slope_i * v_i, plus a constant.

    below, above: the slopes for each value, (B, *result). Where a value is broadcast, coefficients are added up.
    """

    below: tuple[Tensor, ...]
    above: tuple[Tensor, ...]

    @property
    def sums(self) -> int:
        """Broadcast values add up no more than all entries of a result."""
        return 1 if len(self.below) == 1 else self._high()[0].numel()

    def images(self, part: slice | Tensor) -> Sloped:
        """See `Lines`."""
        below, above = (tuple(slope[part] for slope in slopes) for slopes in (self.below, self.above))
        low = None if self.low is None else self.low[part]
        return Sloped(low, self._high()[part], below, above)

    def back(
        self, rows: Tensor, shapes: Sequence[torch.Size], *, spent: bool = False
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """See `Lines`."""
        more = None if self.low is None else products(rows.clamp(min=0), self.low)
        if spent and len(self.below) == 1 and not torch.is_grad_enabled():
            gain = relax_(rows, self.below[0], self.above[0], self._high())
            found: tuple[Tensor, ...] = (rows,)
        else:
            pairs = [relaxed(rows, a, b, self._high()) for a, b in zip(self.below, self.above, strict=True)]
            found, gain = tuple(part for part, _ in pairs), pairs[0][1]
        found = tuple(_reduced(part, shape) for part, shape in zip(found, shapes, strict=True))
        return found, gain if more is None else gain + more

    def carried(self, rows: Rows, shapes: Sequence[torch.Size]) -> tuple[tuple[Rows, ...], Tensor]:
        """See `Lines`; where nothing is broadcast, patches stay patches."""
        if any(shape[1:] != self._high().shape[1:] for shape in shapes):
            return super().carried(rows, shapes)
        negative = rows.coefficients.clamp(max=0)
        gain = row_products(negative, rows.seen(self._high()))
        if self.low is not None:
            gain = gain + row_products(rows.coefficients.clamp(min=0), rows.seen(self.low))
        rows = replace(rows, fresh=rows.fresh and len(shapes) == 1)
        found = tuple(
            rows.changed(below, plus=(negative, above - below))
            for below, above in zip(self.below, self.above, strict=True)
        )
        return found, gain

    def back_along(self, rows: Rows, shapes: Sequence[torch.Size]) -> tuple[Rows, ...]:
        """See `Lines`."""
        found, rows = [], replace(rows, fresh=rows.fresh and len(shapes) == 1)
        for slope, shape in zip(self.above, shapes, strict=True):
            part = rows.times(slope)
            if shape[1:] != slope.shape[1:]:
                part = part.whole(slope.shape)
                part = replace(part, coefficients=_reduced(part.coefficients.unsqueeze(0), shape).squeeze(0))
            found.append(part)
        return tuple(found)

    def along(self, *values: Tensor) -> Tensor:
        """See `Lines`."""
        parts = [slope * value for slope, value in zip(self.above, values, strict=True)]
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)

    def reach(self, *sizes: Tensor) -> Tensor:
        """See `Lines`."""
        parts = [
            torch.maximum(below.abs(), above.abs()).clamp(min=1) * size
            for below, above, size in zip(self.below, self.above, sizes, strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)

    def absolute(self) -> Sloped:
        """The same with absolute slopes above, which `along` makes widths with."""
        return replace(self, above=tuple(slope.abs() for slope in self.above))


@dataclass(frozen=True, eq=False)
class Picked(Lines):
    """Lines around the maximum of every window: each follows a single entry of the image.

    below, above: where the entry stands in the flattened image (H, W), (B, C, h, w). slope: of the line above; the line
    below has slope 1.
    """

    below: Tensor
    above: Tensor
    slope: Tensor
    window: int

    @property
    def sums(self) -> int:
        """No entry is in more windows than one has entries; it may be followed below and above."""
        return 2 * self.window

    def images(self, part: slice | Tensor) -> Picked:
        """See `Lines`."""
        return Picked(None, self._high()[part], self.below[part], self.above[part], self.slope[part], self.window)

    def back(
        self,
        rows: Tensor,
        shapes: Sequence[torch.Size],
        *,
        spent: bool = False,  # noqa: ARG002
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """See `Lines`."""
        (shape,), flat = shapes, rows.flatten(3)
        negative = flat.clamp(max=0)
        gain = torch.bmm(negative.flatten(2), self._high().flatten(1).unsqueeze(2)).squeeze(2)
        image = rows.new_zeros(*rows.shape[:3], shape[2] * shape[3])
        for places, coefficients in (
            (self.below, flat.clamp(min=0)),
            (self.above, negative * self.slope.flatten(2).unsqueeze(1)),
        ):
            image = image.scatter_add_(3, places.flatten(2).unsqueeze(1).expand_as(flat), coefficients)
        return (image.view(*rows.shape[:2], *shape[1:]),), gain

    def back_along(self, rows: Rows, shapes: Sequence[torch.Size]) -> tuple[Rows, ...]:
        """See `Lines`."""
        (shape,), rows = shapes, rows.whole(self.above.shape)
        places = rows.seen(self.above).flatten(2)
        places = places.repeat(len(rows.coefficients) // len(places), 1, 1)
        image = rows.coefficients.new_zeros(*rows.coefficients.shape[:2], shape[2] * shape[3])
        image = image.scatter_add(2, places, rows.coefficients.flatten(2)).view(-1, *shape[1:])
        return (Rows(image, rows.image),)

    def along(self, *values: Tensor) -> Tensor:
        """See `Lines`."""
        return self.slope * _at(values[0], self.above)

    def reach(self, *sizes: Tensor) -> Tensor:
        """See `Lines`."""
        return torch.maximum(_at(sizes[0], self.below), _at(sizes[0], self.above))

    def absolute(self) -> Picked:
        """The lines themselves: no slope is negative."""
        return self


def _at(value: Tensor, places: Tensor) -> Tensor:
    """Entries of images (B, C, H, W) at places of the flattened image: of the shape of `places`, (B, C, ...)."""
    return value.flatten(2).gather(2, places.flatten(2)).view_as(places)


def _reduced(rows: Tensor, shape: torch.Size) -> Tensor:
    """Add coefficients (B, S, *result) up along the axes that a value (B, *value) is broadcast along."""
    axes = [axis for axis, size in enumerate(shape[1:], start=2) if size == 1 and rows.shape[axis] != 1]
    return rows.sum(axes, keepdim=True) if axes else rows
