"""Free slopes of the lines around unstable neurons: their step of a pass backward, its gradient, and Adam's update.

Every function has slopes of its own, at the unstable neurons that it sees. What a search keeps of a step is of the size
of the unstable neurons, not of the layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hydrabench.bounds.box import Interval
from hydrabench.bounds.patches import Rows
from hydrabench.bounds.program.operations import Elementwise
from hydrabench.bounds.program.relu import Relu

MOMENTS = (0.9, 0.999)  # decays of Adam's two averages
ADAM_EPSILON = 1e-8
BY_FUNCTION = (
    "index",
    "listed",
    "spread",
    "lower",
    "upper",
    "above",
    "high",
    "on",
)  # of which some have one row for all


def has_slopes(operation: object) -> bool:
    """Return whether slopes around an operation can be chosen here: not where it differs from channel to channel."""
    return isinstance(operation, Elementwise) and not any(isinstance(v, Tensor) for v in vars(operation).values())


@dataclass(eq=False)
class Slopes:
    """Slopes at the unstable neurons that each of R functions sees of a value, and what stays as it is there.

    U is the largest number of neurons with lines that one of them sees; the places left over are stable neurons.
    operation: which the lines are around. chosen: the slopes, (R, 1, U) of the lines below a ReLU, which pass through 0
    for a slope in [0, 1] (above, the chord is the best line), or (R, 2, U) of the lines below and above any other
    operation, whose constants are its `extremes`. index: which entries of the flattened value they belong to. listed:
    1 where there is a neuron that has lines, else 0. spread: how far apart the slopes are that may matter, which
    learning rates are relative to; 0 of a stable neuron. lower, upper: bounds of the value. above, high: slope and
    constant of CROWN's line above; all (R or 1, U). on: neurons that are passed as they are, (R or 1, entries).
    channels_last: whether values are flattened in that order. mean, square: Adam's averages of the gradient and of its
    square.
    """

    operation: Elementwise
    chosen: Tensor
    index: Tensor
    listed: Tensor
    spread: Tensor
    lower: Tensor
    upper: Tensor
    above: Tensor
    high: Tensor
    on: Tensor
    channels_last: bool
    mean: Tensor = field(init=False)
    square: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.mean, self.square = torch.zeros_like(self.chosen), torch.zeros_like(self.chosen)

    @classmethod
    def of(cls, operation: Elementwise, rows: Rows, box: Interval) -> Slopes:
        """CROWN's slopes for functions of the result of an operation of z, with z in a box, (B, *value)."""
        lower, upper = box.lower(), box.upper()
        lines = operation.lines(lower, upper)
        (below,), (above,) = lines.below, lines.above
        low, high = (torch.zeros_like(lower) if part is None else part for part in (lines.low, lines.high))
        same = (below == above) & (low == 0) & (high == 0)
        on, off = same & (above == 1), same & (above == 0)
        last = _is_channels_last(rows.coefficients)

        def seen(value: Tensor) -> Tensor:
            return _flat(rows.seen(value.to(lower.dtype)), last)

        listed = seen(~(on | off))
        most = int(listed.sum(1).max()) if len(listed) else 0
        index = listed.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
        spread = _spread(operation, lower, upper) * (operation.undecided(lower, upper)[0] & ~(on | off))
        values = spread, lower, upper, above, high
        spread, lower, upper, above, high = (seen(value).gather(1, index) for value in values)
        start = [seen(below).gather(1, index)] + [above] * (not isinstance(operation, Relu))
        chosen = torch.stack(start, 1).expand(len(rows.coefficients), -1, -1).clone().requires_grad_()
        ends = lower, upper, above, high
        return cls(operation, chosen, index, listed.gather(1, index), spread, *ends, seen(on) > 0, last)

    def some(self, kept: Tensor) -> Slopes:
        """The slopes of some functions, with what Adam remembers of them."""
        fixed = {name: value[kept] if len(value := getattr(self, name)) > 1 else value for name in BY_FUNCTION}
        found = replace(self, chosen=self.chosen.detach()[kept].requires_grad_(), **fixed)
        found.mean, found.square = self.mean[kept], self.square[kept]
        return found

    def passed(self, rows: Rows) -> tuple[Rows, Tensor]:
        """Carry functions of the result to the value; returns them and what their constants gain, (R,)."""
        low, above, high = None, self.above, self.high
        if not isinstance(self.operation, Relu):
            above = self.chosen[:, 1]
            # A place that is not listed may lie outside of the value, where coefficients mean nothing.
            low = self.listed * self.operation.extremes(self.chosen[:, 0], self.lower, self.upper)[0]
            high = self.listed * self.operation.extremes(above, self.lower, self.upper)[1]
        flat = _flat(rows.coefficients, self.channels_last)
        found, gain = _Step.apply(flat, self.chosen[:, 0], low, above, high, self.index, self.on)
        return replace(
            rows, coefficients=_unflat(found, rows.coefficients.shape, self.channels_last), inside=True
        ), gain

    def climb(self, gradient: Tensor, rate: float, step: int) -> None:
        """Take Adam's step number `step`, from 1, up the gradient, (R, 1 or 2, U); clamp after it."""
        moves = ascended(gradient, self.mean, self.square, step).mul_(self.spread.unsqueeze(1))
        moved = self.chosen.detach().add(moves, alpha=rate)
        # Only here: clamped in the pass, a slope at an end, where all of a ReLU start, would get no gradient.
        steepest = self.operation.steepness
        self.chosen = moved.clamp_(0.0 if isinstance(self.operation, Relu) else -steepest, steepest).requires_grad_()


def ascended(gradient: Tensor, mean: Tensor, square: Tensor, step: int) -> Tensor:
    """Return Adam's move up a gradient for a learning rate of 1, in step number `step`, from 1.

    Args: mean, square: the averages of the gradient and of its square, which are updated.
    """
    gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
    mean.mul_(MOMENTS[0]).add_(gradient, alpha=1 - MOMENTS[0])
    square.mul_(MOMENTS[1]).addcmul_(gradient, gradient, value=1 - MOMENTS[1])
    size = (square / (1 - MOMENTS[1] ** step)).sqrt_().add_(ADAM_EPSILON)
    return torch.div(mean, size, out=size).div_(1 - MOMENTS[0] ** step)


class _Step(torch.autograd.Function):
    """Positive coefficients along the lines below, negative ones along those above."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        below: Tensor,
        low: Tensor | None,
        above: Tensor,
        high: Tensor,
        index: Tensor,
        on: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Carry functions of an elementwise operation's results, (R, entries), to what it takes.

        Args:
            below, low: slopes and offsets of the lines below, (R, U), for U unstable entries; low None: through 0.
            above, high: those of the lines above. index: the unstable entries, (1 or R, U).
            on: the entries that pass unchanged; all others, but the unstable, give 0.
        Returns: coefficients, (R, entries), and what the constants gain, (R,).
        """
        index = index.expand(len(rows), -1)
        listed = rows.gather(1, index)
        ctx.save_for_backward(listed, below, low, above, high, index, on)
        constants = listed.clamp(max=0).mul_(high)
        if low is not None:
            constants.addcmul_(listed.clamp(min=0), low)
        found = torch.where(on, rows, 0).scatter_(1, index, listed * torch.where(listed > 0, below, above))
        return found, constants.sum(1)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, weights: Tensor, gained: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of rows and lines, as far as they are wanted, from those of coefficients and constants.

        A line's slope gets coefficient times given gradient, its offset coefficient times the constant's gradient.
        """
        listed, below, low, above, high, index, on = ctx.saved_tensors
        of_rows, of_below, of_low, of_above, of_high, *_ = ctx.needs_input_grad
        gained, value = gained.unsqueeze(1), weights.gather(1, index)
        up, down = listed.clamp(min=0), listed.clamp(max=0)
        found = None
        if of_rows:
            under = below * value if low is None else below * value + low * gained
            of_listed = torch.where(listed > 0, under, above * value + high * gained)
            found = torch.where(on, weights, 0).scatter_(1, index, of_listed)
        return (
            found,
            up * value if of_below else None,
            up * gained if of_low else None,
            down * value if of_above else None,
            down * gained if of_high else None,
            None,
            None,
        )


def _spread(operation: Elementwise, lower: Tensor, upper: Tensor) -> Tensor:
    """1 for a ReLU, else twice the difference of the chords of both halves of [lower, upper], (B, *value)."""
    if isinstance(operation, Relu):
        return torch.ones_like(lower)
    low, middle, high = (operation.apply(z) for z in (lower, (lower + upper) / 2, upper))
    half = ((upper - lower) / 2).clamp(min=torch.finfo(lower.dtype).tiny)
    return (2 * (high - 2 * middle + low).abs() / half).clamp(max=2 * operation.steepness)


def _is_channels_last(rows: Tensor) -> bool:
    return rows.ndim == 4 and rows.is_contiguous(memory_format=torch.channels_last) and not rows.is_contiguous()


def _flat(rows: Tensor, last: bool) -> Tensor:
    """View (R, *value) as (R, entries), without a copy if it lies in memory in that order."""
    return (rows.permute(0, 2, 3, 1) if last else rows).flatten(1)


def _unflat(flat: Tensor, shape: torch.Size, last: bool) -> Tensor:
    if not last:
        return flat.view(shape)
    return flat.view(shape[0], *shape[2:], shape[1]).permute(0, 3, 1, 2)
