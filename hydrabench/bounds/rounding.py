"""What rounding can do to a bound, known before it is computed.

A sum of n products in floating point is off by at most gamma_n = n u / (1 - n u) times the sum of their absolute
values, whatever the order and whether or not products and sums are fused; u is the unit roundoff. So for every linear
operation W v + b there is a *magnitude* |W| |v| + |b| that its rounding is a small multiple of. Products with a weight
that is exactly 0 do not count. Winograd and FFT convolutions are no such sums and are not covered.
Source: Higham (2002), "Accuracy and stability of numerical algorithms", sections 3.1 and 4.2; reference/field.md, 5.3.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hydrabench.bounds import interval
from hydrabench.bounds.crown import GUARD, relaxation
from hydrabench.bounds.graph import Node, program_of, read, shapes_of
from hydrabench.bounds.interval import Interval
from hydrabench.bounds.operations import (
    AdaptiveAveragePool,
    AveragePool,
    Convolution,
    Dense,
    Flatten,
    Identity,
    MaxPool,
    Operation,
    Relu,
    Scale,
)
from hydrabench.bounds.prepared import Prepared
from hydrabench.bounds.tracing import Step
from hydrabench.threat import linf_box

UNIT = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}
MORE = 32  # roundings besides those of a sum: scales and shifts from statistics, corners, offsets, slopes


def growth(terms: int, dtype: torch.dtype) -> float:
    """What rounding can do to a sum of `terms` products, relative to the sum of their absolute values.

    Twice n u, which exceeds gamma_n (1 + gamma_n) and so also covers that the absolute values are summed in floating
    point; infinite where n u is more than 1/8.
    """
    product = terms * UNIT[dtype]
    return 2 * product if product <= 1 / 8 else float("inf")


@dataclass(frozen=True, eq=False)
class MeasuredNode(Node):
    """A node of a program that nothing was folded into, and what its rounding depends on.

    absolute: the operation with absolute weights and constants, or the operation itself if it has neither. forward: at
    least how many roundings lie between a term and a result where the operation is applied; terms: the same where
    functions of the result are carried back, too.
    """

    absolute: Operation
    forward: int
    terms: int

    def magnitude(self, *values: Tensor) -> Tensor:
        """|W| |v| + |b|, from |v|: (B, *output shape)."""
        return self.absolute.apply(*values)


def measured(network: nn.Module | Prepared, x: Tensor) -> list[MeasuredNode]:
    """Read a network in eval mode, with batch norm as an operation of its own; `x` gives the shape of images.

    Raises: UnsupportedLayerError for a layer without a rule; ValueError for batch norm in training mode, or a network
        that changed after it was prepared.
    """
    if isinstance(network, Prepared):
        module = network.network
        return network.once(("measured", x.shape[1:]), lambda: measured(module, x))
    program = program_of(network)
    nodes = read(program, fold=False)
    shapes = shapes_of(nodes, x)
    readers = Counter(number for node in nodes for number in node.inputs)
    found = []
    for node, step, after in zip(nodes, program.steps, shapes[1:], strict=True):
        # Coefficients from several readers of a value are added up.
        sums = max(readers[number] for number in node.inputs) - 1
        forward = _forward_terms(node.operation, shapes[node.inputs[0]])
        terms = forward + _backward_terms(node.operation, after) + sums
        found.append(MeasuredNode(node.operation, node.inputs, _absolute(node.operation, step), forward, terms))
    return found


def _absolute(operation: Operation, step: Step) -> Operation:
    if isinstance(operation, Convolution | Dense):
        bias = None if operation.bias is None else operation.bias.abs()
        return replace(operation, weight=operation.weight.abs(), bias=bias)
    if isinstance(operation, Scale):
        # The shift is bias - mean · scale, and what cancelled in it counts, too: at most |shift| + 2 |bias|.
        size = operation.shift.abs()
        if isinstance(step.source, _BatchNorm) and step.source.bias is not None:
            size = size + 2 * step.source.bias.abs()
        return Scale(operation.scale.abs(), size)
    return operation


def _forward_terms(operation: Operation, before: torch.Size) -> int:
    if isinstance(operation, Flatten | Identity):
        return 0
    if isinstance(operation, Convolution | Dense):
        return int((operation.weight != 0).flatten(1).sum(1).max()) + MORE
    if isinstance(operation, AveragePool):
        return 2 * operation.kernel[0] * operation.kernel[1] + MORE
    return (2 * before[-2:].numel() if isinstance(operation, AdaptiveAveragePool) else 0) + MORE


def _backward_terms(operation: Operation, after: torch.Size) -> int:
    """More roundings of the way back; constants are summed over the positions of an image, then over its channels."""
    constants = after.numel() if isinstance(operation, Dense) else after[1:].numel() + after[0]
    if isinstance(operation, Convolution | Dense):
        used = operation.weight != 0
        return int(used.sum(0).view(used.shape[1], -1).sum(1).max()) + constants
    return constants if isinstance(operation, Scale) else 0


# Single precision ------------------------------------------------------------------------------


# By how much the bounds of a method may be off, from how much an interval may, and the relaxed operations on a path;
# in ascending order, and each covers those before it.
FACTORS: dict[str, Callable[[int], float]] = {
    "ibp": lambda _relaxed: 1.0,
    "crown-ibp": lambda relaxed: relaxed + 1.0,
    "crown": lambda relaxed: 2.0 ** (relaxed + 1),
    "cascade": lambda relaxed: 2.0 ** (relaxed + 1),
    "symbolic": lambda relaxed: 2.0 ** (relaxed + 2),
}
WITHIN_INTERVALS = ("ibp", "crown-ibp")  # methods that draw lines around neurons from interval bounds


@torch.no_grad()
def rounding_bound(network: nn.Module | Prepared, x: Tensor, y: Tensor, epsilon: float, *, kind: str) -> Tensor:
    """How far above the true smallest margin rounding can lift the bound of a method: (B,), >= 0, in logit units.

    Let e bound how far the corners of a computed interval lie from those of exact intervals. A linear operation takes e
    to |W| e + g (|W| |v| + |b|), with g from `growth`; a ReLU or a maximum does not enlarge it. Along the same way a
    pass backward loses: its coefficients are at most |W_L| ... |W_k| in size, because slopes lie in [0, 1], and a
    product with W_k is off by at most g |A| (|W_k| |v| + |b_k|). Lines around a ReLU that were drawn for bounds off by
    d miss it by d at most, and around a maximum by 2 d; d is e for CROWN-IBP, so that a pass over R relaxed operations
    is off by (R + 1) e, and what a pass like itself is off by for full CROWN, so that it doubles with each. Symbolic
    intervals do, too, from a center and a radius that are each off by e. Neither of these two keeps within intervals:
    for them |v| are the values that their lines allow. A neuron that is off for certain passes nothing on. Products
    that underflow lose an absolute amount besides. All of it is doubled, because it is itself rounded.

    Args:
        network: in eval mode, of the type of `x`, float32 or float64, in which its bounds are computed; or what
            `prepared` read of it.
        x, y, epsilon: as for `margins.interval_margins`; the bound holds for the L2 ball of the radius, too.
        kind: a method, one of `FACTORS`; "cascade" stands for one without symbolic intervals.
    Returns: infinite or NaN where nothing can be said, because sums are too long or values too large.
    """
    nodes = measured(network, x)
    path = relaxed_on_path(nodes)
    factor = FACTORS[kind](path[-1])
    box = Interval.between(*linf_box(x, epsilon))
    boxes, errors = {0: box}, {0: growth(x[0].numel() + MORE, x.dtype) * (box.center.abs() + box.width + epsilon)}
    tiny = torch.finfo(x.dtype).tiny
    underflow = x.new_full((len(x),), epsilon * x[0].numel() * tiny**0.5)  # of the squares in an L2 norm
    for number, node in enumerate(nodes, start=1):
        taken, off = [boxes[source] for source in node.inputs], [errors[source] for source in node.inputs]
        loose = node.operation.relaxed and kind not in WITHIN_INTERVALS
        through: Callable[..., Interval] = _widest if loose else interval.RULES[type(node.operation)]
        boxes[number] = through(node.operation, *taken)
        rule = _relaxed_error if node.operation.relaxed else _linear_error
        products = sum(_magnitude(box).flatten(1).sum(1) for box in taken) + 1
        underflow = underflow + (node.terms + MORE) * tiny * products
        found = rule(node, taken, off, factor)
        errors[number] = found + underflow.view(-1, *[1] * (found.ndim - 1))
    logits = errors[len(nodes)]
    others = logits.scatter(1, y.unsqueeze(1), -torch.inf).max(1).values
    return 2 * factor * (logits.gather(1, y.unsqueeze(1)).squeeze(1) + others)


def _widest(operation: Relu | MaxPool, box: Interval) -> Interval:
    """What a pass backward may make of the values behind an operation, by lines drawn for bounds within `box`.

    Lines around a ReLU stay within [l, u] if u > 0: no line above exceeds u there, and the one below may be z itself.
    Those of a maximum follow any value of its window, and the strip of symbolic intervals is as high as the largest
    lower bound lies below the largest upper one.
    """
    lower, upper = box.lower(), box.upper()
    if isinstance(operation, MaxPool):
        highest = operation.apply(upper)
        return Interval.between(-operation.apply(-lower), 2 * highest - operation.apply(lower))
    return Interval.between(lower.masked_fill(upper < -GUARD, 0), upper.clamp(min=0))


def _magnitude(box: Interval) -> Tensor:
    return box.center.abs() + box.width / 2


def _linear_error(node: MeasuredNode, boxes: Sequence[Interval], errors: Sequence[Tensor], factor: float) -> Tensor:
    share = growth(node.terms, errors[0].dtype)
    if not share:
        return node.operation.apply(*errors)
    sizes = (_magnitude(box) + factor * error + error / share for box, error in zip(boxes, errors, strict=True))
    return share * node.absolute.apply(*sizes)


def _relaxed_error(node: MeasuredNode, boxes: Sequence[Interval], errors: Sequence[Tensor], factor: float) -> Tensor:
    (box,), (error,), unit = boxes, errors, growth(MORE, errors[0].dtype)
    size = _magnitude(box) + factor * error
    if isinstance(node.operation, MaxPool):
        largest = node.operation.apply(size)
        return node.operation.apply(error) + growth(MORE + largest[0].numel(), error.dtype) * 4 * largest
    lower, upper = box.lower(), box.upper()
    reach = 2 * factor * error
    off, on = upper + reach < -GUARD, lower - reach > 0
    undecided = int((~(off | on)).flatten(1).sum(1).max())
    offset = relaxation(lower - reach, upper + reach)[2]
    found = error + unit * size + growth(MORE + undecided, error.dtype) * offset
    return found.masked_fill(off, 0)


def relaxed_on_path(nodes: Sequence[Node]) -> list[int]:
    """The most relaxed operations on a path to each value; max pooling counts twice."""
    depth = [0]
    for node in nodes:
        step = 2 if isinstance(node.operation, MaxPool) else int(node.operation.relaxed)
        depth.append(max(depth[number] for number in node.inputs) + step)
    return depth
