"""Checkpoint files: exact round trips, strict reading, and one clear line for everything that is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from hydrabench.checkpoints import (
    BestEpoch,
    Header,
    checkpoint_name,
    export_checkpoint,
    load_checkpoint,
    open_ref,
    resolve,
    save_checkpoint,
    state_of,
    stored_state,
)
from hydrabench.checkpoints.header import read_header
from hydrabench.checkpoints.peeking import METADATA_KEY
from hydrabench.errors import CheckpointError, ConfigError
from hydrabench.files import sha256_of, shipped
from hydrabench.masking import (
    attach_masks,
    bake_masks,
    global_density,
    kept_count,
    layer_densities,
    score_masks,
    set_phase,
)
from hydrabench.models import build_model

# One of every builder, small enough to be built many times; tests/models has the large ones.
SMALL_MODELS = ("cifar_model", "cifar_model_bn", "vgg4_without_maxpool", "vgg2", "vgg4_bn", "resnet18", "wrn_28_1")


def header(arch="cifar_model", shape=(1, 8, 8), **changes) -> Header:
    values = {
        "schema": "hydrabench.checkpoint/2",
        "layout": "dense",
        "phase": "train",
        "arch": arch,
        "dataset": "digits",
        "shape": shape,
        "num_classes": 10,
        "normalization": None,
        "density": 1.0,
        "objective": {"name": "trades", "epsilon": "8/255"},
        "recipe": "r",
        "recipe_sha256": "0" * 64,
        "seed": 0,
        "selection": BestEpoch(split="validation", images=100, metric="robust_accuracy", value=0.5, epoch=3),
        "parent": None,
    }
    return Header(**{**values, **changes})


def write(
    path: Path, *, density=1.0, layout="dense", arch="cifar_model", shape=(1, 8, 8), norm=None
) -> torch.nn.Module:
    pair = (norm["mean"], norm["std"]) if norm else None
    network = build_model(arch, shape, 10, normalization=pair, generator=torch.Generator().manual_seed(3)).eval()
    if density < 1:
        attach_masks(network, density)
        if layout != "masked":
            bake_masks(network)
    save_checkpoint(path, state_of(network), header(arch, shape, density=density, layout=layout, normalization=norm))
    return network


@pytest.mark.parametrize("arch", SMALL_MODELS)
@pytest.mark.parametrize(
    ("layout", "density"), [("dense", 1.0), ("dense", 0.1), ("masked", 0.1), ("compact", 0.1), ("compact", 1.0)]
)
def test_a_reloaded_network_computes_exactly_the_same(tmp_path, arch, layout, density):
    shape = (3, 16, 16)
    network = write(tmp_path / "c.safetensors", density=density, layout=layout, arch=arch, shape=shape)
    again = load_checkpoint(tmp_path / "c.safetensors")
    x = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(again.network(x), network(x))
        assert torch.equal(again.baked()(x), network(x))
    assert not again.network.training
    assert global_density(again.network) == pytest.approx(density, abs=0.01)


def test_the_same_network_gives_the_same_bytes(tmp_path):
    write(tmp_path / "a", density=0.1, layout="masked")
    write(tmp_path / "b", density=0.1, layout="masked")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert load_checkpoint(tmp_path / "a").sha256 == load_checkpoint(tmp_path / "b").sha256


def test_a_dense_file_has_the_plain_keys_and_a_masked_one_scores_beside_the_weights(tmp_path):
    write(tmp_path / "dense", density=0.1)
    write(tmp_path / "masked", density=0.1, layout="masked")
    plain = set(build_model("cifar_model", (1, 8, 8), 10).state_dict())
    with (
        safe_open(tmp_path / "dense", framework="pt") as dense,
        safe_open(tmp_path / "masked", framework="pt") as masked,
    ):
        assert set(dense.keys()) == plain
        assert set(masked.keys()) == plain | {f"{index}.scores" for index in (0, 2, 5, 7)}
        assert json.loads(dense.metadata()["hydrabench"])["schema"] == "hydrabench.checkpoint/2"
        assert masked.get_tensor("5.weight").count_nonzero() == masked.get_tensor("5.weight").numel()


def test_normalisation_is_kept_in_the_header_and_changes_the_logits_as_it_should(tmp_path):
    norm = {"mean": (0.5,), "std": (0.25,)}
    network = write(tmp_path / "c", norm=norm)
    again = load_checkpoint(tmp_path / "c")
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(again.network(x), network(x))
    assert torch.allclose(again.network(x), again.network.network((x - 0.5) / 0.25))
    with safe_open(tmp_path / "c", framework="pt") as file:
        assert "0.weight" in file.keys()  # noqa: SIM118 - not a dict


def test_exporting_there_and_back_keeps_exactly_the_same_weights(tmp_path):
    write(tmp_path / "masked", density=0.05, layout="masked")
    export_checkpoint(load_checkpoint(tmp_path / "masked"), tmp_path / "dense", "dense")
    export_checkpoint(load_checkpoint(tmp_path / "dense"), tmp_path / "again", "masked")
    again = load_checkpoint(tmp_path / "again")
    assert score_masks(again.network)
    reference = load_checkpoint(tmp_path / "masked").baked().state_dict()
    assert all(torch.equal(tensor, reference[key]) for key, tensor in again.baked().state_dict().items())
    for layer in layer_densities(again.network):
        assert layer.nonzero == kept_count(layer.weights, 0.05)


def test_a_compact_file_loads_to_exactly_the_dense_weights_and_is_smaller(tmp_path):
    write(tmp_path / "dense", density=0.05)
    export_checkpoint(load_checkpoint(tmp_path / "dense"), tmp_path / "compact", "compact")
    export_checkpoint(load_checkpoint(tmp_path / "compact"), tmp_path / "again", "dense")
    first, last = load_checkpoint(tmp_path / "dense"), load_checkpoint(tmp_path / "again")
    assert all(
        torch.equal(tensor, last.network.state_dict()[key]) for key, tensor in first.network.state_dict().items()
    )
    assert (tmp_path / "compact").stat().st_size < (tmp_path / "dense").stat().st_size / 8


def damaged(path: Path, **changes) -> Path:
    """Rewrite a checkpoint file with other tensors (None removes one)."""
    with safe_open(path, framework="pt") as file:
        metadata, state = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    for key, value in changes.items():
        name = key.replace("_", ".")
        state = {other: tensor for other, tensor in state.items() if other != name}
        if value is not None:
            state[name] = value
    save_file(state, path, metadata=metadata)
    return path


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*nothing\.safetensors"):
        load_checkpoint(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize("size", [0, 5, 200, 5000])
def test_a_truncated_file_is_refused(tmp_path, size):
    write(tmp_path / "c")
    (tmp_path / "c").write_bytes((tmp_path / "c").read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"is not a whole safetensors file .* fetch or write it again"):
        load_checkpoint(tmp_path / "c")


def test_a_pickle_is_refused_without_being_read(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"is not a whole safetensors file .* convert it first"):
        load_checkpoint(tmp_path / "c.pth")


def test_a_safetensors_file_of_another_program_is_refused(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "c")
    with pytest.raises(CheckpointError, match="without a hydrabench header; it names no architecture"):
        load_checkpoint(tmp_path / "c")


def test_a_header_of_another_version_is_refused(tmp_path):
    write(tmp_path / "c")
    with safe_open(tmp_path / "c", framework="pt") as file:
        state, values = {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["hydrabench"])  # noqa: SIM118
    save_file(
        state, tmp_path / "c", metadata={"hydrabench": json.dumps({**values, "schema": "hydrabench.checkpoint/9"})}
    )
    with pytest.raises(CheckpointError, match="has a header this version cannot read: schema: input should be"):
        load_checkpoint(tmp_path / "c")


def test_tensors_of_another_architecture_are_named(tmp_path):
    write(tmp_path / "c")
    network = build_model("cifar_model_large", (1, 8, 8), 10)
    save_checkpoint(tmp_path / "c", state_of(network), header())
    with pytest.raises(
        CheckpointError, match=r"does not fit the architecture it names: missing 5\.weight; .*; and \d+ more"
    ):
        load_checkpoint(tmp_path / "c")


def test_a_misshapen_tensor_is_named(tmp_path):
    write(tmp_path / "c")
    with pytest.raises(CheckpointError, match=r"7\.bias has shape \(3,\), expected \(10,\)"):
        load_checkpoint(damaged(tmp_path / "c", **{"7_bias": torch.zeros(3)}))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    write(tmp_path / "c")
    with pytest.raises(CheckpointError, match=r"values that are not finite .* in 7\.bias"):
        load_checkpoint(damaged(tmp_path / "c", **{"7_bias": torch.full((10,), value)}))


def test_more_weights_than_the_density_allows_are_refused(tmp_path):
    write(tmp_path / "c", density=0.1)
    with pytest.raises(
        CheckpointError, match=r"layer 7 has 1000 weights that are not zero, but density 0\.1 keeps 100"
    ):
        load_checkpoint(damaged(tmp_path / "c", **{"7_weight": torch.ones(10, 100)}))


def test_an_architecture_this_version_does_not_know_is_refused(tmp_path):
    write(tmp_path / "c")
    network = build_model("cifar_model", (1, 8, 8), 10)
    save_checkpoint(tmp_path / "c", state_of(network), header(arch="cifar_model_huge"))
    with pytest.raises(CheckpointError, match="unknown architecture 'cifar_model_huge'; did you mean"):
        load_checkpoint(tmp_path / "c")


def test_a_reference_is_a_file_a_run_folder_or_a_zoo_id(tmp_path):
    write(tmp_path / "run" / "checkpoint.safetensors")
    assert resolve(str(tmp_path / "run")) == resolve(str(tmp_path / "run" / "checkpoint.safetensors"))
    assert checkpoint_name(str(tmp_path / "run")) == f"{tmp_path.name}/run"
    with pytest.raises(CheckpointError, match=r"holds no checkpoint\.safetensors; has its run finished"):
        open_ref(str(tmp_path))
    with pytest.raises(ConfigError, match="unknown checkpoint 'digits-trade'"):
        resolve("digits-trade")


def test_the_default_threat_is_what_the_network_was_trained_for():
    assert header(objective={"name": "trades", "norm": "l2", "epsilon": "1/2", "beta": 6.0}).default_threat() == {
        "norm": "l2",
        "epsilon": "1/2",
    }
    assert header(objective={"name": "crown-ibp", "epsilon": "2/255"}).default_threat() == {"epsilon": "2/255"}
    assert header(objective={"name": "stability", "sigma": 0.25}).default_threat() == {"sigma": 0.25}
    assert header(objective={"name": "natural"}).default_threat() == {}


@pytest.mark.parametrize("path", sorted(shipped("zoo").glob("*/*.safetensors")), ids=lambda path: path.parent.name)
def test_the_headers_of_shipped_checkpoints_say_the_same_when_they_are_written_again(path):
    with safe_open(path, "pt") as file:
        text = file.metadata()[METADATA_KEY]
    written = read_header(text, str(path)).to_json()
    assert json.loads(text).items() <= json.loads(written).items()
    assert read_header(written, str(path)).to_json() == written


def test_a_header_keeps_the_settings_of_an_objective_as_they_are():
    """It may be one that only a plugin knows."""
    values = {"name": "mart", "epsilon": "2/255", "weight": 5.0}
    assert read_header(header(objective=values).to_json(), "a file").objective == values
    with pytest.raises(CheckpointError, match="objective: needs a name"):
        read_header(header().to_json().replace('"name":"trades"', '"nome":"trades"'), "a file")


def test_a_mask_is_stored_and_not_selected_again(tmp_path):
    """All scores are equal, so that only the file tells which weights are kept."""
    network = write(tmp_path / "c", density=0.1, layout="masked")
    for mask in score_masks(network).values():
        mask.scores.data.fill_(1.0)
        mask.freeze()
        mask.restore(mask.mask.flip(0))
    chosen = {name: mask.mask.clone() for name, mask in score_masks(network).items()}
    assert any(not torch.equal(mask, score_masks(write(tmp_path / "d", density=0.1, layout="masked"))[name].mask)
               for name, mask in chosen.items())  # fmt: skip
    save_checkpoint(tmp_path / "c", stored_state(network), header(density=0.1, layout="masked"))
    again = load_checkpoint(tmp_path / "c").network
    set_phase(again, "finetune")
    assert all(torch.equal(mask.mask, chosen[name]) for name, mask in score_masks(again).items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"7_mask": None}, r"has masks of 0, 2, 5; its masked layers are 0, 2, 5, 7"),
        ({"7_mask": torch.ones(10, 100)}, r"7\.mask is no mask of 7\.weight"),
        ({"7_mask": torch.ones(3, dtype=torch.bool)}, r"7\.mask is no mask of 7\.weight"),
        ({"7_mask": torch.ones(10, 100, dtype=torch.bool)}, r"layer 7 keeps 1000 weights, its header says 100"),
    ],
)
def test_masks_that_are_not_those_of_the_network_are_refused(tmp_path, changes, message):
    network = write(tmp_path / "c", density=0.1, layout="masked")
    save_checkpoint(tmp_path / "c", stored_state(network), header(density=0.1, layout="masked"))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(damaged(tmp_path / "c", **changes))


def test_the_hash_is_that_of_the_bytes_that_were_read(tmp_path, monkeypatch):
    """The file is replaced while it is being loaded."""
    write(tmp_path / "c", density=0.1)
    right = sha256_of(tmp_path / "c")
    read = Path.read_bytes

    def read_and_replace(path):
        data = read(path)
        path.write_bytes(b"another file")
        return data

    monkeypatch.setattr(Path, "read_bytes", read_and_replace)
    assert load_checkpoint(tmp_path / "c").sha256 == right
