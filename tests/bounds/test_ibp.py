"""Mixtures of interval and CROWN-IBP margins, to train with; `test_methods` has what holds for every method."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hydrabench.bounds import BOUNDS, class_margins, ibp
from hydrabench.masking import attach_masks, set_phase

seeds = st.integers(0, 10_000)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@settings(max_examples=16)
@given(seed=seeds)
def test_class_margins_mix_both_bounds(tiny_problem, training, beta, seed):
    network, x, y, _ = tiny_problem(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.train(training)
    found = class_margins(network, x, y, 0.05, beta=beta)
    interval, crown = (class_margins(network, x, y, 0.05, beta=end) for end in (0.0, 1.0))
    assert (found.gather(1, y.unsqueeze(1)) == 0).all()
    torch.testing.assert_close(found, beta * crown + (1 - beta) * interval)
    for rows, bound in ((interval, BOUNDS["ibp"]), (crown, BOUNDS["crown-ibp"])):
        smallest = rows.scatter(1, y.unsqueeze(1), torch.inf).min(1).values
        torch.testing.assert_close(smallest, bound(network, x, y, 0.05))


def test_class_margins_are_those_of_the_class_they_stand_for():
    """Logits (x, 0, 3 - x) on [0.25, 0.75], label 1: margins 0 - x >= -0.75 and 0 - (3 - x) >= -2.75."""
    layer = nn.Linear(1, 3)
    layer.weight.data, layer.bias.data = torch.tensor([[1.0], [0.0], [-1.0]]), torch.tensor([0.0, 0.0, 3.0])
    for beta in (0.0, 0.5, 1.0):
        found = class_margins(
            nn.Sequential(nn.Flatten(), layer), torch.full((1, 1, 1, 1), 0.5), torch.tensor([1]), 0.25, beta=beta
        )
        assert found.tolist() == [pytest.approx([-0.75, 0.0, -2.75])]


def test_a_pass_without_weight_is_left_out(tiny_problem, monkeypatch):
    network, x, y, _ = tiny_problem(0)
    expected = {beta: class_margins(network, x, y, 0.05, beta=beta) for beta in (0.0, 1.0)}

    def never(*_, **__):
        raise AssertionError("this pass has no weight")

    with monkeypatch.context() as patch:
        patch.setattr(ibp, "lower_bounds", never)
        assert torch.equal(class_margins(network, x, y, 0.05, beta=9e-6), expected[0.0])
        with pytest.raises(AssertionError, match="no weight"):
            class_margins(network, x, y, 0.05, beta=2e-5)
    monkeypatch.setattr(ibp, "concretize", never)
    assert torch.equal(class_margins(network, x, y, 0.05, beta=1.0), expected[1.0])
    with pytest.raises(AssertionError, match="no weight"):
        class_margins(network, x, y, 0.05, beta=0.999)


@pytest.mark.parametrize("beta", [-0.1, 1.1, float("nan")])
def test_a_weight_outside_zero_to_one_is_a_mistake(tiny_problem, beta):
    network, x, y, _ = tiny_problem(0)
    with pytest.raises(ValueError, match="beta="):
        class_margins(network, x, y, 0.05, beta=beta)


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("seed", [1, 3, 5])  # 1 and 5 hold batch norm, before and after a linear layer
def test_gradients_agree_with_finite_differences(tiny_problem, beta, seed):
    network, x, y, rng = tiny_problem(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.train()
    weights = torch.randn(3, 4, generator=rng, dtype=torch.float64)
    parameters = list(network.parameters())

    def loss():
        return (weights * class_margins(network, x, y, 0.03, beta=beta)).sum()

    gradients = torch.autograd.grad(loss(), parameters)
    directions = [torch.randn(parameter.shape, generator=rng, dtype=torch.float64) for parameter in parameters]
    slope = sum((gradient * direction).sum() for gradient, direction in zip(gradients, directions, strict=True))
    ends = []
    for step in (1e-6, -2e-6):
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.add_(direction, alpha=step)
            ends.append(loss().item())
    assert slope.item() == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_gradients_reach_the_scores_of_a_mask_in_the_prune_phase_and_its_weights_in_the_others(tiny_problem, beta):
    network, x, y, _ = tiny_problem(4)
    attach_masks(network, 0.5)
    for phase, moved in (("prune", "scores"), ("finetune", "original")):
        set_phase(network, phase)
        network.zero_grad(set_to_none=True)
        class_margins(network, x, y, 0.05, beta=beta).sum().backward()
        reached = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
        wanted = {name for name in dict(network.named_parameters()) if "parametrizations" in name and moved in name}
        assert wanted
        assert wanted <= reached
        assert all(dict(network.named_parameters())[name].grad.abs().sum() > 0 for name in wanted)
        assert not any(("scores" if moved == "original" else "original") in name for name in reached)
