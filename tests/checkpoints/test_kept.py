"""Checkpoints whose layers do not keep the same fraction: the header says what each keeps."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open

from hydrabench.checkpoints import (
    Header,
    export_checkpoint,
    export_original,
    import_checkpoint,
    load_checkpoint,
    save_checkpoint,
    state_of,
    stored_state,
)
from hydrabench.errors import CheckpointError
from hydrabench.masking import attach_masks, kept_counts, layer_densities, score_masks
from hydrabench.models import build_model

SHAPE = (1, 8, 8)


def header(**changes) -> Header:
    values = dict.fromkeys(("normalization", "objective", "recipe", "recipe_sha256", "seed", "selection", "parent"))
    values |= {"layout": "masked", "phase": "imported", "arch": "cifar_model", "dataset": "digits", "shape": SHAPE}
    return Header.model_validate({**values, "num_classes": 10, "density": 0.05, **changes})


def network() -> torch.nn.Module:
    return build_model("cifar_model", SHAPE, 10, generator=torch.Generator().manual_seed(3)).eval()


def write(path):
    """A masked checkpoint under a global budget, on random scores; returns its state and what its layers keep."""
    subject = network()
    generator = torch.Generator().manual_seed(1)
    scores = {name: torch.randn(size, generator=generator) for name, size in sizes().items()}
    scores["0"] *= 5  # the first layer gets more than its share
    attach_masks(subject, 0.05, scope="global", scores=scores)
    kept = {name: mask.kept for name, mask in score_masks(subject).items()}
    assert kept != kept_counts(network(), 0.05)
    save_checkpoint(path, stored_state(subject), header(kept=kept))
    return state_of(subject), kept


def sizes():
    return {name: mask.scores.shape for name, mask in score_masks(masked(1.0)).items()}


def masked(density):
    subject = network()
    attach_masks(subject, density)
    return subject


def same(first, second):
    return set(first) == set(second) and all(torch.equal(first[key], second[key]) for key in first)


def kept_by(subject):
    return {layer.name: layer.nonzero for layer in layer_densities(subject)}


def test_a_masked_checkpoint_under_a_global_budget_comes_back_bit_for_bit(tmp_path):
    state, kept = write(tmp_path / "c")
    again = load_checkpoint(tmp_path / "c")
    assert same(state_of(again.network), state)
    assert again.header.kept == kept == kept_by(again.network)
    assert {name: mask.kept for name, mask in score_masks(again.network).items()} == kept
    export_checkpoint(again, tmp_path / "again", "masked")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "c").read_bytes()


@pytest.mark.parametrize("layout", ["dense", "compact"])
def test_other_layouts_keep_the_same_weights_and_so_do_masks_made_from_them(tmp_path, layout):
    _, kept = write(tmp_path / "c")
    applied = load_checkpoint(tmp_path / "c").baked().state_dict()
    export_checkpoint(load_checkpoint(tmp_path / "c"), tmp_path / "other", layout)
    other = load_checkpoint(tmp_path / "other")
    assert other.header.kept == kept
    assert same(other.network.state_dict(), applied)
    export_checkpoint(other, tmp_path / "back", "masked")
    back = load_checkpoint(tmp_path / "back")
    assert {name: mask.kept for name, mask in score_masks(back.network).items()} == kept
    assert same(back.baked().state_dict(), applied)


def test_the_originals_dense_file_carries_the_budgets_and_its_masked_one_cannot(tmp_path):
    _, kept = write(tmp_path / "c")
    with pytest.raises(CheckpointError, match=r"at no k near 0\.05 does HYDRA's rounding keep the weights"):
        export_original(load_checkpoint(tmp_path / "c"), tmp_path / "m.pth.tar")
    export_checkpoint(load_checkpoint(tmp_path / "c"), tmp_path / "dense", "dense")
    export_original(load_checkpoint(tmp_path / "dense"), tmp_path / "d.pth.tar")
    again = import_checkpoint(tmp_path / "d.pth.tar")
    assert again.header.kept == kept == kept_by(again.network)


def test_the_header_names_the_budgets_only_where_they_are_needed(tmp_path):
    plain = json.loads(header().to_json())
    assert plain["kept"] is None
    assert json.loads(header(kept={"0": 1}).to_json()) == {**plain, "kept": {"0": 1}}
    save_checkpoint(tmp_path / "c", state_of(masked(0.05)), header())
    assert load_checkpoint(tmp_path / "c").header.kept is None
    with safe_open(tmp_path / "c", framework="pt") as file:
        assert json.loads(file.metadata()["hydrabench"])["kept"] is None


@pytest.mark.parametrize("layout", ["masked", "dense"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"5": None}, r"kept by layer does not fit the network: missing 5; give exactly one value for each"),
        ({"conv": 3}, r"kept by layer does not fit the network: unknown conv; give"),
        ({"0": 257}, r"layer 0 has 256 weights and cannot keep 257"),
        ({"0": 0}, r"has a header this version cannot read: kept\.0: input should be greater than 0"),
    ],
)
def test_budgets_that_do_not_fit_the_network_are_refused(tmp_path, layout, change, message):
    state, kept = write(tmp_path / "c")
    if layout == "dense":
        state = load_checkpoint(tmp_path / "c").baked().state_dict()
    kept = {name: count for name, count in {**kept, **change}.items() if count is not None}
    values = header(layout=layout).model_copy(update={"kept": kept})
    save_checkpoint(tmp_path / "bad", state, values)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "bad")


def test_more_weights_than_the_budget_of_a_layer_are_refused(tmp_path):
    _, kept = write(tmp_path / "c")
    state = load_checkpoint(tmp_path / "c").baked().state_dict()
    fewer = {**kept, "0": kept["0"] - 1}
    save_checkpoint(tmp_path / "bad", state, header(layout="dense", kept=fewer))
    with pytest.raises(
        CheckpointError, match=rf"layer 0 has {kept['0']} weights .* but its header keeps {kept['0'] - 1}"
    ):
        load_checkpoint(tmp_path / "bad")
