"""Intermediate bounds of full CROWN: every value in front of a non-linear operation by passes of its own.

Only unstable neurons get a pass backward; a stable one is passed exactly either way. Intervals start again from the
CROWN bounds behind every operation.
Source: Zhang et al. (2018), arXiv:1811.00866, theorem 3.2 and section 3.3 (adaptive slopes).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor

from hydrabench.bounds.ball import Ball, intersection
from hydrabench.bounds.box import Interval
from hydrabench.bounds.interval import Propagation
from hydrabench.bounds.neurons import (
    bounded_values,
    in_chunks,
    largest,
    neuron_rows,
    progress,
    scattered,
    substituted,
    wanted_neurons,
)
from hydrabench.bounds.patches import Rows, mirrored
from hydrabench.bounds.program.operations import Relaxed
from hydrabench.bounds.program.program import Node
from hydrabench.bounds.relaxations import Lines

NOTHING: Mapping[int, Interval] = MappingProxyType({})


@dataclass(eq=False)
class IntermediateBounds:
    """A forward pass of intervals through a program that can bound unstable neurons by CROWN.

    values: bounds of every value. before: those in front of operations that are not linear, by number of the value.
    lines: around each such operation, by number of the node.
    """

    nodes: Sequence[Node]
    ball: Ball
    values: dict[int, Interval] = field(default_factory=dict)
    before: dict[int, Interval] = field(default_factory=dict)
    lines: dict[int, Lines] = field(default_factory=dict)

    def propagate(self, *, tighten: bool, within: Mapping[int, Interval] = NOTHING) -> Propagation:
        """Bound every value, unstable neurons by CROWN if `tighten`; returns what `crown.lower_bounds` needs.

        Args: within: boxes that are known of some values, by number.
        """
        known = self.ball.known(self.nodes)
        bounded = {*bounded_values(self.nodes, known)} if tighten else set()
        self.values[0] = self.ball.box
        for number, node in enumerate(self.nodes, start=1):
            if isinstance(node.operation, Relaxed):
                boxes = [self.values[source] for source in node.inputs]
                fresh = [source for source in node.inputs if source in bounded and source not in self.before]
                wanted = wanted_neurons(self.nodes, number, boxes) if fresh else []
                for source, mask in zip(node.inputs, wanted, strict=False):
                    if source in fresh and source not in self.before:
                        self._tighten(source, mask)
                    self.before[source] = self.values[source]
                self.before.update((source, self.values[source]) for source in node.inputs)
            found = node.operation.interval(*(self.values[source] for source in node.inputs))
            for box in (boxes[number] for boxes in (known, within) if number in boxes):
                found = intersection(found, box)
            self.values[number] = found
        return Propagation(self.values[len(self.nodes)], self._shapes(len(self.nodes)), self.before)

    def _shapes(self, last: int) -> list[torch.Size]:
        return [self.values[number].center.shape for number in range(last + 1)]

    def _tighten(self, number: int, wanted: Tensor) -> None:
        """Replace the bounds of the `wanted` neurons of a value."""
        box = self.values[number]
        if wanted.any():
            tell, widest = progress("crown", self.nodes, number), largest(self.nodes, self._shapes(number), number)
            ends = in_chunks(wanted, widest, partial(self._neuron_bounds, number), tell)
            lower, upper = (
                scattered(wanted, old, new) for old, new in zip((box.lower(), box.upper()), ends, strict=True)
            )
            self.values[number] = Interval.between(lower, upper)

    def _neuron_bounds(self, number: int, image: Tensor, neuron: Tensor) -> Tensor:
        number, rows, constants = neuron_rows(self.nodes, number, self.values[number].center, image, neuron)
        found = self.lower(number, mirrored(rows), torch.cat([constants, -constants]))
        return torch.stack([found[: len(neuron)], -found[len(neuron) :]])

    def lower(self, number: int, rows: Rows, offset: Tensor) -> Tensor:
        """Lower bounds of functions of value `number` with constants `offset`, (R,)."""
        rows, linear, relaxed = substituted(self.nodes, number, rows, self._shapes(number), self._relax)
        return self.ball.lowest(rows, offset + linear + relaxed)

    def _relax(self, position: int, rows: Rows) -> tuple[Sequence[Rows], Tensor]:
        node = self.nodes[position - 1]
        boxes = [self.before[source] for source in node.inputs]
        if position not in self.lines:
            assert isinstance(node.operation, Relaxed), "nothing else is relaxed"
            self.lines[position] = node.operation.lines(*(c for box in boxes for c in (box.lower(), box.upper())))
        return self.lines[position].carried(rows, [box.center.shape for box in boxes])
