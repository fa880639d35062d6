from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hydrabench.bounds import interval_bounds, program_of, read
from hydrabench.bounds.graph import LAYERS
from hydrabench.errors import UnsupportedLayerError


class Calls(nn.Module):
    """Any forward, given as a function of the module and its input."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.function = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x, scale=None):
        return self.function(self, x)


class DoubledConv(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


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


@pytest.mark.parametrize("seed", range(4))
def test_a_traced_network_has_the_program_of_the_walked_one(tiny_problem, seed):
    network, x, _, _ = tiny_problem(seed)
    traced = Calls(lambda self, x: self.layers(x), layers=network)
    assert [step.source for step in program_of(traced).steps] == [step.source for step in program_of(network).steps]
    torch.testing.assert_close(run(traced, x), network(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: torch.flatten(F.relu(self.conv(x)), 1),
        lambda self, x: torch.flatten(F.relu(self.conv(x), inplace=True), start_dim=1),
        lambda self, x: torch.relu(self.conv(x)).flatten(1),
        lambda self, x: self.conv(x).relu().flatten(1, -1),
        lambda self, x: self.conv(x).relu().flatten(start_dim=1),
        lambda self, x: torch.flatten(input=F.relu(input=self.conv(x)), start_dim=1),
    ],
)
def test_functions_and_methods_are_read_like_layers(forward):
    network, x = Calls(forward, conv=conv()), torch.rand(2, 2, 4, 4)
    kinds = [type(node.operation).__name__ for node in read(program_of(network))]
    assert kinds == ["Convolution", "Relu", "Flatten"]
    torch.testing.assert_close(run(network, x), network(x))


def test_a_layer_used_twice_is_two_steps():
    relu, dense = nn.ReLU(), nn.Linear(3, 3)
    network, x = nn.Sequential(dense, relu, dense, relu), torch.rand(2, 3)
    assert len(program_of(network).steps) == 4
    torch.testing.assert_close(run(network, x), network(x))


def test_a_program_follows_a_layer_that_was_replaced():
    network = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    program_of(network)
    network[1] = nn.Identity()
    kinds = [type(node.operation).__name__ for node in read(program_of(network))]
    assert kinds == ["Dense", "Identity"]


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(2, 2), nn.Sigmoid())), r"1\.1 \(Sigmoid\)"),
        (nn.Sequential(conv(), nn.MaxPool2d(2)), r"1 \(MaxPool2d\)"),
        (nn.MaxPool2d(2), r"the network \(MaxPool2d\)"),
        (Calls(lambda self, x: self.head(x), head=nn.Sequential(nn.Softplus())), r"head\.0 \(Softplus\)"),
        (Calls(lambda self, x: x + 1), r"add \(function add\)"),
        (Calls(lambda self, x: self.conv(x) + x, conv=conv(padding=1)), r"add \(function add\)"),
        (Calls(lambda self, x: torch.cat([x, x], 1)), r"cat \(function cat\)"),
        (Calls(lambda self, x: torch.sigmoid(x)), r"sigmoid \(function sigmoid\)"),
        (Calls(lambda self, x: x.tanh()), r"tanh \(method tanh\)"),
        (Calls(lambda self, x: F.linear(x, self.weight), weight=nn.Parameter(torch.ones(1))), r"weight \(get_attr"),
        (Calls(lambda self, x: torch.flatten(x)), r"flattens axes 0 to -1"),
        (
            Calls(lambda self, x: x if x.sum() > 0 else -x),
            r"the network \(Calls\): it does something that depends on the values",
        ),
        (Calls(lambda self, x: (x, x)), r"branches or leaves a value unused: output does not take the result of input"),
        (Calls(lambda self, x: (x.relu(), x.flatten(1))[1]), r"flatten does not take the result of relu"),
        (
            Calls(lambda self, x: (F.relu(x, inplace=True), x.flatten(1))[1]),
            r"flatten does not take the result of relu",
        ),
        (Calls(lambda self, x: (x.flatten(1), x.relu())[0]), r"relu does not take the result of flatten"),
        (Calls(lambda self, x: (x, x.relu())[0]), r"output does not take the result of relu"),
        (Calls(lambda self, x: x.relu_()), r"relu_ \(method relu_\)"),
        (nn.Sequential(nn.Flatten(0)), r"flattens axes 0 to -1"),
        (nn.Sequential(conv(padding=1, padding_mode="reflect")), r"padding_mode='reflect'"),
        (nn.Sequential(nn.Conv2d(1, 1, 2, padding="same")), r"even kernel"),
        (nn.Sequential(nn.Dropout(0.5)), r"0 \(Dropout\).*call eval\(\)"),
        (nn.Sequential(DoubledConv(1, 1, 1)), r"0 \(DoubledConv\).*Conv2d with a forward of its own"),
        (nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False)).eval(), r"depend on the rest of its batch"),
    ],
)
def test_what_has_no_sound_rule_is_refused_by_name(network, words):
    with pytest.raises(UnsupportedLayerError, match=words) as refusal:
        interval_bounds(network, torch.zeros(1, 2, 4, 4), torch.ones(1, 2, 4, 4))
    assert all(kind.__name__ in str(refusal.value) for kind in LAYERS)
    assert "smoothing" in str(refusal.value)


def test_hooks_and_replaced_forwards_are_refused_because_they_may_change_the_result():
    hooked = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    hooked[0].register_forward_hook(lambda module, inputs, output: output * 2)
    with pytest.raises(UnsupportedLayerError, match=r"0 \(Linear\).*hooks"):
        program_of(hooked)
    patched = nn.Sequential(nn.Linear(2, 2))
    patched[0].forward = lambda x: x
    with pytest.raises(UnsupportedLayerError, match="forward of its own"):
        program_of(patched)


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
