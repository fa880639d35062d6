"""A phase holds out images that no phase before it was trained on."""

from __future__ import annotations

import json

import pytest

from hydrabench.checkpoints import load_checkpoint
from hydrabench.data import load_images, validation_split
from hydrabench.data.identity import source_fingerprint
from hydrabench.errors import DataError
from hydrabench.recipes import load_recipe
from hydrabench.workflows.run_options import RunOptions
from hydrabench.workflows.training import commands

PHASE = {"epochs": 1, "batch_size": 512, "lr": 0.1}
RECIPE = {
    "name": "tiny",
    "model": {"arch": "cifar_model"},
    "data": {"name": "digits", "validation_fraction": 0.2},
    "objective": {"name": "natural"},
    "train": PHASE,
    "prune": {**PHASE, "density": 0.5},
    "finetune": PHASE,
}
CPU = RunOptions("cpu")


def recipe(fraction):
    return load_recipe({**RECIPE, "data": {"name": "digits", "validation_fraction": fraction}})


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    out = tmp_path_factory.mktemp("held") / "dense"
    commands.train(recipe(0.2), out, options=CPU)
    return out


def test_a_checkpoint_says_which_images_were_held_out(dense):
    held_out = load_checkpoint(dense / "checkpoint.safetensors").header.held_out
    _, validation = validation_split(load_images("digits", "train"), 0.2)
    assert (held_out.fraction, held_out.sha256) == (0.2, source_fingerprint(validation))


def test_fewer_of_the_same_images_may_be_held_out_and_more_may_not(dense, tmp_path):
    commands.prune(recipe(0.1), str(dense), tmp_path / "fewer", options=CPU)
    with pytest.raises(DataError, match=r"validation_fraction 0\.3 holds out images that the network was trained on"):
        commands.prune(recipe(0.3), str(dense), tmp_path / "more", options=CPU)
    assert not (tmp_path / "more").exists()
    with pytest.raises(DataError, match=r"which held out 0\.1; give at most that"):
        commands.finetune(recipe(0.2), str(tmp_path / "fewer"), tmp_path / "again", options=CPU)


@pytest.mark.parametrize("fraction", [0.2, 0.1])
def test_other_training_images_are_refused(dense, tmp_path, monkeypatch, fraction):
    images = load_images("digits", "train")
    other = images.subset(images.labels.argsort(stable=True), "train")  # the same in another order
    for module in ("hydrabench.data.training_images", "hydrabench.workflows.training.held_out"):
        monkeypatch.setattr(f"{module}.load_images", lambda *_, **__: other)
    with pytest.raises(DataError, match=r"images of digits are not those that the network was trained with"):
        commands.prune(recipe(fraction), str(dense), tmp_path / "out", options=CPU)


def test_a_checkpoint_from_before_is_taken_as_it_is(tmp_path):
    commands.prune(
        load_recipe({**RECIPE, "model": {"arch": "cifar_model"}, "data": {"name": "digits"}}),
        "digits-crown-ibp",
        tmp_path / "out",
        options=CPU,
    )
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "complete"
