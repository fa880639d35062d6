"""CROWN: linear lower bounds, carried from the outputs back to the input.

A row of coefficients A and an offset d with A·value + d <= specification hold at every value in turn;
affine operations are substituted exactly, a ReLU by a line below it where A is positive and a line
above it where A is negative.
Source: Zhang et al. (2018), arXiv:1811.00866, theorem 3.2; with interval bounds before the ReLUs it is
CROWN-IBP, Zhang et al. (2019), arXiv:1906.06316, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from hydrabench.bounds.products import relaxed
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
        offset: their constants, (B, S). A function with -inf here, whose bound is not wanted, is left out of
            the work as far as the others allow: they are padded to the same number for every image.
        memory: bytes to keep to, as far as one function of one image does; images, then functions, are
            taken in parts. Gradients need everything at once and are not bounded by this.
    Returns: (B, S); NaN where inputs or weights are.
    Source: reference/hydra.md, section 1.7, "CROWN backward".
    """
    if (offset == -torch.inf).any():
        return _some(nodes, box, passed, rows, offset, memory=memory)
    images, functions = offset.shape
    largest = max(shape[1:].numel() for shape in passed.shapes[: len(nodes) + 1])
    pairs = max(1, memory // (LIVE * largest * rows.element_size()))
    if images * functions <= pairs:
        return _all(nodes, box, passed, rows, offset)
    together = max(1, pairs // functions)
    found = []
    for start in range(0, images, together):
        part = slice(start, start + together)
        here = box.images(part), passed.images(part)
        pieces = zip(torch.split(rows[part], pairs, 1), torch.split(offset[part], pairs, 1), strict=True)
        found.append(torch.cat([_all(nodes, *here, *piece) for piece in pieces], 1))
    return torch.cat(found)


def _some(
    nodes: Sequence[Node], box: Interval, passed: Propagation, rows: Tensor, offset: Tensor, *, memory: int
) -> Tensor:
    """The bounds of the functions whose constant is not -inf, which it stays elsewhere."""
    wanted = offset != -torch.inf
    (images,) = wanted.any(1).nonzero(as_tuple=True)
    if len(images) == 0:
        return offset
    most = int(wanted.sum(1).max())
    picked = wanted[images].byte().argsort(1, descending=True)[:, :most]
    expanded = picked.view(*picked.shape, *[1] * (rows.ndim - 2)).expand(-1, -1, *rows.shape[2:])
    functions = (
        rows[images].gather(1, expanded),
        offset[images].gather(1, picked).clamp(min=torch.finfo(rows.dtype).min),
    )
    lower = lower_bounds(nodes, box.images(images), passed.images(images), *functions, memory=memory)
    found = offset.index_put((images,), offset[images].scatter(1, picked, lower))
    return found.masked_fill(~wanted, -torch.inf)


def _all(nodes: Sequence[Node], box: Interval, passed: Propagation, rows: Tensor, offset: Tensor) -> Tensor:
    waiting = {len(nodes): rows}  # coefficients of values whose operations are still to be substituted
    for number in range(len(nodes), 0, -1):
        if number not in waiting:
            continue  # a prefix of a program may compute values for what comes after it
        node = nodes[number - 1]
        place, rows = passed.place(node.inputs[0]), waiting.pop(number)
        if number == 1 and not waiting and _sorts_pixels(node.operation, rows, box):
            return _at_pixels(node.operation, box, rows, offset)
        found, gain = RULES[type(node.operation)](node.operation, rows, place)
        offset = offset if gain is None else offset + gain
        for source in node.inputs:
            waiting[source] = waiting[source] + found if source in waiting else found
    return concretize(waiting[0], offset, box)


def _sorts_pixels(operation: Operation, rows: Tensor, box: Interval) -> TypeGuard[Convolution]:
    return isinstance(operation, Convolution) and has_grid(operation, rows, box.center.shape[2:])


def _at_pixels(operation: Convolution, box: Interval, rows: Tensor, offset: Tensor) -> Tensor:
    """Lower bounds of functions of the first convolution: the few pixels are sorted instead of the many rows."""
    offset = offset if operation.bias is None else offset + rows.sum((3, 4)) @ operation.bias
    grid, pixels = pixel_grid(operation, channels_last(rows.flatten(0, 1)), box)
    return concretize(torch.unflatten(grid, 0, rows.shape[:2]), offset, pixels)
