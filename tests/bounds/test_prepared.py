"""A network read once says what it says read anew, and goes on to say so when the network is changed."""

from __future__ import annotations

import copy
from fractions import Fraction
from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hydrabench.bounds import BOUNDS, cascade, interval_bounds, prepared, program_of, rounding_bound, sound_margins
from hydrabench.bounds.specification import pose
from hydrabench.masking import attach_masks, score_masks, set_phase
from hydrabench.models import build_model
from hydrabench.models.normalize import Normalize

seeds = st.integers(0, 10_000)


def small_network():
    torch.manual_seed(0)
    layers = [Normalize([0.4, 0.5, 0.6], [0.2, 0.3, 0.2]), nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 6), nn.Dropout(), nn.ReLU(), nn.Linear(6, 4)).eval()


def masked_network():
    network = small_network()
    attach_masks(network, density=0.5)
    set_phase(network, "prune")
    return network.eval()


def images(network, count=3):
    x = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return x, network(x).argmax(1)


# The same bounds -------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)
@given(seed=seeds, norm=st.sampled_from(["linf", "l2"]))
@settings(max_examples=10)
def test_what_was_read_once_bounds_like_the_network_to_the_last_bit(bound, tiny_problem, tiny_dag, seed, norm):
    for network, x, y, _ in (tiny_problem(seed), tiny_dag(seed)):
        ready = prepared(network.requires_grad_(False))
        with torch.no_grad():
            for epsilon in (0.0, 0.02, 0.1):
                assert torch.equal(bound(ready, x, y, epsilon, norm=norm), bound(network, x, y, epsilon, norm=norm))


@pytest.mark.parametrize("pooling", ["avg", "max", "global"])
def test_residual_and_pooled_networks_are_bounded_the_same(residual_network, pooling):
    network, x, y, _ = residual_network(pooling)
    ready = prepared(network)
    with torch.no_grad():
        for name, bound in BOUNDS.items():
            assert torch.equal(bound(ready, x, y, 0.01), bound(network, x, y, 0.01)), name
        assert torch.equal(cascade(ready, x, y, 0.01).lower, cascade(network, x, y, 0.01).lower)
        assert torch.equal(interval_bounds(ready, x, x + 0.1)[0], interval_bounds(network, x, x + 0.1)[0])


@pytest.mark.parametrize("arch", ["cifar_model_bn", "vgg2_bn", "mnist_model"])
def test_architectures_are_bounded_the_same(arch):
    network = build_model(arch, (3, 32, 32), 10).eval()
    x, y = torch.rand(2, 3, 32, 32), torch.tensor([3, 4])
    ready = prepared(network)
    with torch.no_grad():
        for name in ("ibp", "crown-ibp"):
            assert torch.equal(BOUNDS[name](ready, x, y, 0.001), BOUNDS[name](network, x, y, 0.001)), name


@pytest.mark.parametrize("make", [small_network, masked_network])
def test_masks_statistics_and_margins_with_gradients_enabled_are_the_same_but_for_rounding(make):
    network = make()
    x, y = images(network)
    ready = prepared(network)
    for bound in BOUNDS.values():
        found = bound(ready, x, y, 0.02)
        assert not found.requires_grad
        torch.testing.assert_close(found, bound(network, x, y, 0.02).detach(), rtol=1e-5, atol=1e-5)


def test_rounding_bounds_and_sound_bounds_are_the_same():
    network = small_network()
    x, y = images(network)
    ready = prepared(network)
    for kind in ("ibp", "crown-ibp"):
        expected = rounding_bound(network, x, y, 0.02, kind=kind)
        assert torch.equal(rounding_bound(ready, x, y, 0.02, kind=kind), expected)
        expected = sound_margins(network, x, y, Fraction(1, 50), kind=kind)
        assert torch.equal(sound_margins(ready, x, y, Fraction(1, 50), kind=kind), expected)
    assert ready.in_float64() is ready.in_float64()
    assert next(network.parameters()).dtype == torch.float32


@pytest.mark.parametrize("classes", [3, 50])
def test_a_network_that_ends_without_a_linear_layer_and_one_with_many_classes_are_bounded_the_same(classes):
    """Few classes have their rows looked up, many do not."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, classes), nn.ReLU()).eval().requires_grad_(False)
    for subject in (network, nn.Sequential(*network, nn.Linear(classes, classes)).eval().requires_grad_(False)):
        ready, x, y = prepared(subject), torch.rand(4, 3, 2, 2), torch.tensor([0, 2, 1, 2])
        for dtype in (torch.float32, torch.float64, torch.float32):
            other = ready if dtype == torch.float32 else prepared(copy.deepcopy(subject).double())
            found = BOUNDS["ibp"](other, x.to(dtype), y, 0.1)
            assert torch.equal(found, BOUNDS["ibp"](copy.deepcopy(subject).to(dtype), x.to(dtype), y, 0.1))


def test_images_of_another_size_are_bounded_anew():
    """Global pooling takes images of every size; what is remembered for one must not be taken for another."""
    torch.manual_seed(0)
    pool = nn.AdaptiveAvgPool2d(1)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), pool, nn.Flatten(), nn.Linear(4, 3)).eval()
    ready = prepared(network.requires_grad_(False))
    for side in (6, 9, 6):
        x, y = torch.rand(2, 3, side, side), torch.tensor([0, 1])
        for bound in BOUNDS.values():
            assert torch.equal(bound(ready, x, y, 0.02), bound(network, x, y, 0.02))
        assert pose(ready, x, y, 0.02).shapes == pose(network, x, y, 0.02).shapes


def test_the_network_is_read_once(monkeypatch):
    module, seen = import_module("hydrabench.bounds.prepared"), []  # the package exports a function of that name
    monkeypatch.setattr(module, "program_of", lambda network: seen.append(1) or program_of(network))
    network = small_network()
    x, y = images(network)
    ready = module.prepared(network)
    for bound in BOUNDS.values():
        bound(ready, x, y, 0.02)
    assert seen == [1]
    magnitude = ready.nodes[1].operation.absolute()
    assert torch.equal(magnitude.weight, ready.nodes[1].operation.weight.abs())
    assert ready.nodes[1].operation.absolute() is magnitude


# Changes ---------------------------------------------------------------------------------------


def descend(optimizer, network):
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer(network.parameters()).step()


def see_a_batch(network):
    network.train()(torch.rand(4, 3, 8, 8))
    network.eval()


def switch_phase(network):
    if score_masks(network):
        set_phase(network, "finetune")
    else:
        attach_masks(network, density=0.5)


def call_hook(module, inputs):
    return inputs


CHANGES = {
    "SGD": lambda network: descend(lambda given: torch.optim.SGD(given, 0.1), network),
    "Adam": lambda network: descend(lambda given: torch.optim.Adam(given, 0.1), network),
    "fused Adam": lambda network: descend(lambda given: torch.optim.Adam(given, 0.1, fused=True), network),
    "one optimizer step at a time": lambda network: descend(
        lambda given: torch.optim.SGD(given, 1, foreach=False), network
    ),
    "load_state_dict": lambda network: network.load_state_dict(copy.deepcopy(network.state_dict())),
    "load_state_dict by assignment": lambda network: network.load_state_dict(
        copy.deepcopy(network.state_dict()), assign=True
    ),
    "masks": switch_phase,
    "train": lambda network: network.train(),
    "one layer in training mode": lambda network: network[6].train(),
    "running statistics": see_a_batch,
    "batch norm's count alone": lambda network: network[2].num_batches_tracked.add_(1),
    "a replaced layer": lambda network: network.__setitem__(3, nn.Identity()),
    "an equal layer": lambda network: network.__setitem__(3, nn.ReLU().eval()),
    "layers swapped": lambda network: network.__setitem__(7, network[3]),
    "an added layer": lambda network: network.append(nn.ReLU().eval()),
    "a new parameter": lambda network: setattr(network[8], "bias", nn.Parameter(network[8].bias.detach())),
    "no bias": lambda network: setattr(network[8], "bias", None),
    "new data": lambda network: setattr(network[8].bias, "data", network[8].bias.detach() + 1),
    "one number": lambda network: network[8].bias.detach().__setitem__(0, 1.0),
    "what is trained": lambda network: network.requires_grad_(not network[2].weight.requires_grad),
    "float64": lambda network: network.double(),
    "half and back": lambda network: network.half().float(),
    "a stride": lambda network: setattr(network[1], "stride", (1, 1)),
    "padding": lambda network: setattr(network[1], "padding", (0, 0)),
    "batch norm's eps": lambda network: setattr(network[2], "eps", 1e-3),
    "a buffer": lambda network: setattr(network[0], "mean", network[0].mean.clone()),
    "pixels' statistics": lambda network: network[0].std.mul_(2),
    "a hook": lambda network: network[3].register_forward_hook(call_hook),
    "a hook before": lambda network: network[3].register_forward_pre_hook(call_hook),
    "a forward of its own": lambda network: setattr(network[3], "forward", lambda x: x),
    "another class": lambda network: setattr(network[3], "__class__", nn.Identity),
}


@pytest.mark.parametrize("make", [small_network, masked_network])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_of_the_network_changes_nothing_that_was_read(change, make):
    network = make()
    x, y = images(network)
    before, ready = prepared(network), prepared(network)
    uses = (
        lambda known: BOUNDS["cascade"](known, x, y, 0.02),
        lambda known: interval_bounds(known, x, x)[0],
        lambda known: rounding_bound(known, x, y, 0.02, kind="ibp"),
        lambda known: sound_margins(known, x, y, Fraction(1, 50), kind="ibp"),
        lambda known: BOUNDS["ibp"](known.in_float64(), x.double(), y, 0.02),
        lambda known: known.network(x),
    )
    expected = [use(before) for use in uses]
    with torch.no_grad():
        change(network)
    assert all(torch.equal(use(ready), known) for use, known in zip(uses, expected, strict=True))


def test_what_is_written_behind_torchs_back_changes_nothing():
    network = small_network()
    x, y = images(network)
    ready, known = prepared(network), BOUNDS["ibp"](network, x, y, 0.02)
    for parameter in network.parameters():
        parameter.data.zero_()
    torch.testing.assert_close(BOUNDS["ibp"](ready, x, y, 0.02), known)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_using_a_network_does_not_change_it(scope):
    """Neither its own passes, nor gradients, nor being read, with a shared budget of masks that counts anew."""
    network = small_network()
    attach_masks(network, density=0.5, scope=scope)
    set_phase(network, "prune")
    network.eval()
    ready = prepared(network)
    x, y = images(network)
    nn.functional.cross_entropy(network(x), y).backward()
    network.zero_grad()
    BOUNDS["crown-ibp"](network, x, y, 0.02)
    copy.deepcopy(network)
    network.eval().to("cpu").float()
    assert torch.equal(BOUNDS["ibp"](ready, x, y, 0.02), BOUNDS["ibp"](prepared(network), x, y, 0.02))


def test_a_network_in_training_mode_is_refused():
    with pytest.raises(ValueError, match=r"the network is in training mode; call eval\(\) before prepared\(\)"):
        prepared(small_network().train())
    network = small_network()
    network[2].train()
    with pytest.raises(ValueError, match="2 is in training mode"):
        prepared(network)


def test_what_it_holds_is_without_gradients_and_the_network_keeps_its_own():
    network = small_network()
    ready = prepared(network)
    tensors = [value for node in ready.nodes for value in vars(node.operation).values() if torch.is_tensor(value)]
    assert len(tensors) >= 6
    assert not any(tensor.requires_grad for tensor in tensors)
    assert all(parameter.requires_grad for parameter in network.parameters())
