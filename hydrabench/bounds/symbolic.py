"""Symbolic intervals: every neuron as a linear function of the input, plus what the operations before it added.

What is not linear on the ball is enclosed by two parallel lines, a ReLU by ones of slope u / (u - l); the strip between
them is a fresh error of its own. Carried forward this is a zonotope. Here the same numbers come from carrying each
neuron's function back to the input, and only unstable neurons get such a pass: their rows are patches.
Source: Wong and Kolter (2018), arXiv:1711.00851; Singh et al. (2018), "Fast and effective robustness certification";
Wang et al. (2018), arXiv:1809.08098.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from hydrabench.bounds.backward import MEMORY
from hydrabench.bounds.ball import Ball
from hydrabench.bounds.box import Interval
from hydrabench.bounds.neurons import (
    exact_values,
    in_chunks,
    largest,
    neuron_rows,
    progress,
    relaxed_values,
    scattered,
    substituted,
    wanted_neurons,
)
from hydrabench.bounds.patches import Rows, row_products
from hydrabench.bounds.prepared import Prepared
from hydrabench.bounds.program.operations import Relaxed
from hydrabench.bounds.program.program import Node
from hydrabench.bounds.relaxations import Lines
from hydrabench.bounds.specification import Problem, flat, pose, solved
from hydrabench.threat import Norm


def symbolic_margins(
    network: nn.Module | Prepared, x: Tensor, y: Tensor, epsilon: float, *, norm: Norm = "linf", memory: int = MEMORY
) -> Tensor:
    """Like `ibp.interval_margins`, by symbolic intervals.

    Source: Wang et al. (2018), arXiv:1809.08098, section 3.
    """
    return solved(pose(network, x, y, epsilon, norm=norm), symbolic_rows, memory=memory).min(1).values


def symbolic_class_margins(network: nn.Module, x: Tensor, y: Tensor, epsilon: float) -> Tensor:
    """Lower bounds of f_y - f_j for every class j over the L-infinity ball, to train with.

    Args:
        network, x, y, epsilon: as for `ibp.interval_margins`. Batch norm in training mode is held at its
            statistics of `x`.
    Returns: (B, K), exactly 0 in column y, differentiable with respect to the network's parameters.
    Raises: what `ibp.interval_margins` raises.
    Source: Wang et al. (2018), arXiv:1809.08098, section 3; worst cases u of HYDRA's code are minus these.
    """
    problem = pose(network, x, y, epsilon)
    rows = symbolic_rows(problem)
    return rows.new_zeros(len(y), rows.shape[1] + 1).scatter(1, problem.others, rows)


def symbolic_rows(problem: Problem) -> Tensor:
    """Lower bounds of the margins of a problem, (B, S), by symbolic intervals.

    This is full CROWN with the same slope below and above. Max pooling, which the source does not have, lies in a
    strip of slope 1 along the value with the largest lower bound.
    Source: Wang et al. (2018), arXiv:1809.08098, section 3.
    """
    strips = Strips(problem.body, problem.ball)
    strips.propagate()
    output = strips.values[len(problem.body)].center
    center = torch.baddbmm(problem.offset.unsqueeze(2), problem.rows, output.unsqueeze(2)).squeeze(2)
    return center - strips.radius(len(problem.body), flat(problem.rows)).view(center.shape)


@dataclass(eq=False)
class Strips:
    """A forward pass through a program: centers of all values, strips around what is not linear.

    values: the center of every value, and a width that its symbolic interval does not exceed. lines: the strip around
    the operation of a node, by its number.
    """

    nodes: Sequence[Node]
    ball: Ball
    values: dict[int, Interval] = field(default_factory=dict)
    lines: dict[int, Lines] = field(default_factory=dict)

    def propagate(self) -> None:
        """Fill all tables."""
        known = self.ball.known(self.nodes)
        bounded = {*relaxed_values(self.nodes)} - {*(known or exact_values(self.nodes))}
        self.values[0] = self.ball.around
        for number, node in enumerate(self.nodes, start=1):
            if isinstance(node.operation, Relaxed):
                self._enclose(number, node.operation, bounded)
                continue
            found = node.operation.interval(*(self.values[source] for source in node.inputs))
            if number in known:
                found = Interval(found.center, torch.minimum(found.width, known[number].width))
            self.values[number] = found

    def _enclose(self, number: int, operation: Relaxed, bounded: set[int]) -> None:
        """Find the symbolic intervals of the values in front of node `number`, as far as they matter, and the strip."""
        sources = self.nodes[number - 1].inputs
        if bounded.intersection(sources):
            # The width known so far is no smaller than the symbolic one: what it decides is decided.
            masks = wanted_neurons(self.nodes, number, [self.values[source] for source in sources])
            for source, wanted in zip(sources, masks, strict=True):
                if source in bounded:
                    self._tighten(source, wanted)
        boxes = [self.values[source] for source in sources]
        lines = operation.strip(*(corner for box in boxes for corner in (box.lower(), box.upper())))
        center = lines.along(*(box.center for box in boxes)) + lines.middle()
        width = lines.absolute().along(*(box.width for box in boxes)) + 2 * lines.half()
        self.lines[number], self.values[number] = lines, Interval(center, width)

    def _tighten(self, number: int, wanted: Tensor) -> None:
        box = self.values[number]
        shapes = [self.values[n].center.shape for n in range(number + 1)]
        radii = box.width[:0]
        if wanted.any():
            tell = progress("symbolic", self.nodes, number)
            radii = in_chunks(wanted, largest(self.nodes, shapes, number), partial(self._neuron_radius, number), tell)
        self.values[number] = Interval(box.center, scattered(wanted, box.width, 2 * radii.flatten()))

    def _neuron_radius(self, number: int, image: Tensor, neuron: Tensor) -> Tensor:
        number, rows, _ = neuron_rows(self.nodes, number, self.values[number].center, image, neuron)
        return self.radius(number, rows)

    def radius(self, number: int, rows: Rows) -> Tensor:
        """Return how far functions of value `number` get from their values at its center, (R,)."""
        shapes = [self.values[n].center.shape for n in range(number + 1)]
        rows, _, slack = substituted(self.nodes, number, rows, shapes, self._relax)
        return slack + self.ball.radius(rows)

    def _relax(self, position: int, rows: Rows) -> tuple[Sequence[Rows], Tensor]:
        lines, shapes = self.lines[position], [self.values[n].center.shape for n in self.nodes[position - 1].inputs]
        half = lines.half()
        gain = row_products(rows.coefficients.abs(), rows.seen(half))
        return lines.back_along(rows, shapes), gain
