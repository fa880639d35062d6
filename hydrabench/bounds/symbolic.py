"""Symbolic intervals: every neuron as a linear function of the input, plus what the ReLUs before it added.

A ReLU that is open on the ball is enclosed by two parallel lines of slope u / (u - l); the strip between them is a
fresh error of its own. Carried forward this is a zonotope. Here the same numbers come from carrying each neuron's
function back to the input, and only neurons that might be open are asked: their rows are short (see `rows`).
Source: Wong and Kolter (2018), arXiv:1711.00851; Singh et al. (2018), "Fast and effective robustness certification";
Wang et al. (2018), arXiv:1809.08098; reference/hydra.md, section 1.8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hydrabench.bounds import interval
from hydrabench.bounds.crown import relaxation
from hydrabench.bounds.graph import Node, program_of, read
from hydrabench.bounds.interval import Interval
from hydrabench.bounds.margins import specification
from hydrabench.bounds.operations import Convolution, Dense, Relu
from hydrabench.bounds.rows import Rows, carried_back, chunk_length, unit_rows
from hydrabench.threat import linf_box


def symbolic_class_margins(network: nn.Module, x: Tensor, y: Tensor, epsilon: float) -> Tensor:
    """Lower bounds of f_y - f_j for every class j over the L-infinity ball, to train with.

    Args:
        network, x, y, epsilon: as for `margins.interval_margins`. Batch norm in training mode is held at its
            statistics of `x`.
    Returns: (B, K), exactly 0 in column y, differentiable with respect to the network's parameters.
    Raises: what `margins.interval_margins` raises.
    Source: reference/hydra.md, section 1.8, whose worst cases u are minus these.
    """
    others, rows = _margins(network, x, y, epsilon)
    return rows.new_zeros(len(y), rows.shape[1] + 1).scatter(1, others, rows)


def symbolic_margins(network: nn.Module, x: Tensor, y: Tensor, epsilon: float) -> Tensor:
    """Like `margins.interval_margins`, by symbolic intervals: full CROWN with the same slope below and above.

    Source: reference/hydra.md, section 1.8.
    """
    return _margins(network, x, y, epsilon)[1].min(1).values


def _margins(network: nn.Module, x: Tensor, y: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The classes j != y and the lower bounds of f_y - f_j, both (B, K - 1)."""
    if not epsilon >= 0:
        raise ValueError(f"out of range: {epsilon=}, must be >= 0")
    nodes = read(program_of(network), x)
    last = nodes[-1].operation if nodes else None
    head = last if isinstance(last, Dense) else None
    body = nodes[:-1] if head else nodes
    strips = Strips(body, Interval.between(*linf_box(x, epsilon)))
    strips.propagate()
    output = strips.values[len(body)].center
    others, rows, offset = specification(head, y, output)
    center = torch.baddbmm(offset.unsqueeze(2), rows, output.unsqueeze(2)).squeeze(2)
    image = torch.arange(len(y), device=y.device).repeat_interleave(rows.shape[1])
    radius = strips.radius({len(body): Rows(rows.flatten(0, 1), image)}, len(body))
    return others, center - radius.view(rows.shape[:2])


@dataclass(eq=False)
class Strips:
    """A forward pass through a program: centers of all values, strips around its ReLUs.

    values: the center of every value, and a width that its symbolic interval does not exceed. slopes, halves: of the
    strip around each ReLU, by the number of the value that it takes: relu(z) lies within `halves` of
    slopes · z + halves.
    """

    nodes: Sequence[Node]
    box: Interval
    values: dict[int, Interval] = field(default_factory=dict)
    slopes: dict[int, Tensor] = field(default_factory=dict)
    halves: dict[int, Tensor] = field(default_factory=dict)

    def propagate(self) -> None:
        """Fill `values`, `slopes` and `halves`."""
        self.values[0] = self.box
        exact = exact_values(self.nodes)
        for number, node in enumerate(self.nodes, start=1):
            if not isinstance(node.operation, Relu):
                inputs = [self.values[source] for source in node.inputs]
                self.values[number] = interval.RULES[type(node.operation)](node.operation, *inputs)
                continue
            (source,) = node.inputs
            if source not in self.slopes:
                self._enclose(source, exact=source in exact)
            slope, half, before = self.slopes[source], self.halves[source], self.values[source]
            self.values[number] = Interval(slope * before.center + half, slope * before.width + 2 * half)

    def _enclose(self, source: int, *, exact: bool) -> None:
        """Find the symbolic interval of a value in front of a ReLU, as far as it matters, and the strips."""
        found = self.values[source]
        if not exact:
            # The width known so far is no smaller than the symbolic one: what it shows stable is stable.
            open_ = ~((found.lower() >= 0) | (found.upper() <= 0))
            found = self.values[source] = Interval(found.center, self._widths(source, found.width, open_))
        _, slope, offset = relaxation(found.lower(), found.upper())
        self.slopes[source], self.halves[source] = slope, offset / 2

    def _widths(self, number: int, width: Tensor, wanted: Tensor) -> Tensor:
        """Replace the `wanted` entries of the width of a value by those of the symbolic interval."""
        places = wanted.flatten().nonzero().squeeze(1)
        if not len(places):
            return width
        image, neuron = places // wanted[0].numel(), places % wanted[0].numel()
        step = chunk_length([self.values[source].center.shape for source in range(number + 1)], width.device)
        parts = []
        for start in range(0, len(places), step):
            picks = image[start : start + step], neuron[start : start + step]
            if len(places) > step and torch.is_grad_enabled():  # rows of all chunks at once would not fit
                parts.append(
                    checkpoint(self._unit_radius, number, *picks, use_reentrant=False, preserve_rng_state=False)
                )
            else:
                parts.append(self._unit_radius(number, *picks))
        return width.flatten().scatter(0, places, 2 * torch.cat(parts)).view_as(width)

    def _unit_radius(self, number: int, image: Tensor, neuron: Tensor) -> Tensor:
        value = self.values[number].center
        producer = self.nodes[number - 1]
        if isinstance(producer.operation, Dense) and value.ndim == 2:
            (source,) = producer.inputs
            return self.radius({source: Rows(producer.operation.weight.index_select(0, neuron), image)}, source)
        return self.radius({number: unit_rows(value.shape, image, neuron, value)}, number)

    def radius(self, pending: dict[int, Rows], number: int) -> Tensor:
        """How far linear functions of values up to `number` get from their centers, (R,)."""
        slack: Tensor | float = 0.0
        for position in range(number, 0, -1):
            rows = pending.pop(position, None)
            if rows is None:
                continue
            node = self.nodes[position - 1]
            (source,) = node.inputs
            if isinstance(node.operation, Relu):
                slack = slack + _dot(rows.coefficients.abs(), rows.seen(self.halves[source]))
                pending[source] = rows.times(self.slopes[source])
            else:
                shapes = self.values[source].center.shape, self.values[position].center.shape
                pending[source] = carried_back(node.operation, rows, shapes)[0]
        rows = pending[0]
        return slack + _dot(rows.coefficients.abs(), rows.seen(self.box.width)) / 2


def _dot(rows: Tensor, seen: Tensor) -> Tensor:
    """Inner products of R coefficient tensors with R values, or with the one value that all see."""
    if len(seen) == 1:
        return rows.flatten(1) @ seen.flatten()
    return (rows.flatten(1) * seen.flatten(1)).sum(1)


def exact_values(nodes: Sequence[Node]) -> set[int]:
    """The values whose interval bounds are as tight as symbolic ones: no input pixel reaches an entry twice."""
    untouched, exact = {0}, {0}
    for number, node in enumerate(nodes, start=1):
        mixes = isinstance(node.operation, Convolution | Dense)
        if isinstance(node.operation, Relu) or not exact.issuperset(node.inputs) or len(node.inputs) > 1:
            continue
        if not mixes:
            exact.add(number)
            untouched |= {number} if untouched.issuperset(node.inputs) else set()
        elif untouched.issuperset(node.inputs):
            exact.add(number)
    return exact
