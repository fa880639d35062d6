"""A limit of what rounding can do to a bound, known before it is computed.

For every linear operation W v + b there is a *magnitude* |W| |v| + |b| that its rounding is a small multiple of, in any
order of summation (see `outward`). Products with a weight that is exactly 0 do not count. Winograd and FFT convolutions
are no such sums and are not covered.
Source: Higham (2002), "Accuracy and stability of numerical algorithms", sections 3.1 and 4.2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hydrabench.bounds.backward import linear
from hydrabench.bounds.box import Interval
from hydrabench.bounds.outward import MORE, growth
from hydrabench.bounds.prepared import Prepared
from hydrabench.bounds.program.operations import Relaxed
from hydrabench.bounds.program.program import Node, program_of, read, shapes_of
from hydrabench.threat import linf_box


@dataclass(frozen=True, eq=False)
class MeasuredNode(Node):
    """A node of a program that nothing was folded into, and what its rounding depends on.

    forward: at least how many roundings lie between a term and a result where the operation is applied; terms: the same
    where functions of the result are carried back, too.
    """

    forward: int
    terms: int


def measured(network: nn.Module | Prepared, x: Tensor) -> list[MeasuredNode]:
    """Read a network in eval mode, with batch norm as an operation of its own; `x` gives the shape of images.

    Raises: UnsupportedLayerError for a layer without a rule; ValueError for batch norm in training mode.
    """
    if isinstance(network, Prepared):
        module = network.network
        return network.once(("measured", x.shape[1:]), lambda: measured(module, x))
    nodes = read(program_of(network), fold=False)
    return with_terms(nodes, shapes_of(nodes, x))


def with_terms(nodes: Sequence[Node], shapes: Sequence[torch.Size]) -> list[MeasuredNode]:
    """Return the nodes of a program with how many roundings lie between a term and a result of each.

    Args: shapes: of all values, without the batch axis.
    """
    readers = Counter(number for node in nodes for number in node.inputs)
    found = []
    for node, after in zip(nodes, shapes[1:], strict=True):
        # Coefficients from several readers of a value are added up.
        sums = max(readers[number] for number in node.inputs) - 1
        forward, backward = MORE, 0
        if not isinstance(node.operation, Relaxed):
            forward, backward = linear(node).terms([shapes[number] for number in node.inputs], after)
        found.append(MeasuredNode(node.operation, node.inputs, forward, forward + backward + sums))
    return found


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
    """Return how far above the true smallest margin rounding can lift a method's bound: (B,), >= 0, in logit units.

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
    logits = value_errors(nodes, x, epsilon, kind=kind)[len(nodes)]
    others = logits.scatter(1, y.unsqueeze(1), -torch.inf).max(1).values
    return logits.gather(1, y.unsqueeze(1)).squeeze(1) + others


def value_errors(nodes: Sequence[MeasuredNode], x: Tensor, epsilon: float, *, kind: str) -> list[Tensor]:
    """Return how far rounding can move the bounds of each value: (B, *value), from value 0 on.

    Args: nodes: of the program that is bounded. x, epsilon, kind: as for `rounding_bound`, which says why.
    """
    path = relaxed_on_path(nodes)
    factor = FACTORS[kind](path[-1])
    box = Interval.between(*linf_box(x, epsilon))
    boxes, errors = {0: box}, [growth(x[0].numel() + MORE, x.dtype) * (box.center.abs() + box.width + epsilon)]
    tiny = torch.finfo(x.dtype).tiny
    underflow = x.new_full((len(x),), epsilon * x[0].numel() * tiny**0.5)  # of the squares in an L2 norm
    for number, node in enumerate(nodes, start=1):
        taken, off = [boxes[source] for source in node.inputs], [errors[source] for source in node.inputs]
        products = sum(_magnitude(box).flatten(1).sum(1) for box in taken) + 1
        underflow = underflow + (node.terms + MORE) * tiny * products
        boxes[number] = node.operation.interval(*taken)
        if isinstance(node.operation, Relaxed):
            found = _relaxed_error(node.operation, taken, off, factor)
            if kind not in WITHIN_INTERVALS:
                boxes[number] = Interval.between(*node.operation.widest(*_corners(taken)))
        else:
            found = _linear_error(node, taken, off, factor)
        errors.append(found + underflow.view(-1, *[1] * (found.ndim - 1)))
    return [2 * factor * error for error in errors]


def _corners(boxes: Sequence[Interval]) -> list[Tensor]:
    return [corner for box in boxes for corner in (box.lower(), box.upper())]


def _magnitude(box: Interval) -> Tensor:
    return box.center.abs() + box.width / 2


def _linear_error(node: MeasuredNode, boxes: Sequence[Interval], errors: Sequence[Tensor], factor: float) -> Tensor:
    share = growth(node.terms, errors[0].dtype)
    if not share:
        return linear(node).absolute().apply(*errors)
    sizes = (_magnitude(box) + factor * error + error / share for box, error in zip(boxes, errors, strict=True))
    return share * linear(node).magnitude(*sizes)


def _relaxed_error(operation: Relaxed, boxes: Sequence[Interval], errors: Sequence[Tensor], factor: float) -> Tensor:
    """Return what a result's bounds are off by, from what those of the values are."""
    reach = [2 * factor * error for error in errors]
    wide = [
        corner for box, more in zip(boxes, reach, strict=True) for corner in (box.lower() - more, box.upper() + more)
    ]
    sizes = [_magnitude(box) + factor * error for box, error in zip(boxes, errors, strict=True)]
    return operation.rounding_error(wide, sizes, errors)


def relaxed_on_path(nodes: Sequence[Node]) -> list[int]:
    """The most relaxed operations on a path to each value, each as often as its `misses` say."""
    depth = [0]
    for node in nodes:
        step = node.operation.misses if isinstance(node.operation, Relaxed) else 0
        depth.append(max(depth[number] for number in node.inputs) + step)
    return depth
