"""Masks: oracles O1 to O3 of reference/hydra.md section 11, phases, sharing, baking."""

from __future__ import annotations

import copy
from fractions import Fraction
from math import ceil, sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

from hydrabench.errors import ConfigError
from hydrabench.masking import (
    attach_masks,
    bake_masks,
    global_density,
    kept_count,
    layer_densities,
    mask,
    prunable_layers,
    scaled_scores,
    score_masks,
    set_phase,
    shared_masks,
    top_k_mask,
)
from hydrabench.models import build_model

# One of every builder, small enough to be built many times; tests/models has the large ones.
SMALL_MODELS = ("cifar_model", "cifar_model_bn", "vgg4_without_maxpool", "vgg2", "vgg4_bn", "resnet18", "wrn_28_1")

SCORES = torch.tensor([0.3, -0.1, 0.0, -0.5, 0.2, 0.05, 0.4, -0.25, 0.15, 0.6])


def small_network() -> nn.Sequential:
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10, bias=True)
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return network


def test_the_largest_three_of_ten_scores_are_kept_oracle_o1():
    """|s| sorted: 0.6 (9), 0.5 (3), 0.4 (6), 0.3 ...; k = 0.3 of 10 keeps three."""
    assert top_k_mask(SCORES, kept_count(10, 0.3)).nonzero().flatten().tolist() == [3, 6, 9]


def test_the_gradient_passes_straight_through_to_the_absolute_scores_oracle_o1():
    """Incoming gradient i times the sign of score i; a score that is exactly 0 gets none."""
    scores = SCORES.clone().requires_grad_()
    top_k_mask(scores, 3).backward(torch.arange(10.0))
    assert scores.grad.tolist() == [0, -1, 0, -3, 4, 5, 6, -7, 8, 9]


@pytest.mark.parametrize(
    ("n", "density", "kept"),
    [(10, 0.9, 9), (10, 0.8, 8), (10, 0.1, 1), (432, 0.01, 5), (15_302_848, 0.1, 1_530_285), (7, 1, 7), (3, 0.01, 1)],
)
def test_the_kept_count_is_exact_oracle_o2(n, density, kept):
    """n - floor((1 - k) n): the float rule of the original keeps 10 of 10 at 0.9 and 9 of 10 at 0.8."""
    assert kept_count(n, density) == kept


@given(n=st.integers(1, 10**8), thousandths=st.integers(1, 1000))
def test_the_kept_count_is_the_ceiling_of_k_times_n(n, thousandths):
    assert kept_count(n, thousandths / 1000) == ceil(Fraction(thousandths, 1000) * n)


@pytest.mark.parametrize("density", [0, -0.1, 1.5, 99])
def test_a_density_outside_its_range_is_refused(density):
    with pytest.raises(ConfigError, match=rf"density {density} is outside \(0, 1\]; to prune 99%"):
        kept_count(10, density)


def test_scaled_scores_of_a_convolution_reach_root_six_over_fan_in_oracle_o3():
    """4 input channels and a 3x3 kernel: sqrt(6 / 36) = 0.40825; the sign and the ranking are the weight's."""
    layer = nn.Conv2d(4, 8, 3)
    scores = scaled_scores(layer)
    assert scores.abs().max().item() == pytest.approx(sqrt(6 / 36)) == pytest.approx(0.40825, abs=5e-6)
    assert torch.equal(scores.sign(), layer.weight.sign())
    assert torch.equal(scores.abs().flatten().argsort(), layer.weight.abs().flatten().argsort())


def test_scaled_scores_of_grouped_convolutions_and_linear_layers_use_their_own_fan_in():
    """8 channels in 4 groups with a 1x5 kernel: fan-in 2 · 5 = 10. A linear layer: its input features."""
    assert scaled_scores(nn.Conv2d(8, 4, (1, 5), groups=4)).abs().max().item() == pytest.approx(sqrt(0.6))
    assert scaled_scores(nn.Linear(24, 3)).abs().max().item() == pytest.approx(0.5)


def test_scaled_scores_of_a_zero_weight_are_zero_and_not_nan():
    layer = nn.Linear(3, 2)
    nn.init.zeros_(layer.weight)
    assert scaled_scores(layer).tolist() == [[0.0] * 3] * 2


@settings(max_examples=30)
@given(n=st.integers(1, 60), seed=st.integers(0, 10**6), ties=st.booleans(), data=st.data())
def test_exactly_as_many_are_kept_as_asked_also_with_ties(n, seed, ties, data):
    scores = torch.randn(n, generator=torch.Generator().manual_seed(seed))
    scores = scores.round() if ties else scores
    kept = data.draw(st.integers(0, n))
    chosen = top_k_mask(scores, kept).bool()
    assert chosen.sum() == kept
    if 0 < kept < n:
        assert scores[chosen].abs().min() >= scores[~chosen].abs().max()


@pytest.mark.parametrize("density", [0.5, 0.1, 0.01])
def test_a_fresh_mask_keeps_the_largest_weights_of_every_layer(density):
    network, plain = small_network(), small_network()
    attach_masks(network, density)
    for name, layer in prunable_layers(network).items():
        original = prunable_layers(plain)[name].weight
        kept = layer.weight != 0
        assert int(kept.sum()) == kept_count(original.numel(), density)
        assert torch.equal(layer.weight[kept], original[kept])
        assert original[kept].abs().min() >= original[~kept].abs().max()


@pytest.mark.parametrize(
    ("phase", "frozen_bn", "trained"),
    [
        ("train", False, {"weight", "bias", "batch norm"}),
        ("prune", False, {"scores", "batch norm"}),
        ("prune", True, {"scores"}),
        ("finetune", False, {"weight", "bias", "batch norm"}),
    ],
)
def test_each_phase_trains_what_the_reference_says(phase, frozen_bn, trained):
    """The table of reference/hydra.md section 2.3."""
    network = small_network()
    attach_masks(network, 0.1)
    set_phase(network, phase, freeze_batch_norm=frozen_bn)
    kinds = {
        "scores": [layer.parametrizations.weight[0].scores for layer in prunable_layers(network).values()],
        "weight": [layer.parametrizations.weight.original for layer in prunable_layers(network).values()],
        "bias": [layer.bias for layer in prunable_layers(network).values()],
        "batch norm": list(network[1].parameters()),
    }
    assert sum(map(len, kinds.values())) == len(list(network.parameters()))
    for kind, parameters in kinds.items():
        assert {parameter.requires_grad for parameter in parameters} == {kind in trained}, kind


def test_pruning_moves_the_scores_by_the_straight_through_gradient():
    """dL/ds = dL/dw_eff · w · sign(s), and the weights get no gradient."""
    network = nn.Sequential(nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[2.0, -1.0]]))
    attach_masks(network, 0.5)
    set_phase(network, "prune")
    x = torch.tensor([[3.0, 5.0]])
    assert network(x).item() == 6.0  # only the weight 2 is kept
    network(x).sum().backward()
    inner = network[0].parametrizations.weight
    assert inner[0].scores.grad.tolist() == [[3.0 * 2.0, 5.0 * -1.0 * -1.0]]
    assert inner.original.grad is None


def test_finetuning_gives_pruned_weights_no_gradient():
    network = small_network()
    attach_masks(network, 0.1)
    set_phase(network, "finetune")
    network(torch.rand(4, 1, 8, 8)).square().sum().backward()
    for layer in prunable_layers(network).values():
        inner = layer.parametrizations.weight
        assert inner[0].scores.grad is None
        assert not inner.original.grad[inner[0].mask == 0].any()
        assert inner.original.grad[inner[0].mask == 1].any()


def test_the_mask_follows_the_scores_while_pruning_and_stays_put_elsewhere():
    network = small_network()
    attach_masks(network, 0.1)
    before = {name: layer.weight.detach() != 0 for name, layer in prunable_layers(network).items()}
    set_phase(network, "finetune")
    with torch.no_grad():
        for found in score_masks(network).values():
            found.scores.copy_(found.scores.flip(0))
    assert all(torch.equal(layer.weight != 0, before[name]) for name, layer in prunable_layers(network).items())
    set_phase(network, "prune")
    assert not any(torch.equal(layer.weight != 0, before[name]) for name, layer in prunable_layers(network).items())


def test_masks_are_selected_once_for_all_passes_inside_a_shared_block(monkeypatch):
    network = small_network()
    attach_masks(network, 0.1)
    set_phase(network, "prune")
    calls = []
    select = mask.top_k_mask
    monkeypatch.setattr(mask, "top_k_mask", lambda *given: calls.append(1) or select(*given))
    x = torch.rand(4, 1, 8, 8)
    with shared_masks(network):
        for _ in range(10):
            network(x)
    assert len(calls) == 2  # one for each of the two layers
    network(x)
    assert len(calls) == 4
    set_phase(network, "finetune")
    calls.clear()
    network(x)
    assert not calls


def test_a_pass_without_gradients_first_does_not_cut_the_scores_off():
    """An attack's clean pass runs under no_grad before the loss does; the loss must still reach the scores."""
    network = small_network()
    attach_masks(network, 0.1)
    set_phase(network, "prune")
    x = torch.rand(4, 1, 8, 8)
    with shared_masks(network):
        with torch.no_grad():
            network(x)
        network(x).square().sum().backward()
    assert all(found.scores.grad.any() for found in score_masks(network).values())


@pytest.mark.parametrize("arch", SMALL_MODELS)
def test_a_masked_and_a_baked_network_agree_exactly(arch):
    shape = (1, 16, 16)
    network = build_model(arch, shape, 5, generator=torch.Generator().manual_seed(1)).eval()
    attach_masks(network, 0.25)
    x = torch.rand(3, *shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        masked = network(x)
        baked = copy.deepcopy(network)
        bake_masks(baked)
        assert torch.equal(baked(x), masked)
        assert torch.equal(network(x), masked)  # baking a copy leaves the original as it was
    assert not any(module.training for module in network.modules())
    assert not any(parametrize.is_parametrized(module) for module in baked.modules())
    assert set(baked.state_dict()) == set(build_model(arch, shape, 5).state_dict())
    for layer in layer_densities(baked):
        assert layer.nonzero == kept_count(layer.weights, 0.25)
    assert global_density(baked) == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("phase", ["train", "prune", "finetune"])
def test_no_phase_trains_what_no_forward_pass_uses(phase):
    """Otherwise processes that train together would wait for gradients that never come."""
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[1].unused_in_forward = True
    attach_masks(network, 0.5)
    set_phase(network, phase)
    assert not any(parameter.requires_grad for parameter in network[1].parameters())
    assert any(parameter.requires_grad for parameter in network[0].parameters())
