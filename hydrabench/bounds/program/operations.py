"""Operations of a network, each of which describes itself for every method of bounding.

An operation is `Linear` (affine in its values), `Elementwise` (one function on every entry) or another `Relaxed` one.
A class that forgets an abstract method cannot be made; defaults are the cautious answers. Operations are frozen and
hold the tensors that they apply: masks, running statistics and pixel normalisation are resolved before.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from hydrabench.bounds.box import Interval
from hydrabench.bounds.outward import MORE, TINY, ULP, UNIT, down, growth, up
from hydrabench.bounds.patches import Rows, Window
from hydrabench.bounds.relaxations import Lines, Sloped

NARROW = 1e-8  # intervals no wider than this get a horizontal chord, because its slope would be rounding alone


@dataclass(frozen=True, eq=False)
class Operation(ABC):
    """One step from a value (B, ...), or from several, to the next.

    aliases: whether the result may share memory with a value. same_places: whether an entry of the result reads the
    entry at its own place in the flattened value and no other. keeps_axes: whether vectors (B, F) stay vectors.
    makes_vectors: whether the result is vectors whatever the value was. keeps_windows: whether rows in a window of the
    result are in the same window of each value.
    """

    aliases: ClassVar[bool] = True
    same_places: ClassVar[bool] = False
    keeps_axes: ClassVar[bool] = False
    makes_vectors: ClassVar[bool] = False
    keeps_windows: ClassVar[bool] = False

    @abstractmethod
    def apply(self, *values: Any, **_: Any) -> Tensor:  # Any, so that mypy accepts fixed numbers of tensors below
        """Return what the network computes from the values it takes; the operation without any bounds."""

    @abstractmethod
    def interval(self, *boxes: Any, **_: Any) -> Interval:
        """Return a box of the result; with `spent=True`: the boxes' memory may be written over."""

    @property
    def matrix(self) -> tuple[Tensor, Tensor | None] | None:
        """Weight (out, in) and bias (out,) or None, if the operation maps vectors to vectors by them."""
        return None

    @property
    def products(self) -> int:
        """Multiplications and additions for one entry of the result, and for its coefficient on the way back."""
        return 0

    def window_behind(self, window: Window) -> Window | None:
        """Return what rows in a window of the result see of each value; None if they get coefficients of all of it."""
        return window if self.keeps_windows else None

    def columns(self) -> Tensor | None:
        """Return which entries of a flattened value the operation reads, (entries,); None for all."""
        return None

    def mixed_channels(self, *, vectors: bool) -> tuple[Tensor, Tensor | None] | None:  # noqa: ARG002
        """Weight (K, C, ...) and bias (K,) or None, if channels may be left out; `vectors`: of values surely (B, F)."""
        return None

    def known_channels(self, *_channels: Any, **_: Any) -> Tensor | None:
        """Channels of the result, (C,), for constant ones of the values; NaN where that depends; None if unknown."""
        return None

    def narrowed(self, _before: Tensor | None, _after: Tensor | None) -> Operation:
        """The operation on those channels of its value and of its result that masks (C,) keep; None keeps all."""
        return self


@dataclass(frozen=True, eq=False)
class Linear(Operation):
    """An operation that is affine in all its values together: y = A (x_1, ..., x_n) + b.

    moves: whether every entry of the result is a multiple of one entry taken, and no entry is used twice.
    """

    moves: ClassVar[bool] = False

    @abstractmethod
    def absolute(self) -> Linear:
        """The operation with |A| and without b; the operation itself if that changes nothing."""

    @abstractmethod
    def terms(self, before: Sequence[torch.Size], after: torch.Size) -> tuple[int, int]:
        """Return how many roundings may lie between a term and a result: of `apply`, and more on the way back.

        Args: before, after: shapes of the values and the result, without the batch axis.
        """

    def interval(self, *boxes: Any, **_: Any) -> Interval:
        """The center goes through the operation, the width through its absolute twin."""
        return Interval(
            self.apply(*(box.center for box in boxes)), self.absolute().apply(*(box.width for box in boxes))
        )

    def squared(self) -> Linear | None:
        """The operation with A squared entry by entry and without b; None if nobody needs it."""
        return self if self.moves else None

    def constant(self, _like: Sequence[Tensor]) -> Tensor | None:
        """b, (1, *result), for values like these; None for 0."""
        return None

    def constant_size(self, like: Sequence[Tensor]) -> Tensor | None:
        """|b|, or more if large numbers cancel in what b is computed from; None for 0."""
        constant = self.constant(like)
        return None if constant is None else constant.abs()

    def magnitude(self, *sizes: Tensor) -> Tensor:
        """|A| s + |b|: (B, *result), from sizes of the values."""
        found, constant = self.absolute().apply(*sizes), self.constant_size(sizes)
        return found if constant is None else found + constant

    def back(self, rows: Tensor, shapes: Sequence[torch.Size]) -> tuple[Tensor | None, ...]:
        """Carry coefficients of the result, (R, *result), to each value, (R, *value): times A transposed.

        Args: shapes: of the values, batch axis included. Returns None for a value that the result does not depend on.
        """
        zeros = [rows.new_zeros(len(rows), *shape[1:]) for shape in shapes]
        transposed = torch.func.vjp(self.apply, *zeros)[1]
        found: tuple[Tensor, ...] = transposed(rows)
        return found

    def back_to_box(self, rows: Tensor, box: Interval) -> tuple[Tensor, Interval]:
        """Carry coefficients to the one value taken; return them and its box, with the entries of both in any order.

        The smallest value over the box is the same in every order, and some are found faster.
        """
        (found,) = self.back(rows, [box.center.shape])
        return rows.new_zeros(len(rows), *box.center.shape[1:]) if found is None else found, box

    def gain(self, rows: Tensor, shapes: Sequence[torch.Size]) -> Tensor | None:
        """Return what constants gain, (R,): the products of rows (R, *result) and b; None for nothing."""
        constant = self.constant([rows.new_zeros(1, *shape[1:]) for shape in shapes])
        return None if constant is None else rows.flatten(1) @ constant.expand(1, *rows.shape[1:]).flatten()

    def back_patches(
        self, rows: Rows, shapes: Sequence[torch.Size], after: torch.Size
    ) -> tuple[tuple[Rows | None, ...], Tensor | None]:
        """Carry rows, patches or whole, to each value; returns also what constants gain, (R,), or None.

        Args: shapes, after: of the values and the result, batch axis included.
        """
        rows = rows.whole(after)
        found = self.back(rows.coefficients, shapes)
        whole = tuple(None if part is None else Rows(part, rows.image) for part in found)
        return whole, self.gain(rows.coefficients, shapes)


@dataclass(frozen=True, eq=False)
class Relaxed(Operation):
    """An operation that is not linear: it has a box, and lines, from the bounds of the values it takes.

    `corners` are the lower and upper bounds of each value in turn, (B, *value). kinks: where f' jumps, if it is f.
    ulps: what torch's own function may be off by, at most ulps · eps · (|result| + |values|), with eps = 2^-52 in
    float64 and 2^-23 in float32; 0 where it is exact. misses: lines that were drawn for bounds off by d, and a function
    that moves by e when its values do by d, are off by `misses` · e at most. tight: whether a pass backward from the
    result finds no more than its box does.
    """

    aliases: ClassVar[bool] = False
    ulps: ClassVar[float]
    misses: ClassVar[int] = 2
    tight: ClassVar[bool] = False
    kinks: ClassVar[tuple[float, ...]] = ()

    @abstractmethod
    def box(self, *corners: Any, **_: Any) -> tuple[Tensor, Tensor]:
        """The smallest and the largest result on the box, (B, *result)."""

    @abstractmethod
    def lines(self, *corners: Any, **_: Any) -> Lines:
        """Lines below and above that hold on the box, as tight as may be: CROWN's."""

    @abstractmethod
    def strip(self, *corners: Any, **_: Any) -> Lines:
        """Lines below and above that have the same slopes: those of symbolic intervals."""

    @abstractmethod
    def rounded_lines(self, *corners: Any, **_: Any) -> Lines:
        """`lines` that hold in exact arithmetic, from corners in float64."""

    @abstractmethod
    def undecided(self, *corners: Any, **_: Any) -> tuple[Tensor, ...]:
        """For each value, which entries' bounds matter, because the operation is not linear on them; NaN matters."""

    @abstractmethod
    def carried_error(self, corners: Sequence[Tensor], errors: Sequence[Tensor]) -> Tensor:
        """Return how far a result, or a line, can move if the values, on the box and around it, move by errors >= 0."""

    @abstractmethod
    def widest(self, *corners: Any, **_: Any) -> tuple[Tensor, Tensor]:
        """A box of what lines that were drawn for any smaller box allow."""

    def interval(self, *boxes: Any, **_: Any) -> Interval:
        """The box from the smallest to the largest result."""
        return Interval.taking(*self.box(*(corner for box in boxes for corner in (box.lower(), box.upper()))))

    @abstractmethod
    def size(self, *corners: Any, **_: Any) -> Tensor:
        """A bound of |result| + |values|, (B, *result), which torch's rounding is relative to."""

    def rounding_error(self, corners: Sequence[Tensor], sizes: Sequence[Tensor], errors: Sequence[Tensor]) -> Tensor:
        """Return how far computed bounds of the result can be off, and what a pass backward loses: (B, *result).

        Args: corners: of the values, widened by all that they can be off by. sizes: bounds of |values|. errors: what
            their bounds are off by; each (B, *value).
        """
        result, dtype = self.size(*corners), errors[0].dtype
        lines = self.lines(*corners).reach(*sizes) + result  # an offset is at most |f| + |slope z|
        unit = (growth(MORE + result[0].numel(), dtype) * 2 + 2 * self.ulps * UNIT[dtype]) * lines
        return self.carried_error(corners, errors) + unit

    def slack(self, eps: float, tiny: float, *corners: Tensor) -> Tensor | float:
        """Return how far torch's result can be from the exact one, with `eps` as above and what underflow can do."""
        return (self.ulps * eps) * self.size(*corners) + tiny if self.ulps else 0.0

    def rounded_box(self, *corners: Tensor) -> tuple[Tensor, Tensor]:
        """`box` that holds in exact arithmetic, from corners in float64."""
        lower, upper = self.box(*corners)
        if not self.ulps:
            return lower, upper
        slack = self.slack(ULP, TINY, *corners)
        return down(lower - slack), up(upper + slack)


@dataclass(frozen=True, eq=False)
class Elementwise(Relaxed):
    """One function f of one number, applied to every entry."""

    keeps_axes: ClassVar[bool] = True
    same_places: ClassVar[bool] = True
    tight: ClassVar[bool] = True
    keeps_windows: ClassVar[bool] = True

    @property
    @abstractmethod
    def steepness(self) -> float:
        """No slope of f, and so no chord, is steeper than this."""

    @abstractmethod
    def box(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """The smallest and the largest f(z) for z in [lower, upper]."""

    @abstractmethod
    def slopes(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """CROWN's choice of the slopes of the lines below and above; only tightness depends on it."""

    @abstractmethod
    def extremes(self, slope: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """The smallest and the largest f(z) - slope · z for z in [lower, upper], for ANY slope.

        This is what makes every line sound. Differentiable with respect to `slope` where that is a parameter.
        """

    @abstractmethod
    def decided(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Return where f is linear on [lower, upper], so that tighter bounds would change nothing; False for NaN."""

    def chord(self, lower: Tensor, upper: Tensor) -> Tensor:
        """The slope from (l, f(l)) to (u, f(u)), no steeper than f."""
        width = upper - lower
        wide = width > NARROW
        slope = (self.apply(upper) - self.apply(lower)) / torch.where(wide, width, 1)
        return torch.where(wide, slope, 0).clamp(-self.steepness, self.steepness)

    def lines(self, lower: Tensor, upper: Tensor) -> Sloped:
        """CROWN's slopes, and the offsets for which they are sound."""
        below, above = self.slopes(lower, upper)
        return Sloped(self.extremes(below, lower, upper)[0], self.extremes(above, lower, upper)[1], (below,), (above,))

    def strip(self, lower: Tensor, upper: Tensor) -> Sloped:
        """The slope of the chord, below and above."""
        slope = self.chord(lower, upper)
        return Sloped(*self.extremes(slope, lower, upper), (slope,), (slope,))

    def rounded_lines(self, lower: Tensor, upper: Tensor) -> Sloped:
        """Any slope will do; f(z) - slope · z is off by what f is, a product and a difference."""
        below, above = self.slopes(lower, upper)
        largest, size = torch.maximum(lower.abs(), upper.abs()), self.size(lower, upper)

        def slack(slope: Tensor) -> Tensor:
            return (self.ulps + 4) * ULP * (size + slope.abs() * largest) + TINY

        low = self.extremes(below, lower, upper)[0] - slack(below)
        return Sloped(low, self.extremes(above, lower, upper)[1] + slack(above), (below,), (above,))

    def undecided(self, lower: Tensor, upper: Tensor) -> tuple[Tensor]:
        """See `Relaxed`."""
        return (~self.decided(lower, upper),)

    def carried_error(self, _corners: Sequence[Tensor], errors: Sequence[Tensor]) -> Tensor:
        """See `Relaxed`."""
        return self.steepness * errors[0]

    def widest(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """A line touches f on a smaller interval, and leaves it no faster than its slope allows."""
        (low, high), reach = self.box(lower, upper), self.steepness * (upper - lower)
        return low - reach, high + reach

    def known_channels(self, channels: Tensor) -> Tensor | None:
        """f of the constants, unless f differs from channel to channel."""
        if any(isinstance(value, Tensor) for value in vars(self).values()):
            return None
        return self.apply(channels).masked_fill(channels.isnan(), torch.nan)

    def size(self, lower: Tensor, upper: Tensor) -> Tensor:
        """See `Relaxed`."""
        return torch.stack(self.box(lower, upper)).abs().amax(0) + torch.maximum(lower.abs(), upper.abs())
