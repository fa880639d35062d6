"""What the attacks of AutoAttack cost in passes, and what a cascade of ten steps of PGD saves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hydrabench.evaluators import AutoAttackSettings
from hydrabench.evaluators.autoattack import attempt, evaluate_autoattack
from hydrabench.evaluators.autoattack_settings import passes_of
from hydrabench.evaluators.concluding import saved_by_cascade
from hydrabench.ledger import Attempt
from tests.helpers.autoattack_problems import (
    as_block,
    linear_network,
    problem,
)


def test_a_cascade_breaks_first_what_ten_steps_of_pgd_break():
    network, block = problem()
    settings = AutoAttackSettings(epsilon="0.5", cascade=True)
    records = evaluate_autoattack(network, block, settings)
    assert {record.broken_by for record in records} == {"clean", "pgd-10"}
    short, _ = attempt(network, block.rows(range(1, 10)), "pgd-10", settings)
    assert [-one.loss for one in short] == [record.margin for record in records[1:]]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.01, "pgd-10 broke 2 of 3 images in 0.03 s; apgd-ce takes 0.5 s an image here, so 0.97 s saved"),
        (0.4, "pgd-10 broke 2 of 3 images in 1.2 s; apgd-ce takes 0.5 s an image here, so 0.2 s lost"),
    ],
)
def test_a_cascade_says_what_it_saves(seconds, said):
    first = [Attempt(image, "pgd-10", image < 2, 0.1, None, seconds) for image in range(3)]
    assert saved_by_cascade([*first, Attempt(2, "apgd-ce", False, -0.1, 1, 0.5)]) == said
    assert saved_by_cascade(first[:2]).startswith("pgd-10 broke 2 of 2 images in")
    assert saved_by_cascade([Attempt(2, "apgd-ce", False, -0.1, 1, 0.5)]) is None


@pytest.mark.parametrize(
    ("name", "ensemble"),
    [
        *((name, "standard") for name in ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")),
        ("apgd-ce", "plus"),
        ("fab", "plus"),
        ("apgd-dlr", "rand"),
        ("clean", "rand"),
    ],
)
def test_an_attack_takes_about_the_passes_that_it_says(name, ensemble):
    """Counted on a network that is constant, so that no image breaks; a gradient costs a pass more."""
    network, passes = linear_network(torch.zeros(5, 36)), [0]
    with torch.no_grad():
        network[1].bias[0] = 1.0

    class Counted(nn.Module):
        def forward(self, x):
            passes[0] += 1
            return network(x)

    settings = AutoAttackSettings(epsilon="0.1", ensemble=ensemble)
    block = as_block(torch.full((1, 1, 6, 6), 0.5), torch.tensor([0]))
    attempt(Counted().eval(), block, name, settings)
    gradients = {"square": 0, "fab": 2.5, "fab-t": 0.5}.get(name, 1)  # for each forward pass
    assert passes[0] * (1 + gradients) == pytest.approx(passes_of(settings, name, 5), rel=0.05, abs=60)


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-t", "fab-t"])
def test_in_l1_and_mixed_an_attack_takes_about_the_passes_that_it_says(name):
    network, passes = linear_network(torch.zeros(10, 36)), [0]
    with torch.no_grad():
        network[1].bias[0] = 1.0
    network.register_forward_hook(lambda *_: passes.__setitem__(0, passes[0] + 1))
    block = as_block(torch.full((1, 1, 6, 6), 0.5), torch.tensor([0]))
    for values in ({"norm": "l1"}, {"mixed": True}):
        settings, passes[0] = AutoAttackSettings(epsilon="0.1", **values), 0
        attempt(network, block, name, settings)
        backward = 1 / (1 + settings.mixed + (name == "fab-t"))
        assert passes[0] * (1 + backward) == pytest.approx(passes_of(settings, name, 10), rel=0.05, abs=60)
