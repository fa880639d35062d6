"""train, prune, finetune and pipeline as functions: recipes in every form, runs that open again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

import hydrabench as hb
from hydrabench.api.training import _recipe
from hydrabench.data import load_images
from hydrabench.errors import CheckpointError, ConfigError, DataError, LedgerError
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
    changed = _recipe(recipe, ["prune.density=0.07"])
    assert changed.prune.density == 0.07
    prune = changed.prune.model_copy(update={"density": recipe.prune.density})
    assert changed.model_copy(update={"prune": prune}) == recipe
    assert _recipe(recipe) is recipe


def test_a_training_run_has_an_epoch_a_row_and_a_network(dense):
    assert len(dense.epochs) == 1
    assert {"epoch", "loss"} <= set(dense.epochs.columns)
    network = dense.module
    assert not network.training
    assert network(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    first, *metrics = repr(dense).splitlines()
    assert first == f"train tiny, in {dense.path}"
    assert metrics
    assert hb.TrainingRun(dense.path).summary == dense.summary


def test_prune_and_finetune_go_on_from_the_run_before(dense, tmp_path):
    pruned = hb.prune(RECIPE, dense, density=0.1, out=tmp_path / "pruned", device="cpu")
    final = hb.finetune(RECIPE, pruned, out=tmp_path / "final", device="cpu")
    kept = [float((p != 0).float().mean()) for p in final.module.parameters() if p.dim() > 1]
    assert all(share == pytest.approx(0.1, abs=0.02) for share in kept)
    lwm = hb.finetune(RECIPE, dense.path, lwm=True, density=0.2, out=tmp_path / "lwm", device="cpu")
    kept = [float((p != 0).float().mean()) for p in lwm.module.parameters() if p.dim() > 1]
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
    with pytest.raises(ConfigError, match=r"network is a dict; give a module, a checkpoint's path"):
        hb.prune(RECIPE, {}, density=0.1)


OWN = {key: RECIPE[key] for key in ("name", "objective", "prune", "finetune")} | {
    "data": {"validation_fraction": 0.2},
    "train": {**PHASE, "batch_size": 64, "optimizer": "adam"},
}


@pytest.fixture(scope="module")
def images():
    """300 training images of the digits, 60 of each of the first five classes, as a caller has them: floats."""
    digits = load_images("digits", "train")
    chosen = torch.cat([(digits.labels == label).nonzero()[:60, 0] for label in range(5)])
    return digits.images[chosen] / 255, digits.labels[chosen]


def test_a_module_and_images_are_trained_pruned_and_fine_tuned(own_network, images, tmp_path):
    """Each step returns the module that it made, of the user's own class, and the network that was given stays."""
    before = {key: tensor.clone() for key, tensor in own_network.state_dict().items()}
    trained = hb.train(OWN, own_network, images, out=tmp_path / "trained", device="cpu")
    pruned = hb.prune(OWN, trained.module, images, density=0.2, out=tmp_path / "pruned", device="cpu")
    tuned = hb.finetune(OWN, pruned, images, out=tmp_path / "tuned", device="cpu")
    assert own_network.training
    assert all(torch.equal(tensor, before[key]) for key, tensor in own_network.state_dict().items())
    assert not torch.equal(trained.module.head.weight, own_network.head.weight)
    assert all(type(run.module) is type(own_network) for run in (trained, pruned, tuned))
    kept = {name: getattr(pruned.module, name).weight != 0 for name in ("head",)}
    assert int(kept["head"].count_nonzero()) == 512  # a fifth of 2560
    assert not tuned.module.head.weight[~kept["head"]].any()  # the mask is fixed
    assert not torch.equal(tuned.module.head.weight, pruned.module.head.weight)
    for network in (tuned, tuned.module, hb.load(tuned.path, model=own_network)):
        assert hb.attack(network, images, attack="clean", device="cpu")["clean_accuracy"] > 0.5
    again = hb.finetune(OWN, pruned.module, images, out=tmp_path / "again", device="cpu")  # by its zeros
    assert not again.module.head.weight[~kept["head"]].any()


def test_a_module_is_pruned_on_a_registered_data_set_in_place_of_the_recipes(own_network, tmp_path):
    recipe = {**OWN, "data": {"name": "cifar10", "validation_fraction": 0.2}}
    run = hb.prune(recipe, own_network, "digits", density=0.1, out=tmp_path / "run", device="cpu")
    assert run.header["dataset"]["name"] == "digits"
    assert hb.attack(run, n=10, attack="clean", device="cpu").header["dataset"]["name"] == "digits"


def test_a_checkpoint_may_be_fine_tuned_on_images_that_are_handed_over(dense, images, tmp_path, capsys):
    run = hb.finetune(RECIPE, dense, images, lwm=True, density=0.3, out=tmp_path / "run", device="cpu")
    assert run.module(images[0]).shape == (300, 10)  # although these have five classes
    assert "was trained on digits; whether it saw the held-out images is not known" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"images have shape \(1, 8, 4\) and labels up to 4; .* takes \(1, 8, 8\)"):
        hb.prune(RECIPE, dense, (images[0][..., :4], images[1]), density=0.3, out=tmp_path / "other", device="cpu")
    assert not (tmp_path / "other").exists()


def test_what_a_checkpoint_of_a_module_needs_to_open(own_network, images, tmp_path):
    run = hb.prune(OWN, own_network, images, density=0.2, out=tmp_path / "run", device="cpu")
    with pytest.raises(CheckpointError, match=r"from a module that was handed over, a OwnNetwork; give one like it, "):
        hb.load(run.path)
    with pytest.raises(CheckpointError, match=r"does not fit the architecture it names: missing weight"):
        hb.load(run.path, model=torch.nn.Linear(4, 4))
    opened = hb.TrainingRun(run.path, like=own_network).module
    assert all(torch.equal(tensor, run.module.state_dict()[key]) for key, tensor in opened.state_dict().items())
    with pytest.raises(ConfigError, match=r"is a cifar_model, which needs no module; leave --model out"):
        hb.load(hb.train(RECIPE, out=tmp_path / "dense", device="cpu").path, model=own_network)


def test_a_module_that_cannot_be_trained_is_refused_before_anything_is_written(own_network, images, tmp_path):
    out = {"out": tmp_path / "run", "device": "cpu"}
    softmax = torch.nn.Sequential(own_network, torch.nn.Softmax(1))
    for network, data, message in (
        (softmax, images, "probabilities"),
        (own_network, (images[0] * 255, images[1]), "give images / 255"),
        (own_network, (images[0].expand(-1, 3, -1, -1), images[1]), "fails on images of 1 x 3 x 8 x 8"),
    ):
        with pytest.raises(hb.HydrabenchError, match=message):
            hb.prune(OWN, network, data, density=0.2, **out)
    with pytest.raises(ConfigError, match=r"has no `train:` section; add one"):
        hb.train({key: OWN[key] for key in OWN if key != "train"}, own_network, images, **out)
    assert not (tmp_path / "run").exists()
