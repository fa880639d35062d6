"""Tables from layers, functions and methods to elementwise operations, for `convert` and `calls`."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from hydrabench.bounds.program.activations import Absolute, Clamp, Hardsigmoid, Hardswish, LeakyRelu, Prelu, Square
from hydrabench.bounds.program.arguments import (
    REQUIRED,
    Arguments,
    Call,
    NoRule,
    Reader,
    either,
    in_place,
    simple,
    two,
)
from hydrabench.bounds.program.gated import Gelu, Silu, TanhGelu
from hydrabench.bounds.program.operations import Operation
from hydrabench.bounds.program.smooth import Elu, Sigmoid, Softplus, Tanh

SELU_ALPHA, SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946  # torch's constants


def _number(value: Any) -> float:
    """A setting that is a number, or a constant with a single entry."""
    if isinstance(value, Tensor) and value.shape in (torch.Size(()), torch.Size((1,))):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise NoRule(f"takes {value if not isinstance(value, Tensor) else 'many numbers'} for one number")
    return float(value)


def _made(make: Callable[..., Operation], *settings: float) -> Operation:
    """An operation with settings that it may refuse."""
    try:
        return make(*settings)
    except ValueError as reason:
        raise NoRule(f"has settings without a rule ({reason})") from None


def _leaky(negative_slope: Any = 0.01) -> Operation:
    return LeakyRelu(_number(negative_slope))


def _prelu(weight: Any) -> Operation:
    if not isinstance(weight, Tensor) or weight.ndim > 1:
        raise NoRule("takes weights that depend on the image, which has no rule")
    return Prelu(weight.view(-1))


def _elu(alpha: Any = 1.0) -> Operation:
    return _made(Elu, _number(alpha))


def _selu() -> Operation:
    return Elu(SELU_ALPHA, SELU_SCALE)


def _celu(alpha: Any = 1.0) -> Operation:
    alpha = _number(alpha)
    return _made(Elu, alpha, 1.0, 1 / alpha if alpha else 0.0)


def _softplus(beta: Any = 1.0, threshold: Any = 20.0) -> Operation:
    return _made(Softplus, _number(beta), _number(threshold))


def _gelu(approximate: Any = "none") -> Operation:
    kinds = {"none": Gelu, "tanh": TanhGelu}
    if approximate not in kinds:
        raise NoRule(f"is GELU with approximate={approximate!r}, only 'none' and 'tanh' have a rule")
    return kinds[approximate]()


def _clamp(min: Any = None, max: Any = None) -> Operation:
    return _made(Clamp, *(None if limit is None else _number(limit) for limit in (min, max)))  # type: ignore[arg-type]


def _relu6() -> Operation:
    return Clamp(0.0, 6.0)


def _power(exponent: Any) -> Operation:
    if _number(exponent) != 2:
        raise NoRule(f"takes the power {exponent}, only 2 has a rule")
    return Square()


def _limit(name: str) -> Reader:
    """`maximum` and `minimum` of a value and a constant, in either order."""

    def read(call: Arguments) -> Call:
        sides = two(call)
        constants = [side for side in sides if not isinstance(side, fx.Node)]
        values = [side for side in sides if isinstance(side, fx.Node)]
        if len(values) != 1 or not isinstance(constants[0], Tensor):  # x.max(1) reduces an axis
            raise NoRule("takes maxima or minima of other things than a value and a constant tensor, which has no rule")
        return Call((_clamp(**{name: constants[0]}),), tuple(values))

    return read


ACTIVATION_LAYERS: dict[type[nn.Module], Callable[[Any], Operation]] = {
    nn.LeakyReLU: lambda layer: _leaky(layer.negative_slope),
    nn.PReLU: lambda layer: _prelu(layer.weight),
    nn.ELU: lambda layer: _elu(layer.alpha),
    nn.SELU: lambda _layer: _selu(),
    nn.CELU: lambda layer: _celu(layer.alpha),
    nn.Sigmoid: lambda _layer: Sigmoid(),
    nn.Tanh: lambda _layer: Tanh(),
    nn.Softplus: lambda layer: _softplus(layer.beta, layer.threshold),
    nn.GELU: lambda layer: _gelu(layer.approximate),
    nn.SiLU: lambda _layer: Silu(),
    nn.Hardswish: lambda _layer: Hardswish(),
    nn.Hardsigmoid: lambda _layer: Hardsigmoid(),
    nn.ReLU6: lambda _layer: _relu6(),
    nn.Hardtanh: lambda layer: _clamp(layer.min_val, layer.max_val),
}

_READERS: dict[str, Reader] = {  # by names that functions and methods share
    "prelu": simple(_prelu, weight=REQUIRED),
    "sigmoid": simple(Sigmoid),
    "tanh": simple(Tanh),
    "abs": simple(Absolute),
    "absolute": simple(Absolute),
    "square": simple(Square),
    "pow": simple(_power, exponent=REQUIRED),
    "clamp": simple(_clamp, min=None, max=None),
    "clip": simple(_clamp, min=None, max=None),
    "clamp_min": simple(_clamp, min=REQUIRED),
    "clamp_max": simple(_clamp, max=REQUIRED),
    "maximum": _limit("min"),
    "minimum": _limit("max"),
    "max": _limit("min"),
    "min": _limit("max"),
}
_IN_PLACE = ("sigmoid", "tanh", "abs", "square", "pow", "clamp", "clip", "clamp_min", "clamp_max")

ACTIVATION_METHODS: dict[Any, Reader] = {
    **_READERS,
    **{f"{name}_": in_place(_READERS[name]) for name in _IN_PLACE},
}


def _hardtanh(min_val: Any, max_val: Any) -> Operation:
    return _clamp(min_val, max_val)


_selu_call, _celu_call = either(_selu), either(_celu, alpha=1.0)
_leaky_call, _elu_call = either(_leaky, negative_slope=0.01), either(_elu, alpha=1.0)
_hardtanh_call = either(_hardtanh, min_val=-1.0, max_val=1.0)

ACTIVATION_FUNCTIONS: dict[Any, Reader] = {
    operator.abs: _READERS["abs"],
    operator.pow: _READERS["pow"],
    F.leaky_relu: _leaky_call,
    F.leaky_relu_: in_place(_leaky_call),
    F.prelu: _READERS["prelu"],
    F.elu: _elu_call,
    F.elu_: in_place(_elu_call),
    F.selu: _selu_call,
    F.selu_: in_place(_selu_call),
    torch.selu: _selu_call,
    torch.selu_: in_place(_selu_call),
    F.celu: _celu_call,
    F.celu_: in_place(_celu_call),
    torch.celu: _celu_call,
    torch.celu_: in_place(_celu_call),
    torch.special.expit: _READERS["sigmoid"],
    F.softplus: simple(_softplus, beta=1.0, threshold=20.0),
    F.gelu: simple(_gelu, approximate="none"),
    F.silu: either(Silu),
    F.hardswish: either(Hardswish),
    F.hardsigmoid: either(Hardsigmoid),
    F.hardtanh: _hardtanh_call,
    F.hardtanh_: in_place(_hardtanh_call),
    F.relu6: either(_relu6),
}
