"""Gradients in bfloat16, logits in full precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hydrabench.attacks.mixed import MixedGradients
from hydrabench.models import build_model


@pytest.fixture
def problem():
    network = build_model("cifar_model", (1, 8, 8), 10, generator=torch.Generator().manual_seed(0)).eval()
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return network.requires_grad_(False), x, network(x).argmax(1)


def gradient(network, x, y):
    points = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(nn.functional.cross_entropy(network(points), y, reduction="sum"), points)
    return found


def test_logits_are_the_same_bits_and_gradients_are_close(problem):
    network, x, y = problem
    mixed = MixedGradients(network)
    assert torch.equal(mixed(x), network(x))
    assert torch.equal(mixed(x.clone().requires_grad_()).detach(), network(x))
    exact, rough = gradient(network, x, y), gradient(mixed, x, y)
    assert not torch.equal(exact, rough)
    assert torch.nn.functional.cosine_similarity(exact.flatten(1), rough.flatten(1)).min() > 0.99


def test_the_differentiated_pass_computes_in_bfloat16_and_the_other_does_not(problem):
    network, x, _ = problem
    seen = []
    layer = next(part for part in network.modules() if isinstance(part, nn.Conv2d))
    layer.register_forward_hook(lambda _layer, _inputs, output: seen.append(output.dtype))
    MixedGradients(network)(x.clone().requires_grad_())
    assert seen == [torch.float32, torch.bfloat16]
    seen.clear()
    with torch.no_grad():
        MixedGradients(network)(x)
    assert seen == [torch.float32]


def test_a_network_that_is_cut_off_from_its_input_has_no_gradient(problem):
    network, x, _ = problem
    mixed = MixedGradients(nn.Sequential(Detached(), network))
    assert not mixed(x.clone().requires_grad_()).requires_grad


class Detached(nn.Module):
    def forward(self, x):
        return x.detach()
