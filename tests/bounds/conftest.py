"""Random small networks that cover every operation the bounds know."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.networks import cancelling_network, randomise

Problem = tuple[nn.Module, Tensor, Tensor, torch.Generator]


@pytest.fixture(scope="session")
def tiny_problem() -> Callable[[int], Problem]:
    return make_problem


@pytest.fixture(scope="session")
def tiny_dag() -> Callable[[int], Problem]:
    return make_dag


class Dag(nn.Module):
    """Values computed one from another by (layer, or None for a sum; numbers of the values taken); returns the last."""

    def __init__(self, instructions: list[tuple[nn.Module | None, tuple[int, ...]]]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer or nn.Identity() for layer, _ in instructions)
        self.plan = [(layer is None, inputs) for layer, inputs in instructions]

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for layer, (is_sum, inputs) in zip(self.layers, self.plan, strict=True):
            values.append(values[inputs[0]] + values[inputs[1]] if is_sum else layer(values[inputs[0]]))
        return values[-1]


def random_layer(rng: random.Random, shape: torch.Size) -> nn.Module:
    """A layer that takes images of this shape; most keep it, so that sums are possible."""
    _, channels, *sides = shape
    kind = rng.randrange(9)
    if kind < 3:
        return nn.Conv2d(channels, rng.choice((2, 3)), 3, padding=1, bias=rng.random() < 0.5)
    if kind < 5:
        return nn.ReLU()
    if kind == 5:
        return nn.BatchNorm2d(channels)
    if kind == 6:
        stride, dilation = rng.choice((1, 1, 2)), rng.choice((1, 2) if min(sides) > 2 else (1,))
        return nn.MaxPool2d(rng.choice((2, 3)), stride, padding=1, dilation=dilation)
    if kind == 7:
        return nn.AvgPool2d(3, rng.choice((1, 1, 2)), padding=1, count_include_pad=rng.random() < 0.5)
    return nn.AdaptiveAvgPool2d(rng.choice(((2, 3), (None, 2), (5, 5))))


def make_dag(seed: int) -> Problem:
    """Like `make_problem`, a network whose values branch and meet again, with every kind of pooling.

    What nobody reads is flattened, mapped to the 3 logits and added up.
    """
    choose, rng = random.Random(seed), torch.Generator().manual_seed(seed)
    x = torch.rand(3, 2, 5, 4, generator=rng, dtype=torch.float64)
    values, plan = [x], []

    def compute(layer: nn.Module | None, *inputs: int) -> int:
        a, *rest = (values[number] for number in inputs)
        values.append(a + rest[0] if layer is None else layer.double().eval()(a))
        plan.append((layer, inputs))
        return len(values) - 1

    for _ in range(choose.randrange(3, 9)):
        first = choose.randrange(max(0, len(values) - 3), len(values))
        partners = [number for number, value in enumerate(values) if value.shape == values[first].shape]
        if len(values) > 2 and choose.random() < 0.4:
            compute(None, first, choose.choice(partners))
        else:
            layer = random_layer(choose, values[first].shape).double()
            randomize(layer, rng)
            compute(layer, first)
    total = None
    for number in set(range(len(values))) - {number for _, inputs in plan for number in inputs}:
        flat = compute(nn.Flatten(), number)
        head = nn.Linear(values[flat].shape[1], 3)
        randomize(head.double(), rng)
        logits = compute(head, flat)
        total = logits if total is None else compute(None, total, logits)
    y = values[-1].argmax(1)
    y[0] = (y[0] + 1) % 3
    return Dag(plan).double().eval().requires_grad_(False), x, y, rng


@torch.no_grad()
def randomize(network: nn.Module, rng: torch.Generator) -> None:
    """Weights and statistics from `rng`, in every dtype the same."""
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(
                torch.randn(tensor.shape, generator=rng, dtype=tensor.dtype) / max(1, tensor[0].numel()) ** 0.5
            )
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_var.uniform_(0.2, 2.0, generator=rng)


def make_problem(seed: int) -> Problem:
    """A float64 network in eval mode, 3 images in [0, 1], their labels, and a generator for more.

    Seeds walk through kernel, stride, padding, dilation, groups, bias and batch norm, so that any 24 in
    a row hold every value of each.
    """
    from hydrabench.models.normalize import Normalize

    rng = torch.Generator().manual_seed(seed)
    stride, padding = 1 + seed % 2, ((0, 1), 1, "valid", (2, 0))[seed % 4]
    first = nn.Conv2d(2, 4, (3, 2), stride, padding, bias=seed % 3 != 0, groups=1 + seed // 2 % 2)
    second = nn.Conv2d(4, 3, 3, 1, "same", dilation=1 + seed // 3 % 2, bias=seed % 5 != 0)
    layers: list[nn.Module] = [Normalize([0.4, 0.6], [0.2, 0.3])] if seed % 4 < 2 else []
    layers += [first] + ([nn.BatchNorm2d(4)] if seed % 3 else []) + [nn.ReLU(inplace=seed % 2 == 0)]
    layers += [second, nn.ReLU(), nn.Dropout(0.5), nn.Identity(), nn.Flatten()]
    with torch.no_grad():
        features = nn.Sequential(*layers).eval()(torch.zeros(1, 2, 6, 5)).shape[1]
    layers += [nn.Linear(features, 6), *([nn.BatchNorm1d(6)] if seed % 2 else []), nn.ReLU()]
    layers += [nn.Linear(6, 4, bias=seed % 3 != 1)] + ([nn.BatchNorm1d(4)] if seed % 8 == 5 else [])
    network = nn.Sequential(*layers).double().eval()
    randomize(network, rng)
    x = torch.rand(3, 2, 6, 5, generator=rng, dtype=torch.float64)
    with torch.no_grad():
        y = network(x).argmax(1)
    y[0] = (y[0] + 1) % 4  # one image is misclassified
    return network, x, y, rng


class Shortcut(nn.Module):
    """Two convolutions with batch norm and a 1x1 shortcut with its own, as in a ResNet."""

    def __init__(self, inside, outside, stride):
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()),
            *(nn.Conv2d(outside, outside, 3, 1, 1, bias=False), nn.BatchNorm2d(outside)),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x):
        return torch.relu(self.body(x) + self.shortcut(x))


def make_residual_network(pooling, seed=0):
    rng = torch.Generator().manual_seed(seed)
    pools = {"avg": nn.AvgPool2d(2), "max": nn.MaxPool2d(2), "global": nn.AdaptiveAvgPool2d(1)}
    network = nn.Sequential(
        *(nn.Conv2d(2, 3, 3, 1, 1), nn.BatchNorm2d(3), nn.ReLU(), Shortcut(3, 4, 1), Shortcut(4, 4, 2)),
        *(pools[pooling], nn.Flatten(), nn.Linear(4 if pooling == "global" else 16, 4)),
    ).eval()
    randomise(network, rng)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_var.uniform_(0.2, 2.0, generator=rng)
                module.running_mean *= 0.1
                module.bias *= 0.1  # so that neurons are neither all on nor all off
    x = torch.rand(3, 2, 8, 8, generator=rng)
    return network, x, network(x).argmax(1), rng


def find_smallest_margin(network, x, y, epsilon, rng, points=20):
    """The smallest margin of points of the ball, most of them corners."""
    smallest = torch.full(y.shape, torch.inf, dtype=x.dtype)
    for number in range(points):
        step = 2 * torch.rand(x.shape, generator=rng, dtype=x.dtype) - 1
        logits = network((x + epsilon * (step.sign() if number else 0 * step)).clamp(0, 1))
        right = logits.gather(1, y.unsqueeze(1)).squeeze(1)
        smallest = smallest.minimum(right - logits.scatter(1, y.unsqueeze(1), -torch.inf).max(1).values)
    return smallest


@pytest.fixture
def residual_network():
    """(pooling, seed) -> network, images, predicted labels, generator."""
    return make_residual_network


@pytest.fixture
def smallest_margin():
    """(network, x, y, epsilon, generator) -> the smallest margin of sampled points of the ball, (B,)."""
    return find_smallest_margin


@pytest.fixture(scope="session")
def cancelling() -> Callable[[float], nn.Module]:
    return cancelling_network
