from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hydrabench.bounds import program_of, read


def conv(**options):
    return nn.Conv2d(2, 4, 3, **options)


def run(network, x, clean=None):
    values = [x]
    for node in read(program_of(network), clean):
        values.append(node.operation.apply(*(values[number] for number in node.inputs)))
    return values[-1]


@pytest.mark.parametrize("seed", range(24))
def test_a_program_computes_what_its_network_computes(tiny_problem, seed):
    network, x, _, _ = tiny_problem(seed)
    torch.testing.assert_close(run(network, x), network(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", range(24))
def test_a_program_of_branches_computes_what_its_network_computes(tiny_dag, seed):
    network, x, _, _ = tiny_dag(seed)
    torch.testing.assert_close(run(network, x), network(x), rtol=1e-12, atol=1e-12)


def kinds(network, clean=None):
    return [type(node.operation).__name__ for node in read(program_of(network), clean)]


def test_a_layer_used_twice_is_two_steps():
    relu, dense = nn.ReLU(), nn.Linear(3, 3)
    network, x = nn.Sequential(dense, relu, dense, relu), torch.rand(2, 3)
    assert len(program_of(network).steps) == 4
    torch.testing.assert_close(run(network, x), network(x))


def test_a_program_follows_a_layer_that_was_replaced():
    network = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    program_of(network)
    network[1] = nn.Identity()
    assert kinds(network) == ["Dense", "Identity"]


def test_reading_a_program_leaves_the_network_as_it_was():
    network = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).train()
    before = copy.deepcopy(network.state_dict())
    read(program_of(network), torch.rand(5, 2, 4, 4))
    assert all(module.training for module in network.modules())
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4, track_running_stats=False)]
)
def test_batch_norm_in_training_mode_takes_the_statistics_of_the_clean_batch(norm):
    """Two in a row: the second must see what the first one gives in training mode."""
    network = nn.Sequential(conv(), norm, nn.ReLU(), nn.Flatten(), nn.Linear(16, 3), nn.BatchNorm1d(3)).double().train()
    clean = torch.rand(7, 2, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(run(network, clean, clean), copy.deepcopy(network)(clean), rtol=1e-10, atol=1e-10)


def test_batch_norm_in_training_mode_needs_clean_images():
    with pytest.raises(ValueError, match=r"1 is in training mode and needs clean images"):
        read(program_of(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))))
