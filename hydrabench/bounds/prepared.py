"""A network read once for many batches.

Reading it takes as long as bounding a small batch: tracing, folding, absolute weights. But a stale program gives
unsound bounds. So what was read remembers every module, setting and tensor of the network, and is refused as soon as
one of them is another or was written to.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from operator import is_
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

    network: what was read. nodes: its program, folded, without channels that do not count; only while
    `require_unchanged` holds. state: what it was read from. kept: what `once` has computed.
    """

    network: nn.Module
    nodes: list[Node]
    state: State
    kept: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    def require_unchanged(self) -> None:
        """Raises: ValueError if the network is no longer what was read.

        Noticed are other modules, parameters, buffers, settings, hooks and modes, whatever torch knows to be written to
        a tensor, as by an optimizer, `load_state_dict`, or batch norm in training mode, and any other content of a
        parameter that requires gradients. Not noticed are writes behind torch's back to other tensors (into
        `tensor.data`, through NumPy, by another process), writes to tensors made in inference mode, changes inside of
        lists and dicts that are attributes of a module, and code that is replaced on a class.
        """
        if not self.state.agrees_with(State.of(self.network)):
            raise ValueError("the network changed after it was prepared; call prepared() again")

    def once(self, key: Hashable, make: Callable[[], Result]) -> Result:
        """What `make` says of the network, computed the first time it is asked for under this key."""
        self.require_unchanged()
        if key not in self.kept:
            self.kept[key] = make()
        return cast(Result, self.kept[key])

    def in_float64(self) -> Prepared:
        """The same network in float64, a copy."""
        return self.once("in float64", lambda: prepared(copy.deepcopy(self.network).double()))


@dataclass(frozen=True, eq=False)
class State:
    """What a network computes with, and how often it was written to.

    objects: modules, settings and tensors. numbers: of hooks, and of each tensor where it lies, how often it was
    written to, and, if it may be trained, a hash of its bytes, because fused optimizers write without telling. memory:
    of the tensors; being here, neither this nor an object makes room for another at its address.
    """

    objects: list[object]
    numbers: list[int]
    memory: list[Tensor]

    @classmethod
    def of(cls, network: nn.Module) -> State:
        """The state now."""
        objects: list[object] = []
        numbers: list[int] = []
        memory: list[Tensor] = []
        modules, met = [network], {network}
        for module in modules:  # which grows
            objects += (type(module), *vars(module).values())
            numbers += (len(module._forward_hooks), len(module._forward_pre_hooks))
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                objects.append(tensor)
                if tensor is not None:
                    objects += (tensor.dtype, tensor.requires_grad)
                    numbers += (tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version)
                    memory.append(tensor.detach())
                    if tensor.requires_grad:
                        numbers.append(_content(tensor.detach()))
            for child in module._modules.values():
                objects.append(child)
                if child is not None and child not in met:
                    modules.append(child)
                    met.add(child)
        return cls(objects, numbers, memory)

    def agrees_with(self, other: State) -> bool:
        """Whether nothing that can be noticed has changed; a setting may be replaced by an equal one."""
        if self.numbers != other.numbers or len(self.objects) != len(other.objects):
            return False
        return all(map(is_, self.objects, other.objects)) or all(map(_same, self.objects, other.objects))


def _content(tensor: Tensor) -> int:
    """A hash of the bytes, which says of two contents that they differ but for a chance of 2^-64."""
    return hash(tensor.flatten().view(torch.uint8).cpu().numpy().tobytes())


def _same(one: object, other: object) -> bool:
    return one is other or (isinstance(one, int | float | str) and type(one) is type(other) and one == other)


@torch.no_grad()
def prepared(network: nn.Module) -> Prepared:
    """Read a network for many batches; wherever bounds take a network, they take what this returns, too.

    The network must stay as it is; whether it has is checked at each use, see `Prepared.require_unchanged`. Bounds have
    no gradients with respect to its parameters.

    Args:
        network: made of the layers in `program.convert.LAYERS`, in eval mode.
    Raises: UnsupportedLayerError for a layer without a rule, ValueError if a part of it is in training mode.
    """
    training = [path for path, module in network.named_modules() if module.training]
    if training:
        raise ValueError(f"{training[0] or 'the network'} is in training mode; call eval() before prepared()")
    state = State.of(network)  # of what is read next, so that no change goes unnoticed
    nodes = [Node(_settled(node.operation), node.inputs) for node in compacted(read(program_of(network)))]
    return Prepared(network, nodes, state)


def nodes_of(network: nn.Module | Prepared, clean: Tensor | None = None) -> list[Node]:
    """What `program.read` says of a network, now or when it was prepared; `clean` is for batch norm in training mode.

    Raises: as `program.read` and `Prepared.require_unchanged`.
    """
    if isinstance(network, nn.Module):
        return read(program_of(network), clean)
    network.require_unchanged()
    return network.nodes


def _settled(operation: Operation) -> Operation:
    tensors = {name: value.detach() for name, value in vars(operation).items() if isinstance(value, Tensor)}
    settled = {"settled": True} if isinstance(operation, Weighted) else {}
    return replace(operation, **tensors, **settled)
