"""Operators on every entry: arithmetic, activations, and normalisations that attacks can pass."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hydrabench.checkpoints.foreign.onnx_reader.builder import (
    Array,
    Builder,
    Operand,
    UnreadableNode,
    Value,
    refuse_batch_size,
)
from hydrabench.checkpoints.foreign.onnx_reader.layers import OperatorRule
from hydrabench.checkpoints.foreign.onnx_reader.nodes import OnnxNode

SELU = (1.67326319217681884765625, 1.05070102214813232421875)  # ONNX's defaults, which are torch's constants
_FLOATS = {1, 10, 11}  # float32, float16, float64: values of onnx.TensorProto.DataType


# Arithmetic ------------------------------------------------------------------------------------


def plain(operand: Operand, beside: Operand) -> Any:
    """An operand; a constant of one entry that broadcasts as a number does is that number."""
    if isinstance(operand, np.ndarray) and operand.size == 1 and operand.ndim <= beside.ndim:
        refuse_batch_size(operand)
        return operand.item()
    return operand


def _binary(function: Callable[..., Tensor]) -> OperatorRule:
    def rule(build: Builder, node: OnnxNode) -> Operand:
        a, b = node.operand(0), node.operand(1)
        return build.call(function, plain(a, b), plain(b, a))

    return rule


def _add(build: Builder, node: OnnxNode) -> Operand:
    """A sum; a constant that is added to the result of a layer, which nothing else reads, is the layer's bias."""
    for position in (0, 1):
        value, constant = node.operand(position), node.operand(1 - position)
        if isinstance(value, Value) and isinstance(constant, np.ndarray) and node.reads_alone(position):
            layer = build.layer_of(value)
            bias = None if layer is None else _as_bias(layer, constant, value.ndim)
            if layer is not None and bias is not None:
                build.set_bias(layer, bias)
                return value
    return _binary(operator.add)(build, node)  # type: ignore[return-value]


def _as_bias(layer: nn.Module, constant: Array, ndim: int) -> Array | None:
    """The constant as the bias of a layer without one, (outputs,); None if it is something else."""
    if getattr(layer, "bias", constant) is not None or constant.ndim > ndim:
        return None
    axes_after = {nn.Linear: 0, nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}.get(type(layer))
    if axes_after is None or constant.ndim <= axes_after:
        return None
    outputs: Any = getattr(layer, "out_features", None) or getattr(layer, "out_channels", None)
    shape = (*[1] * (constant.ndim - axes_after - 1), outputs, *[1] * axes_after)
    return constant.reshape(-1) if constant.shape == shape else None


def _power(build: Builder, node: OnnxNode) -> Operand:
    exponent = plain(node.operand(1), node.operand(0))
    if not isinstance(exponent, int | float):
        raise UnreadableNode("takes a power that is not one number, which has no rule")
    value = node.value()
    return build.call(operator.mul, value, value) if exponent == 2 else build.call(torch.pow, value, exponent)


def _extreme(whole: Callable[..., Tensor], limit: str) -> OperatorRule:
    """Max and Min of values and constants."""

    def rule(build: Builder, node: OnnxNode) -> Operand:
        found = node.operand(0)
        for position in range(1, len(node.inputs)):
            a, b = found, node.operand(position)
            number = next((n for n in (plain(a, b), plain(b, a)) if isinstance(n, int | float)), None)
            if number is None:
                found = build.call(whole, a, b)
            else:
                found = _limited(build, a if isinstance(a, Value) else b, **{limit: number})  # type: ignore[arg-type]
        return found

    return rule


# Activations -----------------------------------------------------------------------------------


def _simple(function: Callable[..., Tensor]) -> OperatorRule:
    return lambda build, node: build.call(function, node.value())


def _with(function: Callable[..., Tensor], **attributes: float) -> OperatorRule:
    """A function whose settings are attributes, in this order."""

    def rule(build: Builder, node: OnnxNode) -> Operand:
        return build.call(function, node.value(), *(node.attribute(name, value) for name, value in attributes.items()))

    return rule


def _limited(build: Builder, value: Value, min: float | None = None, max: float | None = None) -> Value:
    if min == 0 and max in (None, 6):
        return build.call(torch.relu if max is None else F.relu6, value)
    return value if min is None and max is None else build.call(torch.clamp, value, min, max)


def _clip(build: Builder, node: OnnxNode) -> Operand:
    limits = [node.setting(name, position) for position, name in enumerate(("min", "max"), start=1)]
    numbers = [limit[0] if isinstance(limit, list) and len(limit) == 1 else limit for limit in limits]
    largest = float(torch.finfo(torch.float32).max)  # what opset 6 writes for no limit
    return _limited(build, node.value(), *(None if n is None or abs(n) >= largest else n for n in numbers))


def _prelu(build: Builder, node: OnnxNode) -> Operand:
    value, slope = node.value(), node.weight(1)
    channels = (value.shape[1], *[1] * (value.ndim - 2))
    if slope.size != 1 and slope.shape != channels:
        raise UnreadableNode(f"has slopes of shape {slope.shape}; only one, or one for each channel, has a rule")
    return build.call(F.prelu, value, slope.reshape(-1))


def _selu(build: Builder, node: OnnxNode) -> Operand:
    alpha, gamma = node.attribute("alpha", SELU[0]), node.attribute("gamma", SELU[1])
    if np.allclose((alpha, gamma), SELU, rtol=1e-6):
        return build.call(F.selu, node.value())
    return build.call(operator.mul, build.call(F.elu, node.value(), alpha), gamma)


def _gelu(build: Builder, node: OnnxNode) -> Operand:
    return build.call(F.gelu, node.value(), approximate=node.attribute("approximate", "none"))


def _swish(build: Builder, node: OnnxNode) -> Operand:
    node.refuse("alpha", 1.0)
    return build.call(F.silu, node.value())


def _hard_sigmoid(build: Builder, node: OnnxNode) -> Operand:
    alpha, beta = node.attribute("alpha", 0.2), node.attribute("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return build.call(F.hardsigmoid, node.value())
    scaled = build.call(operator.add, build.call(operator.mul, node.value(), alpha), beta)
    return build.call(torch.clamp, scaled, 0.0, 1.0)


def _cast(_build: Builder, node: OnnxNode) -> Operand:
    """Between floats, where the numbers stay; the comparison with onnxruntime says if that matters."""
    if node.proto.op_type == "Cast" and node.attribute("to") not in _FLOATS:
        raise UnreadableNode("turns values into whole numbers or truth values, which have no gradient")
    return node.value()


def _dropout(_build: Builder, node: OnnxNode) -> Operand:
    node.only_first_output()
    training = node.constant(2) if len(node.inputs) > 2 else None
    if training is not None and bool(training):
        raise UnreadableNode("is random in training mode; export the network in eval mode")
    return node.value()


# What bounds refuse and attacks can pass ---------------------------------------------------------


def _softmax(function: Callable[..., Tensor]) -> OperatorRule:
    def rule(build: Builder, node: OnnxNode) -> Operand:
        value, axis = node.value(), node.attribute("axis", -1 if node.opset >= 13 else 1)
        if node.opset < 13 and axis % value.ndim != value.ndim - 1:
            raise UnreadableNode(
                f"is over all axes from {axis} on, which opsets before 13 mean; only the last has a rule"
            )
        return build.call(function, value, axis % value.ndim)

    return rule


def _layer_norm(build: Builder, node: OnnxNode) -> Operand:
    node.only_first_output()
    value, axis = node.value(), node.attribute("axis", -1)
    shape = [*value.shape[axis % value.ndim :]]
    weight, bias = node.constant(1), node.constant(2)
    return build.call(F.layer_norm, value, shape, weight, bias, node.attribute("epsilon", 1e-5))


def _instance_norm(build: Builder, node: OnnxNode) -> Operand:
    settings: dict[str, Any] = {"weight": node.weight(1), "bias": node.weight(2)}
    return build.call(F.instance_norm, node.value(), **settings, eps=node.attribute("epsilon", 1e-5))


ELEMENTWISE: dict[str, OperatorRule] = {
    "Add": _add,
    "Sub": _binary(operator.sub),
    "Mul": _binary(operator.mul),
    "Div": _binary(operator.truediv),
    "Pow": _power,
    "Neg": _simple(operator.neg),
    "Abs": _simple(torch.abs),
    "Max": _extreme(torch.maximum, "min"),
    "Min": _extreme(torch.minimum, "max"),
    "Clip": _clip,
    "Relu": _simple(torch.relu),
    "LeakyRelu": _with(F.leaky_relu, alpha=0.01),
    "PRelu": _prelu,
    "Elu": _with(F.elu, alpha=1.0),
    "Selu": _selu,
    "Celu": _with(F.celu, alpha=1.0),
    "Sigmoid": _simple(torch.sigmoid),
    "Tanh": _simple(torch.tanh),
    "Softplus": _simple(F.softplus),
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _simple(F.hardswish),
    "Swish": _swish,
    "Mish": _simple(F.mish),
    "Softsign": _simple(F.softsign),
    "Identity": lambda _build, node: node.value(),
    "Cast": _cast,
    "CastLike": _cast,
    "Dropout": _dropout,
    "Erf": _simple(torch.erf),
    "Exp": _simple(torch.exp),
    "Log": _simple(torch.log),
    "Sqrt": _simple(torch.sqrt),
    "Reciprocal": _simple(torch.reciprocal),
    "Sin": _simple(torch.sin),
    "Cos": _simple(torch.cos),
    "Softmax": _softmax(torch.softmax),
    "LogSoftmax": _softmax(torch.log_softmax),
    "LayerNormalization": _layer_norm,
    "InstanceNormalization": _instance_norm,
}
