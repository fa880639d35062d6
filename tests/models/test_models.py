"""Architectures against the tables of reference/hydra.md sections 4.1, 4.2 and 4.5."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hydrabench.errors import ConfigError
from hydrabench.masking import kept_count, prunable_layers
from hydrabench.models import MODELS, Normalize, build_model, inner_network, normalized

CIFAR, MNIST = (3, 32, 32), (1, 28, 28)
# arch, image shape, parameters, prunable weights, masked layers, tensors, kept at 0.1, 0.05, 0.01
TABLE = [
    ("vgg16_bn", CIFAR, 15_311_818, 15_302_848, 16, 84, (1_530_291, 765_149, 153_035)),
    ("mnist_model", MNIST, 166_406, 166_248, 4, 8, (16_626, 8_313, 1_663)),
    ("mnist_model_large", MNIST, 1_974_762, 1_973_536, 7, 14, (197_357, 98_680, 19_739)),
    ("cifar_model", CIFAR, 214_918, 214_760, 4, 8, (21_477, 10_739, 2_148)),
    ("cifar_model_large", CIFAR, 2_466_858, 2_465_632, 7, 14, (246_567, 123_285, 24_660)),
    ("vgg4_without_maxpool", CIFAR, 2_425_930, 2_425_024, 7, 14, (242_505, 121_254, 24_254)),
]


@pytest.mark.parametrize(("arch", "shape", "parameters", "prunable", "layers", "tensors", "kept"), TABLE)
def test_parameter_tensor_and_kept_counts_are_those_of_the_original_oracle_o4(
    arch, shape, parameters, prunable, layers, tensors, kept
):
    network = build_model(arch, shape, 10)
    sizes = [layer.weight.numel() for layer in prunable_layers(network).values()]
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert (sum(sizes), len(sizes), len(network.state_dict())) == (prunable, layers, tensors)
    assert tuple(sum(kept_count(size, density) for size in sizes) for density in (0.1, 0.05, 0.01)) == kept


def test_the_keys_of_the_small_networks_are_bare_indices():
    assert list(build_model("cifar_model", CIFAR, 10).state_dict()) == [
        f"{index}.{name}" for index in (0, 2, 5, 7) for name in ("weight", "bias")
    ]


def test_the_keys_of_vgg16_bn_are_those_of_the_original():
    convolutions = (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)
    state = build_model("vgg16_bn", CIFAR, 10).state_dict()
    assert [key for key in state if key.endswith("weight") and state[key].ndim == 4] == [
        f"features.{index}.weight" for index in convolutions
    ]
    assert {f"features.{index + 1}.running_var" for index in convolutions} <= set(state)
    assert [tuple(state[f"classifier.{index}.weight"].shape) for index in (0, 2, 4)] == [
        (256, 2048),
        (256, 256),
        (10, 256),
    ]


@pytest.mark.parametrize("arch", MODELS)
@pytest.mark.parametrize(("shape", "classes"), [((3, 32, 32), 10), ((1, 16, 16), 4)])
def test_every_architecture_takes_other_sizes_and_class_counts(arch, shape, classes):
    logits = build_model(arch, shape, classes).eval()(torch.rand(2, *shape))
    assert logits.shape == (2, classes)
    assert torch.isfinite(logits).all()


def test_digits_fit_the_small_network():
    assert build_model("cifar_model", (1, 8, 8), 10)(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_images_that_are_too_small_are_refused_with_the_other_architectures():
    with pytest.raises(ConfigError, match="'vgg16_bn': images of 8x8 pixels are too small for 4 poolings; choose"):
        build_model("vgg16_bn", (1, 8, 8), 10)
    with pytest.raises(ConfigError, match="'cifar_model': images of 1x1 pixels are too small for this network"):
        build_model("cifar_model", (1, 1, 1), 10)


def test_a_misspelt_architecture_is_refused_with_the_closest_name():
    with pytest.raises(ConfigError, match="unknown architecture 'vgg16bn'; did you mean 'vgg16_bn'"):
        build_model("vgg16bn", CIFAR, 10)


@pytest.mark.parametrize("arch", MODELS)
def test_initial_weights_depend_on_the_generator_alone(arch):
    shape = (1, 16, 16)
    torch.manual_seed(123)
    before = torch.get_rng_state()
    first = build_model(arch, shape, 10, generator=torch.Generator().manual_seed(7)).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    second = build_model(arch, shape, 10, generator=torch.Generator().manual_seed(7)).state_dict()
    third = build_model(arch, shape, 10, generator=torch.Generator().manual_seed(8)).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], third[key]) for key in first)


def test_convolutions_of_the_small_networks_start_from_the_originals_distribution():
    """N(0, sqrt(2 / (kernel area · out channels))): sqrt(2 / (16 · 32)) = 0.0625 for the second layer."""
    network = build_model("cifar_model", CIFAR, 10, generator=torch.Generator().manual_seed(0))
    assert network[2].weight.std().item() == pytest.approx(0.0625, rel=0.03)
    assert not network[2].bias.any()


def test_normalisation_is_a_layer_outside_the_state_dict():
    """(0.75 - 0.25) / 0.5 = 1 in the first channel, (0.75 - 0.5) / 0.25 = 1 in the second."""
    layer = Normalize([0.25, 0.5], [0.5, 0.25])
    assert torch.equal(layer(torch.full((1, 2, 3, 3), 0.75)), torch.ones(1, 2, 3, 3))
    bare = nn.Linear(2, 2)
    model = normalized(bare, [0.25, 0.5], [0.5, 0.25])
    assert inner_network(model) is bare
    assert inner_network(bare) is bare
    assert not layer.state_dict()


def test_normalisation_must_have_the_images_channels():
    with pytest.raises(ConfigError, match="normalization has 1 channels, the images have 3"):
        build_model("cifar_model", CIFAR, 10, normalization=([0.5], [0.5]))
