"""Files of other pruning rules, wrappers and training scripts are read as what they are."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch.nn.utils import prune

from hydrabench.checkpoints import (
    export_checkpoint,
    import_checkpoint,
    load_checkpoint,
    state_of,
)
from hydrabench.errors import CheckpointError
from hydrabench.masking import layer_densities, prunable_layers, score_masks
from hydrabench.models import build_model
from tests.helpers.foreign_files import (
    BARE,
    CIFAR,
    layers_of,
    prefixed,
    small_network,
)


def by_global_magnitude(network):
    prune.global_unstructured([(layer, "weight") for layer in layers_of(network)], prune.L1Unstructured, amount=0.95)


def by_layer_budgets(network):
    for layer, amount in zip(layers_of(network), (0.2, 0.5, 0.97, 0.6), strict=True):
        prune.l1_unstructured(layer, "weight", amount=amount)


def in_whole_channels(network):
    prune.ln_structured(layers_of(network)[1], "weight", amount=0.5, n=2, dim=0)


@pytest.mark.parametrize("removed", [True, False], ids=["removed", "weight_orig and weight_mask"])
@pytest.mark.parametrize("rule", [by_global_magnitude, by_layer_budgets, in_whole_channels])
def test_networks_of_other_pruning_rules_load_as_what_they_are(tmp_path, rule, removed):
    network = small_network()
    rule(network)
    expected = {name: layer.weight.detach().clone() for name, layer in prunable_layers(network).items()}
    for layer in layers_of(network):
        if removed and prune.is_pruned(layer):
            prune.remove(layer, "weight")
    torch.save(network.state_dict(), tmp_path / "x.pt")
    found = import_checkpoint(tmp_path / "x.pt", **BARE)
    kept = {name: int(weight.count_nonzero()) for name, weight in expected.items()}
    assert found.header.kept == kept
    assert found.header.density == pytest.approx(
        sum(kept.values()) / sum(w.numel() for w in expected.values()), abs=1e-6
    )
    assert {layer.name: layer.nonzero for layer in layer_densities(found.network)} == kept
    assert all(torch.equal(state_of(found.network)[f"{name}.weight"], weight) for name, weight in expected.items())
    export_checkpoint(found, tmp_path / "m", "masked")
    again = load_checkpoint(tmp_path / "m")
    assert {name: mask.kept for name, mask in score_masks(again.network).items()} == kept


def test_a_weight_that_is_zero_by_chance_prunes_nothing(tmp_path):
    network = build_model("vgg16_bn", (3, 32, 32), 10)
    network.features[37].weight.data[0, 0, 0, 0] = 0
    torch.save({"arch": "vgg16_bn", "state_dict": network.state_dict()}, tmp_path / "x.pt")
    header = import_checkpoint(tmp_path / "x.pt", **CIFAR).header
    assert (header.density, header.kept) == (1.0, None)


def test_a_layer_without_a_weight_left_is_read(tmp_path):
    network = small_network()
    network[0].weight.data.zero_()
    torch.save(network.state_dict(), tmp_path / "x.pt")
    found = import_checkpoint(tmp_path / "x.pt", **BARE)
    assert found.header.kept["0"] == 1
    assert not state_of(found.network)["0.weight"].any()


WRAPPED = {
    "module.": (lambda state: prefixed(state, "module."), "the prefix 'module.'"),
    "torch.compile": (lambda state: prefixed(state, "_orig_mod."), "the prefix '_orig_mod.'"),
    "two wrappers": (lambda state: prefixed(state, "module.model."), "the prefix 'module.', the prefix 'model.'"),
    "net": (lambda state: {"net": prefixed(state, "module.")}, "the entry 'net', the prefix 'module.'"),
    "lightning": (lambda state: {"epoch": 3, "state_dict": prefixed(state, "net.")}, "the prefix 'net.'"),
    "model_state_dict": (lambda state: {"model_state_dict": state, "loss": 0.5}, "the entry 'model_state_dict'"),
    "model and ema": (lambda state: {"ema": {key: tensor * 0 for key, tensor in state.items()}, "model": state},
                      "the entry 'model'"),
    "nested": (lambda state: {"model": {"state_dict": state}}, "the entry 'model'"),
    "attack library": (lambda state: {"model": {**prefixed(state, "module.model."),
                                                **prefixed(state, "module.attacker.model.")}},
                       "the entry 'model', the prefix 'module.', the prefix 'model.'"),
    "average": (lambda state: {"n_averaged": torch.tensor(3), **prefixed(state, "module.")}, "the prefix 'module.'"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRAPPED)
def test_wrappers_are_taken_off_and_named(tmp_path, kind):
    wrap, said = WRAPPED[kind]
    network = small_network()
    torch.save(wrap(network.state_dict()), tmp_path / "x.pt")
    found = import_checkpoint(tmp_path / "x.pt", **BARE)
    assert found.notes == (f"{tmp_path / 'x.pt'}: took off {said}",)
    assert all(torch.equal(tensor, network.state_dict()[key]) for key, tensor in state_of(found.network).items())


def test_counters_of_batch_norm_that_old_files_lack_are_filled(tmp_path):
    network = build_model("vgg2_bn", (3, 32, 32), 10)
    state = {key: tensor for key, tensor in network.state_dict().items() if "num_batches" not in key}
    torch.save(state, tmp_path / "x.pt")
    found = state_of(import_checkpoint(tmp_path / "x.pt", **BARE | {"arch": "vgg2_bn"}).network)
    assert {int(tensor) for key, tensor in found.items() if "num_batches" in key} == {0}


def test_values_that_overflow_float32_are_not_finite(tmp_path):
    state = copy.deepcopy(small_network().state_dict())
    state["7.bias"] = torch.full((10,), 1e300, dtype=torch.float64)
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"not finite .* in 7\.bias"):
        import_checkpoint(tmp_path / "x.pt", **BARE)
    state["7.bias"] = torch.full((10,), math.pi, dtype=torch.float64)
    torch.save(state, tmp_path / "x.pt")
    assert state_of(import_checkpoint(tmp_path / "x.pt", **BARE).network)["7.bias"][0] == np.float32(math.pi)


def test_a_file_that_a_gpu_wrote_is_read_without_one(tmp_path):
    """Its pickle says `cuda:0` of every storage."""
    torch.save({"arch": "cifar_model", "state_dict": small_network().state_dict()}, tmp_path / "x.pt",
               _use_new_zipfile_serialization=False)  # fmt: skip
    data = (tmp_path / "x.pt").read_bytes()
    assert data.count(b"X\x03\x00\x00\x00cpu") == 1  # the other tensors refer to it
    (tmp_path / "x.pt").write_bytes(data.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0"))
    found = state_of(import_checkpoint(tmp_path / "x.pt", **CIFAR).network)
    assert all(torch.equal(tensor, found[key]) for key, tensor in small_network().state_dict().items())
