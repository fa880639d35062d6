"""Deployed margins hold for what a device computes, in any order of summation."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

from hydrabench.bounds import BOUNDS
from hydrabench.bounds.sound import (
    STOPS,
    deployed_margins,
    sound_margins,
)

seeds = st.integers(0, 10_000)

every_kind = pytest.mark.parametrize("kind", STOPS)


class Reciprocal(nn.Module):
    def forward(self, weight):
        return 1 / weight


def added_up(products, order):
    """Sums of float32 products (B, outputs, terms), one after the other in some order."""
    places = {
        "forward": torch.arange(products.shape[2]).expand_as(products),
        "backward": torch.arange(products.shape[2]).flip(0).expand_as(products),
        "largest first": products.abs().argsort(2, descending=True),
        "smallest first": products.abs().argsort(2),
        "positive first": products.argsort(2, descending=True),
    }[order]
    total = torch.zeros(products.shape[:2])
    for term in products.gather(2, places).unbind(2):
        total = total + term
    return total


def computed(network, x, order):
    """The logits of linear layers and ReLUs in float32, their sums in some order; batch norm as torch has it."""
    for layer in network:
        if isinstance(layer, nn.Linear):
            products = layer.weight * x.unsqueeze(1)
            if layer.bias is not None:
                products = torch.cat([products, layer.bias.view(1, -1, 1).expand(len(x), -1, 1)], 2)
            x = added_up(products, order)
        else:
            x = layer(x)
    return x


ORDERS = ("forward", "backward", "largest first", "smallest first", "positive first")


def cancelling_layers(rng, large):
    """Eight pixels; every neuron of the first layer has a twin that the second one subtracts again, but for a bias."""
    sizes = [
        nn.Linear(8, 24),
        nn.BatchNorm1d(24, affine=False),
        nn.ReLU(),
        nn.Linear(24, 24),
        nn.ReLU(),
        nn.Linear(24, 3),
    ]
    network = nn.Sequential(nn.Flatten(), *sizes).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=rng) / parameter.shape[-1] ** 0.5)
    network[1].weight.mul_(large)
    network[1].weight[12:] = network[1].weight[:12]
    network[4].weight[:, 12:] = -network[4].weight[:, :12]
    return network


@every_kind
@pytest.mark.parametrize("large", [1.0, 2.0**12, 2.0**22])
@pytest.mark.parametrize("epsilon", [Fraction(0), Fraction(1, 50)])
def test_no_order_of_summation_breaks_a_deployed_margin(kind, epsilon, large):
    """At points of the ball, corners too; rounding does take margins below those of exact arithmetic."""
    rng, below = torch.Generator().manual_seed(int(large)), 0
    for _ in range(6):
        network, x = cancelling_layers(rng, large), torch.rand(1, 1, 2, 4, generator=rng)
        y = network(x).argmax(1)
        found = deployed_margins(network, x, y, epsilon, kind=kind)
        exact = sound_margins(network, x, y, epsilon, kind=kind)
        assert found < exact
        steps = 2 * torch.rand(40, 1, 2, 4, generator=rng) - 1
        reach = float(epsilon) * (1 - 2**-20)
        points = (x + reach * torch.cat([steps[:20], steps[20:].sign()])).clamp(0, 1)
        for order in ORDERS:
            logits = computed(network, points, order).double()
            margins = logits[:, y] - logits.scatter(1, y.expand(40, 1), -torch.inf).amax(1, keepdim=True)
            assert (margins >= found).all()
            below += int((margins < exact).any())
    assert below > 0 or epsilon


@every_kind
def test_a_network_whose_rounding_turns_its_prediction_is_not_certified(kind):
    """(2^25 p + p) - 2^25 p - 1/4 is 3/4 at p = 1, and -1/4 in float32, where 2^25 + 1 is 2^25."""
    rows = [[[1.0], [1]], [[2**25, 1], [2**25, 0]], [[1, -1], [0, 0]]]
    layers = [nn.Linear(len(weight[0]), len(weight)) for weight in rows]
    for layer, weight in zip(layers, rows, strict=True):
        layer.weight.data, layer.bias.data = torch.tensor(weight, dtype=torch.float32), torch.zeros(len(weight))
    layers[-1].bias.data[0] = -0.25
    network, x, y = nn.Sequential(nn.Flatten(), *layers).eval(), torch.ones(1, 1, 1, 1), torch.tensor([0])
    assert network(x).tolist() == [[-0.25, 0.0]]
    assert sound_margins(network, x, y, Fraction(0), kind=kind) > 0.7
    assert deployed_margins(network, x, y, Fraction(0), kind=kind) <= -0.25
    assert deployed_margins(network.double(), x.double(), y, Fraction(0), kind=kind) > 0.7


@every_kind
def test_a_long_sum_that_loses_all_but_its_first_term_is_not_certified(kind):
    """1 + 4095 · 2^-25 = 1.000122 exceeds 1.00006; added up one after the other, every small term is lost."""
    layer = nn.Linear(4096, 2)
    layer.weight.data, layer.bias.data = torch.zeros(2, 4096), torch.tensor([0.0, 1.00006])
    layer.weight.data[0] = 2.0**-25
    layer.weight.data[0, 0] = 1.0
    network, x, y = (
        nn.Sequential(nn.Flatten(), layer).eval().requires_grad_(False),
        torch.ones(1, 1, 64, 64),
        torch.tensor([0]),
    )
    first, second = computed(network, x, "forward")[0].tolist()
    assert first - second < -5e-5
    assert sound_margins(network, x, y, Fraction(0), kind=kind) > 6e-5
    assert deployed_margins(network, x, y, Fraction(0), kind=kind) <= first - second


@every_kind
@settings(max_examples=20)
@given(seed=seeds, epsilon=st.fractions(0, Fraction(1, 5)))
def test_deployed_margins_of_small_networks_are_a_little_smaller(tiny_dag, kind, seed, epsilon):
    """Every operation, its rounding in float32, at points of the ball; less than 1e-3 is lost."""
    network, x, y, rng = tiny_dag(seed)
    network, x = network.float(), x.float()
    found = deployed_margins(network, x, y, epsilon, kind=kind)
    exact = sound_margins(network, x, y, epsilon, kind=kind)
    assert (found < exact).all()
    if kind == "ibp":
        torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-2)
    for _ in range(4):
        step = (2 * torch.rand(x.shape, generator=rng) - 1).sign() * float(epsilon) * (1 - 2**-20)
        logits = network((x + step).clamp(0, 1)).double()
        others = logits.scatter(1, y.unsqueeze(1), -torch.inf).amax(1)
        assert (found <= logits.gather(1, y.unsqueeze(1)).squeeze(1) - others).all()


def test_what_float32_cannot_hold_is_no_proof():
    """1e20 · 1e20 is infinite in float32, though not in float64; underflow to 0 costs as much as it may."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(1, 1), nn.Linear(1, 2)).eval()
    for parameter, value in zip(network.parameters(), (1e20, 0.0, [[1e20], [0.0]], 0.0), strict=True):
        parameter.data = torch.as_tensor(value).expand(parameter.shape).clone()
    x, y = torch.ones(1, 1, 1, 1), torch.tensor([0])
    assert sound_margins(network, x, y, Fraction(0), kind="ibp") > 0
    assert deployed_margins(network, x, y, Fraction(0), kind="ibp").isnan()
    network[1].weight.data.fill_(1e-30), network[2].weight.data.mul_(1e-40)
    assert sound_margins(network, x, y, Fraction(0), kind="ibp") > 0
    assert not deployed_margins(network, x, y, Fraction(0), kind="ibp") > 0


def test_the_weights_of_a_parametrized_layer_are_those_it_applies_in_its_own_precision():
    """1/3 in float32 is above 1/3: with the margin p/3 - fl(1/3), nothing is left at p = 1, and in float64 less."""
    layer = nn.Linear(1, 2)
    layer.weight.data, layer.bias.data = torch.tensor([[3.0], [torch.inf]]), -torch.tensor([1.0, 0.0]) / 3
    parametrize.register_parametrization(layer, "weight", Reciprocal())
    network, x, y = nn.Sequential(nn.Flatten(), layer).eval(), torch.ones(1, 1, 1, 1), torch.tensor([0])
    assert -1e-12 < sound_margins(network, x, y, Fraction(0), kind="ibp") <= 0
    assert parametrize.is_parametrized(layer)


@pytest.mark.parametrize("seed", [3, 4, 6, 19])
def test_a_pool_whose_lower_bounds_are_equal_is_bounded_as_tightly_as_without_rounding(seed):
    """Rounding outward must not choose which of several lower bounds of 0 behind a ReLU is the largest."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, 2), nn.Flatten()]
    network = nn.Sequential(*layers, nn.Linear(48, 6), nn.ReLU(), nn.Linear(6, 3)).double().eval()
    x = torch.rand(4, 1, 8, 8, dtype=torch.float64)
    y = network(x).argmax(1)
    with torch.no_grad():
        plain = BOUNDS["crown-ibp"](network, x, y, 0.1)
        sound = sound_margins(network, x, y, Fraction(1, 10), kind="crown-ibp")
    torch.testing.assert_close(sound, plain, rtol=0, atol=1e-9)
