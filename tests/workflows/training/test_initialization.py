"""`train.initialization`: where a run starts, what it refuses, and that it can be interrupted."""

from __future__ import annotations

from math import pi, sqrt

import pytest
import torch

from hydrabench.bounds import program_of
from hydrabench.checkpoints import load_checkpoint
from hydrabench.errors import ConfigError, UnsupportedLayerError
from hydrabench.files import sha256_of
from hydrabench.masking import prunable_layers
from hydrabench.workflows.training import commands as training
from tests.helpers.interrupting import interrupt_loss

SHORT = {"epochs": 1, "epsilon_ramp_epochs": 1}
AT_REST = SHORT | {"lr": 1e-12, "weight_decay": 0}  # nothing is learned at this rate
STEPS = 5  # of an epoch: 1038 images in batches of 256


def network(folder):
    return load_checkpoint(folder / "checkpoint.safetensors").baked()


def sha(folder):
    return sha256_of(folder / "checkpoint.safetensors")


def test_training_starts_from_weights_for_interval_bounds_where_the_recipe_asks_for_them(make_recipe, cpu, tmp_path):
    recipe = make_recipe(train=AT_REST | {"initialization": "ibp"})
    training.train(recipe, tmp_path / "run", options=cpu)
    for layer in prunable_layers(network(tmp_path / "run")).values():
        inputs, count = layer.weight[0].numel(), layer.weight.numel()
        assert layer.weight.std().item() * inputs == pytest.approx(sqrt(2 * pi), rel=5 / sqrt(2 * count))


def test_the_default_is_the_architectures_own_weights(make_recipe, cpu, tmp_path):
    """Also spelt out: the same bytes, with the same recipe in the header."""
    recipe = make_recipe(train=AT_REST)
    training.train(recipe, tmp_path / "silent", options=cpu)
    training.train(make_recipe(train=AT_REST | {"initialization": "default"}), tmp_path / "spelt", options=cpu)
    assert sha(tmp_path / "silent") == sha(tmp_path / "spelt")
    initial = prunable_layers(training.fresh_network(recipe))
    for name, layer in prunable_layers(network(tmp_path / "silent")).items():
        torch.testing.assert_close(layer.weight, initial[name].weight, rtol=0, atol=1e-9)


def test_the_weights_depend_on_the_seed_alone(make_recipe, cpu, tmp_path):
    recipe = make_recipe(train=SHORT | {"initialization": "ibp"})
    for out in ("first", "second"):
        torch.manual_seed(len(out))
        training.train(recipe, tmp_path / out, options=cpu)
    assert sha(tmp_path / "first") == sha(tmp_path / "second")
    training.train(recipe.model_copy(update={"seed": 1}), tmp_path / "other", options=cpu)
    assert not torch.equal(network(tmp_path / "first")[0].weight, network(tmp_path / "other")[0].weight)


def test_an_interrupted_run_goes_on_to_the_same_bytes(make_recipe, cpu, tmp_path, monkeypatch):
    """Stopped in the middle of the second of two epochs, and gone on with under the weights of the state."""
    recipe = make_recipe(train={"epochs": 2, "epsilon_ramp_epochs": 1, "initialization": "ibp"})
    training.train(recipe, tmp_path / "whole", options=cpu)
    with monkeypatch.context() as patch:
        interrupt_loss(patch, call=STEPS + 3)
        with pytest.raises(KeyboardInterrupt):
            training.train(recipe, tmp_path / "cut", options=cpu)
    training.train(recipe, tmp_path / "cut", options=cpu, resume=True)
    assert sha(tmp_path / "cut") == sha(tmp_path / "whole")


def test_new_weights_for_a_run_that_starts_from_others_are_refused(line, make_recipe, cpu, tmp_path):
    recipe = make_recipe(train={"initialization": "ibp"})
    with pytest.raises(
        ConfigError, match=r"ibp draws new weights, and those of .* would be lost; add --set train\.init"
    ):
        training.train(recipe, tmp_path / "run", options=cpu, ref=str(line.train))
    assert not (tmp_path / "run").exists()


def test_a_network_that_bounds_cannot_pass_is_refused_whatever_it_is_trained_for(
    make_recipe, cpu, tmp_path, monkeypatch
):
    def refuse(network):
        raise UnsupportedLayerError("cannot bound 2 (GELU)")

    monkeypatch.setattr("hydrabench.workflows.training.phase.program_of", refuse)
    training.train(make_recipe(train=SHORT), tmp_path / "default", options=cpu)
    with pytest.raises(UnsupportedLayerError, match=r"cannot bound 2 \(GELU\)"):
        training.train(make_recipe(train=SHORT | {"initialization": "ibp"}), tmp_path / "run", options=cpu)
    assert not (tmp_path / "run").exists()
    assert program_of(training.fresh_network(make_recipe()))
