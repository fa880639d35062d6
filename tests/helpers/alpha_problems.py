"""Small networks to choose slopes for, and how long to search."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hydrabench.bounds import crown_margins as crown_with_gradients
from hydrabench.bounds.alpha import Search
from tests.helpers.networks import randomise

SHORT = Search(iterations=20)
NORMS = pytest.mark.parametrize(("norm", "radius"), [("linf", 1.0), ("l2", 3.0)], ids=["linf", "l2"])
MODES = pytest.mark.parametrize("slopes", ["output", "all"])


def problem(seed, *, convolutions=2, pooling=False, images=4, dtype=torch.float32):
    """A network with one or two convolutions, images, the network's own labels, and the generator they came from."""
    rng = torch.Generator().manual_seed(seed)
    second = [nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()] if convolutions == 2 else []
    pool = [nn.MaxPool2d(2)] if pooling else []
    network = nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), *second, *pool),
        *(nn.Flatten(), nn.Linear(36 if pooling else 144, 12), nn.ReLU(), nn.Linear(12, 4)),
    ).eval()
    randomise(network, rng)
    with torch.no_grad():
        network[1].running_var.uniform_(0.5, 2.0, generator=rng)
        x = torch.rand(images, 1, 6, 6, generator=rng)
        network[-1].bias -= network(x).mean(0)  # otherwise one class wins everywhere
    network, x = network.to(dtype), x.to(dtype)
    return network, x, network(x).argmax(1), rng


def partly_unstable(unstable, *, convolution):
    """A network of 20 neurons with z in [-1, 1], of which only the first are unstable, the others being shifted by 9.

    Returns: the network, images, and wrong labels; the range holds for a radius of 0.5.
    """
    rng = torch.Generator().manual_seed(0)
    first = [nn.Conv2d(4, 20, 1), nn.Flatten()] if convolution else [nn.Flatten(), nn.Linear(4, 20)]
    network = nn.Sequential(*first, nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 3)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng) / 4)
        weight, bias = network.get_parameter("0.weight" if convolution else "1.weight"), first[not convolution].bias
        weight.copy_(torch.eye(4).repeat(5, 1).view_as(weight) * 2)
        bias.copy_(torch.cat([-torch.ones(unstable), torch.full((20 - unstable,), 9.0)]))
    x = torch.full((2, 4, 1, 1), 0.5)
    return network, x, (network(x).argmax(1) + 1) % 3


def planar(seed, width=4):
    """A network of two pixels, images and labels."""
    rng = torch.Generator().manual_seed(seed)
    layers = [nn.Linear(2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3)]
    network = nn.Sequential(nn.Flatten(), *layers).double().eval().requires_grad_(False)
    for tensor in network.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape, generator=rng, dtype=tensor.dtype))
    x = 0.3 + 0.4 * torch.rand(3, 1, 1, 2, generator=rng, dtype=torch.float64)
    return network, x, network(x).argmax(1)


@torch.no_grad()
def crown_margins(*problem, **norm):
    return crown_with_gradients(*problem, **norm)
