"""Arithmetic with constants, differences, means and sums, and the product of two values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hydrabench.bounds.outward import MORE, TINY, ULP, up
from hydrabench.bounds.patches import Rows
from hydrabench.bounds.program.linear import Add
from hydrabench.bounds.program.operations import Linear, Relaxed
from hydrabench.bounds.relaxations import Sloped
from hydrabench.errors import UnsupportedLayerError


@dataclass(frozen=True, eq=False)
class Shift(Linear):
    """x + constant; the constant is broadcast to the images."""

    aliases: ClassVar[bool] = False
    moves: ClassVar[bool] = True
    amount: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """Add the constant to (B, ...)."""
        return _same_shape(x, x + _constant(self.amount, x))

    def absolute(self) -> Linear:
        """Without the constant nothing is left but x."""
        return Factor(torch.ones((), dtype=self.amount.dtype, device=self.amount.device))

    def squared(self) -> Linear:
        """See `Linear`."""
        return self.absolute()

    def terms(self, _before: Sequence[torch.Size], after: torch.Size) -> tuple[int, int]:
        """See `Linear`."""
        return MORE, after.numel()

    def constant(self, like: Sequence[Tensor]) -> Tensor:
        """The constant, (1, *value)."""
        return _constant(self.amount, like[0]).expand(1, *like[0].shape[1:])

    def back(self, rows: Tensor, _shapes: Sequence[torch.Size]) -> tuple[Tensor]:
        """Coefficients stay."""
        return (rows,)


@dataclass(frozen=True, eq=False)
class Factor(Linear):
    """x * factor, or x / factor; the constant is broadcast to the images."""

    aliases: ClassVar[bool] = False
    moves: ClassVar[bool] = True
    factor: Tensor
    divides: bool = False

    def apply(self, x: Tensor) -> Tensor:
        """Multiply (B, ...), or divide it."""
        factor = _constant(self.factor, x)
        return _same_shape(x, x / factor if self.divides else x * factor)

    def absolute(self) -> Factor:
        """See `Linear`."""
        return Factor(self.factor.abs(), self.divides)

    def squared(self) -> Factor:
        """See `Linear`."""
        return Factor(self.factor.square(), self.divides)

    def terms(self, _before: Sequence[torch.Size], _after: torch.Size) -> tuple[int, int]:
        """See `Linear`."""
        return MORE, 0

    def back(self, rows: Tensor, _shapes: Sequence[torch.Size]) -> tuple[Tensor]:
        """Coefficients are multiplied, or divided, too."""
        return (self.apply(rows),)

    def back_patches(
        self, rows: Rows, shapes: Sequence[torch.Size], _after: torch.Size
    ) -> tuple[tuple[Rows | None, ...], Tensor | None]:
        """Patches stay."""
        like = rows.coefficients.new_ones(1, *shapes[0][1:])
        return (rows.times(self.apply(like)),), None


@dataclass(frozen=True, eq=False)
class Subtract(Linear):
    """The difference of two values of the same shape."""

    aliases: ClassVar[bool] = False

    def apply(self, a: Tensor, b: Tensor) -> Tensor:
        """Subtract; a difference in shape is refused, as by `Add`."""
        return Add().apply(a, -b)

    def absolute(self) -> Add:
        """The sum."""
        return Add()

    def terms(self, _before: Sequence[torch.Size], _after: torch.Size) -> tuple[int, int]:
        """See `Linear`."""
        return MORE, 0

    def back(self, rows: Tensor, _shapes: Sequence[torch.Size]) -> tuple[Tensor, Tensor]:
        """The second value gets the coefficients with the other sign."""
        return rows, -rows


@dataclass(frozen=True, eq=False)
class Sum(Linear):
    """The sum, or mean, over axes that do not include the batch axis."""

    aliases: ClassVar[bool] = False
    axes: tuple[int, ...]
    keepdim: bool
    mean: bool

    def apply(self, x: Tensor) -> Tensor:
        """Add up entries of (B, ...)."""
        if 0 in {axis % x.ndim for axis in self.axes}:
            raise UnsupportedLayerError(
                f"cannot bound a sum or mean over axes {self.axes}: it mixes the images of a batch; certify it with "
                "smoothing"
            )
        return x.mean(self.axes, self.keepdim) if self.mean else x.sum(self.axes, self.keepdim)

    def absolute(self) -> Sum:
        """No weight is negative."""
        return self

    def terms(self, before: Sequence[torch.Size], _after: torch.Size) -> tuple[int, int]:
        """See `Linear`; twice, because each term may be multiplied."""
        return 2 * before[0].numel() + MORE, 0


@dataclass(frozen=True, eq=False)
class Product(Relaxed):
    """The product of two values with as many axes, one of which may be broadcast, as a squeeze-excitation's is.

    Source: McCormick (1976), "Computability of global solutions to factorable nonconvex programs", part I.
    """

    ulps: ClassVar[float] = 1

    def apply(self, a: Tensor, b: Tensor) -> Tensor:
        """Multiply (B, ...) by (B, ...)."""
        if a.ndim != b.ndim or len(a) != len(b):
            raise UnsupportedLayerError(
                f"cannot bound the product of values of shapes {(*a.shape[1:],)} and {(*b.shape[1:],)}: they need as "
                "many axes, because others might mix the images of a batch"
            )
        return a * b

    def box(self, a: Tensor, b: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """The smallest and the largest product of corners."""
        corners = torch.stack([self.apply(x, y) for x in (a, b) for y in (p, q)])
        return corners.amin(0), corners.amax(0)

    def lines(self, a: Tensor, b: Tensor, p: Tensor, q: Tensor) -> Sloped:
        """McCormick's planes for x in [a, b], y in [p, q]: (x - a)(y - p) >= 0 and (x - a)(q - y) >= 0.

        They give xy >= p x + a y - a p and xy <= q x + a y - a q. The other two, around b, are as close in the middle.
        """
        a, _, p, q = _broadcast(a, b, p, q)
        return Sloped(-a * p, -a * q, (p, a), (q, a))

    def strip(self, a: Tensor, b: Tensor, p: Tensor, q: Tensor) -> Sloped:
        """|x y - (c y + d x - c d)| = |x - c| |y - d| around the centers c and d."""
        a, b, p, q = _broadcast(a, b, p, q)
        x, y = torch.lerp(a, b, 0.5), torch.lerp(p, q, 0.5)
        half = torch.maximum(b - x, x - a) * torch.maximum(q - y, y - p)
        return Sloped(-x * y - half, -x * y + half, (y, x), (y, x))

    def rounded_lines(self, a: Tensor, b: Tensor, p: Tensor, q: Tensor) -> Sloped:
        """The slopes of McCormick's planes are corners, which are exact; only their constants are rounded."""
        lines = self.lines(a, b, p, q)
        assert lines.low is not None, "both planes have constants"
        assert lines.high is not None, "both planes have constants"
        low, high = lines.low - lines.low.abs() * ULP - TINY, up(lines.high) + TINY
        return Sloped(low, high, lines.below, lines.above)

    def undecided(self, a: Tensor, b: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """All, but for values that are known exactly."""
        return ~(a >= b), ~(p >= q)

    def carried_error(self, corners: Sequence[Tensor], errors: Sequence[Tensor]) -> Tensor:
        """(|x| + e) (|y| + f) - |x| |y|, and once more f |e|, for planes that are drawn at corners that are off."""
        x, y = (torch.maximum(*(corner.abs() for corner in pair)) for pair in (corners[:2], corners[2:]))
        return x * errors[1] + y * errors[0] + 2 * errors[0] * errors[1]

    def widest(self, a: Tensor, b: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """A plane touches the product at a corner, and moves by its slopes times the widths from there."""
        low, high = self.box(a, b, p, q)
        x, y = torch.maximum(a.abs(), b.abs()), torch.maximum(p.abs(), q.abs())
        reach = x * (q - p) + y * (b - a)
        return low - reach, high + reach

    def size(self, a: Tensor, b: Tensor, p: Tensor, q: Tensor) -> Tensor:
        """See `Relaxed`."""
        return torch.stack(self.box(a, b, p, q)).abs().amax(0)


def _broadcast(*corners: Tensor) -> list[Tensor]:
    return [*torch.broadcast_tensors(*corners)]  # type: ignore[no-untyped-call]


def _constant(constant: Tensor, like: Tensor) -> Tensor:
    """The constant in the type of a value; a number that carries no batch of its own."""
    if constant.ndim > like.ndim or (constant.ndim == like.ndim and constant.ndim and len(constant) != 1):
        raise UnsupportedLayerError(
            f"cannot bound arithmetic of values of shape {(*like.shape[1:],)} with a constant of shape "
            f"{(*constant.shape,)}: it has a batch axis of its own; certify it with smoothing"
        )
    return constant.to(like.dtype)


def _same_shape(x: Tensor, found: Tensor) -> Tensor:
    if found.shape != x.shape:
        raise UnsupportedLayerError(
            f"cannot bound arithmetic that broadcasts values of shape {(*x.shape[1:],)} to {(*found.shape[1:],)}; "
            "expand them first, or certify the network with smoothing"
        )
    return found
