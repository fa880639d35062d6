"""The graph of torch.fx that is made of an ONNX graph, value by value.

Every value of the network has a leading batch axis. Shapes are followed on torch's meta device, at a batch size that is
no other size: where that number turns up, a shape speaks of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, fx, nn

BATCH = 1_000_003  # prime, and larger than any axis
Array: TypeAlias = "np.ndarray[Any, Any]"


class UnreadableNode(Exception):
    """The reason why a node cannot be read; `reading` adds the file and the node."""


@dataclass(frozen=True, eq=False)
class Value:
    """A value that depends on the images. node: of the graph. shape: with `BATCH` first. dtype: of its entries."""

    node: fx.Node
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def ndim(self) -> int:
        """Number of axes, batch axis included."""
        return len(self.shape)

    def meta(self) -> Tensor:
        """A tensor of its shape without content."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")


Operand: TypeAlias = "Value | Array"


class Builder:
    """Appends calls to a graph. batch: the batch size that the file fixes; None: any."""

    def __init__(self, input_shape: tuple[int, ...], dtype: torch.dtype, batch: int | None) -> None:
        self.root, self.graph, self.batch = nn.Module(), fx.Graph(), batch
        self.image = Value(self.graph.placeholder("images"), (BATCH, *input_shape), dtype)
        self._tensors: dict[int, tuple[Array, nn.Parameter]] = {}

    def call(self, function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Value:
        """Append a call of a function; among its arguments may be values and arrays."""
        (args, kwargs), (shapes, settings) = self._both((args, kwargs))
        found = _computed(lambda: function(*shapes, **settings))
        return self._value(self.graph.call_function(function, args, kwargs), found)

    def method(self, name: str, *args: Any) -> Value:
        """Append a call of a method of the first argument."""
        args, shapes = self._both(args)
        found = _computed(lambda: getattr(shapes[0], name)(*shapes[1:]))
        return self._value(self.graph.call_method(name, args), found)

    def layer(
        self, make: Callable[[], nn.Module], value: Value, tensors: Mapping[str, Array | None], name: str = ""
    ) -> Value:
        """Append a layer.

        Args:
            make: builds it; called with the meta device.
            tensors: what its parameters and buffers hold; None where it has none.
            name: what to call it, or its kind.
        """
        with torch.device("meta"):
            layer = _computed(make)
        found = _computed(lambda: layer.to(value.dtype).eval()(value.meta()))
        for key, array in tensors.items():
            if array is None:
                continue
            if tuple(getattr(layer, key).shape) != array.shape:
                raise UnreadableNode(f"has a {key} of shape {array.shape}, not {tuple(getattr(layer, key).shape)}")
            setattr(layer, key, tensor_of(array) if key in layer._buffers else self._parameter(array))
        path = self._free(name or type(layer).__name__.lower())
        self.root.add_module(path, layer)
        return self._value(self.graph.call_module(path, (value.node,)), found)

    def reshaped(self, value: Value, axes: tuple[int, ...]) -> Value:
        """Append a reshape of every image; none if it has these axes already."""
        if value.shape[1:] == axes:
            return value
        if len(axes) == 1:
            return self.call(torch.flatten, value, 1)
        size = self.graph.call_method("size", (value.node, 0))
        found = _computed(lambda: value.meta().reshape(BATCH, *axes))
        return self._value(self.graph.call_method("reshape", (value.node, size, *axes)), found)

    def repeated(self, array: Array, axes: tuple[int, ...]) -> Value:
        """Append a constant, expanded to `axes` and repeated for every image."""
        node, meta = self._both(array[None] if array.ndim < len(axes) + 1 else array)
        size = self.graph.call_method("size", (self.image.node, 0))
        found = _computed(lambda: meta.expand(BATCH, *axes))
        return self._value(self.graph.call_method("expand", (node, size, *axes)), found)

    def layer_of(self, value: Value) -> nn.Module | None:
        """The layer whose result a value is."""
        return self.root.get_submodule(str(value.node.target)) if value.node.op == "call_module" else None

    def set_bias(self, layer: nn.Module, array: Array) -> None:
        """Give a layer without a bias one."""
        layer.bias = self._parameter(array)

    def finished(self, output: Value) -> fx.GraphModule:
        """The network that returns `output`."""
        self.graph.output(output.node)
        network = fx.GraphModule(self.root, self.graph, "OnnxGraph")
        network.graph.eliminate_dead_code()
        network.delete_all_unused_submodules()
        return network.eval()

    def _value(self, node: fx.Node, found: Tensor) -> Value:
        if not isinstance(found, Tensor) or found.ndim == 0 or found.shape[0] != BATCH:
            shape = [("batch" if n == BATCH else n) for n in getattr(found, "shape", ())]
            raise UnreadableNode(f"gives a value of shape {shape}, which does not keep the batch as its first axis")
        return Value(node, tuple(found.shape), found.dtype)

    def _both(self, arguments: Any) -> tuple[Any, Any]:
        """Arguments with nodes, and with tensors that have only shapes, in place of values and arrays."""
        constants: dict[int, fx.Node] = {}

        def node_of(part: Any) -> Any:
            if isinstance(part, np.ndarray):
                return constants.setdefault(id(part), self._constant(part))
            return part.node if isinstance(part, Value) else part

        def shape_of(part: Any) -> Any:
            if isinstance(part, np.ndarray):
                return tensor_of(part).to("meta")
            return part.meta() if isinstance(part, Value) else part

        return fx.node.map_aggregate(arguments, node_of), fx.node.map_aggregate(arguments, shape_of)

    def _constant(self, array: Array) -> fx.Node:
        refuse_batch_size(array)
        path = self._free("constant")
        self.root.register_buffer(path, tensor_of(array))
        return self.graph.get_attr(path)

    def _parameter(self, array: Array) -> nn.Parameter:
        """One parameter for an array, however often it is used."""
        _, parameter = self._tensors.setdefault(id(array), (array, nn.Parameter(tensor_of(array))))
        return parameter

    def _free(self, name: str) -> str:
        """A name like `name` that nothing has yet."""
        plain = "".join(letter if letter.isalnum() else "_" for letter in name).strip("_")
        plain = f"_{plain}" if plain[:1].isdigit() or hasattr(nn.Module, plain) else plain or "layer"
        names = [plain, *(f"{plain}_{number}" for number in range(1, 1 + len(self.graph.nodes)))]
        return next(one for one in names if not hasattr(self.root, one))


def refuse_batch_size(array: Array) -> None:
    """Raises: UnreadableNode if one of these numbers was computed from the size of the batch."""
    if array.dtype.kind in "iuf" and bool(np.any((array != 0) & (np.mod(array, BATCH) == 0))):
        raise UnreadableNode("computes with the size of the batch")


def tensor_of(array: Array) -> Tensor:
    """The array as a tensor of its own. Raises: UnreadableNode for a type that torch lacks."""
    try:
        return torch.tensor(array)
    except TypeError as error:
        raise UnreadableNode(f"holds numbers of type {array.dtype}") from error


def _computed(make: Callable[[], Any]) -> Any:
    """Return what torch makes of shapes; its complaint becomes a reason."""
    try:
        return make()
    except UnreadableNode:
        raise
    except Exception as error:  # whatever a wrong shape or setting makes of torch
        raise UnreadableNode(f"does not fit its inputs ({' '.join(str(error).split())[:150]})") from error
