"""Elementwise operations with what torch calls them, and intervals and slopes to try."""

import itertools
import math

import pytest
import torch
from torch import nn

from hydrabench.bounds.program.activations import Absolute, Clamp, Hardsigmoid, Hardswish, LeakyRelu, Prelu, Square
from hydrabench.bounds.program.gated import Gelu, Silu, TanhGelu
from hydrabench.bounds.program.smooth import Elu, Sigmoid, Softplus, Tanh

SELU = Elu(1.6732632423543772848, 1.0507009873554804934)
EXAMPLES = {  # an operation, and what torch calls it; a new class needs one line here
    "leaky": (LeakyRelu(0.1), nn.LeakyReLU(0.1)),
    "leaky, falling": (LeakyRelu(-0.7), nn.LeakyReLU(-0.7)),
    "leaky, steep": (LeakyRelu(2.5), nn.LeakyReLU(2.5)),
    "prelu": (Prelu(torch.tensor([0.25], dtype=torch.float64)), nn.PReLU(dtype=torch.float64)),
    "absolute": (Absolute(), torch.abs),
    "hardtanh": (Clamp(-0.5, 1.5), nn.Hardtanh(-0.5, 1.5)),
    "relu6": (Clamp(0.0, 6.0), nn.ReLU6()),
    "maximum": (Clamp(0.25, None), lambda x: torch.maximum(x, torch.tensor(0.25, dtype=x.dtype))),
    "minimum": (Clamp(None, 0.25), lambda x: x.clamp(max=0.25)),
    "hardsigmoid": (Hardsigmoid(), nn.Hardsigmoid()),
    "hardswish": (Hardswish(), nn.Hardswish()),
    "square": (Square(), torch.square),
    "elu": (Elu(1.0), nn.ELU()),
    "elu, steep": (Elu(2.0), nn.ELU(2.0)),
    "elu, flat": (Elu(0.5), nn.ELU(0.5)),
    "selu": (SELU, nn.SELU()),
    "celu": (Elu(0.7, 1.0, 1 / 0.7), nn.CELU(0.7)),
    "sigmoid": (Sigmoid(), nn.Sigmoid()),
    "tanh": (Tanh(), nn.Tanh()),
    "softplus": (Softplus(), nn.Softplus()),
    "softplus, falling": (Softplus(3.0, 2.0), nn.Softplus(3.0, 2.0)),
    "gelu": (Gelu(), nn.GELU()),
    "gelu, tanh": (TanhGelu(), nn.GELU(approximate="tanh")),
    "silu": (Silu(), nn.SiLU()),
}
OPERATIONS = {name: operation for name, (operation, _) in EXAMPLES.items()}
ENDS = [-1e6, -500, -61, -22, -6, -3.01, -2.4, -math.sqrt(2), -0.75, -0.3, -1e-9, 0, 1e-3, 0.25, 0.67, 1.5, 2.45, 4.5]
ENDS += [7, 19.5, 20.5, 500, 1e6]
SLOPES = [0.0, 1.0, -1.0, 0.25, -0.05, 1.05, 1e-6, 1.1289, -0.129, 17.0]
every_operation = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
precisions = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "single"])


def of_type(operation, dtype):
    return Prelu(operation.weight.to(dtype)) if isinstance(operation, Prelu) else operation


def intervals(dtype=torch.float64):
    """All intervals between two of the ends, the same end twice included: two columns."""
    pairs = list(itertools.combinations_with_replacement(ENDS, 2))
    lower, upper = torch.tensor(pairs, dtype=torch.float64).to(dtype).sort(1).values.unbind(1)
    return lower.unsqueeze(1), upper.unsqueeze(1)


def tried_slopes(operation, lower, upper):
    """Fixed slopes, random ones and those that the operation itself chooses: (S, B, 1)."""
    random = torch.randn(2, *lower.shape, generator=torch.Generator().manual_seed(0)).to(lower)
    own = [*operation.slopes(lower, upper), operation.chord(lower, upper)]
    return torch.cat([torch.stack([torch.full_like(lower, s) for s in SLOPES] + own), random])
