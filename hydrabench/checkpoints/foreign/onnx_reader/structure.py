"""Operators that move entries: reshape, transpose, concat, split, slice, pad, reduce, resize."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hydrabench.checkpoints.foreign.onnx_reader.builder import BATCH, Builder, Operand, UnreadableNode, Value
from hydrabench.checkpoints.foreign.onnx_reader.layers import OperatorRule
from hydrabench.checkpoints.foreign.onnx_reader.nodes import OnnxNode


def _shape(_build: Builder, node: OnnxNode) -> Operand:
    value = node.value()
    return np.array(value.shape[node.attribute("start", 0) : node.attribute("end", value.ndim)], dtype=np.int64)


def _size(_build: Builder, node: OnnxNode) -> Operand:
    return np.array(prod(node.value().shape), dtype=np.int64)


def _reshape(build: Builder, node: OnnxNode) -> Operand:
    """The first axis must stay that of the batch; in a file of a fixed batch size, that size stands for it."""
    value = node.value()
    axes = [int(axis) for axis in node.setting("shape", 1)]
    if not node.attribute("allowzero", 0):
        axes = [value.shape[place] if axis == 0 else axis for place, axis in enumerate(axes)]
    if axes and axes[0] == build.batch:
        axes[0] = BATCH
    if -1 in axes:
        known = prod(axis for axis in axes if axis != -1)
        axes[axes.index(-1)] = prod(value.shape) // known if known else -1
    if not axes or axes[0] != BATCH or prod(axes) != prod(value.shape):
        raise UnreadableNode(
            f"reshapes images of {_words(value.shape[1:])} to {_words(axes)}, which mixes the images of a batch"
        )
    return build.reshaped(value, tuple(axes[1:]))


def _words(axes: Sequence[int]) -> str:
    return " x ".join("batch" if axis == BATCH else str(axis) for axis in axes) or "one axis less"


def _flatten(build: Builder, node: OnnxNode) -> Operand:
    value, axis = node.value(), node.attribute("axis", 1)
    if axis % value.ndim != 1:
        raise UnreadableNode(f"flattens from axis {axis}, which mixes the images of a batch")
    return build.reshaped(value, (prod(value.shape[1:]),))


def _axis(value: Value, axis: Any, more: int = 0) -> int:
    """An axis counted from the front; that of the batch is refused."""
    ndim = value.ndim + more
    if not isinstance(axis, int) or not -ndim <= axis < ndim:
        raise UnreadableNode(f"works on axis {axis} of {ndim}")
    if axis % ndim == 0:
        raise UnreadableNode(f"works on axis {axis} of {ndim}, which is that of the batch")
    return axis % ndim


def _transpose(build: Builder, node: OnnxNode) -> Operand:
    value = node.value()
    order = [axis % value.ndim for axis in node.attribute("perm", [*reversed(range(value.ndim))])]
    return value if order == [*range(value.ndim)] else build.call(torch.permute, value, order)


def _squeeze(build: Builder, node: OnnxNode) -> Operand:
    value, axes = node.value(), node.setting("axes", 1)
    given = [n for n, size in enumerate(value.shape) if size == 1] if axes is None else axes
    dropped = {_axis(value, axis) for axis in given}
    return build.reshaped(value, tuple(size for n, size in enumerate(value.shape) if n and n not in dropped))


def _unsqueeze(build: Builder, node: OnnxNode) -> Operand:
    value, axes = node.value(), node.setting("axes", 1)
    places = sorted(_axis(value, axis, len(axes)) for axis in axes)
    sizes = [*value.shape[1:]]
    for place in places:
        sizes.insert(place - 1, 1)
    return build.reshaped(value, tuple(sizes))


def _concat(build: Builder, node: OnnxNode) -> Operand:
    operands = [node.operand(place) for place in range(len(node.inputs))]
    first = next(one for one in operands if isinstance(one, Value))
    axis = _axis(first, node.attribute("axis", 1))
    values = [one if isinstance(one, Value) else build.repeated(one, one.shape[1:]) for one in operands]
    return build.call(torch.cat, values, axis) if len(values) > 1 else first


def _split(build: Builder, node: OnnxNode) -> Sequence[Operand]:
    value = node.value()
    axis, count = _axis(value, node.attribute("axis", 0)), len(node.proto.output)
    sizes, each = node.setting("split", 1), -(-value.shape[axis] // count)
    ends = [min(each * number, value.shape[axis]) for number in range(1, count + 1)]
    ends = ends if sizes is None else np.cumsum(sizes).tolist()
    starts = [0, *ends[:-1]]
    return [_part(build, value, {axis: slice(*ends)}) for ends in zip(starts, ends, strict=True)]


def _part(build: Builder, value: Value, parts: dict[int, slice | int]) -> Value:
    """Some entries of every image, by axis."""
    last = max(parts)
    return build.call(operator.getitem, value, tuple(parts.get(axis, slice(None)) for axis in range(last + 1)))


def _slice(build: Builder, node: OnnxNode) -> Operand:
    value = node.value()
    starts, ends = node.setting("starts", 1), node.setting("ends", 2)
    axes = node.setting("axes", 3) or [*range(len(starts))]
    steps = node.setting("steps", 4) or [1] * len(starts)
    parts: dict[int, slice | int] = {}
    turned = []
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        place = axis % value.ndim
        found = range(*slice(start, end, step).indices(value.shape[place]))
        if len(found) == value.shape[place] and step == 1:
            continue
        _axis(value, axis)
        if not found:
            raise UnreadableNode(f"takes nothing of axis {axis}")
        first, last = sorted((found[0], found[-1]))
        parts[place] = slice(first, last + 1, abs(step))
        turned += [place] if step < 0 else []
    taken = _part(build, value, parts) if parts else value
    return build.call(torch.flip, taken, turned) if turned else taken


def _gather(build: Builder, node: OnnxNode) -> Operand:
    value, indices = node.value(), node.weight(1)
    axis = _axis(value, node.attribute("axis", 0))
    wanted = np.where(indices < 0, indices + value.shape[axis], indices)
    if indices.ndim == 0:
        return _part(build, value, {axis: int(wanted)})
    if indices.ndim != 1:
        raise UnreadableNode(f"gathers by indices of {indices.ndim} axes, only one or none has a rule")
    if wanted.size and np.array_equal(wanted, np.arange(wanted[0], wanted[0] + wanted.size)):
        return _part(build, value, {axis: slice(int(wanted[0]), int(wanted[-1]) + 1)})
    return build.call(torch.index_select, value, axis, wanted)


def _pad(build: Builder, node: OnnxNode) -> Operand:
    value, mode = node.value(), node.attribute("mode", "constant")
    modes = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    pads, axes = node.setting("pads", 1) or node.attribute("paddings"), node.setting("axes", 3)
    fill = node.setting("value", 2, 0.0)
    fill = fill[0] if isinstance(fill, list) else fill
    axes = [*range(value.ndim)] if axes is None else [axis % value.ndim for axis in axes]
    sides = {axis: (pads[n], pads[n + len(axes)]) for n, axis in enumerate(axes)}
    padded = [axis for axis, side in sides.items() if any(side)]
    if not padded:
        return value
    if 0 in padded:
        raise UnreadableNode("pads the batch axis")
    both = [size for axis in range(value.ndim - 1, min(padded) - 1, -1) for size in sides.get(axis, (0, 0))]
    if mode == "constant":
        return build.call(F.pad, value, both, value=float(fill))
    return build.call(F.pad, value, both, mode=modes.get(mode, mode))


def _reduce(function: Callable[..., Tensor]) -> OperatorRule:
    def rule(build: Builder, node: OnnxNode) -> Operand:
        value, axes = node.value(), node.setting("axes", 1)
        if not axes:
            if node.attribute("noop_with_empty_axes", 0):
                return value
            raise UnreadableNode("reduces all axes, the batch axis, too")
        return build.call(function, value, [_axis(value, axis) for axis in axes], bool(node.attribute("keepdims", 1)))

    return rule


def _expand(build: Builder, node: OnnxNode) -> Operand:
    operand, axes = node.operand(0), [int(axis) for axis in node.setting("shape", 1)]
    if not isinstance(operand, Value):
        return build.repeated(operand, tuple(np.broadcast_shapes(operand.shape, (1, *axes[1:])))[1:])
    axes = [BATCH if n == 0 and axis == build.batch else axis for n, axis in enumerate(axes)]
    if len(axes) > operand.ndim or any(
        axis not in (1, old) for axis, old in zip(reversed(axes), reversed(operand.shape), strict=False)
    ):
        raise UnreadableNode(f"expands values of {_words(operand.shape[1:])} to {_words(axes)}, which has no rule")
    return operand


def _filled(build: Builder, node: OnnxNode) -> Operand:
    """A constant for every image: ConstantOfShape of a shape that speaks of the batch."""
    from onnx.numpy_helper import to_array  # noqa: PLC0415 - may be missing

    given = node.attribute("value")
    number = np.zeros(1, np.float32) if given is None else to_array(given)
    axes = tuple(int(axis) for axis in node.weight(0))
    return build.repeated(np.broadcast_to(number, (1, *axes[1:])).copy(), axes[1:])


def _depth_to_space(build: Builder, node: OnnxNode) -> Operand:
    node.refuse("mode", "CRD")
    return build.call(F.pixel_shuffle, node.value(), node.attribute("blocksize"))


def _resize(build: Builder, node: OnnxNode) -> Operand:
    """To a known size; what the many modes of ONNX mean beside torch's, the comparison with onnxruntime finds out."""
    value, mode = node.value(), node.attribute("mode", "nearest")
    scales = node.setting("scales", 1 if node.proto.op_type == "Upsample" or node.opset < 11 else 2)
    sizes = node.setting("sizes", 3) if node.proto.op_type == "Resize" else None
    if node.attribute("axes"):
        raise UnreadableNode("resizes by axes, which has no rule")
    goal = sizes or [int(n * scale) for n, scale in zip(value.shape, scales, strict=True)]
    if goal[1] != value.shape[1]:
        raise UnreadableNode("resizes channels")
    place = node.attribute("coordinate_transformation_mode", "half_pixel" if node.opset >= 11 else "asymmetric")
    spread = {"linear": {3: "linear", 4: "bilinear", 5: "trilinear"}, "cubic": {4: "bicubic"}}.get(mode, {})
    if mode == "nearest":
        return build.call(F.interpolate, value, goal[2:], mode="nearest" if place == "asymmetric" else "nearest-exact")
    if value.ndim not in spread:
        raise UnreadableNode(f"resizes {value.ndim - 2} axes with mode={mode!r}, which has no rule")
    return build.call(F.interpolate, value, goal[2:], mode=spread[value.ndim], align_corners=place == "align_corners")


STRUCTURE: dict[str, OperatorRule] = {
    "Shape": _shape,
    "Size": _size,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "Pad": _pad,
    "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMin": _reduce(torch.amin),
    "Expand": _expand,
    "ConstantOfShape": _filled,
    "DepthToSpace": _depth_to_space,
    "Resize": _resize,
    "Upsample": _resize,
}
