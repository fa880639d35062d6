"""Rounding errors of a pass backward with any slopes and multipliers.

A coefficient A of a result that is computed as f(W v + b) is carried on with an error of

    |A| share (|W| |v| + |b|),    share = `growth` of the terms,

as in `sound`; what is in brackets is largest on the whole ball, so that it is computed once for all subproblems of an
image. Lines around an operation that is not linear are off by as much as slopes and constants are rounded, which is
relative to what the steepest line makes of the largest value.
Source: Higham (2002), sections 3.1 and 4.2, see `outward`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hydrabench.bounds.backward import linear
from hydrabench.bounds.box import Interval
from hydrabench.bounds.outward import MORE, TINY, UNIT, growth
from hydrabench.bounds.program.operations import Relaxed
from hydrabench.bounds.rounding import MeasuredNode


@dataclass(frozen=True, eq=False)
class Losses:
    """Rounding errors of functions of the values of B images on their way back.

    of: for each position, what a coefficient of 1 of the node's result loses, (B, *result). floor: what underflow can
    do in all, (B,). share: of the sum of all constants and of the minimum over the ball, relative to their sizes.
    """

    of: Mapping[int, Tensor]
    floor: Tensor
    share: float


def losses(nodes: Sequence[MeasuredNode], values: Mapping[int, Interval]) -> Losses:
    """Return the losses on the way back, from bounds of all values that hold on the whole ball, in float64."""
    found, floor = {}, values[0].center.new_zeros(len(values[0].center))
    for position, node in enumerate(nodes, start=1):
        taken = [values[source] for source in node.inputs]
        sizes = [torch.maximum(box.lower().abs(), box.upper().abs()) for box in taken]
        if isinstance(node.operation, Relaxed):
            found[position] = _of_lines(node.operation, taken, sizes)
        else:
            found[position] = growth(node.terms + MORE, torch.float64) * linear(node).magnitude(*sizes)
        found[position] = found[position] + (node.terms + MORE) * TINY
        floor = floor + (node.terms + MORE) * TINY * (1 + sum(size.flatten(1).sum(1) for size in sizes))
    entries = values[0].center[0].numel()
    return Losses(found, floor + TINY * entries, growth(entries + len(nodes) + MORE, torch.float64))


def _of_lines(operation: Relaxed, boxes: Sequence[Interval], sizes: Sequence[Tensor]) -> Tensor:
    corners = [corner for box in boxes for corner in (box.lower(), box.upper())]
    result = operation.size(*corners)
    reach = operation.carried_error(corners, sizes) + result
    return (growth(MORE + result[0].numel(), torch.float64) * 2 + 2 * operation.ulps * UNIT[torch.float64]) * reach
