"""Operators with weights, and pooling, as layers of torch.nn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from hydrabench.checkpoints.foreign.onnx_reader.builder import Array, Builder, Operand, UnreadableNode, Value
from hydrabench.checkpoints.foreign.onnx_reader.nodes import OnnxNode

OperatorRule = Callable[[Builder, OnnxNode], "Operand | Sequence[Operand]"]
_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_BATCH_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_MAX_POOLS = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
_AVERAGE_POOLS = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}


def _layer_name(node: OnnxNode) -> str:
    """A layer is called after its weights, if these are called as torch calls them, else after its node."""
    weights = node.sources[1]
    return weights.removesuffix(".weight") if weights.endswith(".weight") else node.proto.name


def _of_rank(kinds: Mapping[int, Any], rank: int) -> Any:
    if rank not in kinds:
        raise UnreadableNode(f"works on {rank} axes, only {', '.join(map(str, kinds))} have a rule")
    return kinds[rank]


def _sizes(node: OnnxNode, name: str, rank: int, default: int = 1) -> tuple[int, ...]:
    found = tuple(node.attribute(name, [default] * rank))
    if len(found) != rank:
        raise UnreadableNode(f"has {name}={list(found)} for {rank} axes")
    return found


def _pads(node: OnnxNode, value: Value, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> Any:
    """Return what is added before and after each axis: (begins, ends)."""
    rank, automatic = len(kernel), node.attribute("auto_pad", "NOTSET")
    if automatic in ("NOTSET", "VALID"):
        pads = node.attribute("pads", [0] * 2 * rank) if automatic == "NOTSET" else [0] * 2 * rank
        if len(pads) != 2 * rank:
            raise UnreadableNode(f"has pads={pads} for {rank} axes")
        return tuple(pads[:rank]), tuple(pads[rank:])
    if automatic not in ("SAME_UPPER", "SAME_LOWER"):
        raise UnreadableNode(f"has auto_pad={automatic!r}, which has no rule")
    begins, ends = [], []
    for size, k, stride, dilation in zip(value.shape[2:], kernel, strides, dilations, strict=True):
        total = max(0, (-(-size // stride) - 1) * stride + dilation * (k - 1) + 1 - size)
        less, more = total // 2, total - total // 2
        begins.append(less if automatic == "SAME_UPPER" else more)
        ends.append(more if automatic == "SAME_UPPER" else less)
    return tuple(begins), tuple(ends)


def _padded(build: Builder, value: Value, pads: Any, fill: float = 0.0) -> tuple[Value, tuple[int, ...]]:
    """The value, padded where the two sides of an axis differ, and the padding that is left to the layer."""
    begins, ends = pads
    if begins == ends:
        return value, begins
    both = [size for pair in zip(reversed(begins), reversed(ends), strict=True) for size in pair]
    return build.call(F.pad, value, both, value=fill), (0,) * len(begins)


def _convolution(build: Builder, node: OnnxNode) -> Value:
    value, weight, bias = node.value(), node.weight(1), node.constant(2)
    rank, groups, kernel = weight.ndim - 2, node.attribute("group", 1), weight.shape[2:]
    strides, dilations = _sizes(node, "strides", rank), _sizes(node, "dilations", rank)
    kind = _of_rank(_CONVOLUTIONS, rank)
    value, padding = _padded(build, value, _pads(node, value, kernel, strides, dilations))

    def make() -> nn.Module:
        settings = {"stride": strides, "padding": padding, "dilation": dilations, "groups": groups}
        layer: nn.Module = kind(weight.shape[1] * groups, weight.shape[0], kernel, bias=bias is not None, **settings)
        return layer

    return build.layer(make, value, {"weight": weight, "bias": bias}, _layer_name(node))


def _transposed_convolution(build: Builder, node: OnnxNode) -> Value:
    value, weight, bias = node.value(), node.weight(1), node.constant(2)
    rank, groups, kernel = weight.ndim - 2, node.attribute("group", 1), weight.shape[2:]
    node.refuse("output_shape", None)
    node.refuse("auto_pad", "NOTSET", "VALID")
    strides, dilations = _sizes(node, "strides", rank), _sizes(node, "dilations", rank)
    begins, ends = _pads(node, value, kernel, strides, dilations)
    extra = _sizes(node, "output_padding", rank, 0)
    extra = tuple(more + a - b for more, a, b in zip(extra, begins, ends, strict=True))
    kind = _of_rank(_TRANSPOSED, rank)

    def make() -> nn.Module:
        settings = {"stride": strides, "padding": begins, "output_padding": extra, "dilation": dilations}
        sizes = (weight.shape[0], weight.shape[1] * groups, kernel)
        layer: nn.Module = kind(*sizes, groups=groups, bias=bias is not None, **settings)
        return layer

    return build.layer(make, value, {"weight": weight, "bias": bias}, _layer_name(node))


def _linear(build: Builder, value: Value, weight: Array, bias: Array | None, name: str) -> Value:
    """A linear layer with `weight` (outputs, inputs)."""
    outputs, inputs = weight.shape
    return build.layer(
        lambda: nn.Linear(inputs, outputs, bias=bias is not None), value, {"weight": weight, "bias": bias}, name
    )


def _gemm(build: Builder, node: OnnxNode) -> Value:
    value, weight, bias = node.value(), node.weight(1), node.constant(2)
    node.refuse("transA", 0)
    if value.ndim != 2 or weight.ndim != 2:
        raise UnreadableNode(f"multiplies values of {value.ndim} and {weight.ndim} axes; Gemm takes 2 and 2")
    alpha, beta = node.attribute("alpha", 1.0), node.attribute("beta", 1.0)
    weight = weight if node.attribute("transB", 0) else weight.T
    weight = weight if alpha == 1 else (alpha * weight).astype(weight.dtype)
    if bias is not None:
        if bias.ndim == 2 and len(bias) != 1:
            raise UnreadableNode(f"adds a constant of shape {bias.shape}, which differs between the images of a batch")
        wide = np.broadcast_to(bias.reshape(-1), (len(weight),))
        bias = (beta * wide).astype(bias.dtype) if beta != 1 or bias.shape != wide.shape else bias
    return _linear(build, value, weight, bias, _layer_name(node))


def _matmul(build: Builder, node: OnnxNode) -> Value:
    a, b = node.operand(0), node.operand(1)
    if isinstance(a, Value) and isinstance(b, np.ndarray) and b.ndim == 2:
        return _linear(build, a, b.T, None, _layer_name(node))
    return build.call(torch.matmul, a, b)


def _batch_norm(build: Builder, node: OnnxNode) -> Value:
    value = node.value()
    node.refuse("training_mode", 0)
    node.refuse("spatial", 1)
    tensors = {key: node.weight(i) for i, key in enumerate(("weight", "bias", "running_mean", "running_var"), start=1)}
    kind, epsilon = _of_rank(_BATCH_NORMS, value.ndim), node.attribute("epsilon", 1e-5)
    counter = {"num_batches_tracked": np.array(0)}
    return build.layer(
        lambda: kind(len(tensors["weight"]), eps=epsilon), value, {**tensors, **counter}, _layer_name(node)
    )


def _max_pool(build: Builder, node: OnnxNode) -> Value:
    node.only_first_output()
    value, kernel = node.value(), tuple(node.attribute("kernel_shape"))
    rank = len(kernel)
    strides, dilations = _sizes(node, "strides", rank), _sizes(node, "dilations", rank)
    pads = _pads(node, value, kernel, strides, dilations)
    value, padding = _padded(build, value, pads, float("-inf"))
    kind, ceil = _of_rank(_MAX_POOLS, rank), bool(node.attribute("ceil_mode", 0))
    return build.layer(lambda: kind(kernel, strides, padding, dilations, ceil_mode=ceil), value, {}, node.proto.name)


def _average_pool(build: Builder, node: OnnxNode) -> Value:
    value, kernel = node.value(), tuple(node.attribute("kernel_shape"))
    rank = len(kernel)
    node.refuse("dilations", None, [1] * rank)
    strides, counts = _sizes(node, "strides", rank), bool(node.attribute("count_include_pad", 0))
    pads = _pads(node, value, kernel, strides, (1,) * rank)
    if pads[0] != pads[1] and not counts:
        raise UnreadableNode(f"pads {pads[0]} before and {pads[1]} after without counting that, which has no rule")
    value, padding = _padded(build, value, pads)
    kind, ceil = _of_rank(_AVERAGE_POOLS, rank), bool(node.attribute("ceil_mode", 0))
    return build.layer(
        lambda: kind(kernel, strides, padding, ceil_mode=ceil, count_include_pad=counts), value, {}, node.proto.name
    )


def _global_average_pool(build: Builder, node: OnnxNode) -> Value:
    value = node.value()
    if value.ndim == 4:
        return build.layer(lambda: nn.AdaptiveAvgPool2d(1), value, {}, node.proto.name)
    return build.call(torch.mean, value, [*range(2, value.ndim)], True)


def _global_max_pool(build: Builder, node: OnnxNode) -> Value:
    value = node.value()
    if value.ndim == 4:
        return build.layer(lambda: nn.MaxPool2d(tuple(value.shape[2:])), value, {}, node.proto.name)
    return build.call(torch.amax, value, [*range(2, value.ndim)], True)


LAYERS: dict[str, OperatorRule] = {
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "BatchNormalization": _batch_norm,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average_pool,
    "GlobalMaxPool": _global_max_pool,
}
