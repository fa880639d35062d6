"""A pruned program without the channels that its output does not depend on.

At 95 to 99 % sparsity whole channels lose every connection to what follows, or every one to what comes before with a
bias that a ReLU cuts off. Bounding them takes as long as bounding the others. What is left computes the same function:
only products with exact zeros are gone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hydrabench.bounds.program.operations import Operation
from hydrabench.bounds.program.program import Node, program_of, read, vectors


class NarrowNetwork(nn.Module):
    """A network in eval mode without its dead channels: the same function up to rounding, in smaller dense tensors.

    Masks are baked in, and batch norm is folded where it can be.
    """

    def __init__(self, network: nn.Module) -> None:
        """Raises: UnsupportedLayerError naming the first layer or function that is not known."""
        super().__init__()
        self.nodes = compacted(read(program_of(network)))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images (B, C, H, W) in [0, 1]."""
        values = [x]
        for node in self.nodes:
            values.append(node.operation.apply(*(values[source] for source in node.inputs)))
        return values[-1]


@torch.no_grad()
def compacted(nodes: Sequence[Node]) -> list[Node]:
    """The same program with fewer channels, or the same nodes if every channel counts.

    A channel is left out if no path of weights other than 0 leads from it to the output, or if it is 0 for every input.
    Values that are added, and those on both sides of a ReLU or of pooling, keep the same channels. Convolutions with
    groups are left as they are; so is a program with a weight that is not finite, whose output might be NaN.

    Args: nodes: what `program.read` returned.
    """
    if not all(bool(value.isfinite().all()) for node in nodes for value in _tensors(node.operation)):
        return [*nodes]
    kept = _Channels(nodes).needed()
    if all(mask is None for mask in kept):
        return [*nodes]
    return [
        Node(node.operation.narrowed(kept[node.inputs[0]], kept[number]), node.inputs)
        for number, node in enumerate(nodes, start=1)
    ]


def _tensors(operation: Operation) -> list[Tensor]:
    return [value for value in vars(operation).values() if isinstance(value, Tensor)]


class _Channels:
    """The channels of every value that count.

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
        mixed = node.operation.mixed_channels(vectors=in_vectors)
        taken = [self.known[source] for source in node.inputs]
        if mixed is not None:
            return self._mixed(number, *mixed, taken[0])
        channels = [known for known in taken if known is not None]
        if len(channels) < len(taken) or len({len(known) for known in channels}) > 1:
            return None
        return node.operation.known_channels(*channels)

    def _mixed(self, number: int, weight: Tensor, bias: Tensor | None, taken: Tensor | None) -> Tensor:
        """Results without a connection to anything but zeros are the bias."""
        channels = weight.shape[1] if taken is None else len(taken)
        self.reads[number] = (weight != 0).view(len(weight), channels, -1).any(2)
        if taken is not None:
            self.reads[number] &= taken != 0  # NaN is not 0
        bias = weight.new_zeros(len(weight)) if bias is None else bias
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
