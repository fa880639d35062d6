"""Learned keep rates: HARP's formulas by hand, exact budgets, gradients by finite differences."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hydrabench.errors import ConfigError
from hydrabench.masking import attach_masks, freeze_masks, learned_budget, score_masks, set_phase, shared_masks
from hydrabench.masking.rates import KeepRate, counts_of, counts_within, excess


def rate(weights, density, logit):
    found = KeepRate(weights, density, initial=0.5)
    found.logit.data.fill_(logit)
    return found


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10))


def test_a_rate_starts_where_it_should_and_stays_above_a_tenth_of_the_density():
    """a(r) = m + (1 - m) sigmoid(r), m = 0.1 k."""
    assert KeepRate(100, 0.01, initial=0.1)().item() == pytest.approx(0.1)
    assert rate(100, 0.01, 0.0)().item() == pytest.approx(0.001 + 0.999 / 2)
    assert rate(100, 0.2, -50.0)().item() == pytest.approx(0.02)
    assert rate(100, 0.2, 50.0)().item() == pytest.approx(1.0)


def test_the_penalty_is_the_excess_over_the_budget_and_its_slope_follows_the_formula():
    rates = [rate(100, 0.1, 0.0), rate(300, 0.1, -1.0)]
    kept = [100 * 0.505, 300 * (0.01 + 0.99 / (1 + math.e))]
    penalty = excess(rates, 40)
    assert penalty.item() == pytest.approx(sum(kept) / 40 - 1, rel=1e-6)
    penalty.backward()
    sigmoid = 1 / (1 + math.e)
    assert rates[0].logit.grad.item() == pytest.approx(100 / 40 * 0.99 * 0.25, rel=1e-6)
    assert rates[1].logit.grad.item() == pytest.approx(300 / 40 * 0.99 * sigmoid * (1 - sigmoid), rel=1e-6)
    assert excess(rates, 400).item() == 0


def test_counts_round_as_kept_count_does_and_keep_one_weight():
    assert counts_of([rate(100, 0.1, 0.0), rate(3, 0.001, -50.0)]) == [51, 1]


@given(
    sizes=st.lists(st.integers(1, 500), min_size=1, max_size=8),
    logits=st.lists(st.floats(-12, 12), min_size=8, max_size=8),
    share=st.floats(0, 1),
)
def test_the_shift_keeps_exactly_the_budget_and_the_order_of_the_rates(sizes, logits, share):
    kept = len(sizes) + int(share * (sum(sizes) - len(sizes)))
    rates = [rate(size, kept / sum(sizes) / 2, logit) for size, logit in zip(sizes, logits, strict=False)]
    counts = counts_within(rates, kept)
    assert sum(counts) == kept
    assert all(1 <= count <= size for count, size in zip(counts, sizes, strict=True))
    order = sorted(range(len(sizes)), key=lambda layer: logits[layer])
    for lower, higher in pairwise(order):
        assert counts[lower] / sizes[lower] <= counts[higher] / sizes[higher] + 1 / sizes[lower] + 1 / sizes[higher]


@pytest.mark.parametrize("kept", [1, 41])
def test_a_budget_that_cannot_be_shared_is_refused(kept):
    with pytest.raises(ValueError, match=f"kept={kept}"):
        counts_within([rate(20, 0.5, 0.0), rate(20, 0.5, 0.0)], kept)


def test_the_gradient_of_a_rate_is_the_sum_of_the_masks_gradients(network):
    attach_masks(network, 0.1, scope="learned", initial_density=0.3)
    set_phase(network, "prune")
    network.train()
    x = torch.rand(5, 20)
    with shared_masks(network):
        weight = network[0].weight
        (through,) = torch.autograd.grad(network(x).square().sum(), weight)
    with shared_masks(network):
        network(x).square().sum().backward()
    mask = score_masks(network)["0"]
    stored = network[0].parametrizations.weight.original
    expected = (through * stored).sum() * 0.99 * mask.rate.logit.sigmoid() * (1 - mask.rate.logit.sigmoid())
    torch.testing.assert_close(mask.rate.logit.grad, expected)


def test_training_follows_the_rates_evaluation_the_budget_and_freezing_drops_the_rates(network):
    attach_masks(network, 0.1, scope="learned", initial_density=0.5)
    set_phase(network, "prune")
    budget = learned_budget(network)
    budget.masks[1].rate.logit.data += 1

    def nonzero():
        with shared_masks(network):
            return [int(network[index].weight.count_nonzero()) for index in (0, 2)]

    assert nonzero() == counts_of(budget.rates())
    assert sum(nonzero()) > 400
    network.eval()
    first, second = nonzero()
    assert first + second == 90
    assert second / 300 > first / 600
    network.train()
    freeze_masks(network)
    assert nonzero() == [first, second]
    assert learned_budget(network) is None
    assert not any("rate" in key for key in network.state_dict())


def test_a_learned_budget_starts_no_lower_than_the_density_and_keeps_a_weight_a_layer(network):
    attach_masks(network, 0.4, scope="learned")
    assert [one().item() for one in learned_budget(network).rates()] == pytest.approx([0.4, 0.4])


def test_a_budget_of_all_weights_keeps_all(network):
    attach_masks(network, 1.0, scope="learned")
    set_phase(network, "prune")
    freeze_masks(network)
    assert [int(mask.mask.sum()) for mask in score_masks(network).values()] == [600, 300]


def test_a_budget_of_fewer_weights_than_layers_is_refused(network):
    with pytest.raises(ConfigError, match="keeps 1 of 900 weights, fewer than the 2 layers"):
        attach_masks(network, 0.001, scope="learned")
