"""Wide ResNets: keys and forward pass of reference/hydra.md section 4.3, and the group that nothing uses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hydrabench.masking import (
    attach_masks,
    bake_masks,
    layer_densities,
    prunable_layers,
    score_masks,
    set_phase,
    used_modules,
    used_parameters,
)
from hydrabench.models import build_model, normalized
from hydrabench.models.wide_resnet import wide_resnet
from tests.helpers.networks import with_lively_batch_norm

CIFAR = (3, 32, 32)
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def wrn(arch: str = "wrn_28_1", size: int = 32, seed: int = 0) -> nn.Module:
    """A network whose batch norms do something: statistics and parameters away from 0 and 1."""
    network = build_model(arch, (3, size, size), 10, generator=torch.Generator().manual_seed(seed))
    return with_lively_batch_norm(network, seed)


def images(size: int = 32, count: int = 2) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def logits_by_the_book(state: dict[str, Tensor], x: Tensor, units: int) -> Tensor:
    """Section 4.3 word for word, from the tensors of a file: 8x8 average pooling, pre-activation shared where
    the channels change."""

    def active(name: str, x: Tensor) -> Tensor:
        mean, var, weight, bias = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", *NORM[:2]))
        return F.relu(F.batch_norm(x, mean, var, weight, bias))

    x = F.conv2d(x, state["conv1.weight"], padding=1)
    for block, first_stride in (("block1", 1), ("block2", 2), ("block3", 2)):
        for unit in range(units):
            name, stride = f"{block}.layer.{unit}", first_stride if unit == 0 else 1
            widens = f"{name}.convShortcut.weight" in state
            if widens:
                x = active(f"{name}.bn1", x)
            residual = x if widens else active(f"{name}.bn1", x)
            residual = F.conv2d(residual, state[f"{name}.conv1.weight"], stride=stride, padding=1)
            residual = F.conv2d(active(f"{name}.bn2", residual), state[f"{name}.conv2.weight"], padding=1)
            shortcut = F.conv2d(x, state[f"{name}.convShortcut.weight"], stride=stride) if widens else x
            x = shortcut + residual
    pooled = F.avg_pool2d(active("bn1", x), 8)
    return F.linear(pooled.view(len(x), -1), state["fc.weight"], state["fc.bias"])


@pytest.mark.parametrize(("arch", "units"), [("wrn_28_1", 4), ("wrn_28_4", 4), ("wrn_40_2", 6)])
def test_logits_are_those_of_the_written_definition_with_its_8x8_pooling(arch, units):
    network, x = wrn(arch).double(), images().double()
    with torch.no_grad():
        expected = logits_by_the_book(network.state_dict(), x, units)
        assert expected.std() > 0.01
        torch.testing.assert_close(network(x), expected, rtol=1e-10, atol=1e-10)


def test_other_image_sizes_pool_whatever_is_left():
    """64x64 pixels leave 16x16 features; their mean is the mean of the four 8x8 quarters."""
    network, features = wrn().double(), []
    network.bn1.register_forward_hook(lambda _module, _inputs, out: features.append(F.relu(out)))
    with torch.no_grad():
        logits = network(images(64).double())
        assert features[0].shape == (2, 64, 16, 16)
        pooled = F.avg_pool2d(features[0], 8).mean((2, 3))
        torch.testing.assert_close(logits, network.fc(pooled), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("arch", "units"), [("wrn_28_1", 4), ("wrn_28_10", 4), ("wrn_34_10", 5), ("wrn_40_2", 6)])
def test_keys_and_their_order_are_the_originals(arch, units):
    keys = ["conv1.weight"]
    for block in ("block1", "sub_block1", "block2", "block3"):
        for unit in range(units):
            prefix = f"{block}.layer.{unit}"
            for number in (1, 2):
                keys += [f"{prefix}.bn{number}.{name}" for name in NORM] + [f"{prefix}.conv{number}.weight"]
            widens = unit == 0 and (arch != "wrn_28_1" or block in {"block2", "block3"})
            keys += [f"{prefix}.convShortcut.weight"] if widens else []
    keys += [f"bn1.{name}" for name in NORM] + ["fc.weight", "fc.bias"]
    with torch.device("meta"):
        state = build_model(arch, CIFAR, 10).state_dict()
    assert list(state) == keys


def test_the_shapes_of_wrn_28_10_are_the_examples_of_the_reference():
    with torch.device("meta"):
        state = build_model("wrn_28_10", CIFAR, 10).state_dict()
    assert len(state) == 204
    shapes = [tuple(state[f"block{block}.layer.0.convShortcut.weight"].shape) for block in (1, 2, 3)]
    assert shapes == [(160, 16, 1, 1), (320, 160, 1, 1), (640, 320, 1, 1)]
    assert tuple(state["fc.weight"].shape) == (10, 640)


def test_initial_weights_follow_the_originals_distributions():
    """N(0, sqrt(2 / (9 · 64))) = 0.058926 for 64 channels of 3x3, sqrt(2 / 64) = 0.176777 for a 1x1 shortcut."""
    network = build_model("wrn_28_1", CIFAR, 10, generator=torch.Generator().manual_seed(0))
    unit = network.block3.layer[0]
    assert unit.conv2.weight.std().item() == pytest.approx(0.058926, rel=0.02)
    assert unit.convShortcut.weight.std().item() == pytest.approx(0.176777, rel=0.05)
    assert not network.fc.bias.any()
    assert network.fc.weight.abs().max().item() == pytest.approx(1 / 8, rel=0.02)  # torch: U(±1/sqrt(64))


@pytest.mark.parametrize("training", [False, True])
def test_the_unused_group_never_changes_a_logit(training):
    network, poisoned = wrn(), wrn()
    with torch.no_grad():
        for tensor in poisoned.sub_block1.state_dict().values():
            tensor.fill_(float("nan") if tensor.is_floating_point() else 7)
        logits = network.train(training)(images())
        assert torch.isfinite(logits).all()
        assert torch.equal(poisoned.train(training)(images()), logits)


def test_the_unused_group_cannot_be_called_by_mistake():
    with pytest.raises(NotImplementedError):
        wrn().sub_block1(torch.rand(1, 16, 8, 8))


@pytest.mark.parametrize("wrap", [lambda network: network, lambda network: normalized(network, [0.5] * 3, [0.2] * 3)])
def test_the_unused_group_gets_no_mask_and_is_in_no_report(wrap):
    network = wrap(wrn("wrn_40_2"))
    before = {key: value.clone() for key, value in network.state_dict().items() if "sub_block1" in key}
    assert len(before) == 6 * 2 * 6 + 1  # six units of two batch norms and two convolutions, one shortcut
    attach_masks(network, 0.1)
    for names in (
        prunable_layers(network),
        score_masks(network),
        [layer.name for layer in layer_densities(network)],
        [name for name, _ in used_modules(network)],
    ):
        assert names
        assert not any("sub_block1" in name for name in names)
    bake_masks(network)
    after = {key: value for key, value in network.state_dict().items() if "sub_block1" in key}
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize("phase", ["train", "prune", "finetune"])
def test_the_unused_group_is_not_trained_in_any_phase_and_all_else_is(phase):
    network = wrn()
    attach_masks(network, 0.1)
    set_phase(network, phase)
    before = {key: value.clone() for key, value in network.sub_block1.state_dict().items()}
    network.train()(images()).square().sum().backward()
    unused = list(network.sub_block1.parameters())
    assert len(unused) == 4 * 6
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in unused)
    assert len(used_parameters(network)) + len(unused) == len(list(network.parameters()))
    trained = [parameter for parameter in used_parameters(network) if parameter.requires_grad]
    assert trained
    assert all(parameter.grad is not None for parameter in trained)  # so DDP waits for none of them
    after = network.sub_block1.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_a_network_without_masks_starts_with_the_unused_group_frozen():
    network = build_model("wrn_28_1", CIFAR, 10)
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert frozen == {f"sub_block1.{name}" for name, _ in network.sub_block1.named_parameters()}


@pytest.mark.parametrize("depth", [27, 30, 4])
def test_a_depth_that_no_wide_resnet_has_is_refused(depth):
    with pytest.raises(ValueError, match=f"a wide ResNet has depth 6n \\+ 4, such as 28 or 34, not {depth}"):
        wide_resnet(depth, 1, CIFAR, 10)
