"""What bounding every neuron of an image by a pass of its own may take: a forecast from shapes alone.

It counts the passes of `neurons` as if every neuron were undecided, with the windows that their rows have, so that it
is the same on every machine. The seconds are those of one core, measured with wide and narrow residual networks.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import prod

import torch
from torch import nn

from hydrabench.bounds.alpha import Search
from hydrabench.bounds.neurons import bounded_values
from hydrabench.bounds.patches import Window
from hydrabench.bounds.program.dead_channels import compacted
from hydrabench.bounds.program.linear import Add, Convolution, Dense, Scale
from hydrabench.bounds.program.operations import Elementwise
from hydrabench.bounds.program.program import Node, program_of, read, shapes_of
from hydrabench.bounds.program.structure import Identity

SIGNS = {"symbolic": 1, "crown": 2}  # rows of a neuron; the other methods take next to nothing
PRODUCTS = 80e9  # multiplications and additions of a convolution in a second
ENTRIES = 0.4e9  # coefficients in a second that an operation reads, multiplies and writes
# An iteration of alpha-crown, there and back: seconds a coefficient of whole rows, and those that an image of ten takes
# however small the network is; measured with cifar_model of 32x32 and 8x8 pixels.
SEARCH_ENTRY, SEARCH_ITERATION = 20e-9, 0.5e-3


def image_seconds(network: nn.Module, shape: tuple[int, int, int], methods: Collection[str]) -> float:
    """Processor seconds that bounding one image by each of `methods` takes at most, roughly.

    Args:
        network: in eval mode. shape: (C, H, W) of its images.
        methods: keys of `cascade.STEPS`.
    Raises: UnsupportedLayerError for a layer without a rule.
    """
    signs = sum(SIGNS.get(method, 0) for method in methods)
    if not signs:
        return 0.0
    parameter = next(network.parameters(), torch.zeros(()))
    nodes = compacted(read(program_of(network)))
    shapes = shapes_of(nodes, parameter.new_empty(1, *shape))
    return signs * sum(
        shapes[number].numel() * neuron_seconds(nodes, shapes, number) for number in bounded_values(nodes)
    )


def search_seconds(network: nn.Module, shape: tuple[int, int, int], search: Search) -> float:
    """Processor seconds that alpha-crown takes for an image none of whose margins it proves, roughly.

    That is, for slopes "output"; with "all", many times as long. CROWN's own pass, as `image_seconds` has it, is
    counted in full, whatever the time limit.

    Args: network: in eval mode. shape: (C, H, W) of its images.
    Raises: UnsupportedLayerError for a layer without a rule.
    """
    parameter = next(network.parameters(), torch.zeros(()))
    nodes = compacted(read(program_of(network)))
    shapes = shapes_of(nodes, parameter.new_empty(1, *shape))
    first = image_seconds(network, shape, ("crown",))
    margins = shapes[-1].numel() - 1
    iteration = SEARCH_ITERATION + SEARCH_ENTRY * margins * _whole_row(nodes, shapes, len(nodes))
    total = first + search.iterations * iteration
    return total if search.time_limit is None else max(first, min(total, search.time_limit))


def _whole_row(nodes: Sequence[Node], shapes: Sequence[torch.Size], number: int) -> int:
    """Coefficients of one function of value `number` at all values before it on the way back, but for the image."""
    reached = {number}
    for position in range(number, 0, -1):
        if position in reached:
            reached.update(nodes[position - 1].inputs)
    return sum(shapes[position].numel() for position in reached - {0, number})


def neuron_seconds(nodes: Sequence[Node], shapes: Sequence[torch.Size], number: int) -> float:
    """Processor seconds of a row of one neuron of value `number` on its way back to the input.

    Args: shapes: of all values, without the batch axis.
    """
    shape = shapes[number]
    waiting: dict[int, Window | None] = {number: None}
    if len(shape) == 3:
        waiting[number] = Window((1, 1), (1, 1), (0, 0), (shape[1], shape[2]))
    seconds = 0.0
    for position in range(number, 0, -1):
        if position not in waiting:
            continue
        operation, window = nodes[position - 1].operation, waiting.pop(position)
        entries = _entries(shapes[position], window)
        seconds += entries / ENTRIES
        if isinstance(operation, Convolution | Dense):
            seconds += 2 * entries * prod(operation.weight.shape[1:]) / PRODUCTS
        for source in nodes[position - 1].inputs:
            found = _behind(operation, window, shapes[source])
            waiting[source] = _joined(waiting[source], found) if source in waiting else found
    return seconds


def _entries(shape: torch.Size, window: Window | None) -> int:
    return shape.numel() if window is None else shape[0] * prod(window.size)


def _behind(operation: object, window: Window | None, shape: torch.Size) -> Window | None:
    """The window in what an operation takes, or None if rows are whole there, as in `back_patches`."""
    if window is None or not isinstance(operation, Convolution | Scale | Identity | Elementwise | Add):
        return None
    grown = window
    if isinstance(operation, Convolution):
        grown = window.behind(operation.weight.shape[2:], operation.stride, operation.padding, operation.dilation)
    return None if prod(grown.size) >= prod(shape[1:]) else grown


def _joined(one: Window | None, other: Window | None) -> Window | None:
    return one.joined(other) if one and other and one.stride == other.stride else None
