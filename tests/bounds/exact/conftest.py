"""Networks of two pixels whose phases are enumerated: the plane is cut into polygons on which they are linear."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from hydrabench.bounds.exact import Limits, decide
from hydrabench.bounds.specification import pose

KNOTS = {nn.ReLU: (0.0,), nn.LeakyReLU: (0.0,), nn.Hardtanh: (-1.0, 1.0)}
SIDES = 720  # of the polygon in an L2 ball, whose vertices lie on the circle


@dataclass
class Instance:
    """A network of two pixels, images and labels, a radius, and the smallest margin of each image."""

    network: nn.Sequential
    x: torch.Tensor
    y: torch.Tensor
    epsilon: float
    norm: str
    smallest: list[float]

    def decide(self, subproblems=400, confirm=None):
        """Decide it; adversarial examples are those that the network itself misclassifies."""

        def misclassified(image, points):
            wrong = self.network(points).argmax(1) != self.y[image]
            return [point if bad else None for point, bad in zip(points, wrong, strict=True)]

        problem = pose(self.network, self.x, self.y, self.epsilon, norm=self.norm)
        return decide(problem, Limits(subproblems), confirm or misclassified)


def clipped(polygon, normal, offset):
    """The part of a convex polygon, (V, 2), where normal · v + offset >= 0."""
    heights = polygon @ normal + offset
    found = []
    corners = [*zip(polygon, heights, strict=True)]
    for (v, h), (w, k) in zip(corners, corners[1:] + corners[:1], strict=True):
        if h >= 0:
            found.append(v)
        if h * k < 0:
            found.append(v + (w - v) * (h / (h - k)))
    return np.array(found) if len(found) > 2 else None


def regions(layers, polygon):
    """Yield polygons, and weight and bias of what the layers are on each of them."""
    parts = [(polygon, np.eye(2), np.zeros(2))]
    for layer in layers:
        if isinstance(layer, nn.Flatten):
            continue
        if isinstance(layer, nn.Linear):
            w, b = layer.weight.numpy(), layer.bias.numpy()
            parts = [(region, w @ a, w @ c + b) for region, a, c in parts]
            continue
        for neuron in range(len(parts[0][2])):
            parts = [one for region, a, c in parts for one in pieces(layer, region, a, c, neuron)]
    return parts


def pieces(layer, region, a, c, neuron):
    """The parts of a region in which a neuron keeps to one linear piece, with the piece applied."""
    ends = (-np.inf, *KNOTS[type(layer)], np.inf)
    for low, high in pairwise(ends):
        part = region
        for end, sign in ((low, 1), (high, -1)):
            if part is not None and np.isfinite(end):
                part = clipped(part, sign * a[neuron], sign * (c[neuron] - end))
        if part is not None:
            inside = torch.tensor([max(low, -9.0) + 0.25, max(low, -9.0) + 0.5], dtype=torch.float64)
            first, second = layer(inside).tolist()
            slope = (second - first) / 0.25
            weight, bias = a.copy(), c.copy()
            weight[neuron], bias[neuron] = slope * a[neuron], slope * (c[neuron] - inside[0].item()) + first
            yield part, weight, bias


def smallest_margin(network, x, y, epsilon, norm):
    """The smallest margin over the ball around an image of two pixels that lies inside of [0, 1]."""
    x = x.flatten().numpy()
    if norm == "linf":
        polygon = x + epsilon * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    else:
        angles = np.linspace(0, 2 * np.pi, SIDES, endpoint=False)
        polygon = x + epsilon * np.stack([np.cos(angles), np.sin(angles)], 1)
    found = []
    for region, a, c in regions(network, polygon):
        logits = region @ a.T + c
        found.append((logits[:, [y]] - np.delete(logits, y, 1)).min())
    return min(found)


@pytest.fixture(scope="session")
def make_instance():
    """Instances whose smallest margin is a few percent of the clean one, above 0 or below.

    The bias of the label's logit is moved for the first image; every other seed is pruned.
    """

    def make(seed, activation=nn.ReLU, norm="linf", width=8, images=3):
        rng = torch.Generator().manual_seed(seed)
        layers = [nn.Linear(2, width), activation(), nn.Linear(width, width), activation(), nn.Linear(width, 3)]
        network = nn.Sequential(nn.Flatten(), *layers).double().eval().requires_grad_(False)
        for tensor in network.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape, generator=rng, dtype=tensor.dtype))
            if seed % 2 and tensor.ndim == 2:
                tensor.mul_(torch.rand(tensor.shape, generator=rng, dtype=tensor.dtype) < 0.6)
        epsilon = 0.3
        x = 0.4 + 0.2 * torch.rand(images, 1, 1, 2, generator=rng, dtype=torch.float64)
        network[1].bias -= network[1](x[:1].flatten(1)).squeeze(0) * (torch.rand(width, generator=rng) + 0.5)
        y = network(x).argmax(1)
        smallest = smallest_margin(network, x[0], int(y[0]), epsilon, norm)
        clean = network(x[:1])[0]
        wanted = (0.05, -0.05, 0.01)[seed % 3] * float(clean.topk(2).values.diff().abs() - smallest)
        network[-1].bias[y[0]] += wanted - smallest
        y[1:] = network(x[1:]).argmax(1)
        pairs = zip(x, y.tolist(), strict=True)
        return Instance(
            network, x, y, epsilon, norm, [smallest_margin(network, *pair, epsilon, norm) for pair in pairs]
        )

    return make
