"""MixTrain: weights by the original's table, the sample of the certified loss, how it splits."""

from __future__ import annotations

from math import exp, log

import pytest
import torch
from torch.nn import functional

from hydrabench.bounds import symbolic_class_margins
from hydrabench.models import build_model
from hydrabench.objectives import OBJECTIVES, TrainingStep
from hydrabench.objectives.mixtrain import MixtrainSettings, certified_weight
from hydrabench.runtime import stream
from tests.helpers.networks import two_logits_of_a_pixel

LOSS = OBJECTIVES["mixtrain"].loss


def settings(**keys):
    return MixtrainSettings(name="mixtrain", epsilon="0.1", **{"samples": 2, "probability": 1, **keys})


@pytest.fixture
def network():
    return two_logits_of_a_pixel()


@pytest.fixture
def sampled(monkeypatch):
    """The images, as pixels, of every call that asks for symbolic bounds."""
    calls = []

    def recorded(network, x, y, epsilon):
        calls.append(x.flatten().tolist())
        return symbolic_class_margins(network, x, y, epsilon)

    monkeypatch.setattr("hydrabench.bounds.symbolic_class_margins", recorded)
    return calls


def given(number=0, *, epsilon=0.1, **keys):
    return TrainingStep(epsilon, 1.0, stream("mixtrain", number), **keys)


@pytest.mark.parametrize(
    ("epochs", "weight"),
    [
        ((0, 10, 14), 0.1),
        ((15, 19), 0.25),
        ((20, 24), 0.625),
        ((25,), 1.5625),
        ((30,), 3.906),
        ((35,), 9.766),
        ((40, 44), 24.41),
        ((45, 50, 10_000), 50),
    ],
)
def test_the_weight_is_the_originals_oracle_o8(epochs, weight):
    """S = 10 of the original is a ramp of 11 epochs here: the radius is full from epoch 10."""
    for epoch in epochs:
        assert certified_weight(epoch, settings(), ramp_epochs=11) == pytest.approx(weight, rel=1e-3)


def test_without_a_ramp_the_weight_grows_from_the_first_epoch():
    """S = 0 (section 1.5): 20 epochs end with 1.5625, and 50 comes with epoch 35."""
    weights = [certified_weight(epoch, settings(), ramp_epochs=1) for epoch in (0, 4, 5, 19, 34, 35)]
    assert weights == pytest.approx([0.1, 0.1, 0.25, 1.5625, 24.4140625, 50])
    assert certified_weight(9, settings(weight_growth=3, weight_every=2), ramp_epochs=6) == pytest.approx(0.9)


def test_the_loss_of_one_pixel_worked_by_hand(network):
    """At 0.5, clean log 2 each; at radius 0.1 the bound of f_y - f_j is 2 (0 - 2) = -4: mean log(1 + e^4), weight 0.25.

    The ball around 0.05 is clipped at 0 (pitfall P1): clean margin -18 for class 0, bound 40 · 0 - 20.
    """
    x, y = torch.full((4, 1, 1, 1), 0.5), torch.tensor([0, 1, 0, 1])
    losses = LOSS(network, x, y, settings(), given(epoch=5))
    assert losses.total.item() == pytest.approx(log(2) + 0.25 * log(1 + exp(4)), rel=1e-5)
    assert losses.logits.requires_grad
    x, y = torch.full((1, 1, 1, 1), 0.05), torch.tensor([0])
    expected = log(1 + exp(18)) + 0.1 * log(1 + exp(20))
    assert LOSS(network, x, y, settings(samples=1), given()).total.item() == pytest.approx(expected, rel=1e-6)


def test_the_sample_has_different_images_and_never_more_than_there_are(network, sampled):
    x, y = torch.arange(5.0).view(5, 1, 1, 1) / 10, torch.zeros(5, dtype=torch.int64)
    for number in range(20):
        LOSS(network, x, y, settings(samples=3), given(number))
        LOSS(network, x, y, settings(samples=9), given(number))
    assert all(len(images) == len(set(images)) == 3 for images in sampled[::2])
    assert all(len(images) == 5 for images in sampled[1::2])
    assert len({tuple(images) for images in sampled[::2]}) > 5
    whole = LOSS(network, x, y, settings(samples=9), given()).total
    bound = functional.cross_entropy(-symbolic_class_margins(network, x, y, 0.1), y)
    assert whole.item() == pytest.approx((functional.cross_entropy(network(x), y) + 0.1 * bound).item(), rel=1e-6)


def test_the_certified_loss_comes_with_its_probability(network, sampled):
    """Of 400 minibatches, 320 expected with a standard deviation of 8; none at 0, all at 1."""
    x, y = torch.full((3, 1, 1, 1), 0.5), torch.zeros(3, dtype=torch.int64)
    for number in range(400):
        LOSS(network, x, y, settings(probability=0.8), given(number))
    assert 280 < len(sampled) < 360
    sampled.clear()
    for number in range(30):
        LOSS(network, x, y, settings(probability=0), given(number))
    assert not sampled
    for number in range(30):
        LOSS(network, x, y, settings(probability=1), given(number))
    assert len(sampled) == 30


def test_a_part_without_sampled_images_has_the_clean_loss_only(network, sampled):
    """One image of four is sampled; the part that holds it weighs it by 4 / 2 images / 1 sampled."""
    x, y = torch.tensor([0.4, 0.5, 0.6, 0.7]).view(4, 1, 1, 1), torch.zeros(4, dtype=torch.int64)
    whole = LOSS(network, x, y, settings(samples=1), given()).total
    parts = [
        LOSS(network, x[rows], y[rows], settings(samples=1), given(rows=rows, whole=4)).total
        for rows in (slice(0, 2), slice(2, 4))
    ]
    assert len(sampled) == 2
    assert sampled[0] == sampled[1]
    assert sum(parts).item() / 2 == pytest.approx(whole.item(), rel=1e-6)
    other = 0 if sampled[0][0] > 0.55 else 1
    clean = functional.cross_entropy(network(x[2 * other : 2 * other + 2]), y[:2])
    assert parts[other].item() == pytest.approx(clean.item(), rel=1e-6)


def test_the_bounds_of_a_sample_take_the_running_statistics_of_batch_norm():
    """One image has no statistics worth the name: its bounds are those of the network in eval mode."""
    network = build_model("cifar_model_bn", (1, 8, 8), 10, generator=torch.Generator().manual_seed(0)).train()
    x, y = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(6)
    network(x)
    clean = functional.cross_entropy(network(x), y)
    total = LOSS(network, x, y, settings(samples=6), given()).total
    assert network.training
    bound = functional.cross_entropy(-symbolic_class_margins(network.eval(), x, y, 0.1), y)
    assert total.item() == pytest.approx((clean + 0.1 * bound).item(), rel=1e-5)
