"""CROWN: linear lower bounds, carried from the outputs back to the input.

A row of coefficients A and an offset d with A·value + d <= specification hold at every value in turn;
affine operations are substituted exactly, a ReLU by a line below it where A is positive and a line
above it where A is negative.
Source: Zhang et al. (2018), arXiv:1811.00866, theorem 3.2; with interval bounds before the ReLUs it is
CROWN-IBP, Zhang et al. (2019), arXiv:1906.06316, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeGuard

import torch
from torch import Tensor

from hydrabench.bounds.graph import Node
from hydrabench.bounds.interval import Interval, Place, Propagation, channels_last, concretize
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
from hydrabench.bounds.pooling import adaptive_pool, average_pool, max_pool
from hydrabench.bounds.products import BLOCK, relax_, relaxed
from hydrabench.bounds.transposed import has_grid, pixel_grid, transposed

GUARD = 1e-8  # keeps the slope of a neuron with l = u = 0 finite
MEMORY = 2**30  # bytes that a pass may take at once, besides its arguments; larger ones are cut into parts
LIVE = 5  # tensors of the size of the largest coefficients that a pass holds at once: a ReLU's and a shortcut's

# A rule takes coefficients (B, S, *output shape) to coefficients (B, S, *input shape) and what the offset gains.
Rule = Callable[[Any, Tensor, Place], tuple[Tensor, Tensor | None]]


def relaxation(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lines around max(z, 0) for z in [lower, upper].

    Returns: slope of the line below, which passes through 0; slope and offset of the line above. The
        slope below is adaptive: 1 where the slope above exceeds one half, otherwise 0.
    Source: reference/hydra.md, section 1.7; Zhang et al. (2018), arXiv:1811.00866, section 3.3.
    """
    below = lower.clamp(max=0)
    above = torch.maximum(upper.clamp(min=0), below + GUARD)
    slope = above / (above - below)
    return (slope > 0.5).to(slope.dtype), slope, -below * slope


def _relu(_operation: Relu, rows: Tensor, place: Place) -> tuple[Tensor, Tensor]:
    assert place.box is not None, "propagate(keep=True) remembers the bounds before every ReLU"
    return relaxed(rows, *relaxation(place.box.lower(), place.box.upper()))


def _convolution(operation: Convolution, rows: Tensor, place: Place) -> tuple[Tensor, Tensor | None]:
    gain = None if operation.bias is None else rows.sum((3, 4)) @ operation.bias
    images = transposed(operation, rows.flatten(0, 1), place.shape[2:])
    return torch.unflatten(images, 0, rows.shape[:2]), gain


def _dense(operation: Dense, rows: Tensor, _place: Place) -> tuple[Tensor, Tensor | None]:
    gain = None if operation.bias is None else (rows @ operation.bias).reshape(*rows.shape[:2], -1).sum(2)
    return rows @ operation.weight, gain


def _scale(operation: Scale, rows: Tensor, _place: Place) -> tuple[Tensor, Tensor]:
    gain = rows.reshape(*rows.shape[:3], -1).sum(3) @ operation.shift.expand(rows.shape[2])
    return rows * per_channel(operation.scale, rows.ndim - 1), gain


def _flatten(_operation: Flatten, rows: Tensor, place: Place) -> tuple[Tensor, None]:
    return rows.reshape(*rows.shape[:2], *place.shape[1:]), None


def _same(_operation: Identity | Add, rows: Tensor, _place: Place) -> tuple[Tensor, None]:
    """What both values of a sum get, too."""
    return rows, None


RULES: dict[type[Operation], Rule] = {
    Convolution: _convolution,
    Dense: _dense,
    Scale: _scale,
    Relu: _relu,
    MaxPool: max_pool,
    AveragePool: average_pool,
    AdaptiveAveragePool: adaptive_pool,
    Add: _same,
    Flatten: _flatten,
    Identity: _same,
}


def lower_bounds(
    nodes: Sequence[Node], box: Interval, passed: Propagation, rows: Tensor, offset: Tensor, *, memory: int = MEMORY
) -> Tensor:
    """Lower bounds of linear functions of a program's last value, over a box of inputs.

    Args:
        nodes: what `graph.read` returned, or the first of them.
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
    """One way back through a program, for images whose boxes are known."""

    nodes: Sequence[Node]
    box: Interval
    passed: Propagation

    def lower(self, functions: Functions, *, most: int) -> Tensor:
        """Lower bounds, (R,), so many functions at a time."""
        return _joined([self._part(*part) for part in functions.parts(most)])

    def _part(self, rows: Tensor, offset: Tensor, runs: list[Run]) -> Tensor:
        waiting = {len(self.nodes): rows}  # coefficients of values whose operations are still to be substituted
        lent = {len(self.nodes)}  # values whose coefficients somebody else reads, too
        for number in range(len(self.nodes), 0, -1):
            if number not in waiting:
                continue  # a prefix of a program may compute values for what comes after it
            node, rows = self.nodes[number - 1], waiting.pop(number)
            if number == 1 and not waiting and _sorts_pixels(node.operation, rows, self.box):
                return _at_pixels(node.operation, self.box, rows, offset, runs)
            found, gain = self._substituted(node, rows, runs, ours=number not in lent)
            offset = offset if gain is None else offset + gain
            shared = len(node.inputs) > 1 or (number in lent and isinstance(node.operation, Identity | Flatten))
            for source in node.inputs:
                if source in waiting:
                    waiting[source] = waiting[source] + found
                    lent.discard(source)
                else:
                    waiting[source] = found
                    lent |= {source} if shared else set()
        return _concretized(waiting[0], offset, self.box, runs)

    def _substituted(self, node: Node, rows: Tensor, runs: list[Run], *, ours: bool) -> tuple[Tensor, Tensor | None]:
        """Carry (R, *value) through one operation; `ours`: nobody else reads `rows`."""
        place, rule = self.passed.place(node.inputs[0]), RULES[type(node.operation)]
        if not node.operation.relaxed:
            found, gain = rule(node.operation, rows.unsqueeze(0), place)
            return found.squeeze(0), None if gain is None else gain.squeeze(0)
        assert place.box is not None, "propagate(keep=True) remembers the bounds before such an operation"
        if isinstance(node.operation, Relu) and not torch.is_grad_enabled():
            return _relu_by_blocks(rows, place.box, runs, ours=ours)
        parts = [rule(node.operation, run.of(rows), Place(place.shape, place.box.images(run.images))) for run in runs]
        gains = [gain.flatten() for _, gain in parts if gain is not None]
        return _joined([found.flatten(0, 1) for found, _ in parts]), _joined(gains)


def _relu_by_blocks(rows: Tensor, box: Interval, runs: list[Run], *, ours: bool) -> tuple[Tensor, Tensor]:
    """The rule of a ReLU for few images at a time, written over `rows` if they are `ours`."""
    on_cpu = rows.device.type == "cpu"
    layout = torch.channels_last if rows.ndim == 4 and on_cpu else torch.contiguous_format
    found = rows if ours and rows.is_contiguous(memory_format=layout) else torch.empty_like(rows, memory_format=layout)
    most = BLOCK // (rows[0].numel() * rows.element_size()) if on_cpu else len(rows)
    gains = []
    for block in (block for run in runs for block in run.cut(most)):
        part, here = block.of(found), box.images(block.images)
        if found is not rows:
            part.copy_(block.of(rows))
        gains.append(relax_(part, *relaxation(here.lower(), here.upper())).flatten())
    return found, torch.cat(gains)


def _sorts_pixels(operation: Operation, rows: Tensor, box: Interval) -> TypeGuard[Convolution]:
    return isinstance(operation, Convolution) and has_grid(operation, rows, box.center.shape[2:])


def _at_pixels(operation: Convolution, box: Interval, rows: Tensor, offset: Tensor, runs: list[Run]) -> Tensor:
    """Lower bounds of functions of the first convolution: the few pixels are sorted instead of the many rows."""
    offset = offset if operation.bias is None else offset + rows.sum((2, 3)) @ operation.bias
    grid, pixels = pixel_grid(operation, channels_last(rows), box)
    return _concretized(grid, offset, pixels, runs)


def _concretized(rows: Tensor, offset: Tensor, box: Interval, runs: list[Run]) -> Tensor:
    return _joined([concretize(run.of(rows), run.of(offset), box.images(run.images)).flatten() for run in runs])


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
