"""Budgets: one density, one for each layer, or one number of weights that all layers share."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hydrabench.errors import ConfigError
from hydrabench.masking import (
    attach_masks,
    bake_masks,
    freeze_masks,
    kept_counts,
    layer_densities,
    mask,
    overall_density,
    prunable_layers,
    score_masks,
    set_phase,
    share_budget,
    shared_masks,
    total_kept,
)

SIZES = {"0": 36, "3": 1440}  # of the layers below: 4·1·3·3, 10·144


def network() -> nn.Sequential:
    layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layers


def kept(subject: nn.Module) -> dict[str, int]:
    return {layer.name: layer.nonzero for layer in layer_densities(subject)}


def pruning(density: float = 0.1) -> nn.Sequential:
    subject = network()
    attach_masks(subject, density, scope="global")
    set_phase(subject, "prune")
    return subject


# Sharing, by hand and by brute force ------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "total", "counts"),
    [
        ([[5, -4, 3], [2, 1, -6]], 3, [2, 1]),  # 6, 5, 4
        ([[5, -4, 3], [2, 1, -6]], 5, [3, 2]),  # then 3, 2
        ([[5, -4, 3], [2, 1, -6], [0.1, 0.2]], 3, [1, 1, 1]),  # the third layer keeps its 0.2 before the first its 4
        ([[5, -4, 3], [2, 1, -6], [0.1, 0.2]], 4, [2, 1, 1]),
        ([[1, 1, 1], [1, 1]], 3, [2, 1]),  # of equals, those of earlier layers
        ([[0, 0], [0, 3]], 2, [1, 1]),
        ([[0, 0], [0, 3]], 4, [2, 2]),
    ],
)
def test_layers_share_a_budget_by_rank_and_keep_at_least_one_each(scores, total, counts):
    assert share_budget([torch.tensor(layer, dtype=torch.float32) for layer in scores], total) == counts


@settings(max_examples=40)
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=5), seed=st.integers(0, 10**6), data=st.data())
def test_a_shared_budget_is_what_a_full_sort_of_all_scores_keeps(sizes, seed, data):
    generator = torch.Generator().manual_seed(seed)
    scores = [torch.randn(size, generator=generator) for size in sizes]
    total = data.draw(st.integers(len(sizes), sum(sizes)))
    ranked = sorted(
        ((float(value.abs()), index) for index, layer in enumerate(scores) for value in layer), reverse=True
    )
    firsts = [next(i for i, (_, layer) in enumerate(ranked) if layer == index) for index in range(len(sizes))]
    rest = [place for place in range(len(ranked)) if place not in firsts][: total - len(sizes)]
    expected = [sum(ranked[place][1] == index for place in (*firsts, *rest)) for index in range(len(sizes))]
    found = share_budget(scores, total)
    assert found == expected
    assert sum(found) == total


@pytest.mark.parametrize("total", [1, 6])
def test_a_budget_that_cannot_be_shared_is_the_callers_mistake(total):
    with pytest.raises(ValueError, match="out of range: kept="):
        share_budget([torch.ones(2), torch.ones(3)], total)


# Budgets of a network ---------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0.5, 0.1, 0.01, 0.0015])
def test_a_global_budget_keeps_exactly_its_number_of_all_weights(density):
    """1476 - floor((1 - k) · 1476): 738, 148, 15, 3."""
    subject = network()
    attach_masks(subject, density, scope="global")
    expected = {0.5: 738, 0.1: 148, 0.01: 15, 0.0015: 3}[density]
    assert sum(kept(subject).values()) == total_kept(network(), density) == expected
    assert min(kept(subject).values()) >= 1
    assert kept(subject) != kept_counts(network(), density)  # it is not the uniform rule by another name


def test_a_global_budget_with_fewer_weights_than_layers_is_refused():
    with pytest.raises(ConfigError, match=r"density 0\.0001 keeps 1 of 1476 weights, fewer than the 2 layers.*0\.002"):
        attach_masks(network(), 0.0001, scope="global")
    with pytest.raises(ConfigError, match="fewer than the 2 layers"):
        overall_density(network(), 0.0001, "global")
    assert total_kept(network(), 0.002) >= 2  # what the message advises


def test_each_layer_keeps_its_own_density():
    """36 - floor(0.5 · 36) = 18 and 1440 - floor(0.99 · 1440) = 1440 - 1425 = 15."""
    subject = network()
    attach_masks(subject, {"3": 0.01, "0": 0.5})
    assert kept(subject) == {"0": 18, "3": 15}
    assert overall_density(network(), {"3": 0.01, "0": 0.5}, "layer") == pytest.approx((18 + 14.4) / 1476, rel=1e-12)
    assert overall_density(network(), {"3": 1.0, "0": 1.0}, "layer") == 1
    assert overall_density(network(), 0.1, "layer") == 0.1


def test_unknown_and_missing_layers_are_named_together():
    wanted = r"density by layer does not fit the network: unknown conv1, 4; missing 3; give .* its layers: 0, 3"
    given = {"conv1": 0.1, "0": 0.1, "4": 0.2}
    with pytest.raises(ConfigError, match=wanted):
        attach_masks(network(), given)
    with pytest.raises(ConfigError, match=wanted):
        overall_density(network(), given, "layer")


def test_known_numbers_of_kept_weights_are_checked_against_the_layers():
    subject = network()
    attach_masks(subject, 0.1, kept={"0": 7, "3": 100})
    assert kept(subject) == {"0": 7, "3": 100}
    with pytest.raises(ConfigError, match="layer 0 has 36 weights and cannot keep 37"):
        kept_counts(network(), 0.1, {"0": 37, "3": 1})
    with pytest.raises(ConfigError, match="kept by layer does not fit the network: missing 3"):
        kept_counts(network(), 0.1, {"0": 3})


def test_a_global_density_for_each_layer_is_refused():
    with pytest.raises(ConfigError, match="a global budget is one density"):
        overall_density(network(), {"0": 0.1, "3": 0.1}, "global")


# Selecting while pruning ------------------------------------------------------------------------


def test_a_global_budget_follows_the_scores_of_all_layers_while_pruning():
    """A convolution whose scores outgrow all others keeps all its 36 weights, the linear layer the other 112."""
    subject = pruning()
    with torch.no_grad():
        score_masks(subject)["0"].scores.mul_(1e6)
    assert kept(subject) == {"0": 36, "3": 112}
    with shared_masks(subject):
        assert kept(subject) == {"0": 36, "3": 112}
    with torch.no_grad():
        score_masks(subject)["0"].scores.mul_(1e-12)
    assert kept(subject) == {"0": 1, "3": 147}
    freeze_masks(subject)
    with torch.no_grad():
        score_masks(subject)["0"].scores.mul_(1e12)
    assert kept(subject) == {"0": 1, "3": 147}


def test_a_global_budget_is_shared_out_once_for_all_passes_inside_a_shared_block(monkeypatch):
    subject = pruning()
    shares, masks = [], []
    share, select = mask.share_budget, mask.top_k_mask
    monkeypatch.setattr(mask, "share_budget", lambda scores, total: shares.append(1) or share(scores, total))
    monkeypatch.setattr(mask, "top_k_mask", lambda *given: masks.append(1) or select(*given))
    x = torch.rand(4, 1, 8, 8)
    with shared_masks(subject):
        for _ in range(10):
            subject(x)
    assert (len(shares), len(masks)) == (1, 2)
    with shared_masks(subject):  # the next step does it anew
        subject(x)
    assert (len(shares), len(masks)) == (2, 4)
    set_phase(subject, "finetune")
    assert len(shares) == 3  # and once for both masks that stay from here on
    shares.clear()
    with shared_masks(subject):
        subject(x)
    subject(x)
    assert not shares


def test_gradients_under_a_global_budget_pass_straight_through():
    """L = the sum of w_eff over both layers: dL/ds = w · sign(s) = |w|, kept or not."""
    subject = pruning()
    with shared_masks(subject):
        sum(layer.weight.sum() for layer in prunable_layers(subject).values()).backward()
    plain = prunable_layers(network())
    for name, found in score_masks(subject).items():
        torch.testing.assert_close(found.scores.grad, plain[name].weight.detach().abs())


def test_a_copy_shares_its_budget_with_itself_and_not_with_the_original():
    subject = pruning()
    twin = copy.deepcopy(subject)
    before = kept(subject)
    with torch.no_grad():
        score_masks(twin)["0"].scores.mul_(1e6)
    assert kept(twin) == {"0": 36, "3": 112}
    assert kept(subject) == before
    bake_masks(twin)
    assert kept(twin) == {"0": 36, "3": 112}
