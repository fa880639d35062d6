"""The one way back through a program, for functions of its values in any form: dense rows, patches, float64 ones.

A row of coefficients A and an offset d with A·value + d <= specification hold at every value in turn; affine operations
are substituted exactly, any other by a line below it where A is positive and a line above it where A is negative.
`crown` carries dense rows back, `neurons` patches, `sound` float64 rows with their rounding.
Source: Zhang et al. (2018), arXiv:1811.00866, theorem 3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

import torch
from torch import Tensor

from hydrabench.bounds.program.operations import Linear
from hydrabench.bounds.program.program import Node
from hydrabench.errors import UnsupportedLayerError

MEMORY = 2**30  # bytes that a pass may take at once, besides its arguments; larger ones are cut into parts
LIVE = 5  # tensors of the size of the largest coefficients that a pass holds at once: a ReLU's and a shortcut's

Carried = TypeVar("Carried")


def carried_back(
    nodes: Sequence[Node],
    number: int,
    rows: Carried,
    substitute: Callable[[int, Carried, dict[int, Carried]], Sequence[Carried | None]],
    add: Callable[[int, Carried, Carried], Carried],
    *,
    stop: int = 0,
) -> Carried:
    """Carry functions of value `number` back to value `stop`, through every node between.

    Args:
        rows: the functions, in whatever form. substitute: from the number of a node, functions of its result and those
            that are waiting, by value, to functions of each value that the node takes; None for none.
        add: the sum of two functions of a value, given by its number.
    """
    waiting = {number: rows}
    for position in range(number, stop, -1):
        if position not in waiting:
            continue  # a prefix of a program may compute values for what comes after it
        rows = waiting.pop(position)
        found = substitute(position, rows, waiting)
        for source, part in zip(nodes[position - 1].inputs, found, strict=True):
            if part is not None:
                waiting[source] = add(source, waiting[source], part) if source in waiting else part
    return waiting[stop]


def linear(node: Node) -> Linear:
    """The operation of a node that is not `Relaxed`.

    Raises: UnsupportedLayerError if it is not `Linear` either.
    """
    if not isinstance(node.operation, Linear):
        raise UnsupportedLayerError(f"cannot bound {type(node.operation).__name__}: it is neither linear nor relaxed")
    return node.operation


@dataclass(frozen=True)
class Run:
    """Neighbouring images with equally many functions each, and where their rows lie among all."""

    images: slice
    rows: slice
    each: int

    def of(self, rows: Tensor) -> Tensor:
        """View what belongs to the run of a tensor (R, ...): (images, functions of each, ...)."""
        whole = self.rows.stop - self.rows.start == len(rows)  # whose gradient a slice would copy
        return torch.unflatten(rows if whole else rows[self.rows], 0, (-1, self.each))

    def cut(self, most: int) -> Iterator[Run]:
        """Yield parts with at most so many rows, as far as one image does."""
        together = max(1, most // self.each)
        for start in range(self.images.start, self.images.stop, together):
            stop = min(start + together, self.images.stop)
            first, last = (self.rows.start + (image - self.images.start) * self.each for image in (start, stop))
            yield Run(slice(start, stop), slice(first, last), self.each)


@dataclass(frozen=True, eq=False)
class Functions:
    """Linear functions image by image: coefficients (R, *value), constants (R,), and how many each image has, > 0."""

    rows: Tensor
    offset: Tensor
    counts: list[int]

    def parts(self, most: int) -> Iterator[tuple[Tensor, Tensor, list[Run]]]:
        """Yield coefficients, constants and runs of at most so many functions at a time."""
        owners = [image for image, count in enumerate(self.counts) for _ in range(count)]
        for start in range(0, len(owners), most):
            part = slice(start, start + most)
            yield self.rows[part], self.offset[part], runs(owners[part])


def runs(owners: Sequence[int]) -> list[Run]:
    """Runs of functions that belong to these images, ascending without a gap."""
    found, row = [], 0
    shares = ((image, len(list(group))) for image, group in groupby(owners))
    for each, group in groupby(shares, key=lambda share: share[1]):
        images = [image for image, _ in group]
        end = row + each * len(images)
        found.append(Run(slice(images[0], images[-1] + 1), slice(row, end), each))
        row = end
    return found
