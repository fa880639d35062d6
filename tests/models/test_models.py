"""The registry against the table of reference/hydra.md section 4.1; the small networks of section 4.5."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hydrabench.errors import ConfigError
from hydrabench.masking import (
    attach_masks,
    bake_masks,
    global_density,
    kept_count,
    layer_densities,
    prunable_layers,
    score_masks,
    used_parameters,
)
from hydrabench.models import MODELS, Architecture, Normalize, build_model, inner_network, normalized

CIFAR, MNIST, IMAGENET = (3, 32, 32), (1, 28, 28), (3, 224, 224)
# arch: parameters, prunable weights, masked layers, tensors masked and dense, kept at 0.1, 0.05, 0.01.
# Wide ResNets are counted here as the original does, with the group `sub_block1` that nothing uses.
TABLE = {
    "vgg2": (172_746, 172_224, 5, 13, 8, (17_224, 8_613, 1_725)),
    "vgg2_bn": (173_002, 172_224, 5, 23, 18, (17_224, 8_613, 1_725)),
    "vgg4": (459_466, 458_944, 7, 17, 10, (45_897, 22_950, 4_593)),
    "vgg4_bn": (460_234, 458_944, 7, 37, 30, (45_897, 22_950, 4_593)),
    "vgg6": (1_475_274, 1_474_752, 9, 21, 12, (147_479, 73_742, 14_753)),
    "vgg6_bn": (1_477_066, 1_474_752, 9, 51, 42, (147_479, 73_742, 14_753)),
    "vgg8": (5_276_362, 5_275_840, 11, 25, 14, (527_588, 263_797, 52_764)),
    "vgg8_bn": (5_280_202, 5_275_840, 11, 65, 54, (527_588, 263_797, 52_764)),
    "vgg11": (9_810_634, 9_810_112, 11, 25, 14, (981_015, 490_510, 98_106)),
    "vgg11_bn": (9_816_138, 9_810_112, 11, 65, 54, (981_015, 490_510, 98_106)),
    "vgg13": (9_994_954, 9_994_432, 13, 29, 16, (999_448, 499_727, 99_950)),
    "vgg13_bn": (10_000_842, 9_994_432, 13, 79, 66, (999_448, 499_727, 99_950)),
    "vgg16": (15_303_370, 15_302_848, 16, 35, 19, (1_530_291, 765_149, 153_035)),
    "vgg16_bn": (15_311_818, 15_302_848, 16, 100, 84, (1_530_291, 765_149, 153_035)),
    "resnet18": (11_173_962, 11_164_352, 21, 143, 122, (1_116_445, 558_228, 111_653)),
    "resnet34": (21_282_122, 21_265_088, 37, 255, 218, (2_126_527, 1_063_274, 212_669)),
    "resnet50": (23_520_842, 23_467_712, 54, 374, 320, (2_346_798, 1_173_414, 234_700)),
    "resnet101": (42_512_970, 42_407_616, 105, 731, 626, (4_240_819, 2_120_450, 424_131)),
    "resnet152": (58_156_618, 58_005_184, 156, 1088, 932, (5_800_604, 2_900_362, 580_138)),
    "wrn_28_1": (388_186, 386_096, 36, 238, 202, (38_629, 19_327, 3_889)),
    "wrn_28_4": (6_118_266, 6_110_128, 38, 242, 204, (611_033, 305_529, 61_121)),
    "wrn_28_10": (38_119_866, 38_099_632, 38, 242, 204, (3_809_964, 1_904_982, 380_999)),
    "wrn_34_10": (48_262_586, 48_237_232, 46, 298, 252, (4_823_724, 2_411_862, 482_375)),
    "wrn_40_2": (2_350_778, 2_344_624, 54, 354, 300, (234_487, 117_251, 23_480)),
    "mnist_model": (166_406, 166_248, 4, 12, 8, (16_626, 8_313, 1_663)),
    "mnist_model_large": (1_974_762, 1_973_536, 7, 21, 14, (197_357, 98_680, 19_739)),
    "cifar_model": (214_918, 214_760, 4, 12, 8, (21_477, 10_739, 2_148)),
    "cifar_model_large": (2_466_858, 2_465_632, 7, 21, 14, (246_567, 123_285, 24_660)),
    "vgg4_without_maxpool": (2_425_930, 2_425_024, 7, 21, 14, (242_505, 121_254, 24_254)),
    "ResNet18": (11_689_512, 11_678_912, 21, 143, 122, (1_167_901, 583_956, 116_798)),
    "ResNet34": (21_797_672, 21_779_648, 37, 255, 218, (2_177_983, 1_089_002, 217_814)),
    "ResNet50": (25_557_032, 25_502_912, 54, 374, 320, (2_550_318, 1_275_174, 255_052)),
}
# The same without `sub_block1`: parameters, prunable weights, kept at 0.1, 0.05, 0.01 (text below the table).
WITHOUT_DUPLICATE = {
    "wrn_28_10": (36_479_194, 36_461_232, (3_646_124, 1_823_062, 364_614)),
    "wrn_28_4": (5_849_050, 5_841_840, (584_199, 292_108, 58_434)),
}
# Section 2.4, counted with `sub_block1`: mean over the layers of the percentage pruned at k = 0.1, 0.05,
# 0.01, then the same over all weights at once.
PRUNED_PERCENT = {
    "vgg16_bn": ((89.999, 94.998, 98.996), (90.0000, 95.0000, 99.0000)),
    "wrn_28_4": ((89.991, 94.992, 98.991), (89.9997, 94.9996, 98.9997)),
    "wrn_28_10": ((89.995, 94.998, 98.995), (90.0000, 95.0000, 99.0000)),
    "resnet18": ((89.999, 94.998, 98.997), (89.9999, 94.9999, 98.9999)),
    "cifar_model": ((89.991, 94.979, 98.989), (89.9995, 94.9995, 98.9998)),
    "cifar_model_large": ((89.989, 94.986, 98.991), (89.9998, 94.9999, 98.9999)),
}
DENSITIES = (0.1, 0.05, 0.01)
# Networks with real weights, one or more of each builder; all others are built on the meta device, which
# knows shapes only.
QUICK = ("cifar_model", "cifar_model_bn", "vgg4_without_maxpool", "vgg2", "vgg16_bn", "resnet18", "resnet50")
QUICK += ("resnet110", "wrn_28_1", "wrn_40_2", "ResNet18")


def own_shape(arch: str) -> tuple[int, int, int]:
    """The images an architecture is made for."""
    return MNIST if arch.startswith("mnist") else IMAGENET if arch.startswith("ResNet") else CIFAR


def on_meta(arch: str) -> nn.Module:
    """The network for the images and classes it is made for, without the values of its weights."""
    with torch.device("meta"):
        return build_model(arch, own_shape(arch), 1000 if arch.startswith("ResNet") else 10)


def every_layer(network: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """All convolutions and linear layers, used or not, as the original counts them."""
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}


def kept_at(sizes: list[int]) -> tuple[int, ...]:
    return tuple(sum(kept_count(size, density) for size in sizes) for density in DENSITIES)


@pytest.mark.parametrize("arch", TABLE)
def test_parameter_tensor_and_kept_counts_are_those_of_the_original_oracle_o4(arch):
    parameters, prunable, layers, masked, dense, kept = TABLE[arch]
    network = on_meta(arch)
    sizes = [layer.weight.numel() for layer in every_layer(network).values()]
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert (sum(sizes), len(sizes), kept_at(sizes)) == (prunable, layers, kept)
    assert len(network.state_dict()) == dense
    unused = len(sizes) - len(prunable_layers(network))
    attach_masks(network, 0.1)
    assert len(network.state_dict()) + unused == masked
    assert bool(unused) == arch.startswith("wrn")


def test_the_table_has_every_architecture_of_the_original_that_the_registry_has():
    """Beyond the table: four of ours, and the two torchvision networks whose sizes torchvision states."""
    assert set(MODELS) - set(TABLE) == {"cifar_model_bn", "cnn7", "resnet110", "wrn_10_1", "ResNet101", "ResNet152"}
    assert set(TABLE) <= set(MODELS)


def test_cnn7_has_the_parameters_of_the_certified_training_papers():
    """Five convolutions of 3x3 and two linear layers, batch norm behind all but the last: 17,192,650 parameters.

    Weights 64·3·9 + 64·64·9 + 128·64·9 + 2 · 128·128·9 + 512·32,768 + 10·512 = 17,189,568; biases 64 + 64 + 3·128 + 512
    + 10 = 1,034; batch norms 2 · (64 + 64 + 3·128 + 512) = 2,048.
    """
    network = on_meta("cnn7")
    assert sum(layer.weight.numel() for layer in every_layer(network).values()) == 17_189_568
    assert sum(parameter.numel() for parameter in network.parameters()) == 17_189_568 + 1_034 + 2_048 == 17_192_650


def test_resnet110_has_the_weights_worked_by_hand():
    """A convolution, eighteen blocks of two in each of three stages, two shortcuts, a linear layer: 112 layers."""
    network = on_meta("resnet110")
    stages = [36 * 16 * 16 * 9, (16 * 32 + 35 * 32 * 32) * 9 + 16 * 32, (32 * 64 + 35 * 64 * 64) * 9 + 32 * 64]
    weights = 27 * 16 + sum(stages) + 64 * 10
    layers = every_layer(network)
    assert (sum(layer.weight.numel() for layer in layers.values()), len(layers)) == (weights, 109 + 2 + 1)
    norms = 2 * (16 + 36 * 16 + 36 * 32 + 32 + 36 * 64 + 64)
    assert sum(parameter.numel() for parameter in network.parameters()) == weights + norms + 10


def test_the_smallest_wide_resnet_has_the_weights_worked_by_hand():
    """One unit a group. Weights 432 + 2 · 16·16·9 + (16·32·9 + 32·32·9 + 16·32) + (32·64·9 + 64·64·9 + 32·64) + 640, in
    1 + 2 + 3 + 3 + 1 layers; batch norms 2·(16 + 16) + 2·(16 + 32) + 2·(32 + 64) + 2·64; and 10 biases."""
    network = on_meta("wrn_10_1")
    sizes = [layer.weight.numel() for layer in prunable_layers(network).values()]
    assert (sum(sizes), len(sizes)) == (432 + 4_608 + 14_336 + 57_344 + 640, 10)
    assert sum(parameter.numel() for parameter in used_parameters(network)) == 77_360 + 64 + 96 + 192 + 128 + 10


@pytest.mark.parametrize(("arch", "parameters"), [("ResNet101", 44_549_160), ("ResNet152", 60_192_808)])
def test_the_deepest_imagenet_networks_have_the_sizes_that_torchvision_states(arch, parameters):
    assert sum(parameter.numel() for parameter in on_meta(arch).parameters()) == parameters


@pytest.mark.parametrize("arch", [arch for arch in TABLE if arch.startswith("wrn")])
def test_the_unused_group_of_wide_resnets_is_in_no_count(arch):
    """With n units of w = 16·widen channels it has 9·16·w + (2n - 1)·9·w² weights, and 16·w for a shortcut if w > 16;
    its batch norms have 2·(16 + w) + (n - 1)·4·w parameters. wrn_28_10: 1,638,400 weights, wrn_28_4: 268,288."""
    _, depth, widen = arch.split("_")
    n, w = (int(depth) - 4) // 6, 16 * int(widen)
    weights = 9 * 16 * w + (2 * n - 1) * 9 * w * w + (16 * w if w > 16 else 0)
    assert weights == {"wrn_28_10": 1_638_400, "wrn_28_4": 268_288}.get(arch, weights)
    network = on_meta(arch)
    sizes = [layer.weight.numel() for layer in prunable_layers(network).values()]
    counted = sum(parameter.numel() for parameter in used_parameters(network))
    parameters, prunable, layers, *_ = TABLE[arch]
    assert sum(sizes) == prunable - weights
    assert len(sizes) == layers - 2 * n - (w > 16)
    assert counted == parameters - weights - 2 * (16 + w) - (n - 1) * 4 * w
    assert counted == 46_160_474 or arch != "wrn_34_10"
    if arch in WITHOUT_DUPLICATE:
        assert (counted, sum(sizes), kept_at(sizes)) == WITHOUT_DUPLICATE[arch]


@pytest.mark.parametrize("arch", PRUNED_PERCENT)
def test_mean_and_global_densities_are_those_of_the_original(arch):
    """From the counts alone, and to the digits that the reference gives."""
    sizes = [layer.weight.numel() for layer in every_layer(on_meta(arch)).values()]
    means, overall = PRUNED_PERCENT[arch]
    for density, mean, total in zip(DENSITIES, means, overall, strict=True):
        kept = [kept_count(size, density) for size in sizes]
        fractions = [count / size for count, size in zip(kept, sizes, strict=True)]
        assert 100 - 100 * sum(fractions) / len(fractions) == pytest.approx(mean, abs=5.1e-4)
        assert 100 - 100 * sum(kept) / sum(sizes) == pytest.approx(total, abs=5.1e-5)


@pytest.mark.parametrize("arch", ["cifar_model", "wrn_28_4"])
def test_the_densities_of_a_masked_network_are_those_of_its_used_layers(arch):
    """Reported from the masks: for wrn_28_4 at 0.01 that is 58,434 of 5,841,840, without the unused group."""
    network = build_model(arch, CIFAR, 10, generator=torch.Generator().manual_seed(0))
    attach_masks(network, 0.01)
    assert {layer.name for layer in layer_densities(network)} == set(score_masks(network))
    expected = {"cifar_model": 2_148 / 214_760, "wrn_28_4": 58_434 / 5_841_840}[arch]
    assert global_density(network) == pytest.approx(expected, rel=1e-12)


def test_the_networks_with_real_weights_cover_every_builder():
    assert {MODELS[arch].build.func for arch in QUICK} == {known.build.func for known in MODELS.values()}


def test_the_keys_of_the_small_networks_are_bare_indices():
    assert list(build_model("cifar_model", CIFAR, 10).state_dict()) == [
        f"{index}.{name}" for index in (0, 2, 5, 7) for name in ("weight", "bias")
    ]


@pytest.mark.parametrize("arch", MODELS)
@pytest.mark.parametrize(("shape", "classes"), [((1, 17, 29), 4), ((3, 64, 48), 200)])
def test_every_architecture_takes_other_sizes_and_class_counts(arch, shape, classes):
    with torch.device("meta"):
        assert build_model(arch, shape, classes).eval()(torch.empty(2, *shape)).shape == (2, classes)


@pytest.mark.parametrize("arch", MODELS)
def test_every_architecture_takes_the_images_it_is_made_for(arch):
    network = on_meta(arch).eval()
    classes = 1000 if arch.startswith("ResNet") else 10
    assert network(torch.empty(2, *own_shape(arch), device="meta")).shape == (2, classes)


@pytest.mark.parametrize("arch", QUICK)
def test_logits_are_finite_repeatable_and_in_eval_mode_blind_to_the_rest_of_the_batch(arch):
    x = torch.rand(4, *CIFAR, generator=torch.Generator().manual_seed(1))
    twins = [build_model(arch, CIFAR, 10, generator=torch.Generator().manual_seed(0)) for _ in range(2)]
    first, second = (network.train()(x) for network in twins)
    assert torch.equal(first, second)
    assert torch.isfinite(first).all()
    states = [network.state_dict() for network in twins]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    with torch.no_grad():
        logits = twins[0].eval()(x)
        assert torch.equal(twins[0](x), logits)
        torch.testing.assert_close(twins[0](x[:2]), logits[:2])


@pytest.mark.parametrize("arch", QUICK)
def test_a_masked_and_a_baked_network_agree_exactly(arch):
    network = build_model(arch, CIFAR, 10, generator=torch.Generator().manual_seed(0)).eval()
    x = torch.rand(2, *CIFAR, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        dense = network(x)
        attach_masks(network, 0.1)
        masked = network(x)
        bake_masks(network)
        assert torch.equal(network(x), masked)
    assert not torch.allclose(masked, dense)
    assert set(network.state_dict()) == set(on_meta(arch).state_dict())


def test_digits_fit_the_small_network():
    assert build_model("cifar_model", (1, 8, 8), 10)(torch.rand(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize(
    ("arch", "side", "reason"),
    [
        ("cifar_model", 3, "for this network"),
        ("vgg2", 3, "for 2 poolings"),
        ("vgg16_bn", 15, "for 4 poolings"),
        ("resnet18", 4, "for 3 strides of 2, which need 5x5 or more"),
        ("wrn_28_1", 2, "for 2 strides of 2, which need 3x3 or more"),
        ("ResNet18", 16, "for 5 strides of 2, which need 17x17 or more"),
    ],
)
def test_images_that_are_too_small_are_refused_and_the_next_size_is_not(arch, side, reason):
    with pytest.raises(ConfigError, match=f"'{arch}': images of 40x{side} pixels are too small {reason}; take larger"):
        build_model(arch, (1, 40, side), 10)
    with torch.device("meta"):
        network = build_model(arch, (1, side + 1, side + 1), 10).eval()
        assert network(torch.empty(2, 1, side + 1, side + 1)).shape == (2, 10)


def test_a_misspelt_architecture_is_refused_with_the_closest_name():
    with pytest.raises(ConfigError, match="unknown architecture 'vgg16bn'; did you mean 'vgg16_bn'"):
        build_model("vgg16bn", CIFAR, 10)


@pytest.mark.parametrize(
    "arch", [pytest.param(arch, marks=[pytest.mark.slow] * (arch not in QUICK)) for arch in MODELS]
)
def test_initial_weights_depend_on_the_generator_alone(arch):
    shape = (1, 20, 20)
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


def test_an_architecture_for_other_images_is_refused(monkeypatch):
    small = Architecture(lambda shape, classes: nn.Linear(64, classes), shape=(1, 8, 8), num_classes=10)
    monkeypatch.setitem(MODELS, "small", small)
    assert build_model("small", (1, 8, 8), 10).out_features == 10
    refused = r"'small' is for images \(1, 8, 8\), got \(3, 32, 32\) and classes 10, got 100; choose another one"
    with pytest.raises(ConfigError, match=refused):
        build_model("small", (3, 32, 32), 100)
