"""train, prune and finetune on the real digits: what they write, and what they leave alone."""

from __future__ import annotations

import json
from dataclasses import replace
from math import cos, pi

import pytest
import torch

from hydrabench.checkpoints import load_checkpoint, state_of
from hydrabench.masking import score_masks
from hydrabench.objectives import OBJECTIVES
from hydrabench.workflows.training import commands as training
from tests.helpers.phases import BATCH_NORMS, KEPT, header, sha, table, tensors


def largest(values: torch.Tensor, count: int) -> torch.Tensor:
    """Where the `count` largest magnitudes are, by a full sort."""
    order = values.abs().flatten().argsort(descending=True)
    chosen = torch.zeros(values.numel(), dtype=torch.bool)
    chosen[order[:count]] = True
    return chosen.view_as(values)


@pytest.mark.parametrize("phase", ["prune", "finetune", "lwm"])
def test_both_layouts_of_a_phase_are_the_same_network(line, phase):
    folder = getattr(line, phase)
    main, (twin,) = load_checkpoint(folder / "checkpoint.safetensors"), folder.glob("checkpoint_*.safetensors")
    other = load_checkpoint(twin)
    assert {main.header.layout, other.header.layout} == {"masked", "dense"}
    assert main.header.model_copy(update={"layout": other.header.layout}) == other.header
    assert any(score_masks(found.network) for found in (main, other))
    found = state_of(other.baked())
    assert all(torch.equal(tensor, found[key]) for key, tensor in state_of(main.baked()).items())


@pytest.mark.parametrize("way", [{"channels_last": True}, {"precision": "bfloat16"}, {"precision": "float16"}], ids=str)
def test_every_phase_passes_on_the_same_masks_however_it_computes(make_recipe, cpu, tmp_path, way):
    options = replace(cpu, **way)
    short = {"epochs": 1, "epsilon_ramp_epochs": 1}
    recipe = make_recipe(train=short, prune={"epochs": 1, "density": 0.1}, finetune={"epochs": 1}, evaluate=[])
    training.train(recipe, tmp_path / "train", options=options)
    training.prune(recipe, str(tmp_path / "train"), tmp_path / "prune", options=options)
    training.finetune(recipe, str(tmp_path / "prune"), tmp_path / "finetune", options=options)
    chosen, kept = (
        {name: mask.mask for name, mask in score_masks(load_checkpoint(path).network).items()}
        for path in (tmp_path / "prune/checkpoint.safetensors", tmp_path / "finetune/checkpoint_masked.safetensors")
    )
    assert {name: (mask.numel(), int(mask.sum())) for name, mask in kept.items()} == KEPT
    assert all(torch.equal(mask, chosen[name]) for name, mask in kept.items())


def test_finetuning_keeps_the_scores_and_masks_of_the_pruned_network(line):
    pruned = load_checkpoint(line.prune / "checkpoint.safetensors").network
    final = load_checkpoint(line.finetune / "checkpoint_masked.safetensors").network
    for name, mask in score_masks(final).items():
        assert torch.equal(mask.scores, score_masks(pruned)[name].scores)
        assert torch.equal(mask.mask, score_masks(pruned)[name].mask)


@pytest.mark.parametrize("phase", ["train", "prune", "finetune", "lwm"])
def test_a_finished_phase_leaves_exactly_these_files(line, phase):
    """A masked network in both layouts, as the original does with --save-dense."""
    folder = getattr(line, phase)
    names = {path.name for path in folder.iterdir()}
    twin = {"train": set(), "prune": {"checkpoint_dense.safetensors"}}.get(phase, {"checkpoint_masked.safetensors"})
    assert names == {"run.json", "checkpoint.safetensors", "metrics.csv", "summary.json"} | twin
    run, summary = (json.loads((folder / name).read_text()) for name in ("run.json", "summary.json"))
    assert (run["status"], run["phase"]) == ("complete", phase)
    assert run["command"] == {"lwm": "finetune"}.get(phase, phase)
    fingerprint = run["dataset"].pop("fingerprint")
    assert run["dataset"] == {"name": "digits", "train": 1038, "validation": 259}
    assert len(fingerprint) == 64
    assert [made["first_epoch"] for made in run["environments"]] == [0]
    assert summary["checkpoint_sha256"] == sha(folder)
    assert summary["metrics"] == {"validation_robust_accuracy": {"value": header(folder).selection.value}}


@pytest.mark.parametrize(
    ("phase", "layout", "density", "parent"),
    [
        ("train", "dense", 1, None),
        ("prune", "masked", 0.1, "train"),
        ("finetune", "dense", 0.1, "prune"),
        ("lwm", "dense", 0.1, "train"),
    ],
)
def test_the_header_says_what_a_checkpoint_is_and_where_it_comes_from(line, phase, layout, density, parent):
    found = header(getattr(line, phase))
    assert (found.phase, found.layout, found.density) == (phase, layout, density)
    assert found.parent == (sha(getattr(line, parent)) if parent else None)
    assert (found.arch, found.dataset, found.shape, found.num_classes) == ("cifar_model_bn", "digits", (1, 8, 8), 10)
    assert (found.recipe, found.seed, found.normalization) == ("tiny", 0, None)
    assert found.default_threat() == {"norm": "linf", "epsilon": "8/255"}
    selection = found.selection
    assert (selection.split, selection.images, selection.metric) == ("validation", 259, "robust_accuracy")
    assert 0.2 < selection.value <= 1  # it did learn: chance is 0.1


def test_a_dense_checkpoint_holds_the_plain_keys_and_a_masked_one_scores_beside_them(line):
    norms = {f"{layer}.{key}" for layer in BATCH_NORMS for key in ("weight", "bias", "running_mean", "running_var")}
    plain = {f"{layer}.{key}" for layer in KEPT for key in ("weight", "bias")} | norms
    plain |= {f"{layer}.num_batches_tracked" for layer in BATCH_NORMS}
    assert set(tensors(line.train)) == set(tensors(line.finetune)) == set(tensors(line.lwm)) == plain
    assert set(tensors(line.prune)) == plain | {f"{layer}.{part}" for layer in KEPT for part in ("scores", "mask")}


def test_metrics_have_one_row_per_epoch_with_schedule_losses_and_accuracies(line):
    """5 steps an epoch, 15 in all: the last step of epoch e is 5e - 1, the cosine (1 + cos(pi (5e - 1) / 15)) / 2. The
    radius ramps over (3 - 1) · 5 = 10 steps: 4/10 of it at step 4, 9/10 at step 9, all of it from step 10."""
    rows = table(line.train)
    names = ["loss", "train_accuracy", "validation_clean_accuracy", "validation_robust_accuracy", "seconds"]
    assert list(rows[0]) == ["epoch", "lr", "epsilon", *names]
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    lrs = [0.01 * (1 + cos(pi * step / 15)) / 2 for step in (4, 9, 14)]
    assert [float(row["lr"]) for row in rows] == pytest.approx(lrs, rel=1e-12)
    radii = [8 / 255 * ramp for ramp in (0.4, 0.9, 1.0)]
    assert [float(row["epsilon"]) for row in rows] == pytest.approx(radii, rel=1e-12)
    assert float(rows[2]["loss"]) < float(rows[0]["loss"])
    assert all(float(row["validation_robust_accuracy"]) <= float(row["validation_clean_accuracy"]) for row in rows)
    assert [float(row["epsilon"]) for row in table(line.prune)] == [8 / 255] * 2  # no ramp: full from the first step


def test_the_validation_columns_are_those_of_the_objective(make_recipe, cpu, tmp_path):
    changes = {"train": {"epochs": 1, "epsilon_ramp_epochs": 1}, "evaluate": []}
    for name, column in (("natural", []), ("crown-ibp", ["validation_verified_accuracy"])):
        objective = {"name": name} | ({} if name == "natural" else {"epsilon": "1/255"})
        training.train(make_recipe(objective=objective, **changes), tmp_path / name, options=cpu)
        assert [key for key in table(tmp_path / name)[0] if key.startswith("validation")] == [
            "validation_clean_accuracy",
            *column,
        ]


def test_the_best_epoch_is_the_maximum_of_the_validation_column(line):
    for folder in (line.train, line.prune, line.finetune, line.lwm):
        values = [float(row["validation_robust_accuracy"]) for row in table(folder)]
        selection = header(folder).selection
        assert selection.value == max(values)
        assert selection.epoch == max(index for index, value in enumerate(values, 1) if value == max(values))


def test_of_equally_good_epochs_the_latest_is_kept_with_its_own_tensors(make_recipe, cpu, tmp_path, monkeypatch):
    """Epochs that get 1, 3, 3 and 2 of 259 images right: epoch 3 is kept."""
    snapshots = []

    def scripted(network, x, y, settings, step):
        if len(y) == 1:  # the rehearsal before the first epoch
            return torch.ones(1, dtype=torch.bool)
        snapshots.append({key: tensor.clone() for key, tensor in state_of(network).items()})
        return torch.arange(len(y)) < (1, 3, 3, 2)[len(snapshots) - 1]

    monkeypatch.setitem(OBJECTIVES, "trades", replace(OBJECTIVES["trades"], verdicts=scripted))
    training.train(make_recipe(train={"epochs": 4}), tmp_path / "run", options=cpu)
    selection = header(tmp_path / "run").selection
    assert (selection.epoch, selection.value) == (3, 3 / 259)
    kept = tensors(tmp_path / "run")
    assert all(torch.equal(kept[key], snapshots[2][key]) for key in kept)
    assert not torch.equal(kept["0.weight"], snapshots[1]["0.weight"])


def test_pruning_leaves_every_weight_and_bias_of_the_parent_bit_for_bit(line):
    parent, pruned = tensors(line.train), tensors(line.prune)
    for layer in KEPT:
        assert torch.equal(pruned[f"{layer}.weight"], parent[f"{layer}.weight"])
        assert torch.equal(pruned[f"{layer}.bias"], parent[f"{layer}.bias"])


def test_pruning_trains_scores_and_batch_norm(line):
    parent, pruned = tensors(line.train), tensors(line.prune)
    for layer in BATCH_NORMS:
        for key in ("weight", "bias", "running_mean", "running_var"):
            assert not torch.equal(pruned[f"{layer}.{key}"], parent[f"{layer}.{key}"])
    for layer in KEPT:  # scaled initialisation makes scores proportional to weights; training has moved them off
        ratio = pruned[f"{layer}.scores"] / parent[f"{layer}.weight"]
        assert not torch.allclose(ratio, ratio.flatten()[0].expand_as(ratio))


def test_frozen_batch_norm_keeps_its_weights_while_pruning(line, make_recipe, cpu, tmp_path):
    recipe = make_recipe(prune={"density": 0.1, "epochs": 1, "freeze_batch_norm": True})
    training.prune(recipe, str(line.train), tmp_path / "run", options=cpu)
    parent, pruned = tensors(line.train), tensors(tmp_path / "run")
    for layer in BATCH_NORMS:
        assert torch.equal(pruned[f"{layer}.weight"], parent[f"{layer}.weight"])
        assert torch.equal(pruned[f"{layer}.bias"], parent[f"{layer}.bias"])


@pytest.mark.parametrize("phase", ["prune", "finetune", "lwm"])
def test_every_layer_keeps_exactly_a_tenth_of_its_weights(line, phase):
    network = load_checkpoint(getattr(line, phase) / "checkpoint.safetensors").baked()
    found = {layer: network.get_submodule(layer).weight for layer in KEPT}
    assert {layer: (weight.numel(), int(weight.count_nonzero())) for layer, weight in found.items()} == KEPT


def test_finetuning_trains_the_kept_weights_and_leaves_the_pruned_ones_exactly_zero(line):
    pruned, final = tensors(line.prune), tensors(line.finetune)
    for layer, (_, kept) in KEPT.items():
        mask = largest(pruned[f"{layer}.scores"], kept)
        weight = final[f"{layer}.weight"]
        assert torch.equal(weight != 0, mask)
        assert (weight != pruned[f"{layer}.weight"])[mask].float().mean() > 0.9


def test_lwm_keeps_the_weights_that_are_largest_in_the_parent(line):
    parent, twin = tensors(line.train), tensors(line.lwm)
    for layer, (_, kept) in KEPT.items():
        assert torch.equal(twin[f"{layer}.weight"] != 0, largest(parent[f"{layer}.weight"], kept))
    learned = tensors(line.finetune)
    assert any(not torch.equal(learned[key] != 0, twin[key] != 0) for key in twin if key.endswith("weight"))


def test_a_finetuned_checkpoint_can_be_finetuned_again_with_the_same_mask(line, make_recipe, cpu, tmp_path):
    training.finetune(make_recipe(finetune={"epochs": 1}), str(line.finetune), tmp_path / "run", options=cpu)
    before, after = tensors(line.finetune), tensors(tmp_path / "run")
    for layer in KEPT:
        assert torch.equal(before[f"{layer}.weight"] != 0, after[f"{layer}.weight"] != 0)
        assert not torch.equal(before[f"{layer}.weight"], after[f"{layer}.weight"])


def test_lwm_of_a_masked_checkpoint_takes_the_largest_of_the_weights_it_applies(line, make_recipe, cpu, tmp_path):
    recipe = make_recipe(finetune={"epochs": 1, "density": 0.05})
    training.finetune(recipe, str(line.prune), tmp_path / "run", options=cpu, lwm=True)
    source, twin = tensors(line.prune), tensors(tmp_path / "run")
    applied = source["9.weight"] * largest(source["9.scores"], 100)
    assert torch.equal(twin["9.weight"] != 0, largest(applied, 50))


def test_the_same_recipe_gives_the_same_bytes_and_another_seed_does_not(line, make_recipe, cpu, tmp_path):
    training.train(make_recipe(), tmp_path / "again", options=cpu)
    training.train(make_recipe(seed=1), tmp_path / "other", options=cpu)
    assert sha(tmp_path / "again") == sha(line.train)
    assert not torch.equal(tensors(tmp_path / "other")["9.weight"], tensors(line.train)["9.weight"])
