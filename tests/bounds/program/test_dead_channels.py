"""A pruned program without the channels that do not count computes the same, and bounds of it are the same."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from hydrabench.bounds import BOUNDS, prepared
from hydrabench.bounds.program.dead_channels import compacted
from hydrabench.bounds.program.linear import Dense
from hydrabench.bounds.program.program import program_of, read, shapes_of


def nodes_of(network):
    return read(program_of(network.eval().requires_grad_(False)))


def weights(nodes):
    return [node.operation.weight.flatten(1).tolist() for node in nodes if hasattr(node.operation, "weight")]


def tensor(*numbers):
    return nn.Parameter(torch.tensor(numbers, dtype=torch.float32))


def by_hand():
    """Images (1, 1, 2), five channels of one weight each, then a linear layer over 5 · 2 entries.

    Channel 0 counts. Channel 1 is read by weights that are all 0. Channel 2 has weight 0 and bias -1, and a ReLU behind
    it, so that it is always 0. Channel 3 has weight 0 and bias 2: it is always 2, and is read. Channel 4 has weight 0
    and bias 0, and is read. Of channel 0 only the second entry is read, which keeps both.
    """
    network = nn.Sequential(nn.Conv2d(1, 5, 1), nn.ReLU(), nn.Flatten(), nn.Linear(10, 2))
    network[0].weight = nn.Parameter(torch.tensor([3.0, 4, 0, 0, 0]).view(5, 1, 1, 1))
    network[0].bias = tensor(0.0, 1, -1, 2, 0)
    network[3].weight = tensor([0.0, 5, 0, 0, 6, 7, 1, 2, 3, 4], [0.0, 0, 0, 0, 8, 9, 3, 4, 5, 6])
    return network


def test_channels_that_nobody_reads_and_those_that_are_zero_are_left_out_by_hand():
    network = by_hand()
    nodes = compacted(nodes_of(network))
    assert weights(nodes) == [[[3], [0]], [[0, 5, 1, 2], [0, 0, 3, 4]]]
    assert nodes[0].operation.bias.tolist() == [0, 2]
    x = torch.rand(3, 1, 1, 2)
    value = x
    for node in nodes:
        value = node.operation.apply(value)
    torch.testing.assert_close(value, network(x))


def test_what_comes_before_a_channel_that_is_left_out_goes_too():
    """Only the second layer's neuron 0 is read, and only the first layer's neuron 2 by it."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2))
    network[1].weight = tensor([1.0, 2], [3.0, 4], [5.0, 6])
    network[3].weight = tensor([0.0, 0, 7], [8.0, 9, 1])
    network[5].weight = tensor([2.0, 0], [3.0, 0])
    assert weights(compacted(nodes_of(network))) == [[[5, 6]], [[7]], [[2], [3]]]


class Sum(nn.Module):
    """The logits of relu(a(x)) + b(x), both convolutions 1 x 1."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.end = nn.Conv2d(1, 3, 1), nn.Conv2d(1, 3, 1), nn.Linear(3, 2)
        self.flatten, self.relu = nn.Flatten(), nn.ReLU()

    def forward(self, x):
        return self.end(self.flatten(self.relu(self.a(x)) + self.b(x)))


def test_values_that_are_added_keep_the_channels_that_either_needs():
    """Channel 0 of a is always 0, that of b is not; channel 1 is not read; channel 2 counts."""
    network = Sum()
    network.a.weight, network.a.bias = nn.Parameter(torch.tensor([0.0, 1, 2]).view(3, 1, 1, 1)), tensor(-1.0, 0, 0)
    network.b.weight = nn.Parameter(torch.tensor([3.0, 4, 5]).view(3, 1, 1, 1))
    network.end.weight = tensor([1.0, 0, 2], [3.0, 0, 4])
    assert weights(compacted(nodes_of(network))) == [[[0], [2]], [[3], [5]], [[1, 2], [3, 4]]]


class FlatSum(nn.Module):
    """The logits of f + linear(f), f = relu(convolution(x)) flattened from 2 channels of 2 entries each."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten())
        self.linear, self.end = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        flat = self.body(x)
        return self.end(flat + self.linear(flat))


def test_a_sum_of_channels_and_of_single_entries_keeps_all():
    network = FlatSum()
    network.end.weight.data[:, 1:] = 0
    nodes = nodes_of(network)
    assert all(one is other for one, other in zip(compacted(nodes), nodes, strict=True))


def test_no_value_becomes_empty_where_the_output_depends_on_nothing():
    network = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    nn.init.zeros_(network[3].weight)
    nodes, x = compacted(nodes_of(network)), torch.rand(2, 1, 2, 2)
    assert [tuple(shape) for shape in shapes_of(nodes, x)] == [(1, 2, 2), (1, 2, 2), (1, 2, 2), (4,), (2,)]
    margins = BOUNDS["crown"](prepared(network), x, torch.tensor([0, 1]), 0.1)
    bias = network[3].bias
    assert margins.tolist() == [bias[0] - bias[1], bias[1] - bias[0]]


def test_a_program_in_which_every_channel_counts_keeps_its_nodes(tiny_problem):
    nodes = nodes_of(tiny_problem(3)[0])
    assert all(one is other for one, other in zip(compacted(nodes), nodes, strict=True))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_keeps_every_channel(value):
    """The product of 0 and infinity is NaN, and so is the network's output; a bound has to be, too."""
    network = by_hand()
    network[0].bias.data[1] = value
    nodes = nodes_of(network)
    assert all(one is other for one, other in zip(compacted(nodes), nodes, strict=True))
    assert BOUNDS["ibp"](prepared(network), torch.rand(1, 1, 1, 2), torch.tensor([0]), 0.1).isnan().all()


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv2d(2, 2, 1, groups=2), "groups"),
        (nn.Linear(3, 3), "over the last axis of an image, which is not the one of its channels"),
    ],
)
def test_layers_that_mix_channels_otherwise_keep_all(layer, reason):
    network = nn.Sequential(nn.Conv2d(1, 2, 1), layer, nn.ReLU(), nn.Flatten(), nn.Linear(18, 2))
    nn.init.zeros_(network[4].weight)
    nodes = nodes_of(network)
    assert all(one is other for one, other in zip(compacted(nodes), nodes, strict=True)), reason


def test_a_window_of_padding_alone_is_no_zero():
    """Kernel 2 with dilation 3 over one entry and a padding of 1 on each side sees only padding: -infinity."""
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.MaxPool2d(2, 3, 1, 2), nn.Flatten(), nn.Linear(2, 2))
    network[0].weight.data[1], network[0].bias.data[1] = 0, -1
    assert network(torch.rand(1, 1, 1, 1)).isfinite().logical_not().any()
    assert len(compacted(nodes_of(network))[0].operation.weight) == 2


def test_a_mean_over_zero_padding_is_not_the_constant_that_goes_in():
    """Of a channel that is always 2 the mean over 3 x 3 is 2 inside and 8/9 in a corner, where 1 - mean is positive."""
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.AvgPool2d(3, 1, 1), nn.BatchNorm2d(2, eps=0), nn.ReLU())
    network += nn.Sequential(nn.Flatten(), nn.Linear(18, 2))
    network[0].weight.data[1], network[0].bias.data[1] = 0, 2
    network[2].weight.data[1], network[2].bias.data[1] = -1, 1
    assert (network.eval()[:4](torch.rand(1, 1, 3, 3))[0, 1] > 0).sum() == 4
    assert len(compacted(nodes_of(network))[0].operation.weight) == 2


@pytest.mark.parametrize("channels", [1, 2])
def test_batch_norm_behind_a_flatten_scales_each_entry_of_a_channel(channels):
    """Of the last channel, always -1, it makes 2 at the first entry and -1 at the second; the one in front may go."""
    network = nn.Sequential(nn.Conv2d(1, channels, 1), nn.Flatten(), nn.BatchNorm1d(2 * channels, eps=0), nn.ReLU())
    network += nn.Sequential(nn.Linear(2 * channels, 2))
    network[0].weight.data[-1], network[0].bias.data[-1] = 0, -1
    network[2].weight.data[-2] = -2
    network[4].weight.data[:, :-2] = 0
    nodes, x = compacted(nodes_of(network)), torch.rand(2, 1, 1, 2)
    assert nodes[0].operation.bias.tolist() == [-1]
    assert nodes[2].operation.scale.tolist() == [-2, 1]
    value = x
    for node in nodes:
        value = node.operation.apply(value)
    torch.testing.assert_close(value, network(x))


@torch.no_grad()
def prune(network, rng):
    """Leave one in two to one in ten weights, and cut whole channels off, in front of them or behind them."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            density = 0.1 + 0.4 * torch.rand((), generator=rng)
            kept = torch.rand(module.weight.shape, generator=rng) < density
            rows, columns = (torch.rand(size, generator=rng) < 0.6 for size in module.weight.shape[:2])
            kept &= (rows.unsqueeze(1) & columns).view(*rows.shape, *columns.shape, *[1] * (module.weight.ndim - 2))
            module.weight *= kept


def cases(tiny_problem, tiny_dag, residual_network):
    yield from (tiny_problem(seed) for seed in range(24))
    yield from (tiny_dag(seed) for seed in range(24))
    yield from (residual_network(pooling, seed) for pooling in ("avg", "max", "global") for seed in range(4))


def test_pruned_networks_of_every_operation_have_the_same_outputs_and_bounds(tiny_problem, tiny_dag, residual_network):
    """In float64, forwards and in every method; together they lose a fifth of their channels."""
    channels = [0, 0]
    for network, images, y, rng in cases(tiny_problem, tiny_dag, residual_network):
        prune(network.double(), rng)
        x, nodes = images.double(), nodes_of(network)
        ready = prepared(network)
        values, size = [x], 1e-9 * (1 + float(network(x).abs().max()))
        for node in ready.nodes:
            values.append(node.operation.apply(*(values[number] for number in node.inputs)))
        torch.testing.assert_close(values[-1], network(x), rtol=1e-9, atol=size)
        for place, program in enumerate((nodes, ready.nodes)):
            channels[place] += sum(shape[0] for shape in shapes_of(program, x))
        for kind, bound in BOUNDS.items():
            for norm in ("linf", "l2"):
                lower = bound(ready, x, y, 0.03, norm=norm)
                torch.testing.assert_close(lower, bound(network, x, y, 0.03, norm=norm), rtol=1e-9, atol=size, msg=kind)
    assert channels[1] < 0.8 * channels[0]


@settings(max_examples=60)
@given(seed=st.integers(0, 2**20), widths=st.lists(st.integers(1, 6), min_size=1, max_size=3))
def test_a_channel_is_kept_if_and_only_if_a_path_of_weights_leads_through_it(seed, widths):
    """Against paths counted by products of matrices, for linear layers without biases, one behind the other."""
    rng = torch.Generator().manual_seed(seed)
    widths = [3, *widths, 2]
    layers = [nn.Linear(one, other, bias=False) for one, other in pairwise(widths)]
    network = nn.Sequential(nn.Flatten(), *(part for layer in layers for part in (layer, nn.ReLU())))
    with torch.no_grad():
        for layer in layers:
            layer.weight.copy_(torch.rand(layer.weight.shape, generator=rng) < 0.5)
    before = [torch.ones(3)]
    for layer in layers:
        before.append(layer.weight.detach() @ before[-1])
    after = [torch.ones(2)]
    for layer in reversed(layers):
        after.append(layer.weight.detach().T @ after[-1])
    paths = [one * other for one, other in zip(before, reversed(after), strict=True)][1:-1]
    assume(all(count.any() for count in paths))
    found = [len(node.operation.weight) for node in compacted(nodes_of(network)) if isinstance(node.operation, Dense)]
    assert found[:-1] == [int((count > 0).sum()) for count in paths]
