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


def random_norm(norm):
    torch.manual_seed(0)
    for tensor in (norm.running_mean, norm.weight.data, norm.bias.data):
        tensor.normal_()
    norm.running_var.uniform_(0.5, 2)
    return norm


def test_batch_norm_behind_a_linear_operation_worked_by_hand():
    """(3x + 1 - 2) / sqrt(4) · 6 + 5 = 9x + 2: one dense layer, whose batch norm is gone."""
    dense, norm = nn.Linear(1, 1), nn.BatchNorm1d(1, eps=0.0).eval()
    dense.weight.data.fill_(3.0), dense.bias.data.fill_(1.0)
    norm.running_mean.fill_(2.0), norm.running_var.fill_(4.0)
    norm.weight.data.fill_(6.0), norm.bias.data.fill_(5.0)
    (_, node) = read(program_of(nn.Sequential(nn.Flatten(), dense, norm)))
    assert (node.operation.weight.tolist(), node.operation.bias.tolist(), node.inputs) == ([[9.0]], [2.0], (1,))


class Residual(nn.Module):
    """relu(bn(conv(x)) + conv(x)), or with a shortcut that reads the convolution of the main branch."""

    def __init__(self, *, shared):
        super().__init__()
        self.main, self.short = conv(padding=1), conv(padding=1)
        self.norm, self.shared = random_norm(nn.BatchNorm2d(4)), shared

    def forward(self, x):
        main = self.main(x)
        return torch.relu(self.norm(main) + (main if self.shared else self.short(x)))


@pytest.mark.parametrize("training", [False, True])
def test_batch_norm_is_folded_only_where_nothing_else_reads_what_it_scales(training):
    x = torch.rand(3, 2, 4, 4)
    for shared, expected in (
        (False, ["Convolution", "Convolution", "Add", "Relu"]),
        (True, ["Convolution", "Scale", "Add", "Relu"]),
    ):
        network = Residual(shared=shared).train(training)
        assert kinds(network, x) == expected
        torch.testing.assert_close(run(network, x, x), network(x), rtol=1e-4, atol=1e-5)


def test_batch_norm_in_front_of_a_padded_convolution_is_not_folded():
    """The padding is zero behind the batch norm and would not be in front of it."""
    network, x = nn.Sequential(random_norm(nn.BatchNorm2d(2)), conv(padding=1)).eval(), torch.rand(2, 2, 4, 4)
    assert kinds(network) == ["Scale", "Convolution"]
    torch.testing.assert_close(run(network, x), network(x))


def test_batch_norm_behind_a_linear_layer_is_folded_only_if_it_scales_the_axis_of_its_outputs():
    """Of (B, 3, 3) the linear layer maps axis 2 and batch norm scales axis 1; sizes alone do not tell."""
    layers, x = (nn.Linear(3, 3), random_norm(nn.BatchNorm1d(3))), torch.rand(2, 3, 3)
    network = nn.Sequential(*layers).eval()
    assert kinds(network) == ["Dense", "Scale"]
    torch.testing.assert_close(run(network, x), network(x))
    assert kinds(nn.Sequential(nn.Flatten(), *layers).eval()) == ["Flatten", "Dense"]
    square = nn.Sequential(nn.Linear(4, 4), random_norm(nn.BatchNorm2d(4))).eval()
    torch.testing.assert_close(run(square, torch.ones(1, 4, 3, 4)), square(torch.ones(1, 4, 3, 4)))


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
