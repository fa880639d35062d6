"""train, prune, finetune and pipeline as functions: recipes in every form, runs that open again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

import hydrabench as hb
from hydrabench.api.training import _recipe
from hydrabench.errors import CheckpointError, ConfigError, LedgerError
from hydrabench.recipes import load_recipe

PHASE = {"epochs": 1, "batch_size": 256, "lr": 0.01}
RECIPE = {
    "name": "tiny",
    "model": {"arch": "cifar_model"},
    "data": {"name": "digits", "validation_fraction": 0.2},
    "objective": {"name": "natural"},
    "train": {**PHASE, "optimizer": "adam"},
    "prune": {**PHASE, "lr": 0.1},
    "finetune": PHASE,
    "pipeline": {"densities": [0.1], "lwm": False},
    "evaluate": [{"kind": "clean"}],
    "evaluate_images": 40,
}


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return hb.train(RECIPE, out=tmp_path_factory.mktemp("training") / "dense", device="cpu")


def test_a_recipe_is_its_values_a_file_or_a_recipe(dense, tmp_path):
    (tmp_path / "tiny.yml").write_text(yaml.safe_dump(RECIPE))
    for number, recipe in enumerate((tmp_path / "tiny.yml", load_recipe(RECIPE))):
        again = hb.train(recipe, out=tmp_path / str(number), device="cpu")
        assert again.summary["checkpoint_sha256"] == dense.summary["checkpoint_sha256"]


def test_values_may_change_a_recipe_that_comes_with_hydrabench():
    changed = load_recipe({"base": "digits-trades", "name": "mine", "train": {"epochs": 3}})
    known = load_recipe("digits-trades")
    assert (changed.name, changed.train.epochs) == ("mine", 3)
    assert changed.train.lr == known.train.lr
    values = {"base": "digits-trades"}
    load_recipe(values, ["train.epochs=2"])
    assert values == {"base": "digits-trades"}
    with pytest.raises(ConfigError, match=r"the recipe: train\.epochs: input should be"):
        load_recipe({**RECIPE, "train": {**PHASE, "epochs": 0}})
    with pytest.raises(ConfigError, match="base: is the file or name of one recipe, got 3"):
        load_recipe({"base": 3})


@pytest.mark.parametrize("name", ["digits-trades", "digits-crown-ibp", "hydra-cifar10-crown-ibp-cifar_model"])
def test_a_recipe_with_another_density_is_otherwise_the_same(name):
    recipe = load_recipe(name)
    changed = _recipe(recipe, "prune", 0.07)
    assert changed.prune.density == 0.07
    prune = changed.prune.model_copy(update={"density": recipe.prune.density})
    assert changed.model_copy(update={"prune": prune}) == recipe
    assert _recipe(recipe) is recipe


def test_a_training_run_has_an_epoch_a_row_and_a_network(dense):
    assert len(dense.epochs) == 1
    assert {"epoch", "loss"} <= set(dense.epochs.columns)
    network = dense.network()
    assert not network.training
    assert network(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    first, *metrics = repr(dense).splitlines()
    assert first == f"train tiny, in {dense.path}"
    assert metrics
    assert hb.TrainingRun(dense.path).summary == dense.summary


def test_prune_and_finetune_go_on_from_the_run_before(dense, tmp_path):
    pruned = hb.prune(RECIPE, dense, density=0.1, out=tmp_path / "pruned", device="cpu")
    final = hb.finetune(RECIPE, pruned, out=tmp_path / "final", device="cpu")
    kept = [float((p != 0).float().mean()) for p in final.network().parameters() if p.dim() > 1]
    assert all(share == pytest.approx(0.1, abs=0.02) for share in kept)
    lwm = hb.finetune(RECIPE, dense.path, lwm=True, density=0.2, out=tmp_path / "lwm", device="cpu")
    kept = [float((p != 0).float().mean()) for p in lwm.network().parameters() if p.dim() > 1]
    assert all(share == pytest.approx(0.2, abs=0.02) for share in kept)
    run = hb.attack(final, attack="clean", n=10, device="cpu")
    assert run.header["checkpoint"]["density"] == 0.1
    with pytest.raises(CheckpointError, match="is not pruned"):
        hb.finetune(RECIPE, dense, out=tmp_path / "never", device="cpu")


def test_without_out_runs_go_where_the_commands_put_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hb.train(RECIPE, device="cpu").path == Path("runs/tiny/train")
    assert hb.prune(RECIPE, "runs/tiny/train", density=0.1, device="cpu").path == Path("runs/tiny/prune-0.1")


def test_a_pipeline_ends_in_a_report(tmp_path):
    report = hb.pipeline(RECIPE, out=tmp_path / "all", device="cpu")
    assert sorted(report.table.index) == ["tiny/finetune-0.1", "tiny/train"]
    assert (tmp_path / "all" / "report" / "leaderboard.md").read_text() == report.to_markdown()


def test_runs_open_as_what_they_are(dense, tmp_path):
    with pytest.raises(LedgerError, match=r"is no run of attack or certify; a training run opens as TrainingRun"):
        hb.Run(dense.path)
    hb.attack(dense, attack="clean", n=5, out=tmp_path / "clean", device="cpu")
    with pytest.raises(LedgerError, match=r"is a run of attack; it opens as Run\(path\)"):
        hb.TrainingRun(tmp_path / "clean")
    with pytest.raises(LedgerError, match=r"holds no run\.json"):
        hb.Run(tmp_path)
    with pytest.raises(ConfigError, match=r"network is a Conv2d; give a checkpoint's path"):
        hb.prune(RECIPE, torch.nn.Conv2d(1, 1, 1), density=0.1)
