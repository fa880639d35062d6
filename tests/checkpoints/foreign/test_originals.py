"""Files as the original's train.py writes them, and those of other pruning rules, wrappers and training scripts."""

from __future__ import annotations

import copy
import math
import shutil
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.nn.utils import prune

from hydrabench.checkpoints import (
    export_checkpoint,
    import_checkpoint,
    load_checkpoint,
    open_ref,
    parse_normalization,
    state_of,
)
from hydrabench.checkpoints.foreign.torch_files import read_torch_file
from hydrabench.cli import main
from hydrabench.data import DATASETS
from hydrabench.errors import CheckpointError, ConfigError
from hydrabench.masking import layer_densities, prunable_layers, score_masks
from hydrabench.models import build_model, inner_network

CIFAR = {"dataset": "cifar10"}
BARE = {"arch": "cifar_model", "dataset": "cifar10", "normalization": "none"}
HALF = parse_normalization("half")


class MaskedConv(nn.Conv2d):
    """The original's layer, as far as its file goes: one parameter more."""

    def __init__(self, *sizes, **options):
        super().__init__(*sizes, **options)
        self.popup_scores = nn.Parameter(torch.randn(self.weight.shape))


class MaskedLinear(nn.Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.popup_scores = nn.Parameter(torch.randn(self.weight.shape))


def masked_cifar_model():
    """reference/hydra.md section 4.5."""
    return nn.Sequential(
        MaskedConv(3, 16, 4, stride=2, padding=1), nn.ReLU(), MaskedConv(16, 32, 4, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), MaskedLinear(2048, 100), nn.ReLU(), MaskedLinear(100, 10),
    )  # fmt: skip


def dense_of(state, k):
    """reference/hydra.md sections 2.1 and 2.4: every weight times the mask of its scores, scores left out."""
    dense = OrderedDict((key, tensor) for key, tensor in state.items() if "popup_scores" not in key)
    for key in dense:
        if f"{key.removesuffix('weight')}popup_scores" in state and key.endswith("weight"):
            scores = state[f"{key.removesuffix('weight')}popup_scores"]
            order = scores.abs().flatten().sort().indices
            mask = torch.ones(scores.numel())
            mask[order[: int((1 - k) * scores.numel())]] = 0
            dense[key] = dense[key] * mask.view_as(scores)
    return dense


def train_py(folder: Path, *, k=0.1, wrapped=False, zipped=True, seed=0) -> Path:
    """Save what the original saves after an epoch (sections 3.5 and 4.7): the masked and the dense file.

    Its cosine is numpy's (section 3.4), so the learning rates are numpy.float64; best_prec1 comes out of a comparison
    of tensors; with several GPUs the network is wrapped in DataParallel.
    """
    torch.manual_seed(seed)
    network = masked_cifar_model()
    wrapper = nn.DataParallel(network) if wrapped else network
    optimizer = torch.optim.SGD(wrapper.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    nn.functional.cross_entropy(network(torch.rand(4, 3, 32, 32)), torch.arange(4)).backward()
    for group in optimizer.param_groups:
        group["lr"] = 0.1 * 0.5 * (1 + np.cos(np.pi * (3 - 1) / 100))
    optimizer.step()
    assert type(optimizer.param_groups[0]["lr"]) is np.float64
    state = wrapper.state_dict()
    values = {"epoch": 4, "arch": "cifar_model", "state_dict": state, "best_prec1": torch.tensor(51.25),
              "optimizer": optimizer.state_dict()}  # fmt: skip
    paths = folder / "model_best.pth.tar", folder / "model_best_dense.pth.tar"
    for path, tensors in zip(paths, (state, dense_of(state, k)), strict=True):
        torch.save({**values, "state_dict": tensors}, path, _use_new_zipfile_serialization=zipped)
    return paths[0]


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "protocol 2 pickles"])
@pytest.mark.parametrize("wrapped", [True, False], ids=["DataParallel", "one GPU"])
@pytest.mark.parametrize("k", [0.1, 0.9])
def test_what_the_originals_train_py_writes_is_read(tmp_path, k, wrapped, zipped):
    path = train_py(tmp_path, k=k, wrapped=wrapped, zipped=zipped)
    masked = import_checkpoint(path, **CIFAR)
    dense = import_checkpoint(tmp_path / "model_best_dense.pth.tar", **CIFAR)
    assert masked.header.density == dense.header.density == k
    assert score_masks(masked.network)
    assert ("the prefix 'module.'" in masked.notes[0]) if wrapped else masked.notes == ()
    stored = torch.load(tmp_path / "model_best_dense.pth.tar", weights_only=False)["state_dict"]
    for key, tensor in state_of(masked.baked()).items():
        assert torch.equal(tensor, stored[f"module.{key}" if wrapped else key])
        assert torch.equal(tensor, state_of(dense.network)[key])


def test_attack_certify_prune_and_finetune_take_the_originals_file(tmp_path, monkeypatch):
    """With the options of `zoo export`, on images of the data set that is given."""
    monkeypatch.chdir(tmp_path)
    path = train_py(tmp_path)
    dense = import_checkpoint(tmp_path / "model_best_dense.pth.tar", **CIFAR)
    assert dense.header.normalization is None
    small = build_model("cifar_model", DATASETS["digits"].shape, 10).eval()
    torch.save({"arch": "cifar_model", "state_dict": small.state_dict(), "lr": np.float64(0.1)}, "d.pth.tar")
    judged = ["--ckpt", "d.pth.tar", "--dataset", "digits", "--epsilon", "8/255", "-n", "4"]
    for command in (["attack", "--steps", "1"], ["certify", "--method", "ibp"]):
        result = CliRunner().invoke(main, [*command, *judged, "--normalization", "none", "--out", command[0]])
        assert result.exit_code == 0, result.output
    result = CliRunner().invoke(main, ["attack", "--ckpt", str(path), "-n", "4", "--epsilon", "8/255"])
    assert (result.exit_code, result.output.count("\n")) == (1, 1)
    assert "give --dataset, one of cifar10, svhn" in result.output


# Numbers of numpy's, and nothing else of it ----------------------------------------------------


@pytest.mark.parametrize("core", ["core", "_core"])
@pytest.mark.parametrize("zipped", [True, False])
def test_numpys_values_are_read_under_both_names_of_its_package(tmp_path, core, zipped, monkeypatch):
    """What another version of numpy would have written has the other name in it."""
    values = {"f": np.float64(0.25), "i": np.int32(-3), "b": np.bool_(True), "s": np.str_("x"),
              "a": np.arange(6, dtype=np.float32).reshape(2, 3).T, "big": np.arange(3, dtype=">i4")}  # fmt: skip
    torch.save(values, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    data = (tmp_path / "x.pt").read_bytes()
    assert b"numpy._core.multiarray" in data or b"numpy.core.multiarray" in data
    data = data.replace(b"numpy._core.", b"numpy.core.").replace(b"numpy.core.", f"numpy.{core}.".encode())
    (tmp_path / "x.pt").write_bytes(data)
    found, _, _ = read_torch_file(tmp_path / "x.pt")
    assert (found["f"], found["i"], found["b"], found["s"]) == (0.25, -3, True, "x")
    assert found["a"].tensor().tolist() == values["a"].tolist()
    assert found["big"].value.tolist() == [0, 1, 2]


def test_weights_in_arrays_of_numpys_are_read(tmp_path):
    network = build_model("cifar_model", (3, 32, 32), 10)
    torch.save({key: tensor.numpy() for key, tensor in network.state_dict().items()}, tmp_path / "x.pt")
    found = import_checkpoint(tmp_path / "x.pt", **BARE)
    assert all(torch.equal(tensor, network.state_dict()[key]) for key, tensor in state_of(found.network).items())


@pytest.mark.parametrize(
    "value",
    [
        np.zeros(3, dtype=object),
        np.zeros(2, dtype=[("a", "f4")]),
        np.datetime64("2020-01-01"),
        np.random.default_rng(0),
    ],
    ids=["objects", "records", "dates", "generators"],
)
def test_other_values_of_numpys_are_refused(tmp_path, value):
    torch.save({"state_dict": {}, "x": value}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"running code|is no file of torch\.save") as error:
        import_checkpoint(tmp_path / "x.pt", **BARE)
    assert "\n" not in str(error.value)


# Other pruning rules ---------------------------------------------------------------------------


def small_network(seed=0):
    torch.manual_seed(seed)
    return build_model("cifar_model", (3, 32, 32), 10, generator=torch.Generator().manual_seed(seed))


def layers_of(network):
    return list(prunable_layers(network).values())


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


# The dense twin --------------------------------------------------------------------------------


def test_the_dense_twin_is_part_of_the_identity(tmp_path):
    path = train_py(tmp_path)
    alone = import_checkpoint(path, density=0.1, **CIFAR)
    both = import_checkpoint(path, **CIFAR)
    train_py(tmp_path, k=0.05)
    other = import_checkpoint(path, **CIFAR)
    assert len({alone.sha256, both.sha256, other.sha256}) == 3
    assert (both.header.density, other.header.density) == (0.1, 0.05)


def test_a_twin_of_another_epoch_is_refused(tmp_path):
    (tmp_path / "other").mkdir()
    path = train_py(tmp_path)
    train_py(tmp_path / "other", seed=1)
    shutil.copy(tmp_path / "other" / "model_best_dense.pth.tar", tmp_path)
    with pytest.raises(CheckpointError, match=r"model_best_dense\.pth\.tar is not model_best\.pth\.tar with its masks"):
        import_checkpoint(path, **CIFAR)


def test_a_twin_with_a_kept_weight_of_zero_still_tells_the_density(tmp_path):
    path = train_py(tmp_path)
    files = {name: torch.load(tmp_path / name, weights_only=False) for name in (path.name, "model_best_dense.pth.tar")}
    place = tuple(files["model_best_dense.pth.tar"]["state_dict"]["5.weight"].nonzero()[7])
    for name, values in files.items():
        values["state_dict"]["5.weight"][place] = 0
        torch.save(values, tmp_path / name)
    found = import_checkpoint(path, **CIFAR)
    assert (found.header.density, found.header.kept) == (0.1, None)


# What is wrapped around ------------------------------------------------------------------------


def prefixed(state, prefix):
    return {prefix + key: tensor for key, tensor in state.items()}


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


# Normalisation ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "mean", "std"),
    [
        ("cifar10", (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
        ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("0.49,0.48,0.44/0.2,0.19,0.2", (0.49, 0.48, 0.44), (0.2, 0.19, 0.2)),
        ("0.5/0.25", (0.5,), (0.25,)),
    ],
)
def test_normalisations_are_read_from_text(text, mean, std):
    found = parse_normalization(text)
    assert (found.mean, found.std) == (mean, std)
    assert parse_normalization("none") == "none"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cifar", r"'cifar': give one of none, cifar10, .* or MEAN/STD such as"),
        ("0.5", r"give one of none"),
        ("1/2/3", r"give one of none"),
        ("125.3,123,113.9/63,62.1,66.7", r"grey levels, .* give 0\.4914,0\.4824,0\.4467/0\.2471,0\.2435,0\.2616"),
        ("nan,0,0/1,1,1", r"needs one finite mean"),
        ("0.5/inf", r"needs one finite mean"),
        ("0.5,0.5/0.2", r"needs one finite mean"),
        ("0.5/0", r"needs one finite mean"),
    ],
)
def test_normalisations_that_cannot_be_meant_are_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_normalization(text)


def test_a_normalisation_layer_in_the_file_is_that_of_the_network(tmp_path):
    network = small_network()
    for prefixes in (("0.", "1."), ("normalize.", "model."), ("module.normalizer.", "module.model.")):
        layer = {f"{prefixes[0]}mean": torch.full((1, 3, 1, 1), 0.5), f"{prefixes[0]}std": torch.full((3,), 0.25)}
        torch.save({**layer, **prefixed(network.state_dict(), prefixes[1])}, tmp_path / "x.pt")
        found = import_checkpoint(tmp_path / "x.pt", arch="cifar_model", **CIFAR)
        assert found.header.normalization == parse_normalization("0.5,0.5,0.5/0.25,0.25,0.25")
        x = torch.rand(2, 3, 32, 32)
        assert torch.allclose(found.network(x), network((x - 0.5) / 0.25))
    with pytest.raises(CheckpointError, match=r"holds a normalisation with mean \(0\.5, .*leave the option out"):
        import_checkpoint(tmp_path / "x.pt", **BARE)


def test_grey_levels_in_a_file_are_refused_with_the_values_in_pixel_units(tmp_path):
    state = prefixed(small_network().state_dict(), "1.")
    torch.save({"0.mean": torch.tensor([125.3, 123.0, 113.9]), "0.std": torch.full((3,), 63.0), **state},
               tmp_path / "x.pt")  # fmt: skip
    with pytest.raises(CheckpointError, match=r"is in grey levels, .* mean \[0\.4914, 0\.4824, 0\.4467\]"):
        import_checkpoint(tmp_path / "x.pt", **BARE)


@pytest.mark.parametrize("layout", ["state-dict", "hydra", "dense", "masked", "compact"])
def test_a_normalisation_survives_every_format(tmp_path, layout):
    torch.save(small_network().state_dict(), tmp_path / "x.pt")
    given = ["--arch", "cifar_model", "--dataset", "svhn", "--normalization", "half"]
    result = CliRunner().invoke(
        main, ["zoo", "export", str(tmp_path / "x.pt"), "--format", layout, "--out", str(tmp_path / "y"), *given]
    )
    assert result.exit_code == 0, result.output
    again = open_ref(str(tmp_path / "y"))
    assert (again.header.normalization, again.header.dataset) == (HALF, "svhn")
    x = torch.rand(2, 3, 32, 32)
    assert torch.allclose(again.network(x), small_network().eval()((x - 0.5) / 0.5), atol=1e-6)
    assert inner_network(again.network) is not again.network


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
