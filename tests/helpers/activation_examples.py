"""Every activation as layers, functions and methods, for `test_every_operation`: a new form needs one entry here."""

from __future__ import annotations

import functools

import torch
from torch import nn
from torch.nn import functional as F

from hydrabench.bounds.program.activations import Absolute, Clamp, Hardsigmoid, Hardswish, LeakyRelu, Prelu, Square
from hydrabench.bounds.program.gated import Gelu, Silu, TanhGelu
from hydrabench.bounds.program.smooth import Elu, Sigmoid, Softplus, Tanh


class Chain(nn.Module):
    """Functions applied one after the other."""

    def __init__(self, functions):
        super().__init__()
        self.functions = functions
        self.register_buffer("numbers", torch.tensor([0.3, -0.2, 1.4, -1.0]))

    def forward(self, x):
        return functools.reduce(lambda value, function: function(value), self.functions, x)


class Constant(Chain):
    """Functions of a value and of constants, one after the other."""

    def forward(self, x):
        return functools.reduce(lambda value, function: function(value, self.numbers), self.functions, x)


def chain(*functions):
    return lambda: Chain(functions)


def constant(*functions):
    return lambda: Constant(functions)


ACTIVATIONS = {
    LeakyRelu: [
        lambda: nn.LeakyReLU(0.9, inplace=True),
        lambda: nn.LeakyReLU(-0.5),
        lambda: nn.LeakyReLU(2.0),
        chain(lambda x: F.leaky_relu(x, 0.3, inplace=True), lambda x: F.leaky_relu_(x - 0.1, 1.5)),
    ],
    Prelu: [
        lambda: nn.PReLU(4),
        constant(F.prelu, lambda x, w: x.prelu(w[1:2])),
    ],
    Absolute: [
        chain(torch.abs, lambda x: abs(x - 0.2), lambda x: (x - 0.1).abs(), lambda x: (x - 0.3).abs_()),
        chain(lambda x: torch.absolute(x).absolute() - 0.1, torch.abs_),
    ],
    Clamp: [
        lambda: nn.Sequential(nn.ReLU6(), nn.Hardtanh(0.1, 0.7)),
        constant(
            lambda x, c: torch.maximum(x, c[1]).minimum(c[:1]),
            lambda x, c: torch.minimum(c[2], x).maximum(c[3]),
            lambda x, c: torch.max(x, c[1]).min(c[0]),
            lambda x, c: torch.min(x, c[2]).max(c[3]),
        ),
        chain(lambda x: torch.clamp(x, max=0.6), lambda x: x.clamp(-0.5), lambda x: x.clamp_(-0.4, 0.5)),
        chain(lambda x: torch.clip(x, max=0.6), lambda x: x.clip(-0.5), lambda x: x.clip_(-0.4, 0.5)),
        chain(lambda x: torch.clip_(torch.clamp_(x, max=0.6) - 0.1, -0.6), lambda x: F.relu6(x + 0.1, inplace=True)),
        chain(lambda x: torch.clamp_min(x, -0.6), lambda x: x.clamp_min(-0.5), lambda x: x.clamp_min_(-0.4)),
        chain(lambda x: torch.clamp_max(x, 0.6), lambda x: x.clamp_max(0.5), lambda x: x.clamp_max_(0.4)),
        chain(lambda x: torch.clamp_min_(x, -0.6), lambda x: torch.clamp_max_(x, 0.5)),
        chain(lambda x: F.hardtanh(x, -0.3, max_val=0.9), lambda x: F.hardtanh_(x, -0.2, 0.8)),
    ],
    Hardsigmoid: [nn.Hardsigmoid, chain(lambda x: F.hardsigmoid(6 * x, inplace=True))],
    Hardswish: [nn.Hardswish, chain(lambda x: F.hardswish(5 * x))],
    Square: [
        chain(torch.square, lambda x: (x - 0.2).square(), lambda x: (x - 0.1).square_()),
        chain(lambda x: torch.pow(x, 2), lambda x: (x - 0.2).pow(2), lambda x: (x - 0.1).pow_(2), torch.square_),
        chain(lambda x: x**2 - 0.5, lambda x: x * x),
    ],
    Elu: [
        lambda: nn.ELU(1.5, inplace=True),
        nn.SELU,
        lambda: nn.CELU(0.6),
        chain(lambda x: F.elu(x, 0.5), lambda x: F.elu_(x, 2.0), F.selu, torch.selu, torch.selu_),
        chain(lambda x: F.celu(x, alpha=0.5), lambda x: torch.celu(x, 2.0), lambda x: torch.celu_(x, 0.7)),
    ],
    Sigmoid: [
        nn.Sigmoid,
        chain(lambda x: torch.sigmoid(8 * x)),
        chain(torch.sigmoid_, lambda x: (4 * x).sigmoid(), lambda x: (-2 * x).sigmoid_(), torch.special.expit),
    ],
    Tanh: [
        nn.Tanh,
        chain(lambda x: torch.tanh(5 * x)),
        chain(torch.tanh_, lambda x: (3 * x).tanh(), lambda x: (2 * x).tanh_()),
    ],
    Softplus: [nn.Softplus, lambda: nn.Softplus(2.0, 3.0), chain(lambda x: F.softplus(x, beta=3))],
    Gelu: [nn.GELU, chain(lambda x: F.gelu(5 * x))],
    TanhGelu: [lambda: nn.GELU("tanh"), chain(lambda x: F.gelu(4 * x, approximate="tanh"))],
    Silu: [nn.SiLU, chain(lambda x: F.silu(6 * x, inplace=True))],
}
