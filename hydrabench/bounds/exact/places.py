"""All values that can be cut, side by side as one vector for each image: the image itself and what is not linear takes.

A *place* is the number of an entry in that vector.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hydrabench.bounds.box import Interval
from hydrabench.bounds.neurons import relaxed_values
from hydrabench.bounds.program.operations import Relaxed
from hydrabench.bounds.program.program import Node
from hydrabench.bounds.slopes import has_slopes


@dataclass(frozen=True, eq=False)
class Corners(Interval):
    """A box that keeps its corners as they are, so that an end at 0 is exactly 0."""

    low: Tensor
    high: Tensor

    def lower(self) -> Tensor:
        """Return the lower corner."""
        return self.low

    def upper(self) -> Tensor:
        """Return the upper corner."""
        return self.high


@dataclass(frozen=True, eq=False)
class Places:
    """The places of the entries of values in the vector.

    nodes: a program. shapes: of all its values, without the batch axis.
    """

    nodes: Sequence[Node]
    shapes: Sequence[torch.Size]

    @cached_property
    def numbers(self) -> list[int]:
        """The values in the vector, the image first."""
        return [0, *(number for number in relaxed_values(self.nodes) if number)]

    @cached_property
    def parts(self) -> dict[int, slice]:
        """Return the places of each value."""
        found, start = {}, 0
        for number in self.numbers:
            found[number] = slice(start, start + self.shapes[number].numel())
            start = found[number].stop
        return found

    @property
    def size(self) -> int:
        """Entries of the vector."""
        return sum(self.shapes[number].numel() for number in self.numbers)

    @cached_property
    def relaxed(self) -> list[tuple[int, Node, Relaxed]]:
        """Position, node and operation of all that is not linear."""
        return [
            (position, node, node.operation)
            for position, node in enumerate(self.nodes, start=1)
            if isinstance(node.operation, Relaxed)
        ]

    @cached_property
    def sloped(self) -> set[int]:
        """Values with slopes of their own: a single operation with slopes takes them."""
        taken = Counter(node.inputs[0] for _, node, operation in self.relaxed if has_slopes(operation))
        return {number for number, count in taken.items() if count == 1}

    def vector(self, values: dict[int, Tensor]) -> Tensor:
        """Lay values (B, ...) side by side: (B, size)."""
        return torch.cat([values[number].flatten(1) for number in self.numbers], 1)

    def value(self, vector: Tensor, number: int) -> Tensor:
        """View the part of a vector (B, size) that a value has: (B, *value)."""
        return vector[:, self.parts[number]].reshape(len(vector), *self.shapes[number])

    def box(self, lower: Tensor, upper: Tensor, number: int) -> Corners:
        """The box of a value, from vectors of corners."""
        low, high = self.value(lower, number), self.value(upper, number)
        return Corners(torch.lerp(low, high, 0.5), high - low, low, high)

    def corners(self, lower: Tensor, upper: Tensor, node: Node) -> list[Tensor]:
        """Lower and upper corner of each value that a node takes in turn, as operations want them."""
        return [self.value(vector, source) for source in node.inputs for vector in (lower, upper)]
