"""A network read once for many batches.

Reading it takes as long as bounding a small batch: tracing, folding, absolute weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from hydrabench.bounds.program.dead_channels import compacted
from hydrabench.bounds.program.linear import Weighted
from hydrabench.bounds.program.operations import Operation
from hydrabench.bounds.program.program import Node, program_of, read

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Prepared:
    """A network in eval mode as it was when `prepared` read it, without gradients. Made by `prepared`.

    network: a copy of its own, which nobody else writes to. nodes: its program, folded, without dead channels. kept:
    what `once` has computed.
    """

    network: nn.Module
    nodes: list[Node]
    kept: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    def once(self, key: Hashable, make: Callable[[], Result]) -> Result:
        """Return what `make` says of the network, computed once for this key."""
        if key not in self.kept:
            self.kept[key] = make()
        return cast(Result, self.kept[key])

    def in_float64(self) -> Prepared:
        """The same network in float64, a copy."""
        return self.once("in float64", lambda: prepared(copy.deepcopy(self.network).double()))


@torch.no_grad()
def prepared(network: nn.Module) -> Prepared:
    """Read a copy of a network for many batches; wherever bounds take a network, they take what this returns, too.

    What happens to the network later changes nothing. Bounds have no gradients with respect to its parameters.

    Args:
        network: made of the layers in `program.convert.LAYERS`, in eval mode.
    Raises: UnsupportedLayerError for a layer without a rule, ValueError if a part of it is in training mode.
    """
    training = [path for path, module in network.named_modules() if module.training]
    if training:
        raise ValueError(f"{training[0] or 'the network'} is in training mode; call eval() before prepared()")
    network = copy.deepcopy(network).requires_grad_(False)
    nodes = [Node(_settled(node.operation), node.inputs) for node in compacted(read(program_of(network)))]
    return Prepared(network, nodes)


def nodes_of(network: nn.Module | Prepared, clean: Tensor | None = None) -> list[Node]:
    """Return what `program.read` says of a network, now or when it was prepared; `clean` is for batch norm in training.

    Raises: as `program.read`.
    """
    return read(program_of(network), clean) if isinstance(network, nn.Module) else network.nodes


def _settled(operation: Operation) -> Operation:
    tensors = {name: value.detach() for name, value in vars(operation).items() if isinstance(value, Tensor)}
    settled = {"settled": True} if isinstance(operation, Weighted) else {}
    return replace(operation, **tensors, **settled)
