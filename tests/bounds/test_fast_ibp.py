"""Interval bounds to train with, and the regularisers that keep boxes from exploding, by hand and by their formulas."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hydrabench.bounds import class_margins, regularizer, training_bounds
from hydrabench.bounds.box import Interval
from hydrabench.bounds.fast_ibp import TrainingBounds
from hydrabench.models import build_model


def problem(arch="cifar_model_bn"):
    network = build_model(arch, (1, 8, 8), 10, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    return network, torch.rand(5, 1, 8, 8, generator=generator), torch.randint(0, 10, (5,), generator=generator)


def bounds(*boxes: tuple[list[float], list[float]], image=(0.0, 0.2)) -> TrainingBounds:
    neurons = [Interval.between(torch.tensor([lower]), torch.tensor([upper])) for lower, upper in boxes]
    ends = torch.tensor([[image[0]]]), torch.tensor([[image[1]]])
    return TrainingBounds(torch.zeros(1, 2), Interval.between(*ends), neurons)


def test_the_margins_are_those_of_intervals_and_have_the_same_gradients():
    network, x, y = problem()
    network.train()
    gradients = []
    for margins in (
        training_bounds(network, x, y, 0.02).margins,
        class_margins(network, x, y, 0.02, beta=0.0),
    ):
        gradients.append((margins, torch.autograd.grad(margins.sum(), network[0].weight)[0]))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_batch_norm_takes_the_statistics_of_the_images_that_are_given():
    network, x, y = problem()
    network.train()
    centres = x.flip(0) * 0.5
    own = training_bounds(network, centres, y, 0.02).margins
    given = training_bounds(network, centres, y, 0.02, statistics=x).margins
    assert not torch.allclose(own, given)
    torch.testing.assert_close(given, training_bounds(network, centres, y, 0.02, statistics=x.flip(0)).margins)


def test_a_tight_and_balanced_layer_costs_nothing_and_a_wide_one_up_to_one():
    """Radius 0.1 in front and 0.1 behind: ratio 1. Ten times as wide: ratio 0.1, (0.5 - 0.1) / 0.5 = 0.8."""
    assert regularizer(bounds(([-1.1, 0.9], [-0.9, 1.1]))).item() == 0
    assert regularizer(bounds(([-2.0, 0.0], [0.0, 2.0]))).item() == pytest.approx(0.8)
    assert regularizer(bounds(([-1.1, 0.9], [-0.9, 1.1]), ([-2.0, 0.0], [0.0, 2.0]))).item() == pytest.approx(0.4)


def test_an_unbalanced_layer_is_penalised_by_sums_and_by_spread():
    """Centres 4 and -1, mean 1.5: P = 4, folded 1/4; squared distances 6.25 each: Q = 1. (0.5 - 0.25) / 0.5 = 0.5."""
    assert regularizer(bounds(([3.9, -1.1], [4.1, -0.9]))).item() == pytest.approx(0.5)


def test_layers_whose_neurons_are_all_unstable_have_no_penalty_on_balance():
    assert regularizer(bounds(([-0.1, -0.1], [0.1, 0.1]))).item() == 0


def test_the_regulariser_is_the_formula_of_the_paper_on_a_network():
    """Equations 8 to 12 of arXiv:2103.17268, written out on the boxes in front of the ReLUs."""
    network, x, y = problem("cifar_model")
    epsilon = 0.004
    lower, upper = (x - epsilon).clamp(0, 1), (x + epsilon).clamp(0, 1)
    first, penalties = (upper - lower).mean() / 2, []
    for layer in network:
        if isinstance(layer, nn.ReLU):
            centre, radius = (upper + lower) / 2, (upper - lower) / 2
            active, inactive = (lower > 0).float(), (upper < 0).float()
            spread = (centre - centre.mean()) ** 2
            tight = torch.relu(0.5 - first / radius.mean()) / 0.5
            balance = torch.zeros(())
            for above, below in ((centre * active, -centre * inactive), (spread * active, spread * inactive)):
                ratio = above.mean() / below.mean()
                balance = balance + torch.relu(0.5 - torch.minimum(ratio, 1 / ratio)) / 0.5
            penalties.append(tight + torch.nan_to_num(balance))  # the authors skip what is not a number
            lower, upper = lower.relu(), upper.relu()
        elif isinstance(layer, nn.Flatten):
            lower, upper = layer(lower), layer(upper)
        else:
            centre, radius = layer((upper + lower) / 2), (upper - lower) / 2
            wide = nn.functional.conv2d if isinstance(layer, nn.Conv2d) else nn.functional.linear
            keys = {"stride": layer.stride, "padding": layer.padding} if isinstance(layer, nn.Conv2d) else {}
            radius = wide(radius, layer.weight.abs(), **keys)
            lower, upper = centre - radius, centre + radius
    found = regularizer(training_bounds(network, x, y, epsilon))
    assert found.item() == pytest.approx(torch.stack(penalties).mean().item(), rel=1e-4)
    assert found.item() > 0


def test_shrinking_multiplies_the_upper_bound_of_unstable_neurons_only():
    """One neuron x - 0.5 over [0.4, 0.8]: [-0.1, 0.3], shrunk to 0.24. f_0 - f_1 is at least 1 - 0.24."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2))
    with torch.no_grad():
        network[1].weight.fill_(1.0)
        network[1].bias.fill_(-0.5)
        network[3].weight.copy_(torch.tensor([[-1.0], [0.0]]))
        network[3].bias.copy_(torch.tensor([1.0, 0.0]))
    x, y = torch.full((1, 1, 1, 1), 0.6), torch.tensor([0])
    assert training_bounds(network, x, y, 0.2).margins[0, 1].item() == pytest.approx(0.7)
    assert training_bounds(network, x, y, 0.2, shrinking=0.8).margins[0, 1].item() == pytest.approx(0.76)
    x = torch.full((1, 1, 1, 1), 0.75)  # [0.05, 0.45]: stable
    assert training_bounds(network, x, y, 0.2, shrinking=0.8).margins[0, 1].item() == pytest.approx(0.55)


def test_a_network_without_relus_cannot_be_regularised():
    with pytest.raises(ValueError, match="needs a network with ReLUs"):
        regularizer(bounds())
