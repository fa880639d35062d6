"""Full CROWN: every value in front of a ReLU bounded by a pass of its own back to the input.

Only neurons that the interval bounds leave open are asked, because what is known to be on or off is passed exactly
either way; intervals start again from the CROWN bounds behind every ReLU.
Source: Zhang et al. (2018), arXiv:1811.00866, theorem 3.2 and section 3.3 (adaptive slopes).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from hydrabench.bounds import crown, interval
from hydrabench.bounds.backward import in_chunks, neuron_rows, progress, scattered, substituted, wanted_neurons
from hydrabench.bounds.ball import Ball, intersection
from hydrabench.bounds.crown import relaxation
from hydrabench.bounds.graph import Node
from hydrabench.bounds.interval import Interval, Place, Propagation, concretize
from hydrabench.bounds.operations import Relu
from hydrabench.bounds.problem import Problem, flat
from hydrabench.bounds.rows import Rows, mirrored, row_products
from hydrabench.bounds.symbolic import exact_values


def interval_rows(problem: Problem) -> Tensor:
    """Lower bounds of the margins of a problem, (B, S), by intervals; an L2 ball is one up to the first linear layer.

    Source: Gowal et al. (2018), arXiv:1810.12715, section 3; reference/hydra.md, section 1.7, "IBP forward".
    """
    if problem.ball.norm == "linf":
        output = interval.propagate(problem.body, problem.ball.box).output
    elif not any(node.operation.relaxed for node in problem.body):
        return crown_ibp_rows(problem)  # the first linear layer is the last one
    else:
        output = Lines(problem.body, problem.ball).propagate(tighten=False).output
    return concretize(problem.rows, problem.offset, output)


def crown_ibp_rows(problem: Problem, *, memory: int = crown.MEMORY) -> Tensor:
    """Lower bounds of the margins of a problem, (B, S), by one pass backward over the bounds of `interval_rows`.

    Source: Zhang et al. (2019), arXiv:1906.06316, section 3.
    """
    if problem.ball.norm != "linf":
        return _crown(problem, tighten=False)
    passed = interval.propagate(problem.body, problem.ball.box, keep=True)
    return crown.lower_bounds(problem.body, problem.ball.box, passed, problem.rows, problem.offset, memory=memory)


def crown_rows(problem: Problem) -> Tensor:
    """Lower bounds of the margins of a problem, (B, S), by CROWN for every undecided neuron as for the margins.

    Source: Zhang et al. (2018), arXiv:1811.00866; reference/hydra.md, section 1.7, "full CROWN".
    """
    return _crown(problem, tighten=True)


def _crown(problem: Problem, *, tighten: bool) -> Tensor:
    lines = Lines(problem.body, problem.ball)
    passed = lines.propagate(tighten=tighten)
    if problem.ball.norm == "linf":
        return crown.lower_bounds(problem.body, problem.ball.box, passed, problem.rows, problem.offset)
    return lines.lower(len(problem.body), flat(problem.rows), problem.offset.flatten()).view(problem.offset.shape)


@dataclass(eq=False)
class Lines:
    """A forward pass of intervals through a program that can bound undecided neurons by CROWN.

    values: bounds of every value. before: those in front of operations that are not linear, by number of the value.
    lines: slope of the line below each ReLU, how much steeper the one above is, and its offset; by number of the value.
    """

    nodes: Sequence[Node]
    ball: Ball
    values: dict[int, Interval] = field(default_factory=dict)
    before: dict[int, Interval] = field(default_factory=dict)
    lines: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    def propagate(self, *, tighten: bool) -> Propagation:
        """Bound every value, undecided neurons by CROWN if `tighten`; returns what `crown.lower_bounds` needs."""
        known = self.ball.known(self.nodes)
        exact = known or exact_values(self.nodes)
        self.values[0] = self.ball.box
        for number, node in enumerate(self.nodes, start=1):
            (source, *_), operation = node.inputs, node.operation
            if operation.relaxed and source not in self.before:
                # What a ReLU returns is between its bounds already.
                if tighten and source not in exact and not isinstance(self.nodes[source - 1].operation, Relu):
                    self._tighten(source, wanted_neurons(self.nodes, number, self.values[source]))
                self.before[source] = self.values[source]
            found = interval.RULES[type(operation)](operation, *(self.values[n] for n in node.inputs))
            self.values[number] = intersection(found, known[number]) if number in known else found
        return Propagation(self.values[len(self.nodes)], self._shapes(len(self.nodes)), self.before)

    def _shapes(self, last: int) -> list[torch.Size]:
        return [self.values[number].center.shape for number in range(last + 1)]

    def _tighten(self, number: int, wanted: Tensor) -> None:
        """Replace the bounds of the `wanted` neurons of a value."""
        box = self.values[number]
        if wanted.any():
            tell = progress("crown", self.nodes, number)
            ends = in_chunks(wanted, self._shapes(number), partial(self._neuron_bounds, number), tell)
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

    def _relax(self, position: int, rows: Rows) -> tuple[Rows, Tensor]:
        (source,) = self.nodes[position - 1].inputs
        if not isinstance(self.nodes[position - 1].operation, Relu):
            return self._relax_by_image(position, rows.whole(self.values[position].center.shape))
        if source not in self.lines:
            below, slope, offset = relaxation(self.before[source].lower(), self.before[source].upper())
            self.lines[source] = below, slope - below, offset
        below, steeper, above = (rows.seen(part) for part in self.lines[source])
        negative = rows.coefficients.clamp(max=0)
        return rows.changed(below, plus=(negative, steeper)), row_products(negative, above)

    def _relax_by_image(self, position: int, rows: Rows) -> tuple[Rows, Tensor]:
        """Apply the rule of `crown` to the rows of one image after the other."""
        operation, (source,) = self.nodes[position - 1].operation, self.nodes[position - 1].inputs
        box, image = self.before[source], rows.image.repeat(len(rows.coefficients) // len(rows.image))
        found = rows.coefficients.new_zeros(len(image), *box.center.shape[1:])
        gains = rows.coefficients.new_zeros(len(image))
        for number in torch.unique(image).tolist():
            mine = (image == number).nonzero().squeeze(1)
            here = Interval(box.center[number : number + 1], box.width[number : number + 1])
            part, gain = crown.RULES[type(operation)](
                operation, rows.coefficients[mine].unsqueeze(0), Place(here.center.shape, here)
            )
            found = found.index_copy(0, mine, part.squeeze(0))
            gains = gains if gain is None else gains.index_copy(0, mine, gain.squeeze(0))
        return Rows(found, rows.image), gains
