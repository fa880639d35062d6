"""Global budgets, densities by layer, and sparse training from scratch, end to end on the real digits."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from safetensors import safe_open

from hydrabench.checkpoints import export_checkpoint, load_checkpoint
from hydrabench.errors import ConfigError
from hydrabench.masking import layer_densities
from hydrabench.workflows.pipeline import run_pipeline
from hydrabench.workflows.training import commands as training
from tests.helpers.interrupting import interrupt_loss

# cifar_model_bn for 1 x 8 x 8: layer -> weights. Together 22248; a tenth is 22248 - floor(0.9 · 22248) = 2225.
WEIGHTS = {"0": 256, "3": 8192, "7": 12800, "9": 1000}
TENTH = 2225
# 256 - floor(0.5 · 256), 8192 - floor(0.95 · 8192), 12800 - floor(0.99 · 12800), all; in the tests below their sum
# before rounding is 128 + 409.6 + 128 + 1000 = 1665.6.
BY_LAYER = {"0": 0.5, "3": 0.05, "7": 0.01, "9": 1.0}
KEPT_BY_LAYER = {"0": 128, "3": 410, "7": 128, "9": 1000}
STEPS = 5


def kept(checkpoint):
    return {layer.name: layer.nonzero for layer in layer_densities(checkpoint.network)}


def checkpoint(folder):
    return load_checkpoint(folder / "checkpoint.safetensors")


def applied(folder):
    return checkpoint(folder).baked().state_dict()


def masks(folder):
    return {name: applied(folder)[f"{name}.weight"] != 0 for name in WEIGHTS}


def same(first, second):
    return set(first) == set(second) and all(torch.equal(first[key], second[key]) for key in first)


def assert_reported(folder, counts):
    """The summary counts what the checkpoint's masks keep."""
    report = json.loads((folder / "summary.json").read_text())["density"]
    assert report["layers"] == {name: {"weights": WEIGHTS[name], "kept": counts[name]} for name in WEIGHTS}
    assert report["global"] == sum(counts.values()) / 22248


@pytest.fixture(scope="module")
def pruned(line, make_recipe, cpu, tmp_path_factory):
    """The dense network of `line`, pruned under a global budget."""
    folder = tmp_path_factory.mktemp("global") / "prune"
    recipe = make_recipe(prune={"density": 0.1, "scope": "global"})
    training.prune(recipe, str(line.train), folder, options=cpu)
    return folder


def test_every_masked_run_reports_what_its_layers_keep_and_a_dense_one_does_not(line):
    uniform = {"0": 26, "3": 820, "7": 1280, "9": 100}
    for folder in (line.prune, line.finetune, line.lwm):
        assert_reported(folder, uniform)
        assert checkpoint(folder).header.kept is None
    assert "density" not in json.loads((line.train / "summary.json").read_text())


def test_pruning_under_a_global_budget_keeps_exactly_a_tenth_overall(pruned):
    found = checkpoint(pruned)
    assert (found.header.density, found.header.layout) == (0.1, "masked")
    assert found.header.kept == kept(found)
    assert sum(found.header.kept.values()) == TENTH
    assert found.header.kept != {"0": 26, "3": 820, "7": 1280, "9": 100}
    assert_reported(pruned, found.header.kept)
    with safe_open(pruned / "checkpoint.safetensors", framework="pt") as file:
        scores = {name: file.get_tensor(f"{name}.scores").abs() for name in WEIGHTS}
    chosen = masks(pruned)  # of all layers together, no pruned score exceeds a kept one
    lowest = min(scores[name][chosen[name]].min() for name in WEIGHTS)
    assert lowest >= max(scores[name][~chosen[name]].max() for name in WEIGHTS)


def test_finetuning_keeps_the_mask_of_a_global_budget_also_from_its_dense_export(pruned, make_recipe, cpu, tmp_path):
    export_checkpoint(checkpoint(pruned), tmp_path / "dense.safetensors", "dense")
    export_checkpoint(checkpoint(pruned), tmp_path / "compact.safetensors", "compact")
    recipe = make_recipe(finetune={"epochs": 1})
    sources = {"a": pruned, "b": tmp_path / "dense.safetensors", "c": tmp_path / "compact.safetensors"}
    for name, source in sources.items():
        training.finetune(recipe, str(source), tmp_path / name, options=cpu)
        assert same(masks(tmp_path / name), masks(pruned))
        assert checkpoint(tmp_path / name).header.kept == checkpoint(pruned).header.kept
        assert_reported(tmp_path / name, checkpoint(pruned).header.kept)
    assert same(applied(tmp_path / "a"), applied(tmp_path / "b"))
    assert not same(applied(tmp_path / "a"), applied(pruned))


def test_learned_keep_rates_differ_by_layer_and_end_at_exactly_the_budget(line, make_recipe, cpu, tmp_path):
    learned = {"epochs": 3, "density": 0.05, "scope": "learned", "budget_weight": 0.5}
    training.prune(make_recipe(prune=learned), str(line.train), tmp_path / "prune", options=cpu)
    found = checkpoint(tmp_path / "prune")
    assert (found.header.density, sum(found.header.kept.values())) == (0.05, 1113)  # 22248 - floor(0.95 * 22248)
    assert found.header.kept == kept(found)
    assert_reported(tmp_path / "prune", found.header.kept)
    shares = {name: found.header.kept[name] / WEIGHTS[name] for name in WEIGHTS}
    assert max(shares.values()) > 1.05 * min(shares.values())
    excesses = [float(row["budget_excess"]) for row in csv.DictReader((tmp_path / "prune/metrics.csv").open())]
    assert 1 > excesses[0] > excesses[-1]  # twice the budget at first, and less from epoch to epoch
    training.finetune(make_recipe(finetune={"epochs": 1}), str(tmp_path / "prune"), tmp_path / "tuned", options=cpu)
    assert same(masks(tmp_path / "tuned"), masks(tmp_path / "prune"))


def test_keep_rates_reach_the_budget_with_a_learning_rate_of_their_own(line, make_recipe, cpu, tmp_path):
    """Adam moves a rate by its learning rate at most, so that a larger penalty alone would not help."""
    excesses = {}
    for name, values in {"none": {"budget_weight": 10}, "own": {"rate_lr": 0.5, "budget_weight": 10}}.items():
        learned = {"epochs": 3, "density": 0.05, "scope": "learned", "optimizer": "adam", "lr": 0.002, **values}
        training.prune(make_recipe(prune=learned), str(line.train), tmp_path / name, options=cpu)
        rows = list(csv.DictReader((tmp_path / name / "metrics.csv").open()))
        excesses[name] = [float(row["budget_excess"]) for row in rows]
        assert [float(row["lr"]) for row in rows] == sorted((float(row["lr"]) for row in rows), reverse=True)
        assert float(rows[0]["lr"]) <= 0.002
    assert excesses["none"][-1] > 0.5
    assert excesses["own"][-1] < 0.05


def test_a_density_for_each_layer_reaches_the_checkpoint_and_what_follows_it(line, make_recipe, cpu, tmp_path):
    recipe = make_recipe(prune={"epochs": 1, "density": BY_LAYER}, finetune={"epochs": 1})
    training.prune(recipe, str(line.train), tmp_path / "prune", options=cpu)
    training.finetune(recipe, str(tmp_path / "prune"), tmp_path / "finetune", options=cpu)
    lwm = make_recipe(finetune={"epochs": 1, "density": BY_LAYER})
    training.finetune(lwm, str(line.train), tmp_path / "lwm", options=cpu, lwm=True)
    for name in ("prune", "finetune", "lwm"):
        found = checkpoint(tmp_path / name)
        assert found.header.kept == kept(found) == KEPT_BY_LAYER
        assert found.header.density == pytest.approx(1665.6 / 22248, rel=1e-12)
        assert_reported(tmp_path / name, KEPT_BY_LAYER)
    assert same(masks(tmp_path / "finetune"), masks(tmp_path / "prune"))


@pytest.mark.parametrize("phase", ["train", "prune", "lwm"])
def test_a_budget_that_does_not_fit_the_network_is_refused_before_anything_is_written(
    line, make_recipe, cpu, tmp_path, phase
):
    section = {"lwm": "finetune"}.get(phase, phase)
    runs = {
        "train": lambda recipe: training.train(recipe, tmp_path / "run", options=cpu),
        "prune": lambda recipe: training.prune(recipe, str(line.train), tmp_path / "run", options=cpu),
        "lwm": lambda recipe: training.finetune(recipe, str(line.train), tmp_path / "run", options=cpu, lwm=True),
    }
    bad = {
        r"unknown conv; missing 3, 7, 9; give exactly one value for each of its layers: 0, 3, 7, 9": {
            "density": {"0": 0.1, "conv": 0.1}
        },
        r"density 0\.0001 keeps 3 of 22248 weights, fewer than the 4 layers": {"density": 0.0001, "scope": "global"},
    }
    for message, values in bad.items():
        with pytest.raises(ConfigError, match=message):
            runs[phase](make_recipe(**{section: values}))
    assert not (tmp_path / "run").exists()


def test_a_pipeline_prunes_and_lwm_prunes_under_the_scope_of_its_prune_section(make_recipe, cpu, tmp_path):
    recipe = make_recipe(
        objective={"name": "natural"},
        train={"epochs": 1, "epsilon_ramp_epochs": 1},
        prune={"epochs": 1, "scope": "global", "scores": "snip"},
        finetune={"epochs": 1},
        evaluate=[{"kind": "clean"}],
    )
    run_pipeline(recipe, tmp_path, options=cpu)
    for name in ("prune-0.1", "finetune-0.1", "lwm-0.1"):
        found = checkpoint(tmp_path / name)
        assert sum(kept(found).values()) == TENTH
        assert found.header.kept == kept(found)
    assert same(masks(tmp_path / "prune-0.1"), masks(tmp_path / "finetune-0.1"))
    assert not same(masks(tmp_path / "prune-0.1"), masks(tmp_path / "lwm-0.1"))
    run = json.loads((tmp_path / "prune-0.1" / "run.json").read_text())
    assert (run["recipe"]["prune"]["scope"], run["recipe"]["prune"]["scores"]) == ("global", "snip")


# Sparse from scratch ----------------------------------------------------------------------------


@pytest.mark.parametrize("scores", ["snip", "xavier_normal"])
def test_a_sparse_network_trains_from_scratch_with_a_mask_that_stays(make_recipe, cpu, tmp_path, scores):
    natural = {"name": "natural"}
    recipe = make_recipe(objective=natural, train={"density": 0.1, "scores": scores, "epochs": 8}, evaluate=[])
    training.train(recipe, tmp_path / "run", options=cpu)
    found = checkpoint(tmp_path / "run")
    uniform = {"0": 26, "3": 820, "7": 1280, "9": 100}
    assert (found.header.phase, found.header.layout, found.header.density) == ("train", "dense", 0.1)
    assert found.header.kept is None
    assert kept(found) == uniform
    assert_reported(tmp_path / "run", uniform)
    with (tmp_path / "run" / "metrics.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert losses[-1] < 0.9 * losses[0]  # it learns
    initial = training.fresh_network(recipe).state_dict()
    for name in WEIGHTS:
        weight = applied(tmp_path / "run")[f"{name}.weight"]
        assert (weight != initial[f"{name}.weight"])[weight != 0].float().mean() > 0.9
    other = make_recipe(train={"density": 0.1, "scores": scores, "epochs": 1, "epsilon_ramp_epochs": 1})
    training.train(other, tmp_path / "short", options=cpu)  # other steps by another objective, the same mask
    assert same(masks(tmp_path / "short"), masks(tmp_path / "run"))
    training.finetune(make_recipe(finetune={"epochs": 1}), str(tmp_path / "run"), tmp_path / "on", options=cpu)
    assert same(masks(tmp_path / "on"), masks(tmp_path / "run"))


def test_rescaled_weights_start_larger_and_change_the_run(make_recipe, cpu, tmp_path):
    values = {"density": 0.25, "epochs": 1, "epsilon_ramp_epochs": 1, "lr": 1e-12, "weight_decay": 0}
    training.train(make_recipe(train=values | {"scores": "scaled"}), tmp_path / "plain", options=cpu)
    values |= {"scores": "scaled", "rescale_weights": True}
    training.train(make_recipe(train=values), tmp_path / "larger", options=cpu)
    for name in WEIGHTS:  # nothing is learned at this rate; 1 / sqrt(1/4) = 2
        first, second = (applied(tmp_path / run)[f"{name}.weight"] for run in ("plain", "larger"))
        torch.testing.assert_close(second, 2 * first, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("phase", "changes"),
    [
        ("train", {"density": 0.1}),
        ("train", {"density": 0.1, "scope": "global", "scores": "kaiming_uniform"}),
        ("prune", {"density": 0.1, "scope": "global"}),
        ("prune", {"density": BY_LAYER, "scores": "snip"}),
        ("prune", {"density": 0.05, "scope": "learned", "budget_weight": 0.5}),
        ("prune", {"density": 0.05, "scope": "learned", "optimizer": "adam", "rate_lr": 0.5}),
    ],
)
def test_an_interrupted_run_goes_on_to_the_same_bytes(line, make_recipe, cpu, tmp_path, monkeypatch, phase, changes):
    """Stopped in the middle of the second of two epochs."""
    recipe = make_recipe(**{phase: {"epochs": 2, "epsilon_ramp_epochs": 1, **changes}})

    def run(out, resume=False):
        if phase == "train":
            training.train(recipe, out, options=cpu, resume=resume)
        else:
            training.prune(recipe, str(line.train), out, options=cpu, resume=resume)

    run(tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_loss(patch, call=STEPS + 3)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut")
    run(tmp_path / "cut", resume=True)
    for name in ("checkpoint.safetensors", "summary.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    rows = [list(csv.DictReader((tmp_path / out / "metrics.csv").open())) for out in ("cut", "whole")]
    assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]
