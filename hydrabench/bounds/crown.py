"""CROWN: linear lower bounds, carried from the outputs back to the input.

A row of coefficients A and an offset d with A·value + d <= specification hold at every value in turn; affine operations
are substituted exactly, any other by a line below it where A is positive and a line above it where A is negative.
`carried_back` is the one way back through a program, for rows in any form: dense ones here, patches in `neurons`, and
float64 ones with rounding in `sound`.
Source: Zhang et al. (2018), arXiv:1811.00866, theorem 3.2; with interval bounds before the ReLUs it is
CROWN-IBP, Zhang et al. (2019), arXiv:1906.06316, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

import torch
from torch import Tensor

from hydrabench.bounds.box import Interval
from hydrabench.bounds.interval import Propagation, concretize
from hydrabench.bounds.kernels import BLOCK
from hydrabench.bounds.program.operations import Elementwise, Linear, Relaxed
from hydrabench.bounds.program.program import Node
from hydrabench.errors import UnsupportedLayerError

MEMORY = 2**30  # bytes that a pass may take at once, besides its arguments; larger ones are cut into parts
LIVE = 5  # tensors of the size of the largest coefficients that a pass holds at once: a ReLU's and a shortcut's

Carried = TypeVar("Carried")


def carried_back(
    nodes: Sequence[Node],
    number: int,
    rows: Carried,
    substitute: Callable[[int, Carried, dict[int, Carried]], Sequence[Carried | None]],
    add: Callable[[int, Carried, Carried], Carried],
    *,
    stop: int = 0,
) -> Carried:
    """Carry functions of value `number` back to value `stop`, through every node between.

    Args:
        rows: the functions, in whatever form. substitute: from the number of a node, functions of its result and those
            that are waiting, by value, to functions of each value that the node takes; None for none.
        add: the sum of two functions of a value, given by its number.
    """
    waiting = {number: rows}
    for position in range(number, stop, -1):
        if position not in waiting:
            continue  # a prefix of a program may compute values for what comes after it
        rows = waiting.pop(position)
        found = substitute(position, rows, waiting)
        for source, part in zip(nodes[position - 1].inputs, found, strict=True):
            if part is not None:
                waiting[source] = add(source, waiting[source], part) if source in waiting else part
    return waiting[stop]


def linear(node: Node) -> Linear:
    """The operation of a node that is not `Relaxed`.

    Raises: UnsupportedLayerError if it is not `Linear` either.
    """
    if not isinstance(node.operation, Linear):
        raise UnsupportedLayerError(f"cannot bound {type(node.operation).__name__}: it is neither linear nor relaxed")
    return node.operation


def lower_bounds(
    nodes: Sequence[Node], box: Interval, passed: Propagation, rows: Tensor, offset: Tensor, *, memory: int = MEMORY
) -> Tensor:
    """Lower bounds of linear functions of a program's last value, over a box of inputs.

    Args:
        nodes: what `program.read` returned, or the first of them.
        box: bounds of the input, value 0.
        passed: what `interval.propagate` returned for these nodes and this box, with `keep`.
        rows: coefficients of the functions, (B, S, *shape of the last value).
        offset: their constants, (B, S). A function with -inf here, whose bound is not wanted, costs nothing.
        memory: bytes to keep to, as far as one function does; the functions are taken in parts. Gradients
            need everything at once and are not bounded by this.
    Returns: (B, S); -inf where the offset is, NaN where inputs or weights are.
    Source: reference/hydra.md, section 1.7, "CROWN backward".
    """
    largest = max(shape[1:].numel() for shape in passed.shapes[: len(nodes) + 1])
    most = max(1, memory // (LIVE * largest * rows.element_size()))
    wanted = offset != -torch.inf
    if wanted.all() and offset.numel():
        functions = Functions(rows.flatten(0, 1), offset.flatten(), [offset.shape[1]] * len(offset))
        return _Pass(nodes, box, passed).lower(functions, most=most).view(offset.shape)
    counted = wanted.sum(1)
    # Images with equally many functions lie side by side, so that they are treated together.
    order = counted.argsort(descending=True, stable=True)[: int(wanted.any(1).sum())]
    place, function = wanted[order].nonzero(as_tuple=True)
    if len(place) == 0:
        return offset
    picked = order[place], function
    functions = Functions(rows[picked], offset[picked], counted[order].tolist())
    found = _Pass(nodes, box.images(order), passed.images(order)).lower(functions, most=most)
    return offset.index_put(picked, found)


@dataclass(frozen=True)
class Run:
    """Neighbouring images with equally many functions each, and where their rows lie among all."""

    images: slice
    rows: slice
    each: int

    def of(self, rows: Tensor) -> Tensor:
        """View what belongs to the run of a tensor (R, ...): (images, functions of each, ...)."""
        whole = self.rows.stop - self.rows.start == len(rows)  # whose gradient a slice would copy
        return torch.unflatten(rows if whole else rows[self.rows], 0, (-1, self.each))

    def cut(self, most: int) -> Iterator[Run]:
        """Yield parts with at most so many rows, as far as one image does."""
        together = max(1, most // self.each)
        for start in range(self.images.start, self.images.stop, together):
            stop = min(start + together, self.images.stop)
            first, last = (self.rows.start + (image - self.images.start) * self.each for image in (start, stop))
            yield Run(slice(start, stop), slice(first, last), self.each)


@dataclass(frozen=True, eq=False)
class Functions:
    """Linear functions image by image: coefficients (R, *value), constants (R,), and how many each image has, > 0."""

    rows: Tensor
    offset: Tensor
    counts: list[int]

    def parts(self, most: int) -> Iterator[tuple[Tensor, Tensor, list[Run]]]:
        """Yield coefficients, constants and runs of at most so many functions at a time."""
        owners = [image for image, count in enumerate(self.counts) for _ in range(count)]
        for start in range(0, len(owners), most):
            part = slice(start, start + most)
            yield self.rows[part], self.offset[part], runs(owners[part])


def runs(owners: Sequence[int]) -> list[Run]:
    """Runs of functions that belong to these images, ascending without a gap."""
    found, row = [], 0
    shares = ((image, len(list(group))) for image, group in groupby(owners))
    for each, group in groupby(shares, key=lambda share: share[1]):
        images = [image for image, _ in group]
        end = row + each * len(images)
        found.append(Run(slice(images[0], images[-1] + 1), slice(row, end), each))
        row = end
    return found


@dataclass(frozen=True, eq=False)
class _Pass:
    """One way back through a program with dense rows, for images whose boxes are known."""

    nodes: Sequence[Node]
    box: Interval
    passed: Propagation

    def lower(self, functions: Functions, *, most: int) -> Tensor:
        """Lower bounds, (R,), so many functions at a time."""
        return _joined([self._part(*part) for part in functions.parts(most)])

    def _part(self, rows: Tensor, offset: Tensor, runs: list[Run]) -> Tensor:
        given, gained = _memory(rows), [offset]

        def substitute(position: int, rows: Tensor, waiting: dict[int, Tensor]) -> Sequence[Tensor | None]:
            node = self.nodes[position - 1]
            shapes = [self.passed.shapes[source] for source in node.inputs]
            found: Sequence[Tensor | None]
            gain: Tensor | None
            if isinstance(node.operation, Relaxed):
                # Coefficients that somebody else reads, too, are never written over.
                spent = _memory(rows) not in {given, *map(_memory, waiting.values())}
                found, gain = self._relaxed(node, node.operation, rows, runs, spent=spent)
            else:
                found, gain = linear(node).back(rows, shapes), linear(node).gain(rows, shapes)
            if gain is not None:
                gained.append(gained.pop() + gain)
            return found

        stop = int(_starts_linearly(self.nodes))
        rows = carried_back(self.nodes, len(self.nodes), rows, substitute, lambda _, one, other: one + other, stop=stop)
        if not stop:
            return _concretized(rows, gained.pop(), self.box, runs)
        gain = linear(self.nodes[0]).gain(rows, [self.box.center.shape])
        rows, box = linear(self.nodes[0]).back_to_box(rows, self.box)
        return _concretized(rows, gained.pop() if gain is None else gained.pop() + gain, box, runs)

    def _relaxed(
        self, node: Node, operation: Relaxed, rows: Tensor, runs: list[Run], *, spent: bool
    ) -> tuple[Sequence[Tensor], Tensor]:
        """Carry (R, *result) along the lines around an operation that is not linear."""
        boxes = [self.passed.before[source] for source in node.inputs]
        if isinstance(operation, Elementwise) and not torch.is_grad_enabled():
            return _by_blocks(operation, rows, boxes[0], runs, spent=spent)
        parts = []
        for run in runs:
            here = [box.images(run.images) for box in boxes]
            lines = operation.lines(*(corner for box in here for corner in (box.lower(), box.upper())))
            found, gain = lines.back(run.of(rows), [box.center.shape for box in here])
            parts.append((gain.flatten(), *(part.flatten(0, 1) for part in found)))
        gain, *coefficients = (_joined([*pieces]) for pieces in zip(*parts, strict=True))
        return coefficients, gain


def _by_blocks(
    operation: Elementwise, rows: Tensor, box: Interval, runs: list[Run], *, spent: bool
) -> tuple[Sequence[Tensor], Tensor]:
    """The same for few images at a time, which stay in a CPU's cache, written over `rows` if they are `spent`."""
    on_cpu = rows.device.type == "cpu"
    layout = torch.channels_last if rows.ndim == 4 and on_cpu else torch.contiguous_format
    own = spent and rows.is_contiguous(memory_format=layout)
    found = rows if own else torch.empty_like(rows, memory_format=layout)
    most = BLOCK // (rows[0].numel() * rows.element_size()) if on_cpu else len(rows)
    gains = []
    for block in (block for run in runs for block in run.cut(most)):
        part, here = block.of(found), box.images(block.images)
        if found is not rows:
            part.copy_(block.of(rows))
        _, gain = operation.lines(here.lower(), here.upper()).back(part, [here.center.shape], spent=True)
        gains.append(gain.flatten())
    return (found,), torch.cat(gains)


def _starts_linearly(nodes: Sequence[Node]) -> bool:
    """Return whether a linear operation of one value reads the input, and nothing else does."""
    readers = [number for number, node in enumerate(nodes, start=1) if 0 in node.inputs]
    return readers == [1] and nodes[0].inputs == (0,) and isinstance(nodes[0].operation, Linear)


def _memory(rows: Tensor) -> int:
    """Return where coefficients lie; two that have this in common may be views of the same."""
    return rows.untyped_storage().data_ptr()


def _concretized(rows: Tensor, offset: Tensor, box: Interval, runs: list[Run]) -> Tensor:
    return _joined([concretize(run.of(rows), run.of(offset), box.images(run.images)).flatten() for run in runs])


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
