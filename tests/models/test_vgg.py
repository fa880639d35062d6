"""VGG against the table of reference/hydra.md section 4.2."""

from __future__ import annotations

import pytest
import torch

from hydrabench.models import build_model

CIFAR = (3, 32, 32)
# name: indices of the convolutions in `features` without and with batch norm, inputs of the first linear layer
INDICES = {
    2: ("0 3", "0 4", 256),
    4: ("0 2 5 7", "0 3 7 10", 512),
    6: ("0 2 5 7 10 12", "0 3 7 10 14 17", 1024),
    8: ("0 2 5 7 10 12 15 17", "0 3 7 10 14 17 21 24", 2048),
    11: ("0 3 6 8 11 13 16 18", "0 4 8 11 15 18 22 25", 2048),
    13: ("0 2 5 7 10 12 15 17 20 22", "0 3 7 10 14 17 21 24 28 31", 2048),
    16: ("0 2 5 7 10 12 14 17 19 21 24 26 28", "0 3 7 10 14 17 20 24 27 30 34 37 40", 2048),
}
LINEAR = [f"classifier.{index}.{name}" for index in (0, 2, 4) for name in ("weight", "bias")]


@pytest.mark.parametrize("depth", INDICES)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_keys_and_their_order_are_the_originals(depth, batch_norm):
    indices = [int(index) for index in INDICES[depth][batch_norm].split()]
    with torch.device("meta"):
        state = build_model(f"vgg{depth}" + "_bn" * batch_norm, CIFAR, 10).state_dict()
    keys = []
    for index in indices:
        keys.append(f"features.{index}.weight")
        if batch_norm:
            norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
            keys += [f"features.{index + 1}.{name}" for name in norm]
    assert list(state) == keys + LINEAR
    shapes = [tuple(state[f"classifier.{index}.weight"].shape) for index in (0, 2, 4)]
    assert shapes == [(256, INDICES[depth][2]), (256, 256), (10, 256)]


def test_initial_weights_follow_the_originals_distributions():
    """Kaiming normal, fan-out: sqrt(2 / (9 · 128)) = 0.041667 for 128 channels; N(0, 0.01) for linear layers."""
    network = build_model("vgg4_bn", CIFAR, 10, generator=torch.Generator().manual_seed(0))
    assert network.features[7].weight.std().item() == pytest.approx(0.041667, rel=0.02)
    assert network.classifier[0].weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not any(layer.bias.any() for layer in network.classifier[::2])
