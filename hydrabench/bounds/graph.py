"""From a network to a program: which operations it applies to which values, read off its code.

A network of plain `nn.Sequential` containers is read by walking it; any other is traced with torch.fx.
Nothing is cached, because a stale program would be an unsound bound. What cannot be read without
doubt is refused: an unknown layer, a subclass or hook that may compute something else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from hydrabench.bounds.operations import Convolution, Dense, Flatten, Identity, Operation, Relu, Scale
from hydrabench.errors import UnsupportedLayerError
from hydrabench.models.normalize import Normalize


@dataclass(frozen=True)
class Step:
    """One operation of a program, its parameters not yet read.

    path: where it stands in the network. inputs: numbers of the values it takes; value 0 is the
    network's input and value i + 1 the result of step i. source: the layer, or the operation itself.
    """

    path: str
    inputs: tuple[int, ...]
    source: nn.Module | Operation


@dataclass(frozen=True)
class Program:
    """The steps of a network in the order in which they run; the last one gives its output."""

    steps: tuple[Step, ...]


@dataclass(frozen=True, eq=False)
class Node:
    """One operation with its present tensors, and the numbers of the values it takes (see `Step`)."""

    operation: Operation
    inputs: tuple[int, ...]


def program_of(network: nn.Module) -> Program:
    """Return the program of a network.

    Raises: UnsupportedLayerError naming the first layer or function that the bounds do not know.
    """
    for path, module in network.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise _refusal(path, type(module).__name__, "carries forward hooks, which may change what it computes")
    layers = _chain(network, "")
    if layers is None:
        return _traced(network)
    return Program(tuple(Step(path, (number,), layer) for number, (path, layer) in enumerate(layers)))


def read(program: Program, clean: Tensor | None = None) -> list[Node]:
    """Read the parameters that the layers of a program apply now.

    Gradients flow into the parameters, through parametrizations into what these compute them from.
    Each weight is read once. Running statistics are not touched.

    Args:
        program: what `program_of` returned.
        clean: images, (B, C, H, W), in [0, 1]; batch norm in training mode takes its batch statistics
            from their pass through the program.
    Raises: UnsupportedLayerError for a layer with settings that have no sound rule; ValueError if batch
        norm is in training mode and `clean` is None.
    """
    statistics = [number for number, step in enumerate(program.steps) if _needs_batch(step.source)]
    if statistics and clean is None:
        raise ValueError(f"{program.steps[statistics[0]].path} is in training mode and needs clean images; call eval()")
    values = [] if clean is None else [clean]
    nodes = []
    for number, step in enumerate(program.steps):
        value = values[step.inputs[0]] if statistics and number <= statistics[-1] else None
        operation = _operation(step, value)
        nodes.append(Node(operation, step.inputs))
        if value is not None:
            values.append(operation.apply(value))
    return nodes


def _operation(step: Step, value: Tensor | None) -> Operation:
    if isinstance(step.source, Operation):
        return step.source
    try:
        if isinstance(step.source, _BatchNorm) and value is not None and _needs_batch(step.source):
            return _batch_scale(step.source, value)
        return _reader(step.source)(step.source)
    except _NoRule as reason:
        raise _refusal(step.path, type(step.source).__name__, str(reason)) from None


def _needs_batch(source: nn.Module | Operation) -> bool:
    return isinstance(source, _BatchNorm) and source.training


# Readers of layers and of calls ----------------------------------------------------------------


class _NoRule(Exception):
    """Why a layer cannot be passed; becomes an UnsupportedLayerError that says where."""


def _convolution(layer: nn.Conv2d) -> Convolution:
    if layer.padding_mode != "zeros":
        raise _NoRule(f"pads with padding_mode={layer.padding_mode!r}, only 'zeros' has a rule")
    padding = layer.padding
    if isinstance(padding, str):
        spans = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        if padding == "same" and any(span % 2 for span in spans):
            raise _NoRule("pads one side more than the other (padding='same' with an even kernel)")
        padding = tuple(span // 2 if padding == "same" else 0 for span in spans)
    stride, padding, dilation = ((a, b) for a, b in (layer.stride, padding, layer.dilation))
    return Convolution(layer.weight, layer.bias, stride, padding, dilation, layer.groups)


def _running_scale(layer: _BatchNorm) -> Scale:
    if layer.running_mean is None or layer.running_var is None:
        raise _NoRule("keeps no running statistics, so the verdict on an image would depend on the rest of its batch")
    return _affine(layer, layer.running_mean, layer.running_var)


def _batch_scale(layer: _BatchNorm, value: Tensor) -> Scale:
    """Batch norm in training mode, with the mean and biased variance of `value` held constant over the box."""
    var, mean = torch.var_mean(value, [axis for axis in range(value.ndim) if axis != 1], correction=0)
    return _affine(layer, mean, var)


def _affine(layer: _BatchNorm, mean: Tensor, var: Tensor) -> Scale:
    scale = (var + layer.eps).rsqrt()
    if layer.weight is not None:
        scale = scale * layer.weight
    shift = -mean * scale
    return Scale(scale, shift if layer.bias is None else shift + layer.bias)


def _flatten(start: object, end: object) -> Flatten:
    if (start, end) != (1, -1):
        raise _NoRule(f"flattens axes {start} to {end}, only 1 to -1 has a rule")
    return Flatten()


def _dropout(layer: nn.Dropout) -> Identity:
    if layer.training:
        raise _NoRule("is random in training mode; call eval()")
    return Identity()


def _flatten_call(node: fx.Node) -> Flatten:
    given = dict(zip(("input", "start_dim", "end_dim"), node.args, strict=False)) | node.kwargs
    return _flatten(given.get("start_dim", 0), given.get("end_dim", -1))


def _relu_call(_node: fx.Node) -> Relu:
    return Relu()


LAYERS: dict[type[nn.Module], Callable[[Any], Operation]] = {
    nn.Conv2d: _convolution,
    nn.Linear: lambda layer: Dense(layer.weight, layer.bias),
    nn.BatchNorm1d: _running_scale,
    nn.BatchNorm2d: _running_scale,
    nn.ReLU: lambda _layer: Relu(),
    nn.Flatten: lambda layer: _flatten(layer.start_dim, layer.end_dim),
    nn.Identity: lambda _layer: Identity(),
    nn.Dropout: _dropout,
    Normalize: lambda layer: Scale(1 / layer.std.flatten(), -(layer.mean / layer.std).flatten()),
}
FUNCTIONS: dict[Any, Callable[[fx.Node], Operation]] = {
    F.relu: _relu_call,
    torch.relu: _relu_call,
    torch.flatten: _flatten_call,
}
METHODS: dict[Any, Callable[[fx.Node], Operation]] = {"relu": _relu_call, "flatten": _flatten_call}


def _reader(layer: nn.Module) -> Callable[[Any], Operation]:
    """The reader for a layer, if it is of a known class and computes what that class does.

    A parametrized layer has a class of its own that inherits `forward`; a subclass or an instance that
    replaces `forward` is not what its name says.
    """
    for kind, reader in LAYERS.items():
        if isinstance(layer, kind):
            if getattr(layer.forward, "__func__", None) is not kind.forward:
                raise _NoRule(f"is a {kind.__name__} with a forward of its own")
            return reader
    raise _NoRule("has no sound rule")


def _refusal(path: str, kind: str, reason: str) -> UnsupportedLayerError:
    layers = ", ".join(sorted(layer.__name__ for layer in LAYERS))
    return UnsupportedLayerError(
        f"cannot bound {path or 'the network'} ({kind}): it {reason}; the bounds know the layers {layers} and the "
        "functions flatten, relu; build the network from these, or certify it with smoothing, which needs no rules"
    )


# Walking and tracing ---------------------------------------------------------------------------


def _chain(module: nn.Module, path: str) -> list[tuple[str, nn.Module]] | None:
    """The layers of nested plain `nn.Sequential`s, with their paths; None if another container is among them."""
    if getattr(module.forward, "__func__", None) is nn.Sequential.forward:
        found: list[tuple[str, nn.Module]] = []
        for name, child in module._modules.items():
            layers = _chain(child, f"{path}.{name}" if path else name) if child is not None else None
            if layers is None:
                return None
            found += layers
        return found
    if not _is_leaf(module):
        return None
    _check(path, module)
    return [(path, module)]


def _is_leaf(module: nn.Module) -> bool:
    known = isinstance(module, tuple(LAYERS))
    return known or (type(module).__module__.startswith("torch.nn.") and not isinstance(module, nn.Sequential))


def _check(path: str, module: nn.Module) -> None:
    try:
        _reader(module)
    except _NoRule as reason:
        raise _refusal(path, type(module).__name__, str(reason)) from None


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, _qualified_name: str) -> bool:
        return _is_leaf(m)


def _traced(network: nn.Module) -> Program:
    """Trace `network` inside a container, so that its own optional arguments keep their defaults."""
    tracer, root = _Tracer(), nn.Sequential(network)
    try:
        graph = tracer.trace(root)
    except (fx.proxy.TraceError, TypeError, RuntimeError) as error:
        reason = f"does something that depends on the values of its input ({error})"
        raise _refusal("", type(network).__name__, reason) from error
    image, *calls, output = graph.nodes
    steps = [Step(_path(node), (number,), _source(node, root)) for number, node in enumerate(calls)]
    for before, node in zip([image, *calls], [*calls, output], strict=True):
        # An operation that works in place also changes values that look unused; one chain leaves no doubt.
        taken = list(node.args) if node is output else node.all_input_nodes
        if taken != [before]:
            reason = f"branches or leaves a value unused: {node.name} does not take the result of {before.name}"
            raise _refusal("", type(network).__name__, reason)
    return Program(tuple(steps))


def _source(node: fx.Node, root: nn.Module) -> nn.Module | Operation:
    if node.op == "call_module":
        layer = root.get_submodule(str(node.target))
        _check(_path(node), layer)
        return layer
    calls: Mapping[str, dict[Any, Callable[[fx.Node], Operation]]] = {
        "call_function": FUNCTIONS,
        "call_method": METHODS,
    }
    kind = f"{node.op.removeprefix('call_')} {getattr(node.target, '__name__', node.target)}"
    try:
        if node.target not in calls.get(node.op, {}):
            raise _NoRule("has no sound rule")
        return calls[node.op][node.target](node)
    except _NoRule as reason:
        raise _refusal(_path(node), kind, str(reason)) from None


def _path(node: fx.Node) -> str:
    """Path of a layer, or name of a call, without the container that `_traced` adds."""
    return str(node.target).removeprefix("0").removeprefix(".") if node.op == "call_module" else node.name
