"""The work of bounding an image: a count from shapes alone, the same on every machine.

It counts the passes of `neurons` as if every neuron were undecided, with the windows that their rows have.
Multiplications and additions of linear layers count as they are. A coefficient that an operation reads, multiplies and
writes waits for memory, and counts as much as many of them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import nn

from hydrabench.bounds.neurons import bounded_values, entries
from hydrabench.bounds.program.dead_channels import compacted
from hydrabench.bounds.program.program import Node, program_of, read, shapes_of

SIGNS = {"symbolic": 1, "crown": 2}  # rows of a neuron; the other methods take next to nothing
MOVED = 200  # operations that a coefficient counts as, for each operation of the network that it passes
# An iteration of alpha-crown, there and back: what a coefficient of whole rows counts as, and an image's share of what
# every iteration takes however small the network is.
SEARCHED, ITERATION = 1600, 40_000_000


def image_operations(network: nn.Module, shape: tuple[int, int, int], methods: Collection[str]) -> float:
    """Return the operations that bounding one image by each of `methods` takes at most, roughly.

    Args:
        network: in eval mode. shape: (C, H, W) of its images.
        methods: keys of `cascade.STEPS`.
    Raises: UnsupportedLayerError for a layer without a rule.
    """
    signs = sum(SIGNS.get(method, 0) for method in methods)
    if not signs:
        return 0.0
    nodes, shapes = _live(network, shape)
    return signs * sum(
        shapes[number].numel() * neuron_operations(nodes, shapes, number) for number in bounded_values(nodes)
    )


def search_operations(network: nn.Module, shape: tuple[int, int, int], iterations: int) -> float:
    """Return the operations of alpha-crown for an image none of whose margins it proves, after CROWN's own, roughly.

    That is for slopes "output"; with "all", many times as many.

    Args: network: in eval mode. shape: (C, H, W) of its images.
    Raises: UnsupportedLayerError for a layer without a rule.
    """
    nodes, shapes = _live(network, shape)
    margins = shapes[-1].numel() - 1
    return iterations * (ITERATION + SEARCHED * margins * float(_whole_row(nodes, shapes, len(nodes))))


def _live(network: nn.Module, shape: tuple[int, int, int]) -> tuple[list[Node], list[torch.Size]]:
    """Return the operations without dead channels, and the shapes of all values, without the batch axis."""
    parameter = next(network.parameters(), torch.zeros(()))
    nodes = compacted(read(program_of(network)))
    return nodes, shapes_of(nodes, parameter.new_empty(1, *shape))


def _whole_row(nodes: Sequence[Node], shapes: Sequence[torch.Size], number: int) -> int:
    """Coefficients of one function of value `number` at all values before it on the way back, but for the image."""
    reached = {number}
    for position in range(number, 0, -1):
        if position in reached:
            reached.update(nodes[position - 1].inputs)
    return sum(shapes[position].numel() for position in reached - {0, number})


def neuron_operations(nodes: Sequence[Node], shapes: Sequence[torch.Size], number: int) -> float:
    """Return the operations of a row of one neuron of value `number` on its way back to the input.

    Args: shapes: of all values, without the batch axis.
    """
    count = 0.0
    for position, found in entries(nodes, shapes, number)[:-1]:
        count += MOVED * found
        count += 2 * found * nodes[position - 1].operation.products
    return count
