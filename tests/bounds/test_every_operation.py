"""Every operation in every method, over both balls, with every rigor: no attack finds a margin below a bound.

A class of operations that has no example here fails, and so does a layer or a call that no example uses.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import pytest
import torch
from activation_examples import ACTIVATIONS
from attack import attacked, margins
from torch import nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from hydrabench.bounds import (
    BOUNDS,
    Search,
    alpha_crown_margins,
    class_margins,
    deployed_margins,
    interval_bounds,
    prepared,
    program_of,
    read,
    rounding_bound,
    sound_margins,
    symbolic_class_margins,
)
from hydrabench.bounds.program import calls, convert
from hydrabench.bounds.program.arithmetic import Factor, Product, Shift, Subtract, Sum
from hydrabench.bounds.program.convolutions import Convolution, OtherConvolution
from hydrabench.bounds.program.linear import Add, Dense, Scale
from hydrabench.bounds.program.operations import Elementwise, Operation
from hydrabench.bounds.program.pooling import AdaptiveAveragePool, AveragePool, MaxPool
from hydrabench.bounds.program.relu import Relu
from hydrabench.bounds.program.structure import (
    Flatten,
    Identity,
    Join,
    Pad,
    Part,
    Permute,
    Repeat,
    Reshape,
)
from hydrabench.bounds.sound import STOPS
from hydrabench.models.normalize import Normalize

SHAPE = (2, 4, 3)
SEARCHES = {  # whose rounding is CROWN's
    f"alpha-crown {slopes}": partial(alpha_crown_margins, search=Search(slopes, iterations=3))
    for slopes in ("output", "all")
}
LINF, L2 = (1 / 256, 1 / 16, 1 / 2), (1 / 64, 1 / 4, 2.0)


class Call(nn.Module):
    """A function of a value, and of layers and buffers of its own."""

    def __init__(self, function, **own):
        super().__init__()
        self.function = function
        for name, value in own.items():
            if isinstance(value, torch.Tensor):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, x):
        return self.function(self, x)


def per_channel(*numbers):
    return torch.tensor(numbers).view(1, -1, 1, 1)


def shuffled(_, x):
    """ShuffleNet's shuffle of channels."""
    batch, channels, height, width = x.size()
    x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous()
    return x.view(batch, channels, height, width)


def swapped(_, x):
    first, second = x.chunk(2, dim=1)
    return torch.cat([torch.relu(second), first], 1)


def excited(self, x):
    """A squeeze and an excitation by a rectifier."""
    return torch.relu(self.up(torch.relu(self.down(F.adaptive_avg_pool2d(x, 1))))) * x


# What stands between a convolution of the image and a small classifier; 4 channels of 4 x 3 entries.
Middle = Callable[[], nn.Module]
EXAMPLES: dict[type[Operation], list[Middle]] = {
    Convolution: [
        lambda: nn.Conv2d(4, 4, (3, 2), (2, 1), (1, 1), (1, 2), groups=2),
        lambda: nn.Conv2d(4, 8, 3, padding="same", groups=4),
    ],
    OtherConvolution: [
        lambda: nn.ConvTranspose2d(4, 2, 3, 2, 1, 1, groups=2),
        lambda: nn.Sequential(
            nn.Flatten(2), nn.Conv1d(4, 3, 4, 2, 1, groups=1), nn.ConvTranspose1d(3, 2, 3, dilation=2)
        ),
        lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Conv3d(2, 2, 2, padding=1)),
    ],
    Dense: [lambda: nn.Linear(3, 5), lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 6), nn.ReLU(), nn.Linear(6, 6))],
    Scale: [
        lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)),
        lambda: nn.Sequential(nn.Flatten(2), nn.BatchNorm1d(4)),
        lambda: Normalize([0.1, -0.2, 0.3, 0.0], [0.5, 1.0, 2.0, 0.7]),
    ],
    Relu: [
        nn.ReLU,
        lambda: nn.ReLU(inplace=True),
        lambda: Call(lambda self, x: F.relu(torch.relu(x).relu() - 0.1)),
        lambda: Call(lambda self, x: (torch.relu_(self.conv(x)) - 0.1).relu_(), conv=nn.Conv2d(4, 4, 1)),
    ],
    MaxPool: [
        lambda: nn.MaxPool2d(2, 1),
        lambda: nn.MaxPool2d((3, 2), 2, 1, ceil_mode=True),
        lambda: Call(lambda self, x: F.max_pool2d(torch.max_pool2d(x, 2, 1), 2, 1, dilation=(2, 1))),
    ],
    AveragePool: [
        lambda: nn.AvgPool2d(2, 2, 1, ceil_mode=True),
        lambda: Call(lambda self, x: F.avg_pool2d(x, 2, 1, 1, count_include_pad=False)),
    ],
    AdaptiveAveragePool: [
        lambda: nn.AdaptiveAvgPool2d((2, 2)),
        lambda: Call(lambda self, x: x.mean((2, 3))),
        lambda: Call(lambda self, x: F.adaptive_avg_pool2d(x, (3, 2))),
    ],
    Add: [
        lambda: Call(lambda self, x: x + torch.relu(x)),
        lambda: Call(lambda self, x: torch.add(x, x).add(self.conv(x)), conv=nn.Conv2d(4, 4, 1)),
        lambda: Call(in_place_sums, conv=nn.Conv2d(4, 4, 1), other=nn.Conv2d(4, 4, 1)),
    ],
    Subtract: [
        lambda: Call(lambda self, x: torch.relu(x) - x),
        lambda: Call(lambda self, x: torch.sub(self.conv(x), x).sub(x), conv=nn.Conv2d(4, 4, 3, padding=1)),
    ],
    Shift: [
        lambda: Call(
            lambda self, x: (x - self.mean) / self.std,
            mean=per_channel(0.1, -0.3, 0.5, 0.0),
            std=per_channel(0.5, 1, 2, 3),
        ),
        lambda: Call(lambda self, x: 1 - (x + 0.25), other=None),
        lambda: Call(
            lambda self, x: torch.add(x, 0.5) - self.c.view(4, 1, 1)[:, :, :1], c=torch.tensor([0.1, 0.2, 0.3, 0.4])
        ),
    ],
    Factor: [
        lambda: Call(in_place_scaling, conv=nn.Conv2d(4, 4, 1)),
        lambda: Call(lambda self, x: -x * 0.5),
        lambda: Call(
            lambda self, x: torch.div(torch.mul(torch.neg(x), self.c), 3).mul(2).div(self.c),
            c=torch.tensor([-1.5, 2.0, 0.5]),
        ),
        lambda: Call(
            lambda self, x: x.neg() * self.weight[None, :, None, None] / 2, weight=torch.tensor([-1.0, 0.0, 2.0, 3.0])
        ),
    ],
    Product: [
        lambda: Call(excited, down=nn.Conv2d(4, 2, 1), up=nn.Conv2d(2, 4, 1)),
        lambda: Call(lambda self, x: x * torch.relu(x)),
        lambda: Call(lambda self, x: torch.mul(self.conv(x), x), conv=nn.Conv2d(4, 4, 1)),
    ],
    Sum: [
        lambda: Call(lambda self, x: x.sum(1)),
        lambda: Call(lambda self, x: torch.mean(x, (-1, 1), keepdim=True)),
        lambda: Call(lambda self, x: torch.sum(x, dim=(2, 3)) - x.mean(-1).sum(2)),
    ],
    Flatten: [
        nn.Flatten,
        lambda: Call(lambda self, x: torch.flatten(x, 1)),
        lambda: Call(lambda self, x: x.view(x.size(0), -1)),
    ],
    Identity: [
        lambda: nn.Sequential(nn.Identity(), nn.Dropout(), nn.Dropout2d()),
        lambda: Call(lambda self, x: torch.relu(F.dropout(x, training=False).contiguous())),
        lambda: Call(lambda self, x: self.drop(x), drop=StochasticDepth(0.5, "row")),
    ],
    Reshape: [
        lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Flatten(2, 3), nn.ReLU()),
        lambda: Call(shuffled),
        lambda: Call(lambda self, x: torch.reshape(x, (-1, 3, 16)).unsqueeze(2).squeeze(2).squeeze(1)),
        lambda: Call(lambda self, x: torch.squeeze(torch.unsqueeze(x.unflatten(-1, (1, 3)), 1), 1)),
        lambda: Call(lambda self, x: torch.unflatten(x.flatten(1), 1, (6, 8)).reshape(x.shape[0], x.shape[1] * 2, -1)),
    ],
    Permute: [
        lambda: Call(lambda self, x: self.conv(x.permute(0, 3, 1, 2)), conv=nn.Conv2d(3, 2, 2)),
        lambda: Call(lambda self, x: torch.permute(torch.transpose(x, 1, -1), (0, 2, 3, 1)).transpose(-2, -1)),
    ],
    Part: [
        lambda: Call(lambda self, x: torch.relu(x[:, 1:3, ::2]) + x[:, 2:, ::2]),
        lambda: Call(lambda self, x: x[..., 1]),
        lambda: Call(swapped),
        lambda: Call(lambda self, x: torch.chunk(x, 3, 2)[0] + torch.split(x, [2, 2], 2)[1]),
        lambda: Call(lambda self, x: x.split(3, 1)[0]),
        lambda: nn.Sequential(nn.PixelShuffle(2), nn.PixelUnshuffle(2)),
        lambda: Call(lambda self, x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2)),
    ],
    Join: [
        lambda: Call(
            lambda self, x: torch.cat([x, torch.relu(x), self.conv(x)], 1), conv=nn.Conv2d(4, 2, 3, padding=1)
        ),
        lambda: Call(lambda self, x: torch.concat((x, torch.relu(x)), dim=-1)),
    ],
    Pad: [
        lambda: nn.Sequential(nn.ZeroPad2d((1, 0, 2, 1)), nn.Conv2d(4, 2, 3)),
        lambda: nn.Sequential(nn.ConstantPad2d(1, 0.5), nn.Conv2d(4, 2, 3), nn.ReLU()),
        lambda: Call(lambda self, x: F.pad(x, (1, -1, 0, 1, 1, 0), value=-0.5)),
    ],
    Repeat: [
        lambda: nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(4, 2, 3), nn.ReLU()),
        lambda: Call(lambda self, x: F.interpolate(x, size=(5, 7), mode="nearest-exact")),
    ],
    **ACTIVATIONS,
}


def in_place_sums(self, x):
    found = self.conv(x)
    found += x
    return found.add_(self.other(x))


def in_place_scaling(self, x):
    found = self.conv(x)
    found -= 0.5
    found *= 1.5
    found /= 2.0
    return found.sub_(0.25).mul_(0.5).div_(0.75)


def concrete(kind):
    """All classes of operations of the package that can be made."""
    for child in kind.__subclasses__():
        if child.__module__.startswith("hydrabench.") and not child.__abstractmethods__:
            yield child
        yield from concrete(child)


@torch.no_grad()
def network_of(middle, seed):
    """A float32 network in eval mode around a layer, images of which some pixels are 0 or 1, and labels."""
    rng = torch.Generator().manual_seed(seed)
    layer = middle().eval()
    x = (1.4 * torch.rand(2, *SHAPE, generator=rng) - 0.2).clamp(0, 1)
    first = nn.Conv2d(SHAPE[0], 4, 3, padding=1)
    features = layer(first(x)).flatten(1).shape[1]
    network = nn.Sequential(first, layer, nn.Flatten(), nn.Linear(features, 4), nn.ReLU(), nn.Linear(4, 3))
    for parameter in network.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=rng) / max(1, parameter[0].numel()) ** 0.5)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_var.uniform_(0.2, 2, generator=rng)
            module.running_mean.normal_(generator=rng)
    return network.eval().requires_grad_(False), x, network(x).argmax(1), rng


def check(middle, seed):
    """Every method, ball and rigor; returns how many margins are proved."""
    network, x, y, rng = network_of(middle, seed)
    wide, exact, proved = copy.deepcopy(network).double(), x.double(), 0
    clean = margins(wide, exact, y)
    size = 1 + float(wide(exact).abs().max())
    for norm, radii in (("linf", LINF), ("l2", L2)):
        epsilon = radii[seed % 3]
        reach = attacked(wide, exact, y, epsilon, norm, rng) + 1e-12 * size
        for kind, bound in (*BOUNDS.items(), [*SEARCHES.items()][seed % 2]):
            what = f"{kind} {norm} {epsilon}"
            lower = bound(prepared(wide) if seed % 2 else wide, exact, y, epsilon, norm=norm)
            assert (lower <= reach).all(), what
            assert ((bound(wide, exact, y, 0.0, norm=norm) - clean).abs() <= 1e-6 * size).all(), what
            narrow = bound(network, x, y, epsilon, norm=norm)
            assert (
                narrow - rounding_bound(network, x, y, epsilon, kind="crown" if kind in SEARCHES else kind) <= reach
            ).all(), what
            proved += int((lower > 0).sum())
    epsilon = LINF[seed % 3]
    reach = attacked(wide, exact, y, epsilon, "linf", rng) + 1e-12 * size
    for kind in STOPS:
        lower = sound_margins(network, x, y, Fraction(epsilon), kind=kind)
        near = BOUNDS[kind](wide, exact, y, epsilon)
        assert (lower <= reach).all(), f"sound {kind}"
        assert ((lower - near).abs() <= 1e-6 * size).all(), f"sound {kind}"
        deployed = deployed_margins(network, x, y, Fraction(epsilon), kind=kind)
        assert (deployed <= lower).all(), f"deployed {kind}"
        assert (deployed <= margins(network, x, y).double()).all(), f"deployed {kind}"
    check_boxes_and_gradients(wide, exact, y, epsilon, rng)
    return proved


def check_boxes_and_gradients(network, x, y, epsilon, rng):
    """Outputs of points lie inside the bounds; bounds to train with are the same, and so are their slopes."""
    ends = (x - epsilon).clamp(0, 1), (x + epsilon).clamp(0, 1)
    lower, upper = interval_bounds(network, *ends)
    for point in (ends[0], ends[1], torch.lerp(*ends, torch.rand(x.shape, generator=rng, dtype=x.dtype))):
        assert (lower - 1e-9 <= network(point)).all()
        assert (network(point) <= upper + 1e-9).all()
    parameters = [*network.parameters()]
    steps = [torch.randn(tensor.shape, generator=rng, dtype=tensor.dtype) for tensor in parameters]

    def found():
        return [class_margins(network, x, y, epsilon, beta=0.5), symbolic_class_margins(network, x, y, epsilon)]

    plain, moved = found(), []
    network.requires_grad_(True)
    trained = found()
    torch.testing.assert_close(trained, plain, rtol=1e-9, atol=1e-9)
    gradients = [torch.autograd.grad(margin.sum(), parameters, allow_unused=True) for margin in trained]
    network.requires_grad_(False)
    for size in (1e-6, -2e-6, 1e-6):
        for tensor, step in zip(parameters, steps, strict=True):
            tensor.add_(step, alpha=size)
        moved.append(found())
    for number, gradient in enumerate(gradients):
        slope = sum(float((part * step).sum()) for part, step in zip(gradient, steps, strict=True) if part is not None)
        expected = float((moved[0][number] - moved[1][number]).sum()) / 2e-6
        assert slope == pytest.approx(expected, rel=1e-3, abs=1e-3)


def every_example():
    return [
        pytest.param(kind, middle, id=f"{kind.__name__}-{number}")
        for kind, middles in EXAMPLES.items()
        for number, middle in enumerate(middles)
    ]


@pytest.mark.parametrize(("kind", "middle"), every_example())
def test_no_attack_finds_a_margin_below_a_bound(kind, middle):
    network, _, _, _ = network_of(middle, 0)
    assert kind in {type(node.operation) for node in read(program_of(network), fold=False)}
    assert sum(check(middle, seed) for seed in range(2)) > 0


def without_example(classes):
    return sorted(kind.__name__ for kind in classes if kind not in EXAMPLES)


def test_every_class_of_operations_has_an_example():
    assert without_example({*concrete(Operation)}) == []


def test_every_layer_and_call_that_is_known_is_in_an_example(monkeypatch):
    used = set()

    def spied(name, read):
        return lambda *given: used.add(name) or read(*given)

    tables = (convert.LAYERS, calls.FUNCTIONS, calls.TENSOR_METHODS)
    for table in tables:
        for name, reader in [*table.items()]:
            monkeypatch.setitem(table, name, spied(name, reader))
    for middles in EXAMPLES.values():
        for middle in middles:
            network, x, _, _ = network_of(middle, 0)
            nodes, values = read(program_of(network)), [x]
            for node in nodes:
                values.append(node.operation.apply(*(values[number] for number in node.inputs)))
            torch.testing.assert_close(values[-1], network(x), rtol=1e-4, atol=1e-5)
    known = {name for table in tables for name in table}
    assert {getattr(name, "__name__", name) for name in known - used} == set()


# What is forgotten is noticed ----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Leaky(Relu):
    """x, or 0.9 x below 0: all that it does not say for itself it inherits, as from an `else` that means a ReLU."""

    def apply(self, x):
        return torch.where(x > 0, x, 0.9 * x)

    def box(self, lower, upper):
        return self.apply(lower), self.apply(upper)

    def interval(self, box, *, spent=False):
        return Elementwise.interval(self, box)


def leaky_neuron():
    """Logits (leaky(x - 1/2), 0) of a pixel x."""
    first, last = nn.Linear(1, 1), nn.Linear(1, 2)
    first.weight.data, first.bias.data = torch.ones(1, 1), torch.tensor([-0.5])
    last.weight.data, last.bias.data = torch.tensor([[1.0], [0.0]]), torch.zeros(2)
    return nn.Sequential(nn.Flatten(), first, nn.LeakyReLU(0.9), last).eval().requires_grad_(False)


def fails(middle, seed):
    try:
        check(middle, seed)
    except AssertionError:
        return True
    return False


def test_the_lines_of_another_operation_are_caught_in_the_smallest_case(monkeypatch):
    """x in [0.2, 0.8]: the true minimum is 0.9 · -0.3 = -0.27; with the lines of a ReLU `symbolic` said -0.15."""
    monkeypatch.setitem(convert.LAYERS, nn.LeakyReLU, lambda _layer: Leaky())
    x, y = torch.full((1, 1, 1, 1), 0.5), torch.tensor([0])
    assert BOUNDS["ibp"](leaky_neuron(), x, y, 0.3).item() == pytest.approx(-0.27)
    assert BOUNDS["symbolic"](leaky_neuron(), x, y, 0.3).item() == pytest.approx(-0.15)
    assert all(fails(lambda: nn.LeakyReLU(0.9), seed) for seed in (1, 2))


def test_an_operation_without_an_example_or_without_a_rule_is_noticed():
    assert without_example({*concrete(Operation), Leaky}) == ["Leaky"]
    half = type("Half", (Elementwise,), {"apply": lambda self, x: x / 2})
    with pytest.raises(TypeError, match="abstract method"):
        half()
