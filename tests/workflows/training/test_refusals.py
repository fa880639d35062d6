"""What train, prune and finetune refuse, before anything is written."""

from __future__ import annotations

import pytest
from torch import nn

from hydrabench.bounds.program.convert import LAYERS
from hydrabench.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    NonFiniteError,
    UnsupportedLayerError,
)
from hydrabench.workflows.run_options import RunOptions
from hydrabench.workflows.training import commands as training


def test_a_network_that_the_training_bounds_cannot_pass_is_refused(make_recipe, cpu, tmp_path, monkeypatch):
    monkeypatch.delitem(LAYERS, nn.MaxPool2d)
    recipe = make_recipe(
        model={"arch": "vgg16_bn"}, data={"name": "cifar10"}, objective={"name": "crown-ibp", "epsilon": "2/255"}
    )
    with pytest.raises(UnsupportedLayerError, match=r"cannot bound features\.\d+ \(MaxPool2d\)"):
        training.train(recipe, tmp_path / "run", options=cpu)
    assert not (tmp_path / "run").exists()


def test_a_teacher_that_is_not_there_is_refused(make_recipe, cpu, tmp_path):
    objective = {"name": "cat-rs", "epsilon": "1", "sigma": 0.25, "teacher": "nowhere.safetensors"}
    with pytest.raises((CheckpointError, ConfigError), match=r"nowhere\.safetensors"):
        training.train(make_recipe(objective=objective, evaluate=[]), tmp_path / "run", options=cpu)
    assert not (tmp_path / "run").exists()


def test_a_recipe_whose_data_are_missing_is_refused(make_recipe, tmp_path):
    (tmp_path / "data").mkdir()
    recipe = make_recipe(data={"name": "cifar10"})
    with pytest.raises(DataError, match=r"no CIFAR-10 in .*--data-dir or HYDRABENCH_DATA, or add --download"):
        training.train(recipe, tmp_path / "run", options=RunOptions("cpu", tmp_path / "data"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prune": None}, r"recipe tiny has no `prune:` section; add one with epochs and lr"),
        ({}, r"no density given: add --density 0\.1"),
        ({"prune": {"density": 0.1}, "model": {"arch": "cifar_model"}}, r"is a cifar_model_bn for digits; recipe tiny"),
        (
            {
                "prune": {"density": 0.1},
                "model": {"arch": "cifar_model_bn", "normalization": {"mean": [0], "std": [1]}},
            },
            r"normalises with None, recipe tiny with",
        ),
    ],
)
def test_pruning_says_what_it_lacks(line, make_recipe, cpu, tmp_path, changes, message):
    with pytest.raises((ConfigError, CheckpointError), match=message):
        training.prune(make_recipe(**changes), str(line.train), tmp_path / "run", options=cpu)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("source", "lwm", "changes", "message"),
    [
        ("prune", False, {"finetune": None}, r"recipe tiny has no `finetune:` section"),
        ("train", False, {}, r"train is not pruned; run `hydrabench prune` first, or add --lwm --density 0\.1"),
        ("train", True, {}, r"--lwm needs --density, the fraction of weights kept by magnitude"),
        ("prune", False, {"finetune": {"density": 0.2}}, r"keeps 0\.1 of its weights; --density belongs to --lwm"),
    ],
)
def test_finetuning_says_what_it_lacks(line, make_recipe, cpu, tmp_path, source, lwm, changes, message):
    source = str(getattr(line, source))
    with pytest.raises((ConfigError, CheckpointError), match=message):
        training.finetune(make_recipe(**changes), source, tmp_path / "run", options=cpu, lwm=lwm)
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(make_recipe, cpu, tmp_path):
    recipe = make_recipe(train={"lr": 1e9, "optimizer": "sgd", "epsilon_ramp_epochs": 1})
    with pytest.raises(
        NonFiniteError, match=r"tiny: the loss is (nan|inf) at step \d+ \(epoch 1; there is none .*lower"
    ):
        training.train(recipe, tmp_path / "run", options=cpu)
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()
