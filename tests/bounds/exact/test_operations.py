"""Whatever operations a network is made of, no bound lies above what a search reaches, and easy images are decided."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hydrabench.bounds.exact import Limits, decide
from hydrabench.bounds.specification import pose

NORMS = pytest.mark.parametrize("norm", ["linf", "l2"])


def margins(network, x, y):
    logits = network(x)
    return logits.gather(1, y.unsqueeze(1)).squeeze(1) - logits.scatter(1, y.unsqueeze(1), -torch.inf).amax(1)


def reached(network, x, y, epsilon, norm, rng, count=200):
    """The smallest margins at random points of the balls, most of them at the border."""
    found = margins(network, x, y)
    for _ in range(count):
        step = torch.rand(x.shape, generator=rng, dtype=x.dtype) * 2 - 1
        step = step.sign() if norm == "linf" else step / step.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        found = found.minimum(margins(network, (x + epsilon * step).clamp(0, 1), y))
    return found


def decided(network, x, y, epsilon, norm, limit):
    def misclassified(image, points):
        return [
            point if bad else None for point, bad in zip(points, network(points).argmax(1) != y[image], strict=True)
        ]

    return decide(pose(network, x, y, epsilon, norm=norm), Limits(limit), misclassified)


@pytest.mark.parametrize("seed", range(8))
@NORMS
def test_no_bound_lies_above_what_is_reached(tiny_problem, tiny_dag, norm, seed):
    """Shortcuts, pooling of every kind, convolutions of every kind; one label is wrong."""
    for make in (tiny_problem, tiny_dag):
        network, x, y, rng = make(seed)
        epsilon = 0.05 if norm == "linf" else 0.15
        smallest = reached(network, x, y, epsilon, norm, rng)
        for decision, least in zip(decided(network, x, y, epsilon, norm, 12), smallest.tolist(), strict=True):
            assert decision.lower <= least + 1e-9
            assert decision.verdict != "verified" or least > 0


def planar(seed, activation):
    """A network of two pixels."""
    rng = torch.Generator().manual_seed(seed)
    layers = [nn.Linear(2, 6), activation, nn.Linear(6, 6), activation, nn.Linear(6, 3)]
    network = nn.Sequential(nn.Flatten(), *layers).double().eval().requires_grad_(False)
    for tensor in network.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape, generator=rng, dtype=tensor.dtype))
    x = 0.4 + 0.2 * torch.rand(3, 1, 1, 2, generator=rng, dtype=torch.float64)
    return network, x, network(x).argmax(1)


class Pooled(nn.Module):
    """The largest of pairs of neurons."""

    def __init__(self):
        super().__init__()
        self.flatten, self.unflatten = nn.Flatten(), nn.Unflatten(1, (1, 2, 4))
        self.first, self.pool, self.last = nn.Linear(2, 8), nn.MaxPool2d(2), nn.Linear(2, 3)

    def forward(self, x):
        return self.last(self.flatten(self.pool(self.unflatten(self.first(self.flatten(x))))))


def grid_minimum(network, x, y, epsilon):
    axis = torch.linspace(-epsilon, epsilon, 201, dtype=x.dtype)
    steps = torch.cartesian_prod(axis, axis).view(-1, 1, 1, 2)
    return [
        margins(network, (image + steps).clamp(0, 1), label.expand(len(steps))).min().item()
        for image, label in zip(x, y, strict=True)
    ]


@pytest.mark.parametrize("activation", [nn.Sigmoid(), nn.Tanh(), nn.GELU(), nn.ELU(), nn.Softplus()], ids=repr)
def test_smooth_activations_are_decided_by_cutting_intervals(activation):
    verdicts = []
    for seed in range(3):
        network, x, y = planar(seed, activation)
        smallest = grid_minimum(network, x, y, 0.3)
        for decision, least in zip(decided(network, x, y, 0.3, "linf", 600), smallest, strict=True):
            assert decision.lower <= least + 1e-9
            if abs(least) > 0.02:
                assert decision.verdict == ("verified" if least > 0 else "broken")
                verdicts.append(decision.verdict)
    assert verdicts


def test_max_pooling_is_decided():
    verdicts = []
    for seed in range(6):
        rng = torch.Generator().manual_seed(seed)
        network = Pooled().double().eval().requires_grad_(False)
        for tensor in network.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape, generator=rng, dtype=tensor.dtype))
        x = 0.4 + 0.2 * torch.rand(3, 1, 1, 2, generator=rng, dtype=torch.float64)
        y = network(x).argmax(1)
        smallest = grid_minimum(network, x, y, 0.3)
        for decision, least in zip(decided(network, x, y, 0.3, "linf", 600), smallest, strict=True):
            assert decision.lower <= least + 1e-9
            if abs(least) > 0.02:
                assert decision.verdict == ("verified" if least > 0 else "broken")
                verdicts.append(decision.verdict)
    assert {*verdicts} == {"verified", "broken"}
