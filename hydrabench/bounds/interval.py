"""Interval bound propagation (IBP): boxes through every operation, as centers and widths.

With the width u - l instead of the radius, an affine map needs no halving: its center goes through
the map, its width through the map's absolute weight; `program.operations` says so once for all operations.
Source: Gowal et al. (2018), arXiv:1810.12715, section 3.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hydrabench.bounds.box import Interval, channels_last
from hydrabench.bounds.kernels import minima
from hydrabench.bounds.prepared import Prepared, nodes_of
from hydrabench.bounds.program.operations import Relaxed
from hydrabench.bounds.program.program import Node

Adjust = Callable[[Relaxed, Interval], Interval]


@dataclass(frozen=True, eq=False)
class Propagation:
    """Bounds and shapes that a pass of intervals leaves for a pass backward.

    output: bounds of the last value. shapes: of every value, batch axis included. before: bounds of the values that an
    operation takes which is not linear, by number.
    """

    output: Interval
    shapes: list[torch.Size]
    before: dict[int, Interval] = field(default_factory=dict)

    def images(self, part: slice | Tensor) -> Propagation:
        """Return what the pass leaves for some images, given by a slice or their numbers."""
        output = self.output.images(part)
        shapes = [torch.Size((len(output.center), *shape[1:])) for shape in self.shapes]
        return Propagation(output, shapes, {number: box.images(part) for number, box in self.before.items()})


def propagate(nodes: Sequence[Node], box: Interval, *, keep: bool = False, adjust: Adjust | None = None) -> Propagation:
    """Send a box of inputs through a program.

    Args:
        nodes: what `program.read` returned.
        box: bounds of the input, value 0.
        keep: remember what `crown.lower_bounds` needs.
        adjust: replaces the box that an operation takes which is not linear. For training only: the bounds may then
            exclude values that the network has.
    Returns: bounds of the last value, and, with `keep`, those before every operation that is not linear.
    """
    last_use = {number: position for position, node in enumerate(nodes) for number in node.inputs}
    if keep:
        # The few boxes come in the layout that the many coefficients of a pass backward will have.
        box = Interval(channels_last(box.center), channels_last(box.width))
    spent = set() if keep else _spent(nodes)
    values, shapes = {0: box}, [box.center.shape]
    before: dict[int, Interval] = {}
    for position, node in enumerate(nodes):
        inputs = [values[number] for number in node.inputs]
        if keep and isinstance(node.operation, Relaxed):
            before.update(zip(node.inputs, inputs, strict=True))
        if adjust and isinstance(node.operation, Relaxed):
            inputs = [adjust(node.operation, value) for value in inputs]
        for number in node.inputs:
            if last_use[number] == position:
                values.pop(number, None)
        found = node.operation.interval(*inputs, spent=position in spent)
        values[position + 1] = found
        shapes.append(found.center.shape)
    return Propagation(values[len(nodes)], shapes, before)


def _spent(nodes: Sequence[Node]) -> set[int]:
    """Positions of the nodes that may write over what they take: it has memory of its own, and no other reader."""
    readers = Counter(number for node in nodes for number in node.inputs)
    fresh = {number for number, node in enumerate(nodes, 1) if not node.operation.aliases}
    return {
        position
        for position, node in enumerate(nodes)
        if all(readers[number] == 1 and number in fresh for number in node.inputs)
    }


def concretize(rows: Tensor, offset: Tensor, box: Interval) -> Tensor:
    """Smallest values of the linear functions `rows` · v + `offset` over v in a box.

    Args:
        rows: (B, S, *shape of v). offset: (B, S). box: center and width (B, *shape of v).
    Returns: (B, S).
    """
    return offset + minima(rows, box.center, box.width)


def interval_bounds(network: nn.Module | Prepared, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds of every output of a network over a box of inputs.

    Args:
        network: made of the layers in `program.convert.LAYERS`, batch norm in eval mode; or what `prepared` read of it.
        lower: lower corner of the box, (B, ...), any range.
        upper: upper corner, of the same shape, nowhere below `lower`.
    Returns: (lower, upper), both of the shape of the output; NaN where the inputs or weights are.
    Raises: ValueError if the box is empty, UnsupportedLayerError for a layer without a rule.
    Source: Gowal et al. (2018), arXiv:1810.12715, equations 6 and 7.
    """
    if (lower > upper).any():
        raise ValueError("the box is empty: lower exceeds upper somewhere")
    output = propagate(nodes_of(network), Interval.between(lower, upper)).output
    return output.lower(), output.upper()
