"""Readers that turn function and method calls which torch.fx recorded into operations.

`sizes` says which calls only ask for a shape. Constants, such as numbers, buffers and what is computed from them, have
been put in place of the nodes that stood for them.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from hydrabench.bounds.program.activation_calls import ACTIVATION_FUNCTIONS, ACTIVATION_METHODS
from hydrabench.bounds.program.activations import Square
from hydrabench.bounds.program.arguments import (
    REQUIRED,
    Arguments,
    Call,
    NoRule,
    Reader,
    either,
    given,
    in_place,
    numbers,
    simple,
    two,
)
from hydrabench.bounds.program.arithmetic import Factor, Product, Shift, Subtract, Sum
from hydrabench.bounds.program.convert import (
    LAYERS,
    adaptive_pool,
    average_pool,
    dropout,
    flatten,
    max_pool,
    padded,
    pixel_shuffle,
    pixel_unshuffle,
    unflatten,
    upsample,
)
from hydrabench.bounds.program.linear import Add
from hydrabench.bounds.program.pooling import AdaptiveAveragePool
from hydrabench.bounds.program.relu import Relu
from hydrabench.bounds.program.sizes import is_batch_size, shape_of
from hydrabench.bounds.program.structure import Flatten, Identity, Join, Part, Permute, Reshape, image_axis
from hydrabench.errors import UnsupportedLayerError


def refusal(path: str, kind: str, reason: str) -> UnsupportedLayerError:
    """The error for a layer or call at `path` that has no sound rule, with everything that has one."""
    layers = ", ".join(sorted(layer.__name__ for layer in LAYERS))
    known = {getattr(function, "__name__", function) for function in (*FUNCTIONS, *TENSOR_METHODS)} - {"fn"}
    functions = sorted(name for name in known if name.removesuffix("_") == name or name[:-1] not in known)
    return UnsupportedLayerError(
        f"cannot bound {path or 'the network'} ({kind}): it {reason}; the bounds know the layers {layers} and the "
        f"functions {', '.join(functions)}; build the network from these, add a rule by --plugin "
        "(examples/extend/operation.py), or certify it with smoothing, which needs no rules"
    )


# Arithmetic ------------------------------------------------------------------------------------


def _constant(value: Any) -> Tensor:
    """A number or tensor that does not depend on the images."""
    return value if isinstance(value, Tensor) else torch.tensor(float(value), dtype=torch.float64)


def _two(call: Arguments) -> tuple[Any, Any, bool, bool]:
    """Both arguments, and whether each is a value of the network."""
    a, b = two(call)
    for side in (a, b):
        if not isinstance(side, fx.Node | Tensor | int | float) or is_batch_size(side):
            raise NoRule(f"computes with {side}, which has no rule")
    return a, b, isinstance(a, fx.Node), isinstance(b, fx.Node)


def _add(call: Arguments) -> Call:
    a, b, of_a, of_b = _two(call)
    if of_a and of_b:
        return Call((Add(),), (a, b))
    value, constant = (a, b) if of_a else (b, a)
    return Call((Shift(_constant(constant)),), (value,))


def _subtract(call: Arguments) -> Call:
    a, b, of_a, of_b = _two(call)
    if of_a and of_b:
        return Call((Subtract(),), (a, b))
    if of_a:
        return Call((Shift(-_constant(b)),), (a,))
    return Call((_negated(), Shift(_constant(a))), (b,))


def _multiply(call: Arguments) -> Call:
    a, b, of_a, of_b = _two(call)
    if a is b:
        return Call((Square(),), (a,))
    if of_a and of_b:
        return Call((Product(),), (a, b))
    value, constant = (a, b) if of_a else (b, a)
    return Call((Factor(_constant(constant)),), (value,))


def _divide(call: Arguments) -> Call:
    a, b, of_a, of_b = _two(call)
    if not of_a or of_b:
        raise NoRule("divides by a value of the network, which has no rule")
    return Call((Factor(_constant(b), divides=True),), (a,))


def _negated() -> Factor:
    return Factor(_constant(-1.0))


def _sum(*, mean: bool) -> Reader:
    def read(call: Arguments) -> Call:
        found = given(call, input=REQUIRED, dim=REQUIRED, keepdim=False)
        axes = found["dim"] if isinstance(found["dim"], tuple | list) else (found["dim"],)
        if not axes or not all(isinstance(axis, int) for axis in axes):
            raise NoRule(f"takes a sum or mean over axes {found['dim']}, which has no rule")
        if mean and sorted(axes) == [2, 3]:
            pool = AdaptiveAveragePool((1, 1))
            return Call((pool,) if found["keepdim"] else (pool, Flatten()), (found["input"],))
        return Call((Sum(tuple(axes), bool(found["keepdim"]), mean),), (found["input"],))

    return read


# Structure -------------------------------------------------------------------------------------


def _reshape(call: Arguments) -> Call:
    """`view` and `reshape`, whose first axis must be that of the batch."""
    value, *shape = (*call.args, *call.kwargs.values())
    if len(shape) == 1 and isinstance(shape[0], tuple | list):
        shape = [*shape[0]]
    if len(shape) == 2 and is_batch_size(shape[0]) and shape[1] == -1:
        return Call((Flatten(),), (value,))
    if len(shape) < 2 or not (is_batch_size(shape[0]) or shape[0] == -1):
        raise NoRule("reshapes to another first axis than x.size(0), which has no rule; call flatten(1)")
    sources, axes = shape_of(shape[1:], value)
    return Call((Reshape(axes),), (value, *sources))


def _flatten(call: Arguments) -> Call:
    found = given(call, input=REQUIRED, start_dim=0, end_dim=-1)
    return Call((flatten(found["start_dim"], found["end_dim"]),), (found["input"],))


def _permute(call: Arguments) -> Call:
    value, *order = call.args
    order = [*order[0]] if len(order) == 1 and isinstance(order[0], tuple | list) else order
    order = order or [*call.kwargs.get("dims", ())]
    if not order or not all(isinstance(axis, int) for axis in order):
        raise NoRule(f"permutes axes to {order}, which has no rule")
    return Call((Permute(lambda ndim: [axis % ndim for axis in order]),), (value,))


def _transposed(dim0: int, dim1: int) -> Permute:
    def order(ndim: int) -> list[int]:
        axes = [*range(ndim)]
        axes[dim0 % ndim], axes[dim1 % ndim] = axes[dim1 % ndim], axes[dim0 % ndim]
        return axes

    return Permute(order)


def _squeezed(dim: int | Sequence[int]) -> Reshape:
    def shape(size: torch.Size) -> list[int]:
        axes = {image_axis(axis, len(size)) for axis in (dim if isinstance(dim, tuple | list) else (dim,))}
        return [n for axis, n in enumerate(size) if axis and (n != 1 or axis not in axes)]

    return Reshape(shape)


def _unsqueezed(dim: int) -> Reshape:
    def shape(size: torch.Size) -> list[int]:
        axes, at = [*size], image_axis(dim, len(size) + 1)
        return [*axes[1:at], 1, *axes[at:]]

    return Reshape(shape)


def _join(call: Arguments) -> Call:
    found = given(call, tensors=REQUIRED, dim=0)
    if not isinstance(found["tensors"], tuple | list) or not isinstance(found["dim"], int) or found["dim"] == 0:
        raise NoRule(f"joins values along axis {found['dim']}, which has no rule")
    return Call((Join(found["dim"]),), tuple(found["tensors"]))


def _picked(call: Arguments) -> Call:
    """Indexing by whole numbers and slices that keep the batch axis."""
    value, index = call.args
    index = index if isinstance(index, tuple) else (index,)
    plain = all(part is None or part is Ellipsis or isinstance(part, int | slice) for part in index)
    numbers = [end for part in index if isinstance(part, slice) for end in (part.start, part.stop, part.step)]
    if not plain or not all(end is None or isinstance(end, int) for end in numbers):
        raise NoRule(f"picks entries by {index}, only whole numbers and slices have a rule")
    if index[0] is not Ellipsis and index[0] != slice(None):
        raise NoRule(f"picks images of a batch by {index[0]}, which has no rule")
    places = sum(part is not None and part is not Ellipsis for part in index)

    def take(x: Tensor) -> Tensor:
        if index[0] is Ellipsis and places >= x.ndim and index[1] != slice(None):
            raise UnsupportedLayerError(f"cannot bound picking by {index} of {x.ndim} axes: it picks images of a batch")
        return x[index]

    return Call((Part(take),), (value,))


def _chunks(method: str, size: str) -> Reader:
    """`chunk` and `split`, which return several values."""

    def read(call: Arguments) -> Call:
        found = given(call, input=REQUIRED, **{size: REQUIRED}, dim=0)
        count, dim = found[size], found["dim"]
        numbers({size: count})
        if not isinstance(dim, int) or dim == 0:
            raise NoRule(f"takes a value apart along axis {dim}, which has no rule")

        def piece(number: int) -> Part:
            return Part(lambda x: getattr(x, method)(count, image_axis(dim, x.ndim))[number])

        return Call((), (found["input"],), pieces=piece)

    return read


_identity = simple(Identity)
_upsample = simple(
    lambda **settings: upsample(settings),
    size=None,
    scale_factor=None,
    mode="nearest",
    align_corners=None,
    recompute_scale_factor=None,
    antialias=False,
)
_pool: dict[str, Any] = {"kernel_size": REQUIRED, "stride": None, "padding": 0}
_max_pool = simple(lambda **found: max_pool(found), **_pool, dilation=1, ceil_mode=False, return_indices=False)
_average_pool = simple(
    lambda **found: average_pool(found), **_pool, ceil_mode=False, count_include_pad=True, divisor_override=None
)
_adaptive_pool = simple(adaptive_pool, output_size=REQUIRED)
_pad = simple(padded, pad=REQUIRED, mode="constant", value=None)

TENSOR_METHODS: dict[Any, Reader] = {
    "relu": either(Relu),
    "relu_": in_place(either(Relu)),
    "add": _add,
    "add_": in_place(_add),
    "sub": _subtract,
    "sub_": in_place(_subtract),
    "mul": _multiply,
    "mul_": in_place(_multiply),
    "div": _divide,
    "div_": in_place(_divide),
    "neg": simple(_negated),
    "mean": _sum(mean=True),
    "sum": _sum(mean=False),
    "flatten": _flatten,
    "view": _reshape,
    "reshape": _reshape,
    "unflatten": simple(unflatten, dim=REQUIRED, sizes=REQUIRED),
    "permute": _permute,
    "transpose": simple(_transposed, dim0=REQUIRED, dim1=REQUIRED),
    "squeeze": simple(_squeezed, dim=REQUIRED),
    "unsqueeze": simple(_unsqueezed, dim=REQUIRED),
    "contiguous": _identity,
    "chunk": _chunks("chunk", "chunks"),
    "split": _chunks("split", "split_size"),
    **ACTIVATION_METHODS,
}
FUNCTIONS: dict[Any, Reader] = {
    **{getattr(torch, name): TENSOR_METHODS[name] for name in TENSOR_METHODS if hasattr(torch, name)},
    F.relu: either(Relu),
    operator.add: _add,
    operator.iadd: in_place(_add),
    operator.sub: _subtract,
    operator.isub: in_place(_subtract),
    operator.mul: _multiply,
    operator.imul: in_place(_multiply),
    operator.truediv: _divide,
    operator.itruediv: in_place(_divide),
    operator.neg: TENSOR_METHODS["neg"],
    operator.getitem: _picked,
    torch.cat: _join,
    torch.concat: _join,
    F.dropout: simple(lambda p, training, inplace: dropout(training=training), p=0.5, training=True, inplace=False),  # noqa: ARG005
    "torchvision.ops.stochastic_depth.stochastic_depth": simple(
        lambda p, mode, training: dropout(training=training),  # noqa: ARG005
        p=REQUIRED,
        mode=REQUIRED,
        training=True,
    ),
    F.pad: _pad,
    F.interpolate: _upsample,
    F.pixel_shuffle: simple(pixel_shuffle, upscale_factor=REQUIRED),
    F.pixel_unshuffle: simple(pixel_unshuffle, downscale_factor=REQUIRED),
    F.max_pool2d: _max_pool,
    torch.max_pool2d: _max_pool,
    F.avg_pool2d: _average_pool,
    F.adaptive_avg_pool2d: _adaptive_pool,
    **ACTIVATION_FUNCTIONS,
}
