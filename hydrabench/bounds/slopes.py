"""Free slopes of the lines below unstable ReLUs: their step of a pass backward, its gradient, and Adam's update.

Every function has slopes of its own, at the unstable neurons that it sees; a stable ReLU is linear and has none. What a
search keeps of a step is of the size of the unstable neurons, not of the layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hydrabench.bounds.crown import relaxation
from hydrabench.bounds.interval import Interval
from hydrabench.bounds.rows import Rows

MOMENTS = (0.9, 0.999)  # decays of Adam's two averages
TINY = 1e-8  # Adam's epsilon


@dataclass(eq=False)
class Slopes:
    """Slopes below the unstable neurons that each of R functions sees of a value, and what stays as it is there.

    U is the largest number of unstable neurons that one of them sees; the places left over are stable neurons.
    below: the slopes, (R, U), in [0, 1]. index: which entries of the flattened value they belong to, (R or 1, U).
    free: whether the neuron is unstable; above, offset: the line above; all (R or 1, U). on: neurons that are passed as
    they are, (R or 1, *value). channels_last: whether values are flattened in that order.
    mean, square: Adam's averages of the gradient and of its square, (R, U).
    """

    below: Tensor
    index: Tensor
    free: Tensor
    above: Tensor
    offset: Tensor
    on: Tensor
    channels_last: bool
    mean: Tensor = field(init=False)
    square: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.mean, self.square = torch.zeros_like(self.below), torch.zeros_like(self.below)

    @classmethod
    def of(cls, rows: Rows, box: Interval) -> Slopes:
        """CROWN's slopes for functions of max(z, 0), with z in a box, (B, *value)."""
        lower, upper = box.lower(), box.upper()
        lines = relaxation(lower, upper)
        unstable = ((lower < 0) & (upper > 0)).to(lower.dtype)
        last = _is_channels_last(rows.coefficients)
        seen, on = (_flat(rows.seen(value), last) for value in (unstable, (lower >= 0).to(lower.dtype)))
        most = int(seen.sum(1).max()) if len(seen) else 0
        index = seen.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
        below, above, offset = (_flat(rows.seen(line), last).gather(1, index) for line in lines)
        free = seen.gather(1, index)
        below = below.detach().expand(len(rows.coefficients), -1).clone().requires_grad_()
        return cls(below, index, free, above, offset, on > 0, last)

    def some(self, kept: Tensor) -> Slopes:
        """The slopes of some functions, with what Adam remembers of them."""
        shared = ("index", "free", "above", "offset", "on")
        found = replace(
            self,
            below=self.below.detach()[kept].requires_grad_(),
            **{name: value[kept] if len(value := getattr(self, name)) > 1 else value for name in shared},
        )
        found.mean, found.square = self.mean[kept], self.square[kept]
        return found

    def passed(self, rows: Rows) -> tuple[Rows, Tensor]:
        """Carry functions of max(z, 0) to z; returns them and what their constants gain, (R,)."""
        found, gain = _Step.apply(
            rows.coefficients, self.below, self.index, self.above, self.offset, self.on, self.channels_last
        )
        return replace(rows, coefficients=found, inside=True), gain

    def climb(self, gradient: Tensor, rate: float, step: int) -> None:
        """Take Adam's step number `step`, from 1, up the gradient, and go back to [0, 1]."""
        gradient = gradient * self.free
        self.mean.mul_(MOMENTS[0]).add_(gradient, alpha=1 - MOMENTS[0])
        self.square.mul_(MOMENTS[1]).addcmul_(gradient, gradient, value=1 - MOMENTS[1])
        size = (self.square / (1 - MOMENTS[1] ** step)).sqrt().add_(TINY)
        # Only here: clamped in the pass, a slope at an end, where all of them start, would get no gradient.
        self.below = self.below.detach().addcdiv(self.mean, size, value=rate / (1 - MOMENTS[0] ** step)).clamp_(0, 1)
        self.below.requires_grad_()


class _Step(torch.autograd.Function):
    """Positive coefficients times the slopes below, negative ones times those above."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, below: Tensor, index: Tensor, above: Tensor, offset: Tensor, on: Tensor, last: bool
    ) -> tuple[Tensor, Tensor]:
        flat, index = _flat(rows, last), index.expand(len(rows), -1)
        open_ = flat.gather(1, index)
        ctx.save_for_backward(open_, below, index, above, offset, on)
        ctx.last = last
        gain = (open_.clamp(max=0) * offset).sum(1)
        found = torch.where(on, flat, 0).scatter_(1, index, open_ * torch.where(open_ > 0, below, above))
        return _unflat(found, rows.shape, last), gain

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, weights: Tensor, gained: Tensor) -> tuple[Tensor | None, ...]:
        open_, below, index, above, offset, on = ctx.saved_tensors
        flat = _flat(weights, ctx.last)
        value = flat.gather(1, index)
        of_below = open_.clamp(min=0) * value
        if not ctx.needs_input_grad[0]:
            return None, of_below, *[None] * 5
        of_open = torch.where(open_ > 0, below * value, above * value + offset * gained.unsqueeze(1))
        of_rows = torch.where(on, flat, 0).scatter_(1, index, of_open)
        return _unflat(of_rows, weights.shape, ctx.last), of_below, *[None] * 5


def _is_channels_last(rows: Tensor) -> bool:
    return rows.ndim == 4 and rows.is_contiguous(memory_format=torch.channels_last) and not rows.is_contiguous()


def _flat(rows: Tensor, last: bool) -> Tensor:
    """View (R, *value) as (R, entries), without a copy if it lies in memory in that order."""
    return (rows.permute(0, 2, 3, 1) if last else rows).flatten(1)


def _unflat(flat: Tensor, shape: torch.Size, last: bool) -> Tensor:
    if not last:
        return flat.view(shape)
    return flat.view(shape[0], *shape[2:], shape[1]).permute(0, 3, 1, 2)
