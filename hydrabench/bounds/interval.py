"""Interval bound propagation (IBP): boxes through every operation, as centers and widths.

With the width u - l instead of the radius, an affine map needs no halving: its center goes through
the map, its width through the map's absolute weight.
Source: Gowal et al. (2018), arXiv:1810.12715, section 3.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hydrabench.bounds.graph import Node
from hydrabench.bounds.operations import (
    AdaptiveAveragePool,
    Add,
    AveragePool,
    Convolution,
    Dense,
    Flatten,
    Identity,
    MaxPool,
    Operation,
    Relu,
    Scale,
    per_channel,
)
from hydrabench.bounds.prepared import Prepared, nodes_of
from hydrabench.bounds.products import minima


@dataclass(frozen=True, eq=False)
class Interval:
    """A box around every value: `center` (B, ...), and `width` = upper - lower, of the same shape and >= 0."""

    center: Tensor
    width: Tensor

    @classmethod
    def between(cls, lower: Tensor, upper: Tensor) -> Interval:
        """The box from `lower` to `upper`."""
        return cls(torch.lerp(lower, upper, 0.5), upper - lower)

    @classmethod
    def taking(cls, lower: Tensor, upper: Tensor) -> Interval:
        """The same box in the storage of two corners that nobody else needs.

        Fresh memory costs more than the arithmetic on small batches; autograd may need the corners as they are.
        """
        if lower.requires_grad or upper.requires_grad:
            return cls.between(lower, upper)
        width = upper.sub_(lower)
        return cls(lower.add_(width, alpha=0.5), width)

    def lower(self) -> Tensor:
        """Return the lower corner, a new tensor."""
        return self.center.sub(self.width, alpha=0.5)

    def upper(self) -> Tensor:
        """Return the upper corner, a new tensor."""
        return self.center.add(self.width, alpha=0.5)

    def images(self, part: slice | Tensor) -> Interval:
        """Return the boxes of some images, given by a slice or their numbers."""
        return Interval(self.center[part], self.width[part])


@dataclass(frozen=True, eq=False)
class Place:
    """Where a rule is applied: the shape of the value the operation takes, and its bounds if it is `relaxed`."""

    shape: torch.Size
    box: Interval | None


@dataclass(frozen=True, eq=False)
class Propagation:
    """What a pass of intervals leaves for a pass backward.

    output: bounds of the last value. shapes: of every value, batch axis included. before_relu: bounds
    of the values that a ReLU, or another operation that is `relaxed`, takes; by number.
    """

    output: Interval
    shapes: list[torch.Size]
    before_relu: dict[int, Interval] = field(default_factory=dict)

    def place(self, number: int) -> Place:
        """Return what a rule backward needs to know about a value."""
        return Place(self.shapes[number], self.before_relu.get(number))

    def images(self, part: slice | Tensor) -> Propagation:
        """Return what the pass leaves for some images, given by a slice or their numbers."""
        output = self.output.images(part)
        shapes = [torch.Size((len(output.center), *shape[1:])) for shape in self.shapes]
        return Propagation(output, shapes, {number: box.images(part) for number, box in self.before_relu.items()})


def _convolution(operation: Convolution, box: Interval) -> Interval:
    return Interval(operation.apply(box.center), operation.linear(box.width, operation.absolute()))


def _dense(operation: Dense, box: Interval) -> Interval:
    return Interval(operation.apply(box.center), box.width @ operation.absolute().T)


def _scale(operation: Scale, box: Interval) -> Interval:
    return Interval(operation.apply(box.center), box.width * per_channel(operation.scale.abs(), box.width.ndim))


def _relu(_operation: Relu, box: Interval) -> Interval:
    return Interval.taking(box.lower().relu_(), box.upper().relu_())


def _max_pool(operation: MaxPool, box: Interval) -> Interval:
    return Interval.taking(operation.apply(box.lower()), operation.apply(box.upper()))


def _monotone_linear(operation: AveragePool | AdaptiveAveragePool | Flatten | Add, *boxes: Interval) -> Interval:
    """Linear without a constant or a negative weight: widths go the way of the centers."""
    return Interval(operation.apply(*(box.center for box in boxes)), operation.apply(*(box.width for box in boxes)))


def _identity(_operation: Identity, box: Interval) -> Interval:
    return box


# A rule takes the boxes of the values that the operation takes.
RULES: dict[type[Operation], Callable[..., Interval]] = {
    Convolution: _convolution,
    Dense: _dense,
    Scale: _scale,
    Relu: _relu,
    MaxPool: _max_pool,
    AveragePool: _monotone_linear,
    AdaptiveAveragePool: _monotone_linear,
    Add: _monotone_linear,
    Flatten: _monotone_linear,
    Identity: _identity,
}


# Linear operations return new memory; flattening and the like may return the memory of what they took.
FRESH = (Convolution, Dense, Scale, Add)


def propagate(nodes: Sequence[Node], box: Interval, *, keep: bool = False) -> Propagation:
    """Send a box of inputs through a program.

    Args:
        nodes: what `graph.read` returned.
        box: bounds of the input, value 0.
        keep: remember what `crown.lower_bounds` needs.
    Returns: bounds of the last value, and, with `keep`, those before every ReLU and max pooling.
    """
    last_use = {number: position for position, node in enumerate(nodes) for number in node.inputs}
    gradients = _has_gradients(nodes, box)
    if keep:
        # The few boxes come in the layout that the many coefficients of a pass backward will have.
        box = Interval(channels_last(box.center), channels_last(box.width))
    spent = set() if keep else _spent(nodes)
    values, shapes = {0: box}, [box.center.shape]
    before_relu = {}
    for position, node in enumerate(nodes):
        inputs = [values[number] for number in node.inputs]
        if keep and node.operation.relaxed:
            before_relu[node.inputs[0]] = inputs[0]
        for number in node.inputs:
            if last_use[number] == position:
                values.pop(number, None)
        if isinstance(node.operation, Relu) and not gradients:
            found = rectified(*inputs, in_place=position in spent)
        else:
            found = RULES[type(node.operation)](node.operation, *inputs)
        values[position + 1] = found
        shapes.append(found.center.shape)
    return Propagation(values[len(nodes)], shapes, before_relu)


def rectified(box: Interval, *, in_place: bool) -> Interval:
    """The box behind a ReLU, without gradients: `RULES[Relu]` in four sweeps over memory instead of six.

    Of corners l <= u, max(u, 0) - max(l, 0) is the smaller one of max(u, 0) and u - l, whether l is above 0 or not.
    NaN stays NaN, and where the width is 0 the result is exactly max(u, 0).

    Args:
        in_place: write over the box.
    """
    upper = box.center.add_(box.width, alpha=0.5) if in_place else box.upper()
    width = torch.minimum(upper.relu_(), box.width, out=box.width if in_place else None)
    return Interval(upper.sub_(width, alpha=0.5), width)


def _spent(nodes: Sequence[Node]) -> set[int]:
    """Positions of the ReLUs that may write over what they take: it has memory of its own, and no other reader."""
    readers = Counter(number for node in nodes for number in node.inputs)
    fresh = {number for number, node in enumerate(nodes, 1) if isinstance(node.operation, FRESH)}
    return {
        position
        for position, node in enumerate(nodes)
        if isinstance(node.operation, Relu) and readers[node.inputs[0]] == 1 and node.inputs[0] in fresh
    }


def _has_gradients(nodes: Sequence[Node], box: Interval) -> bool:
    if not torch.is_grad_enabled():
        return False
    tensors = [box.center, box.width, *(value for node in nodes for value in vars(node.operation).values())]
    return any(isinstance(value, Tensor) and value.requires_grad for value in tensors)


def concretize(rows: Tensor, offset: Tensor, box: Interval) -> Tensor:
    """Smallest values of the linear functions `rows` · v + `offset` over v in a box.

    Args:
        rows: (B, S, *shape of v). offset: (B, S). box: center and width (B, *shape of v).
    Returns: (B, S).
    """
    return offset + minima(rows, box.center, box.width)


def channels_last(images: Tensor) -> Tensor:
    """The same images (B, C, H, W) in the layout in which a CPU convolves fastest."""
    if images.ndim != 4 or images.device.type != "cpu":
        return images
    return images.contiguous(memory_format=torch.channels_last)


def interval_bounds(network: nn.Module | Prepared, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds of every output of a network over a box of inputs.

    Args:
        network: made of the layers in `layers.LAYERS`, batch norm in eval mode; or what `prepared` read of it.
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
