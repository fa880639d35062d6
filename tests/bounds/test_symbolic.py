from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hydrabench.bounds import patches, program_of, read, symbolic_class_margins
from hydrabench.bounds.program.relu import Relu
from hydrabench.checkpoints import open_ref
from hydrabench.data import load_images
from hydrabench.data.images import pixels
from hydrabench.threat import linf_box

seeds = st.integers(0, 10_000)


def zonotope_margins(network, x, y, epsilon):
    """Reference/hydra.md, section 1.8: forward, image by image, a generator for every pixel and open ReLU."""
    found = []
    for image, label in zip(x, y.tolist(), strict=True):
        lower, upper = linf_box(image.unsqueeze(0), epsilon)
        center, radius = (lower + upper) / 2, (upper - lower) / 2
        generators = torch.diag(radius.flatten()).view(-1, *image.shape)
        for node in read(program_of(network)):
            if not isinstance(node.operation, Relu):
                shift = node.operation.apply(torch.zeros_like(center))
                center, generators = node.operation.apply(center), node.operation.apply(generators) - shift
                continue
            radius = generators.abs().sum(0, keepdim=True)
            below = (center - radius).clamp(max=0)
            above = torch.maximum((center + radius).clamp(min=0), below + 1e-8)
            slope = above / (above - below)
            half = -slope * below / 2
            fresh = torch.diag(half.flatten())[half.flatten() != 0].view(-1, *center.shape[1:])
            center, generators = slope * center + half, torch.cat([generators * slope, fresh])
        difference = generators[:, label : label + 1] - generators
        found.append(center[0, label] - center[0] - difference.abs().sum(0))
    return torch.stack(found)


@settings(max_examples=30)
@given(seed=seeds, epsilon=st.floats(0, 0.3))
def test_symbolic_margins_are_those_of_the_forward_zonotope(tiny_problem, seed, epsilon):
    network, x, y, _ = tiny_problem(seed)
    expected = zonotope_margins(network, x, y, epsilon)
    torch.testing.assert_close(symbolic_class_margins(network, x, y, epsilon), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["digits-crown-ibp", "digits-trades-95", "digits-crown-ibp-lwm-99"])
def test_symbolic_margins_of_trained_networks_are_those_of_the_forward_zonotope(name):
    network = open_ref(name).baked().eval().requires_grad_(False)
    images = load_images("digits", "test")
    x, y = pixels(images.images[:6]), images.labels[:6]
    for epsilon in (8 / 255, 32 / 255):
        expected = zonotope_margins(network, x, y, epsilon)
        torch.testing.assert_close(symbolic_class_margins(network, x, y, epsilon), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(0, 24, 5))
def test_gradients_are_those_of_the_forward_zonotope(tiny_problem, seed):
    network, x, y, rng = tiny_problem(seed)
    weights = torch.randn(3, 4, generator=rng, dtype=torch.float64)
    parameters = list(network.parameters())
    ours, theirs = (
        torch.autograd.grad((weights * margins(network, x, y, 0.05)).sum(), parameters, allow_unused=True)
        for margins in (symbolic_class_margins, zonotope_margins)
    )
    assert any(gradient is not None and gradient.abs().max() > 1e-3 for gradient in ours)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("chunk", [1, 700])
def test_chunks_change_neither_margins_nor_gradients(tiny_problem, monkeypatch, chunk):
    network, x, y, _ = tiny_problem(4)
    parameters = list(network.parameters())
    expected = symbolic_class_margins(network, x, y, 0.1)
    gradients = torch.autograd.grad(expected.sum(), parameters)
    monkeypatch.setitem(patches.CHUNK, "cpu", chunk)
    found = symbolic_class_margins(network, x, y, 0.1)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), parameters), gradients, rtol=1e-10, atol=1e-12)


def test_two_layers_worked_by_hand():
    """One pixel x in [0, 1]. z = 4x - 1 in [-1, 3]: slope 3/4, strip 3/8 ± 3/8, relu(z) = 3x - 3/8 ± 3/8.

    w = relu(z) - 1 = 3x - 11/8 ± 3/8 in [1/8 - 15/8, 1/8 + 15/8] = [-7/4, 2]: slope 2 / (15/4) = 8/15, half
    8/15 · 7/4 / 2 = 7/15. The margin of logits (relu(w), 0) is at least -7/4 · 8/15 = -14/15, that of label 1 at
    least -(2 · 8/15 + 14/15) = -2. Intervals would have w in [-1, 2] only.
    """
    first, second, last = nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 2)
    with torch.no_grad():
        for layer, weight, bias in ((first, 4.0, -1.0), (second, 1.0, -1.0)):
            layer.weight.fill_(weight), layer.bias.fill_(bias)
        last.weight.copy_(torch.tensor([[1.0], [0.0]])), last.bias.zero_()
    network = nn.Sequential(nn.Flatten(), first, nn.ReLU(), second, nn.ReLU(), last)
    x = torch.full((2, 1, 1, 1), 0.5)
    found = symbolic_class_margins(network, x, torch.tensor([0, 1]), 0.5)
    assert found.tolist() == [pytest.approx([0.0, -14 / 15]), pytest.approx([-2.0, 0.0])]
