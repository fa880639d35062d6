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
from functools import partial

import torch
from torch import Tensor, nn

from hydrabench.bounds import interval
from hydrabench.bounds.backward import (
    in_chunks,
    neuron_rows,
    progress,
    rest_of_windows,
    scattered,
    strongest,
    substituted,
    wanted_neurons,
)
from hydrabench.bounds.ball import Ball
from hydrabench.bounds.crown import relaxation
from hydrabench.bounds.graph import Node
from hydrabench.bounds.interval import Interval
from hydrabench.bounds.operations import Flatten, Identity, MaxPool, Scale
from hydrabench.bounds.problem import Problem, flat, pose
from hydrabench.bounds.rows import Rows, row_products


def symbolic_class_margins(network: nn.Module, x: Tensor, y: Tensor, epsilon: float) -> Tensor:
    """Lower bounds of f_y - f_j for every class j over the L-infinity ball, to train with.

    Args:
        network, x, y, epsilon: as for `margins.interval_margins`. Batch norm in training mode is held at its
            statistics of `x`.
    Returns: (B, K), exactly 0 in column y, differentiable with respect to the network's parameters.
    Raises: what `margins.interval_margins` raises.
    Source: reference/hydra.md, section 1.8, whose worst cases u are minus these.
    """
    problem = pose(network, x, y, epsilon)
    rows = symbolic_rows(problem)
    return rows.new_zeros(len(y), rows.shape[1] + 1).scatter(1, problem.others, rows)


def symbolic_rows(problem: Problem) -> Tensor:
    """Lower bounds of the margins of a problem, (B, S), by symbolic intervals.

    This is full CROWN with the same slope below and above. Max pooling, which the source does not have, lies in a
    strip of slope 1 along the value with the largest lower bound.
    Source: reference/hydra.md, section 1.8.
    """
    strips = Strips(problem.body, problem.ball)
    strips.propagate()
    output = strips.values[len(problem.body)].center
    center = torch.baddbmm(problem.offset.unsqueeze(2), problem.rows, output.unsqueeze(2)).squeeze(2)
    return center - strips.radius(len(problem.body), flat(problem.rows)).view(center.shape)


@dataclass(eq=False)
class Strips:
    """A forward pass through a program: centers of all values, strips around its ReLUs.

    values: the center of every value, and a width that its symbolic interval does not exceed. halves: half the height
    of the strips of node n, which holds relu(z) within `halves` of slopes · z + halves, or the largest value of a
    window within `halves` of z + halves for the value z at `winners`.
    """

    nodes: Sequence[Node]
    ball: Ball
    values: dict[int, Interval] = field(default_factory=dict)
    slopes: dict[int, Tensor] = field(default_factory=dict)
    winners: dict[int, Tensor] = field(default_factory=dict)
    halves: dict[int, Tensor] = field(default_factory=dict)

    def propagate(self) -> None:
        """Fill all tables."""
        known = self.ball.known(self.nodes)
        exact = known or exact_values(self.nodes)
        self.values[0] = self.ball.around
        for number, node in enumerate(self.nodes, start=1):
            if node.operation.relaxed:
                self._enclose(number, exact=node.inputs[0] in exact)
                continue
            found = interval.RULES[type(node.operation)](node.operation, *(self.values[n] for n in node.inputs))
            if number in known:
                found = Interval(found.center, torch.minimum(found.width, known[number].width))
            self.values[number] = found

    def _enclose(self, number: int, *, exact: bool) -> None:
        """Find the symbolic interval of a value in front of node `number`, as far as it matters, and the strips."""
        operation, (source,) = self.nodes[number - 1].operation, self.nodes[number - 1].inputs
        box = self.values[source]
        if not exact:
            # The width known so far is no smaller than the symbolic one: what it decides is decided.
            wanted = wanted_neurons(self.nodes, number, box)
            shapes = [self.values[n].center.shape for n in range(source + 1)]
            radii = box.width[:0]
            if wanted.any():
                tell = progress("symbolic", self.nodes, source)
                radii = in_chunks(wanted, shapes, partial(self._neuron_radius, source), tell)
            box = self.values[source] = Interval(box.center, scattered(wanted, box.width, 2 * radii.flatten()))
        lower, upper = box.lower(), box.upper()
        if isinstance(operation, MaxPool):
            winners = self.winners[number] = strongest(operation, lower)
            half = (rest_of_windows(operation, lower, upper) - _at(lower, winners)).clamp(min=0) / 2
            center, width = _at(box.center, winners), _at(box.width, winners)
        else:
            _, slope, offset = relaxation(lower, upper)
            self.slopes[number], half = slope, offset / 2
            center, width = slope * box.center, slope * box.width
        self.halves[number] = half
        self.values[number] = Interval(center + half, width + 2 * half)

    def _neuron_radius(self, number: int, image: Tensor, neuron: Tensor) -> Tensor:
        number, rows, _ = neuron_rows(self.nodes, number, self.values[number].center, image, neuron)
        return self.radius(number, rows)

    def radius(self, number: int, rows: Rows) -> Tensor:
        """How far functions of value `number` get from their values at its center, (R,)."""
        shapes = [self.values[n].center.shape for n in range(number + 1)]
        rows, _, slack = substituted(self.nodes, number, rows, shapes, self._relax)
        return slack + self.ball.radius(rows)

    def _relax(self, position: int, rows: Rows) -> tuple[Rows, Tensor]:
        (source,) = self.nodes[position - 1].inputs
        if position in self.slopes:
            gain = row_products(rows.coefficients.abs(), rows.seen(self.halves[position]))
            return rows.times(self.slopes[position]), gain
        winners, shape = self.winners[position], self.values[source].center.shape
        rows = rows.whole(self.values[position].center.shape)
        index = rows.seen(winners).flatten(2)
        index = index.repeat(len(rows.coefficients) // len(index), 1, 1)
        image = rows.coefficients.new_zeros(*rows.coefficients.shape[:2], shape[2] * shape[3])
        image = image.scatter_add(2, index, rows.coefficients.flatten(2)).view(-1, *shape[1:])
        return Rows(image, rows.image), row_products(rows.coefficients.abs(), rows.seen(self.halves[position]))


def _at(value: Tensor, index: Tensor) -> Tensor:
    """Entries of images (B, C, H, W) at numbers of the flattened image: of the shape of `index`, (B, C, ...)."""
    return value.flatten(2).gather(2, index.flatten(2)).view_as(index)


def exact_values(nodes: Sequence[Node]) -> set[int]:
    """The values whose interval bounds are as tight as symbolic ones: no pixel reaches an entry twice."""
    untouched, exact = {0}, {0}
    for number, node in enumerate(nodes, start=1):
        source = node.inputs[0]
        if node.operation.relaxed or len(node.inputs) > 1 or source not in exact:
            continue
        if isinstance(node.operation, Scale | Flatten | Identity):
            exact.add(number)
            untouched |= {number} if source in untouched else set()
        elif source in untouched:
            exact.add(number)
    return exact
