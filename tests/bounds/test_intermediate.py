from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import nn

from hydrabench.bounds import BOUNDS, patches
from hydrabench.bounds.crown import lower_bounds
from hydrabench.bounds.intermediate import IntermediateBounds
from hydrabench.bounds.specification import flat, pose
from hydrabench.threat import linf_box

seeds = st.integers(0, 10_000)


def deep_network(seed):
    rng = torch.Generator().manual_seed(seed)
    layers = [nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2)]
    network = nn.Sequential(nn.Flatten(), *layers).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng, dtype=torch.float64))
    return network, torch.rand(1, 2, 1, 1, generator=rng, dtype=torch.float64)


def exact_minimum(network, x, label, epsilon):
    """True smallest margin of two hidden layers: one linear program for every pattern of both."""
    layers = [(network[n].weight.detach(), network[n].bias.detach()) for n in (1, 3, 5)]
    box = list(zip(*(corner.flatten().tolist() for corner in linf_box(x, epsilon)), strict=True))
    found = []
    for pattern in itertools.product([0.0, 1.0], repeat=5):
        slope, constant = torch.eye(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
        left, right = [], []
        for (weight, bias), on in zip(
            layers, (torch.tensor(pattern[:3]), torch.tensor(pattern[3:]), None), strict=True
        ):
            slope, constant = weight @ slope, weight @ constant + bias
            if on is not None:
                sign = (1 - 2 * on).double()  # sign · z <= 0 on this pattern
                left.append(sign.unsqueeze(1) * slope), right.append(-sign * constant)
                slope, constant = on.double().unsqueeze(1) * slope, on.double() * constant
        cost, start = slope[label] - slope[1 - label], float(constant[label] - constant[1 - label])
        solution = linprog(cost.numpy(), A_ub=torch.cat(left).numpy(), b_ub=torch.cat(right).numpy(), bounds=box)
        if solution.success:
            found.append(solution.fun + start)
    return min(found)


@settings(max_examples=25)
@given(seed=seeds, epsilon=st.floats(0, 0.4))
def test_no_bound_exceeds_the_minimum_over_all_relu_patterns(seed, epsilon):
    network, x = deep_network(seed)
    truth = exact_minimum(network, x, seed % 2, epsilon)
    for bound in BOUNDS.values():
        assert bound(network, x, torch.tensor([seed % 2]), epsilon).item() <= truth + 1e-7


def test_crown_and_symbolic_are_exact_where_no_relu_is_undecided():
    counted = 0
    for seed in range(16):
        network, x = deep_network(seed)
        asked = pose(network, x, torch.tensor([0]), 0.02)
        bounds = IntermediateBounds(asked.body, asked.ball)
        bounds.propagate(tighten=True)
        if all(((box.lower() >= 0) | (box.upper() <= 0)).all() for box in bounds.before.values()):
            counted += 1
            for name in ("symbolic", "crown", "cascade"):
                truth = exact_minimum(network, x, 0, 0.02)
                found = BOUNDS[name](network, x, torch.tensor([0]), 0.02).item()
                assert found == pytest.approx(truth, abs=1e-7) or (name == "cascade" and found <= truth)
    assert counted > 4


@pytest.mark.parametrize("problem", ["tiny_problem", "tiny_dag"])
@settings(max_examples=40)
@given(seed=seeds, epsilon=st.floats(0.001, 0.3))
def test_rows_of_single_neurons_give_what_passes_of_whole_values_give(request, problem, seed, epsilon):
    """Every neuron in front of a ReLU, with windows, sums of windows and poolings between it and the image."""
    network, x, y, _ = request.getfixturevalue(problem)(seed)
    asked = pose(network, x, y, epsilon)
    bounds = IntermediateBounds(asked.body, asked.ball)
    passed = bounds.propagate(tighten=False)
    for number in bounds.before:
        count = asked.shapes[number].numel()
        image, neuron = torch.arange(3).repeat_interleave(count), torch.arange(count).repeat(3)
        found = bounds._neuron_bounds(number, image, neuron)
        units = torch.eye(count, dtype=x.dtype).expand(3, -1, -1).reshape(3, count, *asked.shapes[number])
        zeros = torch.zeros(3, count, dtype=x.dtype)
        for ends, sign in zip(found, (1, -1), strict=True):
            whole = sign * lower_bounds(asked.body[:number], asked.ball.box, passed, sign * units, zeros)
            torch.testing.assert_close(ends.view(3, count), whole, rtol=1e-9, atol=1e-9)
    margins = bounds.lower(len(asked.body), flat(asked.rows), asked.offset.flatten()).view(asked.offset.shape)
    whole = lower_bounds(asked.body, asked.ball.box, passed, asked.rows, asked.offset)
    torch.testing.assert_close(margins, whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ["crown", "symbolic"])
@pytest.mark.parametrize("seed", [4, 5])
def test_chunks_of_neurons_change_nothing(tiny_problem, monkeypatch, name, norm, seed):
    network, x, y, _ = tiny_problem(seed)
    with torch.no_grad():
        expected = BOUNDS[name](network, x, y, 0.1, norm=norm)
        monkeypatch.setitem(patches.CHUNK, "cpu", 300)
        torch.testing.assert_close(BOUNDS[name](network, x, y, 0.1, norm=norm), expected, rtol=1e-12, atol=1e-12)
