"""Networks that alpha-CROWN takes: linear, masked, with any number of unstable neurons, larger than memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hydrabench.bounds import alpha_crown_margins
from hydrabench.bounds.alpha import Search
from hydrabench.bounds.patches import CHUNK
from hydrabench.masking import attach_masks
from tests.helpers.alpha_problems import MODES, SHORT, crown_margins, partly_unstable, problem


def test_networks_without_unstable_neurons_are_as_crown_has_them():
    linear = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
    x, y = torch.rand(2, 1, 2, 2), torch.tensor([0, 2])
    assert torch.equal(alpha_crown_margins(linear, x, y, 0.3, search=SHORT), crown_margins(linear, x, y, 0.3))
    wrong = torch.tensor([1, 0])
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    assert torch.equal(alpha_crown_margins(network, x, wrong, 0.0, search=SHORT), crown_margins(network, x, wrong, 0.0))


def test_no_images_have_no_bounds():
    network, x, y, _ = problem(1)
    assert alpha_crown_margins(network, x[:0], y[:0], 0.1, search=SHORT).shape == (0,)


@MODES
@pytest.mark.parametrize("convolution", [False, True])
@pytest.mark.parametrize("unstable", [1, 15, 19, 20])
def test_any_number_of_neurons_may_be_unstable(unstable, convolution, slopes):
    network, x, wrong = partly_unstable(unstable, convolution=convolution)
    found = alpha_crown_margins(network, x, wrong, 0.5, search=Search(slopes, iterations=5))
    assert (found > crown_margins(network, x, wrong, 0.5) + 1e-4).all()


def test_masked_networks_are_those_of_their_baked_selves_and_stay_masked():
    network, x, y, _ = problem(1)
    attach_masks(network, 0.3)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    baked, *_ = problem(1)
    with torch.no_grad():
        for name, tensor in baked.named_parameters():
            if tensor.dim() > 1:
                tensor.copy_(network.get_submodule(name.removesuffix(".weight")).weight)
    expected = alpha_crown_margins(baked, x, y, 0.05, search=SHORT)
    assert torch.equal(alpha_crown_margins(network, x, y, 0.05, search=SHORT), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


@MODES
def test_parts_that_fit_into_memory_give_the_same_bounds(slopes, monkeypatch):
    network, x, y, _ = problem(1)
    together = alpha_crown_margins(network, x, y, 0.2, search=Search(slopes, 5))
    monkeypatch.setitem(CHUNK, "cpu", 1)
    apart = alpha_crown_margins(network, x, y, 0.2, search=Search(slopes, 5), memory=1)
    torch.testing.assert_close(apart, together, rtol=1e-4, atol=1e-5)
