"""Residual networks: keys of reference/hydra.md section 4.4, logits against torchvision's implementation."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models import resnet18, resnet50

from hydrabench.models import build_model
from hydrabench.models.resnet import STAGES
from tests.helpers.networks import with_lively_batch_norm

CIFAR = (3, 32, 32)
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def torchvision_twin(constructor, state: dict[str, torch.Tensor]) -> nn.Module:
    """Torchvision's network with the first layers for small images, holding the same tensors."""
    twin = constructor(weights=None, num_classes=10)
    twin.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    twin.maxpool = nn.Identity()
    renamed = {key.replace("shortcut", "downsample").replace("linear", "fc"): value for key, value in state.items()}
    twin.load_state_dict(renamed)
    return twin.eval()


@pytest.mark.parametrize(("arch", "constructor"), [("resnet18", resnet18), ("resnet50", resnet50)])
@pytest.mark.parametrize("size", [32, 21])
def test_the_cifar_networks_compute_what_torchvisions_blocks_compute(arch, constructor, size):
    network = build_model(arch, (3, size, size), 10, generator=torch.Generator().manual_seed(0))
    with_lively_batch_norm(network, seed=5)
    twin = torchvision_twin(constructor, network.state_dict()).double()
    x = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        logits = network.double()(x)
        assert logits.std() > 0.01
        torch.testing.assert_close(logits, twin(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("depth", STAGES)
def test_the_keys_of_the_cifar_networks_are_the_originals(depth):
    """Projections open layer2 to layer4, and layer1 too where bottlenecks widen it."""
    convolutions = 2 if depth < 50 else 3
    blocks = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}[depth]
    keys = ["conv1.weight", *(f"bn1.{name}" for name in NORM)]
    for stage, count in enumerate(blocks, start=1):
        for block in range(count):
            prefix = f"layer{stage}.{block}"
            for number in range(1, convolutions + 1):
                keys += [f"{prefix}.conv{number}.weight", *(f"{prefix}.bn{number}.{name}" for name in NORM)]
            if block == 0 and (stage > 1 or depth >= 50):
                keys += [f"{prefix}.shortcut.0.weight", *(f"{prefix}.shortcut.1.{name}" for name in NORM)]
    with torch.device("meta"):
        state = build_model(f"resnet{depth}", CIFAR, 10).state_dict()
    assert list(state) == [*keys, "linear.weight", "linear.bias"]
    assert tuple(state["linear.weight"].shape) == (10, 512 if depth < 50 else 2048)


def test_the_stride_of_a_bottleneck_is_in_its_3x3_convolution():
    with torch.device("meta"):
        cifar, imagenet = build_model("resnet50", CIFAR, 10), build_model("ResNet50", (3, 224, 224), 1000)
    for block in (cifar.layer2[0], imagenet.layer2[0]):
        strides = [layer.stride for layer in (block.conv1, block.conv2, block.conv3)]
        assert strides == [(1, 1), (2, 2), (1, 1)]


def test_the_stages_of_the_cifar_networks_leave_4x4_pixels_of_32x32():
    with torch.device("meta"):
        network, x = build_model("resnet18", CIFAR, 10), torch.empty(1, *CIFAR)
        sizes = []
        for name, layer in network.named_children():
            x = layer(x)
            sizes += [x.shape[1:]] if name.startswith("layer") else []
    assert [tuple(size) for size in sizes] == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]


def test_the_imagenet_networks_hold_torchvisions_keys_and_take_its_state_dicts():
    theirs = resnet18(weights=None)
    network = build_model("ResNet18", (3, 224, 224), 1000)
    network.load_state_dict(theirs.state_dict())
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(network.eval()(x), theirs.eval()(x))
    keys = list(network.state_dict())
    assert {"layer2.0.downsample.0.weight", "layer2.0.downsample.1.running_var", "fc.bias"} <= set(keys)
    assert tuple(network.conv1.weight.shape) == (64, 3, 7, 7)


def test_an_imagenet_network_for_grey_images_changes_its_first_convolution_only():
    """Kaiming normal, fan-out: sqrt(2 / (49 · 64)) = 0.025254, also for the new convolution."""
    rng = torch.Generator().manual_seed(0)
    grey, colour = (build_model("ResNet18", (channels, 28, 28), 10, generator=rng) for channels in (1, 3))
    shapes = {key: value.shape for key, value in colour.state_dict().items()}
    changed = [key for key, value in grey.state_dict().items() if value.shape != shapes.pop(key)]
    assert changed == ["conv1.weight"]
    assert not shapes
    for network in (grey, colour):
        assert network.conv1.weight.std().item() == pytest.approx(0.025254, rel=0.04)
    assert list(grey.state_dict()) == list(colour.state_dict())
    assert (grey.conv1.stride, grey.conv1.padding) == (colour.conv1.stride, colour.conv1.padding)
