"""Training for smoothing: which noise, how often, and how ten draws are averaged."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from hydrabench.objectives import OBJECTIVES, TrainingStep
from hydrabench.objectives.stability import StabilitySettings
from hydrabench.objectives.trades import divergence
from hydrabench.runtime import stream

LOSS, VERDICTS = OBJECTIVES["stability"].loss, OBJECTIVES["stability"].verdicts
STABILITY = StabilitySettings(name="stability", sigma=0.25, beta=3.0)
GAUSSIAN = StabilitySettings(name="stability", sigma=0.25, variant="gaussian")


@pytest.fixture
def network():
    """Logits (a, -a) of the first of four pixels."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]]))
    return network


def step():
    return TrainingStep(0.0, 1.0, stream("stability"))


def test_the_loss_is_clean_cross_entropy_plus_beta_times_the_divergence_under_unclamped_noise(network):
    """Logits of pixel a are (a, -a), so with noise n they are (a + n, -a - n), outside [0, 1] too."""
    x, y = torch.ones(40, 1, 2, 2), torch.arange(40) % 2
    a = x.flatten(1)[:, :1] * torch.tensor([1.0, -1.0])
    n = 0.25 * step().normal(x).flatten(1)[:, :1] * torch.tensor([1.0, -1.0])
    assert (a + n)[:, 0].max() > 1
    expected = functional.cross_entropy(a, y) + 3 * divergence(a, a + n).mean()
    losses = LOSS(network, x, y, STABILITY, step())
    assert losses.total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.equal(losses.logits, a)
    noisy = LOSS(network, x, y, GAUSSIAN, step())
    assert noisy.total.item() == pytest.approx(functional.cross_entropy(a + n, y).item(), rel=1e-6)
    torch.testing.assert_close(noisy.logits, a + n)


def test_the_gradient_flows_through_both_predictions(network):
    """Without a gradient through the clean prediction of the divergence, weight and loss would not agree."""
    x, y = torch.rand(5, 1, 2, 2, generator=stream("x")), torch.tensor([0, 1, 0, 1, 1])
    network = network.double()
    x = x.double()
    LOSS(network, x, y, STABILITY, step()).total.backward()
    weight = network[1].weight
    slope = weight.grad[0, 0].item()
    totals = []
    for shift in (1e-5, -2e-5):
        with torch.no_grad():
            weight[0, 0] += shift
            totals.append(LOSS(network, x, y, STABILITY, step()).total.item())
    assert (totals[0] - totals[1]) / 2e-5 == pytest.approx(slope, rel=1e-6)


def test_verdicts_average_probabilities_and_not_votes():
    """Six draws lean to class 0 with 0.525, four are sure of class 1: on average 0.32 and 0.68."""

    class Scripted(nn.Module):
        def __init__(self):
            super().__init__()
            self.inputs = []

        def forward(self, x):
            self.inputs.append(x)
            logits = [0.1, 0.0] if len(self.inputs) <= 6 else [-5.0, 5.0]
            return torch.tensor([logits]).expand(len(x), 2)

    network = Scripted()
    x = torch.full((2, 1, 30, 30), 0.5)
    assert VERDICTS(network, x, torch.tensor([0, 1]), STABILITY, step()).tolist() == [False, True]
    noise = torch.stack(network.inputs) - x
    assert len(noise) == 10
    assert noise.flatten(1).std(1).sub(0.25).abs().max() < 0.02
    assert noise.std(0).mean().item() == pytest.approx(0.25, abs=0.02)  # another draw each time
