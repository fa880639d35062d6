"""The attack on the smoothed classifier, held against the closed form of a linear one."""

from __future__ import annotations

from dataclasses import replace
from statistics import NormalDist

import torch
from torch import nn

from hydrabench.data.images import Block
from hydrabench.evaluators import SmoothAttackSettings
from hydrabench.evaluators.smooth_attack import evaluate_smooth_attack, leads
from hydrabench.ledger import SmoothAttackRecord, read_record


def linear_block(distances):
    """Images whose distance to the boundary of a linear network is given, negative on the wrong side."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).eval()
    normal = torch.ones(16) / 4
    with torch.no_grad():
        network[1].weight.copy_(torch.stack([normal, -normal]) / 2)
        network[1].bias.copy_(torch.tensor([-0.5, 0.5]) * (normal.sum() * 0.5))
    images = torch.stack([0.5 + far * normal for far in distances]).view(-1, 1, 4, 4)
    count = len(distances)
    return network, Block(0, tuple(range(count)), images, torch.zeros(count, dtype=torch.int64), ("0" * 64,) * count)


def test_a_linear_network_is_broken_beyond_its_boundary_and_not_before():
    """Under Gaussian noise a linear network predicts what it predicts without: the class flips at the boundary."""
    network, block = linear_block([-0.3, 0.1, 0.2, 0.6, 0.9])
    settings = SmoothAttackSettings(epsilon="0.4", sigma=0.25, draws=600)
    records = evaluate_smooth_attack(network, block, settings)
    assert [record.broken_by for record in records] == ["clean", "smooth-pgd", "smooth-pgd", None, None]
    for record in records:
        assert read_record(record.__dict__, SmoothAttackRecord, settings.plain()) == record
    # At the end of the attack the distance is 0.2 - 0.4, and 0.6 - 0.4: so many copies stay on the label's side.
    for record, left in ((records[2], -0.2), (records[3], 0.2)):
        share = NormalDist().cdf(left / 0.25)
        assert abs(record.votes[0] / 600 - share) < 4 * (share * (1 - share) / 600) ** 0.5


def test_a_verdict_does_not_depend_on_the_rest_of_the_block():
    network, block = linear_block([0.02 * step for step in range(1, 20)])
    settings = SmoothAttackSettings(epsilon="0.2", draws=100, steps=5)
    together = evaluate_smooth_attack(network, block, settings)
    alone = [record for row in range(19) for record in evaluate_smooth_attack(network, block.rows([row]), settings)]
    assert [replace(one, seconds=0) for one in together] == [replace(one, seconds=0) for one in alone]
    assert len({record.robust for record in together}) == 2


def test_votes_that_chance_could_split_break_nothing():
    """60 of 100 for another class happen to a fair coin with probability 0.057, 70 with 0.00008."""
    assert not leads(60, 40, 0.001)
    assert leads(70, 30, 0.001)
    assert not leads(50, 50, 0.999)
