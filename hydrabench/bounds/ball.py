"""The images that an attacker may reach: an L-infinity or L2 ball around each image, cut to the pixel range."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hydrabench.bounds.box import Interval
from hydrabench.bounds.patches import Rows, row_products
from hydrabench.bounds.program.operations import Linear
from hydrabench.bounds.program.program import Node
from hydrabench.threat import Norm, linf_box


@dataclass(frozen=True, eq=False)
class Ball:
    """All images within `epsilon` of `x`, (B, ...), in `norm`, and in [0, 1].

    Over an L2 ball a linear function a · v + d is at least a · x + d - epsilon |a|, and never below its minimum over
    the L-infinity ball of the same radius cut to [0, 1]; the larger of the two is taken.
    """

    x: Tensor
    epsilon: float
    norm: Norm = "linf"

    @cached_property
    def box(self) -> Interval:
        """The smallest box around the ball."""
        return Interval.taking(*linf_box(self.x, self.epsilon))

    @cached_property
    def around(self) -> Interval:
        """A box around the ball whose center is the point around which symbolic intervals lie."""
        if self.norm == "linf":
            return self.box
        lower, upper = linf_box(self.x, self.epsilon)
        return Interval(self.x, 2 * torch.maximum(upper - self.x, self.x - lower))

    def lowest(self, rows: Rows, offset: Tensor) -> Tensor:
        """Smallest values over the ball of functions of the image with constants `offset`, (R,)."""
        center, width = rows.seen(self.box.center), rows.seen(self.box.width)
        found = offset + row_products(rows.coefficients, center) - row_products(rows.coefficients.abs(), width) / 2
        if self.norm == "linf":
            return found
        rows = rows.masked(self.x.shape)
        at_x = offset + row_products(rows.coefficients, rows.seen(self.x))
        return torch.maximum(found, at_x - self.epsilon * rows.coefficients.flatten(1).norm(dim=1))

    def radius(self, rows: Rows) -> Tensor:
        """Return how far functions of the image get from their values at the center of `around`, (R,)."""
        found = row_products(rows.coefficients.abs(), rows.seen(self.around.width)) / 2
        if self.norm == "linf":
            return found
        rows = rows.masked(self.x.shape)
        return torch.minimum(found, self.epsilon * rows.coefficients.flatten(1).norm(dim=1))

    def known(self, nodes: Sequence[Node]) -> dict[int, Interval]:
        """Bounds by the dual norm of values that are linear in the image; none for L-infinity, which needs none.

        At a border only the filter's part on the image counts.
        Source: Gowal et al. (2018), arXiv:1810.12715, section 3.
        """
        if self.norm == "linf":
            return {}
        values = {0: self.x}
        known = {}
        for number, squares in squared_rows(nodes, self.x).items():
            if number:
                node = nodes[number - 1]
                values[number] = node.operation.apply(*(values[source] for source in node.inputs))
            known[number] = Interval(values[number], (2 * self.epsilon * squares.sqrt()).expand_as(values[number]))
        return known


def squared_rows(nodes: Sequence[Node], x: Tensor) -> dict[int, Tensor]:
    """Squared L2 norms of the functions of the image that entries of values are, (1, ...).

    For the values that are linear in the image and reach every pixel once at most, so that intervals are exact.
    """
    squares, untouched = {0: torch.ones_like(x[:1])}, {0}
    for number, node in enumerate(nodes, start=1):
        source, operation = node.inputs[0], node.operation
        if not isinstance(operation, Linear) or len(node.inputs) > 1 or source not in squares:
            continue
        squared = operation.squared()
        if squared is None:
            continue
        if operation.moves:
            untouched |= {number} if source in untouched else set()
        elif source not in untouched:
            continue
        squares[number] = squared.apply(squares[source])
    return squares


def intersection(a: Interval, b: Interval) -> Interval:
    """Return what lies in both boxes; never empty, even where rounding says so."""
    lower, upper = torch.maximum(a.lower(), b.lower()), torch.minimum(a.upper(), b.upper())
    return Interval.between(lower, torch.maximum(lower, upper))
