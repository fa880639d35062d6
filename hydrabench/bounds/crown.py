"""CROWN: linear lower bounds, carried from the outputs back to the input.

A row of coefficients A and an offset d with A·value + d <= specification hold at every value in turn;
affine operations are substituted exactly, a ReLU by a line below it where A is positive and a line
above it where A is negative.
Source: Zhang et al. (2018), arXiv:1811.00866, theorem 3.2; with interval bounds before the ReLUs it is
CROWN-IBP, Zhang et al. (2019), arXiv:1906.06316, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hydrabench.bounds.graph import Node
from hydrabench.bounds.interval import Interval, Place, Propagation, concretize
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

GUARD = 1e-8  # keeps the slope of a neuron with l = u = 0 finite


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
    slope_below, slope, offset = relaxation(place.box.lower(), place.box.upper())
    negative = rows.clamp(max=0)
    gain = torch.bmm(negative.flatten(2), offset.flatten(1).unsqueeze(2)).squeeze(2)
    # slope_below · A⁺ + slope · A⁻, without a tensor for A⁺
    return (rows * slope_below.unsqueeze(1)).addcmul_(negative, (slope - slope_below).unsqueeze(1)), gain


def _convolution(operation: Convolution, rows: Tensor, place: Place) -> tuple[Tensor, Tensor | None]:
    gain = None if operation.bias is None else rows.sum((3, 4)) @ operation.bias
    # Input rows and columns that no window reached get no coefficient unless the output is padded for them.
    reached = [
        (out - 1) * stride - 2 * padding + dilation * (kernel - 1) + 1
        for out, stride, padding, dilation, kernel in zip(
            rows.shape[3:],
            operation.stride,
            operation.padding,
            operation.dilation,
            operation.weight.shape[2:],
            strict=True,
        )
    ]
    images = F.conv_transpose2d(
        rows.flatten(0, 1),
        operation.weight,
        stride=operation.stride,
        padding=operation.padding,
        output_padding=[size - end for size, end in zip(place.shape[2:], reached, strict=True)],
        groups=operation.groups,
        dilation=operation.dilation,
    )
    return images.view(*rows.shape[:2], *images.shape[1:]), gain


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


def lower_bounds(nodes: Sequence[Node], box: Interval, passed: Propagation, rows: Tensor, offset: Tensor) -> Tensor:
    """Lower bounds of linear functions of a program's last value, over a box of inputs.

    Args:
        nodes: what `graph.read` returned.
        box: bounds of the input, value 0.
        passed: what `interval.propagate` returned for these nodes and this box, with `keep`.
        rows: coefficients of the functions, (B, S, *shape of the last value).
        offset: their constants, (B, S).
    Returns: (B, S); NaN where inputs or weights are.
    Source: reference/hydra.md, section 1.7, "CROWN backward".
    """
    waiting = {len(nodes): rows}  # coefficients of values whose operations are still to be substituted
    for number in range(len(nodes), 0, -1):
        if number not in waiting:
            continue  # a prefix of a program may compute values for what comes after it
        node = nodes[number - 1]
        place = passed.place(node.inputs[0])
        found, gain = RULES[type(node.operation)](node.operation, waiting.pop(number), place)
        offset = offset if gain is None else offset + gain
        for source in node.inputs:
            waiting[source] = waiting[source] + found if source in waiting else found
    return concretize(waiting[0].flatten(2), offset, Interval(box.center.flatten(1), box.width.flatten(1)))
