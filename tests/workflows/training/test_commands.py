"""train, prune and finetune on the real digits: what they write, what they leave alone, and how they go on."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from math import cos, pi

import pytest
import torch
from safetensors import safe_open
from torch import nn

from hydrabench.bounds.program.convert import LAYERS
from hydrabench.checkpoints import load_checkpoint, state_of
from hydrabench.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    LedgerError,
    NonFiniteError,
    UnsupportedLayerError,
)
from hydrabench.files import sha256_of
from hydrabench.ledger import RunFolder
from hydrabench.masking import score_masks
from hydrabench.objectives import OBJECTIVES
from hydrabench.workflows.run_options import RunOptions
from hydrabench.workflows.training import commands as training
from tests.helpers.interrupting import interrupt_loss

# cifar_model_bn for 1 x 8 x 8: layer -> (weights, kept at density 0.1 = n - floor(0.9 n)), worked by hand:
# 16·1·16 = 256, 256 - 230; 32·16·16 = 8192, 8192 - 7372; 100·(32·2·2) = 12800, - 11520; 10·100 = 1000, - 900.
KEPT = {"0": (256, 26), "3": (8192, 820), "7": (12800, 1280), "9": (1000, 100)}
BATCH_NORMS = ("1", "4")
STEPS = 5  # of an epoch: 1297 - 259 = 1038 images in batches of 256


def tensors(folder) -> dict[str, torch.Tensor]:
    with safe_open(folder / "checkpoint.safetensors", framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict


def header(folder):
    return load_checkpoint(folder / "checkpoint.safetensors").header


def sha(folder) -> str:
    return sha256_of(folder / "checkpoint.safetensors")


def table(folder, *, without=()) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in without} for row in csv.DictReader(file)]


def largest(values: torch.Tensor, count: int) -> torch.Tensor:
    """Where the `count` largest magnitudes are, by a full sort."""
    order = values.abs().flatten().argsort(descending=True)
    chosen = torch.zeros(values.numel(), dtype=torch.bool)
    chosen[order[:count]] = True
    return chosen.view_as(values)


# What a phase writes ---------------------------------------------------------------------------


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


# What each phase changes -----------------------------------------------------------------------


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


# Going on after an interruption ----------------------------------------------------------------


def run_phase(phase, recipe, line, out, cpu, *, resume=False):
    if phase == "train":
        training.train(recipe, out, options=cpu, resume=resume)
    elif phase == "prune":
        training.prune(recipe, str(line.train), out, options=cpu, resume=resume)
    else:
        source = line.train if phase == "lwm" else line.prune
        training.finetune(recipe, str(source), out, options=cpu, lwm=phase == "lwm", resume=resume)


def assert_same_runs(folder, other):
    assert (folder / "checkpoint.safetensors").read_bytes() == (other / "checkpoint.safetensors").read_bytes()
    assert table(folder, without=("seconds",)) == table(other, without=("seconds",))
    assert (folder / "summary.json").read_bytes() == (other / "summary.json").read_bytes()
    assert {path.name for path in folder.iterdir()} == {path.name for path in other.iterdir()}


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("phase", ["train", "prune", "finetune"])
def test_an_interrupted_phase_goes_on_to_the_same_bytes(
    line, make_recipe, cpu, tmp_path, monkeypatch, phase, optimizer
):
    """Interrupted in the middle of the second of three epochs."""
    changes = {"epochs": 3, "optimizer": optimizer, "lr": 0.01}
    recipe = make_recipe(**{phase: changes | ({"density": 0.1} if phase == "prune" else {})})
    run_phase(phase, recipe, line, tmp_path / "whole", cpu)
    with monkeypatch.context() as patch:
        interrupt_loss(patch, call=STEPS + 3)
        with pytest.raises(KeyboardInterrupt):
            run_phase(phase, recipe, line, tmp_path / "cut", cpu)
    assert [row["epoch"] for row in table(tmp_path / "cut")] == ["1"]
    assert not (tmp_path / "cut" / "checkpoint.safetensors").exists()
    run_phase(phase, recipe, line, tmp_path / "cut", cpu, resume=True)
    assert_same_runs(tmp_path / "cut", tmp_path / "whole")


def test_a_phase_may_be_interrupted_again_and_again_wherever_it_is(line, make_recipe, cpu, tmp_path, monkeypatch):
    """LWM, stopped before any state was saved, in its last epoch, and between its checkpoint and its end."""
    recipe, cut = make_recipe(finetune={"density": 0.1}), tmp_path / "cut"

    def stop(run, summary):
        raise KeyboardInterrupt

    for call, left in ((2, {"run.json"}), (STEPS + 3, {"run.json", "metrics.csv", "resume.pt"})):
        with monkeypatch.context() as patch:
            interrupt_loss(patch, call=call)
            with pytest.raises(KeyboardInterrupt):
                run_phase("lwm", recipe, line, cut, cpu, resume=True)
        assert {path.name for path in cut.iterdir()} == left
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "finish", stop)
        with pytest.raises(KeyboardInterrupt):
            run_phase("lwm", recipe, line, cut, cpu, resume=True)
    assert json.loads((cut / "run.json").read_text())["status"] == "running"
    run_phase("lwm", recipe, line, cut, cpu, resume=True)
    assert_same_runs(cut, line.lwm)


def test_resuming_a_complete_run_does_nothing_again(line, make_recipe, cpu, monkeypatch):
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in line.train.iterdir()}
    interrupt_loss(monkeypatch, call=1)  # the first step would fail
    summary = training.train(make_recipe(), line.train, options=cpu, resume=True)
    assert summary == json.loads((line.train / "summary.json").read_text())
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in line.train.iterdir()} == before


def test_a_run_in_use_is_not_overwritten(line, make_recipe, cpu):
    before = sha(line.train)
    with pytest.raises(LedgerError, match=r"train already holds a run; continue it with --resume or choose a new"):
        training.train(make_recipe(), line.train, options=cpu)
    assert sha(line.train) == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"train": {"lr": 0.02}}, r"recipe\.train\.lr was 0\.01 and is now 0\.02"),
        ({"seed": 3}, r"recipe\.seed was 0 and is now 3"),
        ({"data": {"flip": True}}, r"recipe\.data\.flip was false and is now true"),
    ],
)
def test_a_run_is_not_continued_with_another_recipe(line, make_recipe, cpu, changes, named):
    with pytest.raises(LedgerError, match=rf"cannot resume .*{named}; keep the values it was started with"):
        training.train(make_recipe(**changes), line.train, options=cpu, resume=True)


def test_a_phase_is_not_continued_from_another_parent(line, make_recipe, cpu):
    with pytest.raises(LedgerError, match=r"cannot resume .*parent was"):
        training.finetune(make_recipe(), str(line.lwm), line.finetune, options=cpu, resume=True)


def test_a_damaged_state_is_named_and_nothing_is_lost(make_recipe, cpu, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_loss(patch, call=STEPS + 2)
        with pytest.raises(KeyboardInterrupt):
            training.train(make_recipe(), tmp_path / "run", options=cpu)
    state = tmp_path / "run" / "resume.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(LedgerError, match=r"resume\.pt cannot be resumed from .*delete the folder and start again"):
        training.train(make_recipe(), tmp_path / "run", options=cpu, resume=True)
    assert len(table(tmp_path / "run")) == 1


# Refusals, before anything is written ----------------------------------------------------------


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
