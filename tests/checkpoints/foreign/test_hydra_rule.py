"""The original's rule of how many weights are kept, and the density that explains zeros."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hydrabench.checkpoints.foreign.kept import hydra_kept_count, infer_density
from hydrabench.errors import ConfigError
from hydrabench.masking import LayerDensity, kept_count, prunable_layers
from hydrabench.models import MODELS, build_model


@pytest.mark.parametrize(
    ("n", "k", "kept", "exact"),
    [
        (10, 0.9, 10, 9),  # 1 - 0.9 = 0.09999999999999998, times 10 is 0.9999999999999998: nothing is pruned
        (10, 0.8, 9, 8),  # 1 - 0.8 = 0.19999999999999996, times 10 is 1.9999999999999996: one is
        (10, 0.1, 1, 1),
        (432, 0.01, 5, 5),  # 0.99 · 432 = 427.68
        (2560, 0.5, 1280, 1280),
        (7, 1.0, 7, 7),
    ],
)
def test_the_original_rounds_in_floating_point(n, k, kept, exact):
    assert hydra_kept_count(n, k) == kept
    assert kept_count(n, k) == exact


@pytest.mark.parametrize("density", [0, -0.1, 1.5, 99])
def test_a_density_outside_its_range_is_explained(density):
    with pytest.raises(ConfigError, match=r"outside \(0, 1\]; to prune 99% of the weights write 0.01"):
        hydra_kept_count(10, density)


@pytest.mark.parametrize(
    ("arch", "kept"),
    [  # reference/hydra.md section 4.1; the wide ResNets without sub_block1
        ("vgg2_bn", (17_224, 8_613, 1_725)),
        ("vgg16_bn", (1_530_291, 765_149, 153_035)),
        ("resnet18", (1_116_445, 558_228, 111_653)),
        ("wrn_28_4", (584_199, 292_108, 58_434)),
        ("wrn_28_10", (3_646_124, 1_823_062, 364_614)),
        ("cifar_model", (21_477, 10_739, 2_148)),
    ],
)
def test_kept_counts_are_those_of_the_original(arch, kept):
    with torch.device("meta"):
        layers = prunable_layers(build_model(arch, (3, 32, 32), 10))
    for density, count in zip((0.1, 0.05, 0.01), kept, strict=True):
        assert sum(hydra_kept_count(layer.weight.numel(), density) for layer in layers.values()) == count


@pytest.mark.parametrize("arch", MODELS)
def test_at_the_released_densities_both_rules_agree_in_every_layer(arch):
    with torch.device("meta"):
        layers = prunable_layers(build_model(arch, (3, 64, 64), 10))
    for density in (1.0, 0.1, 0.05, 0.01):
        counts = [(n, hydra_kept_count(n, density)) for n in (layer.weight.numel() for layer in layers.values())]
        assert counts
        assert all(kept == kept_count(n, density) for n, kept in counts)


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 3_000_000), min_size=1, max_size=8),
    k=st.integers(1, 1000).map(lambda thousandths: thousandths / 1000),
)
def test_the_inferred_density_explains_every_layer_and_is_no_longer_than_the_true_one(sizes, k):
    layers = [LayerDensity(f"{i}", n, hydra_kept_count(n, k)) for i, n in enumerate(sizes)]
    found = infer_density(layers)
    assert found is not None
    assert all(hydra_kept_count(layer.weights, found) == layer.nonzero for layer in layers)
    assert len(repr(found)) <= len(repr(k))


def test_zeros_that_no_single_density_leaves_are_seen():
    """0.1 leaves 1 of 10 and 10 of 100; 11 of 100 would need more than 0.1, 1 of 10 allows no more."""
    assert infer_density([LayerDensity("a", 10, 1), LayerDensity("b", 100, 10)]) == 0.1
    assert infer_density([LayerDensity("a", 10, 1), LayerDensity("b", 100, 11)]) is None
    assert infer_density([LayerDensity("a", 10, 0), LayerDensity("b", 100, 10)]) is None
