"""Which operation a layer or a function call is: the readers of everything that the bounds know.

A reader turns a layer, or a call that torch.fx recorded, into an operation with the tensors and
settings that it applies now. What has no sound rule, or might compute something else, is refused.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

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
    Pair,
    Relu,
    Scale,
)
from hydrabench.errors import UnsupportedLayerError
from hydrabench.models.normalize import Normalize


class NoRule(Exception):
    """Why a layer or a call cannot be passed; becomes an UnsupportedLayerError that says where."""


def refusal(path: str, kind: str, reason: str) -> UnsupportedLayerError:
    """The error for a layer or call at `path` that has no sound rule, with everything that has one."""
    layers = ", ".join(sorted(layer.__name__ for layer in LAYERS))
    functions = sorted({getattr(function, "__name__", function) for function in (*FUNCTIONS, *METHODS)} - {"fn"})
    return UnsupportedLayerError(
        f"cannot bound {path or 'the network'} ({kind}): it {reason}; the bounds know the layers {layers} and the "
        f"functions {', '.join(functions)}; build the network from these, or certify it with smoothing, which needs "
        "no rules"
    )


# Layers ----------------------------------------------------------------------------------------


def _convolution(layer: nn.Conv2d) -> Convolution:
    if layer.padding_mode != "zeros":
        raise NoRule(f"pads with padding_mode={layer.padding_mode!r}, only 'zeros' has a rule")
    padding = layer.padding
    if isinstance(padding, str):
        spans = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        if padding == "same" and any(span % 2 for span in spans):
            raise NoRule("pads one side more than the other (padding='same' with an even kernel)")
        padding = tuple(span // 2 if padding == "same" else 0 for span in spans)
    stride, padding, dilation = ((a, b) for a, b in (layer.stride, padding, layer.dilation))
    return Convolution(layer.weight, layer.bias, stride, padding, dilation, layer.groups)


def _running_scale(layer: _BatchNorm) -> Scale:
    if layer.running_mean is None or layer.running_var is None:
        raise NoRule("keeps no running statistics, so the verdict on an image would depend on the rest of its batch")
    return _affine(layer, layer.running_mean, layer.running_var)


def batch_scale(layer: _BatchNorm, value: Tensor) -> Scale:
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
        raise NoRule(f"flattens axes {start} to {end}, only 1 to -1 has a rule")
    return Flatten()


def _dropout(layer: nn.Dropout) -> Identity:
    if layer.training:
        raise NoRule("is random in training mode; call eval()")
    return Identity()


def _pair(value: Any) -> Pair:
    values = (value,) if isinstance(value, int) else value
    if not isinstance(values, tuple | list) or not all(isinstance(size, int) for size in values):
        raise NoRule("pools with windows that depend on the image, which have no rule")
    return (values[0], values[-1])


def _max_pool(settings: dict[str, Any]) -> MaxPool:
    if settings["ceil_mode"] or settings["return_indices"]:
        raise NoRule("pools with ceil_mode or return_indices, which have no rule")
    stride = settings["stride"] or settings["kernel_size"]
    return MaxPool(*map(_pair, (settings["kernel_size"], stride, settings["padding"], settings["dilation"])))


def _average_pool(settings: dict[str, Any]) -> AveragePool:
    if settings["ceil_mode"] or settings["divisor_override"] is not None:
        raise NoRule("pools with ceil_mode or divisor_override, which have no rule")
    stride = settings["stride"] or settings["kernel_size"]
    kernel, stride, padding = map(_pair, (settings["kernel_size"], stride, settings["padding"]))
    return AveragePool(kernel, stride, padding, settings["count_include_pad"])


def _adaptive_pool(size: Any) -> AdaptiveAveragePool:
    sizes = size if isinstance(size, tuple | list) else (size, size)
    if not all(axis is None or isinstance(axis, int) for axis in sizes):
        raise NoRule("pools to a size that depends on the image, which has no rule")
    return AdaptiveAveragePool((sizes[0], sizes[-1]))


LAYERS: dict[type[nn.Module], Callable[[Any], Operation]] = {
    nn.Conv2d: _convolution,
    nn.Linear: lambda layer: Dense(layer.weight, layer.bias),
    nn.BatchNorm1d: _running_scale,
    nn.BatchNorm2d: _running_scale,
    nn.ReLU: lambda _layer: Relu(),
    nn.MaxPool2d: lambda layer: _max_pool(vars(layer)),
    nn.AvgPool2d: lambda layer: _average_pool(vars(layer)),
    nn.AdaptiveAvgPool2d: lambda layer: _adaptive_pool(layer.output_size),
    nn.Flatten: lambda layer: _flatten(layer.start_dim, layer.end_dim),
    nn.Identity: lambda _layer: Identity(),
    nn.Dropout: _dropout,
    Normalize: lambda layer: Scale(1 / layer.std.flatten(), -(layer.mean / layer.std).flatten()),
}


def reader(layer: nn.Module) -> Callable[[Any], Operation]:
    """The reader for a layer, if it is of a known class and computes what that class does.

    A parametrized layer has a class of its own that inherits `forward`; a subclass or an instance that
    replaces `forward`, or what it is called through, is not what its name says.
    """
    for kind, found in LAYERS.items():
        if isinstance(layer, kind):
            code = [name for name in ("forward", "_conv_forward") if hasattr(kind, name)]
            own = [name for name in code if getattr(getattr(layer, name), "__func__", None) is not getattr(kind, name)]
            if own or type(layer).__call__ is not nn.Module.__call__:
                raise NoRule(f"is a {kind.__name__} with a {(*own, '__call__')[0].strip('_')} of its own")
            return found
    raise NoRule("has no sound rule")


# Calls -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """A function or method call: its operations, one after the other, and the values the first one takes.

    in_place: whether it writes its result over the first of these values.
    """

    operations: tuple[Operation, ...]
    inputs: tuple[Any, ...]
    in_place: bool = False


REQUIRED = object()


def _given(node: fx.Node, **defaults: Any) -> dict[str, Any]:
    """The arguments of a call by name, in the order of `defaults`, which fill the gaps."""
    unknown = sorted(set(node.kwargs) - set(defaults))
    if unknown or len(node.args) > len(defaults):
        raise NoRule(f"is called with {', '.join(unknown) or 'more arguments'}, which has no rule")
    found = defaults | dict(zip(defaults, node.args, strict=False)) | node.kwargs
    if any(value is REQUIRED for value in found.values()):
        raise NoRule("is called with too few arguments")
    return found


def _relu_call(node: fx.Node) -> Call:
    given = _given(node, input=REQUIRED, inplace=False)
    return Call((Relu(),), (given["input"],), in_place=bool(given["inplace"]))


def _relu_in_place(node: fx.Node) -> Call:
    return Call((Relu(),), (_given(node, input=REQUIRED)["input"],), in_place=True)


def _add_call(node: fx.Node) -> Call:
    given = _given(node, input=REQUIRED, other=REQUIRED)
    if not isinstance(given["other"], fx.Node) or not isinstance(given["input"], fx.Node):
        raise NoRule("adds a constant, which has no rule")
    return Call((Add(),), (given["input"], given["other"]))


def _add_in_place(node: fx.Node) -> Call:
    call = _add_call(node)
    return Call(call.operations, call.inputs, in_place=True)


def _flatten_call(node: fx.Node) -> Call:
    given = _given(node, input=REQUIRED, start_dim=0, end_dim=-1)
    return Call((_flatten(given["start_dim"], given["end_dim"]),), (given["input"],))


def _reshape_call(node: fx.Node) -> Call:
    """`view` and `reshape` to (batch size, -1), which is the one shape that surely mixes no images."""
    image, *shape = (*node.args, *node.kwargs.values())
    if len(shape) == 1 and isinstance(shape[0], tuple | list):
        shape = list(shape[0])
    if len(shape) != 2 or not is_batch_size(shape[0]) or shape[1] != -1:
        raise NoRule("reshapes to another shape than (x.size(0), -1), which has no rule; call flatten(1)")
    return Call((Flatten(),), (image,))


def _mean_call(node: fx.Node) -> Call:
    given = _given(node, input=REQUIRED, dim=REQUIRED, keepdim=False)
    if not isinstance(given["dim"], tuple | list) or sorted(given["dim"]) != [2, 3]:
        raise NoRule(f"takes the mean over axes {given['dim']}, only (2, 3) has a rule")
    pool = AdaptiveAveragePool((1, 1))
    return Call((pool,) if given["keepdim"] else (pool, Flatten()), (given["input"],))


def _dropout_call(node: fx.Node) -> Call:
    given = _given(node, input=REQUIRED, p=0.5, training=True, inplace=False)
    if given["training"]:
        raise NoRule("is random in training mode; call eval()")
    return Call((Identity(),), (given["input"],))


def _max_pool_call(node: fx.Node) -> Call:
    settings: dict[str, Any] = {"stride": None, "padding": 0, "dilation": 1, "ceil_mode": False}
    given = _given(node, input=REQUIRED, kernel_size=REQUIRED, **settings, return_indices=False)
    return Call((_max_pool(given),), (given["input"],))


def _average_pool_call(node: fx.Node) -> Call:
    settings: dict[str, Any] = {"stride": None, "padding": 0, "ceil_mode": False, "count_include_pad": True}
    given = _given(node, input=REQUIRED, kernel_size=REQUIRED, **settings, divisor_override=None)
    return Call((_average_pool(given),), (given["input"],))


def _adaptive_pool_call(node: fx.Node) -> Call:
    given = _given(node, input=REQUIRED, output_size=REQUIRED)
    return Call((_adaptive_pool(given["output_size"]),), (given["input"],))


FUNCTIONS: dict[Any, Callable[[fx.Node], Call]] = {
    F.relu: _relu_call,
    torch.relu: _relu_call,
    torch.relu_: _relu_in_place,
    operator.add: _add_call,
    operator.iadd: _add_in_place,
    torch.add: _add_call,
    torch.flatten: _flatten_call,
    torch.reshape: _reshape_call,
    torch.mean: _mean_call,
    F.dropout: _dropout_call,
    F.max_pool2d: _max_pool_call,
    torch.max_pool2d: _max_pool_call,
    F.avg_pool2d: _average_pool_call,
    F.adaptive_avg_pool2d: _adaptive_pool_call,
}
METHODS: dict[Any, Callable[[fx.Node], Call]] = {
    "relu": _relu_call,
    "relu_": _relu_in_place,
    "add": _add_call,
    "add_": _add_in_place,
    "flatten": _flatten_call,
    "view": _reshape_call,
    "reshape": _reshape_call,
    "mean": _mean_call,
}


def is_size(node: Any) -> bool:
    """Whether a call asks for the shape of a value, or for its batch size, which says nothing about its content."""
    if not isinstance(node, fx.Node):
        return False
    if node.op == "call_method":
        return node.target == "size"
    return (node.target is getattr and bool(node.args[1] == "shape")) or is_batch_size(node)


def is_batch_size(node: Any) -> bool:
    """Whether a call is x.size(0), x.size()[0] or x.shape[0]; every value of a program has the same batch axis."""
    if not isinstance(node, fx.Node):
        return False
    if node.op == "call_method" and node.target == "size":
        return (*node.args[1:], *node.kwargs.values()) == (0,)
    if node.op == "call_function" and node.target is operator.getitem:
        return bool(node.args[1] == 0) and is_size(node.args[0]) and not _is_number(node.args[0])
    return False


def _is_number(size: Any) -> bool:
    """Whether a call asks for the size along one axis rather than for all of them."""
    return is_batch_size(size) or (size.target == "size" and len(size.args) + len(size.kwargs) > 1)
