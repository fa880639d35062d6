"""A pruned program without the channels that its output does not depend on.

At 95 to 99 % sparsity whole channels lose every connection to what follows, or every one to what comes before with a
bias that a ReLU cuts off. Bounding them takes as long as bounding the others. What is left computes the same function:
only products with exact zeros are gone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from hydrabench.bounds.graph import Node, vectors
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
)

Linear = Convolution | Dense
Anything = TypeVar("Anything", bound=Operation)


@torch.no_grad()
def compacted(nodes: Sequence[Node]) -> list[Node]:
    """The same program with fewer channels, or the same nodes if every channel counts.

    A channel is left out if no path of weights other than 0 leads from it to the output, or if it is 0 for every input.
    Values that are added, and those on both sides of a ReLU or of pooling, keep the same channels. Convolutions with
    groups are left as they are; so is a program with a weight that is not finite, whose output might be NaN.

    Args: nodes: what `graph.read` returned.
    """
    if not all(bool(value.isfinite().all()) for node in nodes for value in _tensors(node.operation)):
        return [*nodes]
    kept = _Channels(nodes).needed()
    if all(mask is None for mask in kept):
        return [*nodes]
    return [
        Node(_narrowed(node.operation, kept[node.inputs[0]], kept[number]), node.inputs)
        for number, node in enumerate(nodes, start=1)
    ]


def _tensors(operation: Operation) -> list[Tensor]:
    return [value for value in vars(operation).values() if isinstance(value, Tensor)]


def _scaled(operation: Scale, value: Tensor) -> Tensor:
    if len(operation.scale) != len(value):  # one for each entry of a block
        return torch.full_like(value, torch.nan)
    return value * operation.scale + operation.shift


def _largest(operation: MaxPool, value: Tensor) -> Tensor:
    return value if operation.dilation == (1, 1) else torch.full_like(value, torch.nan)  # a window may be all padding


def _mean(_operation: AveragePool | AdaptiveAveragePool, value: Tensor) -> Tensor:
    return value.masked_fill(value != 0, torch.nan)  # padding may count


def _same(_operation: Flatten | Identity, value: Tensor) -> Tensor:
    return value


# What is known of the channels of a result, (C,), from what is known of those that the operation takes.
KNOWN: dict[type[Operation], Callable[..., Tensor]] = {
    Relu: lambda _operation, value: value.relu(),
    Scale: _scaled,
    MaxPool: _largest,
    AveragePool: _mean,
    AdaptiveAveragePool: _mean,
    Add: lambda _operation, one, other: one + other,
    Flatten: _same,
    Identity: _same,
}


class _Channels:
    """Which channels of every value count.

    A value behind a flatten has the channels of the image, each a block of entries. known: what each channel is for
    every input, (C,), NaN where that depends; None for a value with channels that must stay. live: those that count,
    (C,), which grow until all that they need is there; None where all stay. reads: for linear operations which channels
    of a result, (K,), take which of the value in front, (K, C).
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = nodes
        self.reads: dict[int, Tensor] = {}
        self.known: list[Tensor | None] = [None]
        flat = vectors(nodes)
        for number, node in enumerate(nodes, start=1):
            self.known.append(self._result(number, node, in_vectors=flat.issuperset(node.inputs)))
        self.live = [None if known is None else torch.zeros_like(known, dtype=torch.bool) for known in self.known]

    def _result(self, number: int, node: Node, *, in_vectors: bool) -> Tensor | None:
        operation, taken = node.operation, [self.known[source] for source in node.inputs]
        if isinstance(operation, Convolution | Dense):
            free = operation.groups == 1 if isinstance(operation, Convolution) else in_vectors
            return self._weighed(number, operation, taken[0]) if free else None
        sizes = {None if known is None else len(known) for known in taken}
        return None if None in sizes or len(sizes) > 1 else KNOWN[type(operation)](operation, *taken)

    def _weighed(self, number: int, operation: Linear, taken: Tensor | None) -> Tensor:
        """Results without a connection to anything but zeros are the bias."""
        weight = operation.weight
        channels = weight.shape[1] if taken is None else len(taken)
        self.reads[number] = (weight != 0).view(len(weight), channels, -1).any(2)
        if taken is not None:
            self.reads[number] &= taken != 0  # NaN is not 0
        bias = weight.new_zeros(len(weight)) if operation.bias is None else operation.bias
        return bias.masked_fill(self.reads[number].any(1), torch.nan)

    def needed(self) -> list[Tensor | None]:
        """The channels of every value that count, (C,); None where all do."""
        self._grow(len(self.nodes), None)
        while True:
            before = self._count()
            for number in range(len(self.nodes), 0, -1):
                self._ask(number)
            for number, mask in enumerate(self.live):
                if mask is not None and not mask.any():
                    self._grow(number, torch.arange(len(mask), device=mask.device) == 0)  # no value is empty
            if self._count() == before:
                return [None if mask is None or bool(mask.all()) else mask for mask in self.live]

    def _count(self) -> int:
        return sum(int(mask.sum()) for mask in self.live if mask is not None)

    def _ask(self, number: int) -> None:
        """Let a node keep what it needs."""
        node, mask = self.nodes[number - 1], self.live[number]
        if number in self.reads:
            reads = self.reads[number]
            self._grow(node.inputs[0], (reads if mask is None else reads[mask]).any(0))
        elif isinstance(node.operation, Convolution | Dense):
            self._grow(node.inputs[0], None)
        else:
            masks = [self.live[value] for value in (number, *node.inputs)]
            known = [mask for mask in masks if mask is not None]
            union = torch.stack(known).any(0) if len(known) == len(masks) else None
            for value in (number, *node.inputs):
                self._grow(value, union)

    def _grow(self, number: int, more: Tensor | None) -> None:
        mask = self.live[number]
        if mask is not None:
            self.live[number] = torch.ones_like(mask) if more is None else mask | more


def _narrowed(operation: Anything, before: Tensor | None, after: Tensor | None) -> Anything:
    """The operation on the channels that are kept of what it takes and of what it returns."""
    if isinstance(operation, Convolution | Dense):
        weight, bias = operation.weight, operation.bias
        if before is not None:
            weight = weight[:, _entries(before, weight.shape[1])]
        if after is not None:
            weight, bias = weight[after], None if bias is None else bias[after]
        return replace(operation, weight=weight, bias=bias)
    if isinstance(operation, Scale) and after is not None:
        entries = _entries(after, len(operation.scale))
        return replace(operation, scale=operation.scale[entries], shift=operation.shift[entries])
    return operation


def _entries(channels: Tensor, count: int) -> Tensor:
    """Mask of the entries of channels in equal blocks, `count` in all."""
    return channels.repeat_interleave(count // len(channels))
