"""Optimizers, learning rates and averaged weights, worked by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hydrabench.recipes import TrainRecipe
from hydrabench.workflows.training.optimizer import Average, build_optimizer, limit_gradients, set_learning_rate


def one_weight(value: float = 1.0) -> nn.Linear:
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, value)
    return network


def step(recipe: TrainRecipe, gradients: list[float]) -> float:
    network = one_weight()
    optimizer = build_optimizer(network, recipe)
    for gradient in gradients:
        network.weight.grad = torch.tensor([[gradient]])
        optimizer.step()
    return network.weight.item()


def recipe(**values) -> TrainRecipe:
    return TrainRecipe.model_validate({"epochs": 1, "lr": 0.1, "weight_decay": 0, **values})


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"momentum": 0}, 1 - 0.1 * 2 - 0.1 * 2),
        ({"momentum": 0.5}, 1 - 0.1 * 2 - 0.1 * (0.5 * 2 + 2)),
        ({"momentum": 0.5, "nesterov": True}, 1 - 0.1 * (2 + 0.5 * 2) - 0.1 * (2 + 0.5 * 3)),
        ({"momentum": 0, "weight_decay": 0.5}, (1 - 0.1 * 2.5) - 0.1 * (2 + 0.5 * 0.75)),
        ({"optimizer": "adam"}, 1 - 0.1 - 0.1),
        ({"optimizer": "rmsprop", "momentum": 0}, 1 - 0.1 / 0.01**0.5 - 0.1 / (0.99 * 0.01 + 0.01) ** 0.5),
        ({"optimizer": "rmsprop", "momentum": 0.5}, 1 - 0.1 * 10 - 0.1 * (0.5 * 10 + 1 / 0.0199**0.5)),
    ],
)
def test_two_steps_with_a_gradient_of_two_worked_by_hand(values, expected):
    """From weight 1. SGD: w - lr (g + decay · w), with velocity v = m v + g, or Nesterov's g + m v. Adam's corrected
    moments of a constant gradient are g and g². RMSprop's mean square is 0.01 g² and then 0.99 · 0.01 g² + 0.01 g²; its
    velocity is that of SGD, of the quotients."""
    assert step(recipe(**values), [2.0, 2.0]) == pytest.approx(expected, rel=1e-5)


def test_gradients_are_cut_to_a_norm_over_all_parameters():
    """3 and 4 have the norm 5, half of which is 2.5; what is shorter, or not trained, stays as it is."""
    network = nn.Sequential(one_weight(), one_weight(), one_weight().requires_grad_(False))
    for layer, gradient in zip(network, (3.0, 4.0, 100.0), strict=True):
        layer.weight.grad = torch.tensor([[gradient]])
    for longest, expected in ((10.0, [3.0, 4.0, 100.0]), (2.5, [1.5, 2.0, 100.0])):
        limit_gradients(network, longest)
        assert [layer.weight.grad.item() for layer in network] == pytest.approx(expected, rel=1e-4)


def test_what_is_not_trained_is_not_decayed_either():
    network = nn.Sequential(one_weight(), one_weight())
    network[0].requires_grad_(False)
    optimizer = build_optimizer(network, recipe(weight_decay=0.5))
    network[1].weight.grad = torch.zeros(1, 1)
    optimizer.step()
    assert (network[0].weight.item(), network[1].weight.item()) == (1.0, pytest.approx(0.95))


@pytest.mark.parametrize(
    ("values", "rates"),
    [
        ({"schedule": "constant"}, [0.1] * 8),
        ({"schedule": "constant", "warmup_epochs": 2}, [0.025, 0.05, 0.075, 0.1, 0.1, 0.1, 0.1, 0.1]),
        ({"schedule": "step"}, [0.1] * 6 + [0.01] * 2),
        (
            {"schedule": "cosine-epoch"},
            [0.1 * (1 + 0.5**0.5) / 2] * 2 + [0.1] * 2 + [0.1 * (1 + 0.5**0.5) / 2] * 2 + [0.05] * 2,
        ),
    ],
)
def test_the_learning_rate_of_every_step_of_four_epochs_of_two(values, rates):
    """The original's cosine is (1 + cos(π (e - 1) / 4)) / 2 in epochs 0 to 3; a step to a tenth is due at 3 of 4."""
    chosen = recipe(epochs=4, **values)
    network = one_weight()
    optimizer = build_optimizer(network, chosen)
    found = [set_learning_rate(optimizer, chosen, number, steps_per_epoch=2) for number in range(8)]
    assert found == pytest.approx(rates, rel=1e-12)
    assert optimizer.param_groups[0]["lr"] == found[-1]


def test_an_average_worked_by_hand():
    """Decays min(0.15, 1/10) and min(0.15, 2/11): 0.1 · 0 + 0.9 · 1 = 0.9, then 0.15 · 0.9 + 0.85 · 2 = 1.835."""
    network = one_weight(0.0)
    average = Average(network, decay=0.15)
    for value, expected in ((1.0, 0.9), (2.0, 1.835)):
        nn.init.constant_(network.weight, value)
        average.update()
        with average.applied():
            assert network.weight.item() == pytest.approx(expected, rel=1e-6)
        assert network.weight.item() == value


def test_counters_are_copied_and_weights_that_stay_keep_their_bits():
    network = nn.BatchNorm1d(3)
    nn.init.normal_(network.weight, generator=torch.Generator().manual_seed(0))
    before = network.weight.detach().clone()
    average = Average(network, decay=0.999)
    for _ in range(50):
        network(torch.rand(4, 3))
        average.update()
    with average.applied():
        assert torch.equal(network.weight, before)
        assert network.num_batches_tracked == 50
        assert (network.running_mean != 0).all()


def test_an_average_goes_on_from_its_state():
    network = one_weight()
    first, second = Average(network, 0.9), Average(network, 0.9)
    nn.init.constant_(network.weight, 3.0)
    first.update()
    second.restore(first.state())
    nn.init.constant_(network.weight, 5.0)
    first.update()
    second.update()
    assert torch.equal(first.tensors["weight"], second.tensors["weight"])
    with pytest.raises(KeyError):
        Average(nn.Linear(1, 1), 0.9).restore(first.state())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nesterov": True, "optimizer": "adam"}, "nesterov needs optimizer sgd and a momentum above 0, got adam"),
        ({"nesterov": True, "momentum": 0}, "got sgd and 0"),
        ({"warmup_epochs": 1}, "warmup_epochs 1 are part of epochs 1 and must leave one; raise epochs"),
        ({"ema_decay": 1}, "less than 1"),
        ({"schedule": "milestones"}, r"schedule milestones with milestones {}; schedule milestones takes factors"),
        ({"milestones": {1: 0.5}}, r"schedule cosine with milestones {1: 0.5}"),
        ({"schedule": "cosine-epoch"}, "cosine-epoch has learning rate 0 throughout a single epoch; take schedule cos"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        recipe(**values)
