"""The loop itself: states within an epoch, repeated minibatches, averaged weights, diverging runs, TensorBoard."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from safetensors import safe_open
from torch import nn

from hydrabench.checkpoints import load_checkpoint, state_of
from hydrabench.errors import ConfigError, LedgerError, NonFiniteError
from hydrabench.files import sha256_of
from hydrabench.objectives import OBJECTIVES, StepLoss
from hydrabench.workflows.run_options import RunOptions
from hydrabench.workflows.training import commands as training
from hydrabench.workflows.training import loop
from hydrabench.workflows.training.loop import Loop
from hydrabench.workflows.training.optimizer import Average
from tests.helpers.interrupting import interrupt_loss

STEPS = 5  # of an epoch: 1038 images in batches of 256
ALWAYS = RunOptions("cpu", save_minutes=0)
NEVER = RunOptions("cpu", save_minutes=1e9)


def tensors(folder) -> dict[str, torch.Tensor]:
    with safe_open(folder / "checkpoint.safetensors", framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict


def sha(folder) -> str:
    return sha256_of(folder / "checkpoint.safetensors")


def table(folder) -> list[dict[str, str]]:
    rows = csv.DictReader((folder / "metrics.csv").read_text().splitlines())
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def remembering(network, x, y, settings, step):
    """A loss that depends on what earlier steps left in memory, row by row, and on their gradients."""
    memory = step.memory.setdefault("perturbation", torch.zeros(256, 1, 8, 8))
    leaf = step.mine(memory[: step.total(x)]).clone().requires_grad_()
    logits = network((x + leaf).clamp(0, 1))

    def after():
        step.mine(memory[: step.total(x)]).add_(0.02 * leaf.grad.sign()).clamp_(-0.1, 0.1)

    return StepLoss(torch.nn.functional.cross_entropy(logits, y), logits, after)


@pytest.fixture
def free(monkeypatch):
    """Ordinary training that repeats each minibatch three times, on images it perturbs more and more."""
    monkeypatch.setitem(
        OBJECTIVES, "natural", replace(OBJECTIVES["natural"], loss=remembering, repeats=lambda settings: 3)
    )


# Going on within an epoch ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({}, {}),
        ({"ema_decay": 0.9, "optimizer": "rmsprop", "lr": 0.001}, {}),
        ({"nesterov": True, "optimizer": "sgd", "warmup_epochs": 1}, {"micro_batch": 100}),
        ({"population_statistics": True}, {}),
        ({"epsilon_schedule": "smoothed"}, {"precision": "bfloat16", "channels_last": True}),
        ({"gradient_norm": 0.1, "schedule": "milestones", "milestones": {1: 0.1}}, {"precision": "float16"}),
    ],
    ids=["adam", "average", "warm-up", "population", "bfloat16", "float16"],
)
def test_a_run_goes_on_in_the_middle_of_an_epoch_to_the_same_bytes(
    make_recipe, tmp_path, monkeypatch, changes, options
):
    """Stopped in step 3 of epoch 2 of 3 after a state was saved: 2 · 5 - 2 = 8 steps are left."""
    recipe, always = make_recipe(train=changes), replace(ALWAYS, **options)
    training.train(recipe, tmp_path / "whole", options=replace(NEVER, **options))
    with monkeypatch.context() as patch:
        parts = 3 if "micro_batch" in options else 1
        interrupt_loss(patch, (STEPS + 2) * parts + 1 - (2 if parts == 3 else 0))
        with pytest.raises(KeyboardInterrupt):
            training.train(recipe, tmp_path / "cut", options=always)
    state = torch.load(tmp_path / "cut" / "resume.pt", weights_only=True)
    assert (state["done"]["epochs"], state["done"]["sums"]["minibatches"]) == (1, 2)
    with monkeypatch.context() as patch:
        calls = interrupt_loss(patch, 0)
        training.train(recipe, tmp_path / "cut", options=always, resume=True)
    if not options:
        assert len(calls) == 8
    assert sha(tmp_path / "cut") == sha(tmp_path / "whole")
    assert table(tmp_path / "cut") == table(tmp_path / "whole")
    assert (tmp_path / "cut" / "summary.json").read_bytes() == (tmp_path / "whole" / "summary.json").read_bytes()


def test_what_an_objective_remembers_outlives_an_interruption(make_recipe, tmp_path, monkeypatch, free):
    """Three repeats of each minibatch: stopped in the second of minibatch 3 of epoch 2."""
    recipe = make_recipe(objective={"name": "natural"}, train={"epochs": 2, "epsilon_ramp_epochs": 1}, evaluate=[])
    training.train(recipe, tmp_path / "whole", options=NEVER)
    with monkeypatch.context() as patch:
        interrupt_loss(patch, 3 * (STEPS + 2) + 2, "natural")
        with pytest.raises(KeyboardInterrupt):
            training.train(recipe, tmp_path / "cut", options=ALWAYS)
    state = torch.load(tmp_path / "cut" / "resume.pt", weights_only=True)
    assert state["memory"]["perturbation"].abs().max() > 0.05
    training.train(recipe, tmp_path / "cut", options=ALWAYS, resume=True)
    assert sha(tmp_path / "cut") == sha(tmp_path / "whole")
    assert table(tmp_path / "cut") == table(tmp_path / "whole")


def test_a_minibatch_is_trained_on_as_often_as_its_objective_repeats_it(make_recipe, tmp_path, monkeypatch, free):
    seen, original = [], OBJECTIVES["natural"].loss

    def loss(network, x, y, settings, step):
        assert network.training  # validation leaves it in eval mode
        seen.append((step.epoch, x))
        return original(network, x, y, settings, step)

    monkeypatch.setitem(OBJECTIVES, "natural", replace(OBJECTIVES["natural"], loss=loss))
    recipe = make_recipe(objective={"name": "natural"}, train={"epochs": 2, "epsilon_ramp_epochs": 1}, evaluate=[])
    training.train(recipe, tmp_path / "run", options=NEVER)
    assert [epoch for epoch, _ in seen] == [0] * 15 + [1] * 15
    for first in range(0, 30, 3):
        assert torch.equal(seen[first][1], seen[first + 1][1])
        assert torch.equal(seen[first][1], seen[first + 2][1])
    assert not torch.equal(seen[0][1], seen[3][1])
    # The rate of the last of 15 steps of an epoch, of 30 in all: (1 + cos(14 π / 30)) / 2.
    assert float(table(tmp_path / "run")[0]["lr"]) == pytest.approx(0.01 * 0.5522642316, rel=1e-9)


def test_the_scale_of_float16_gradients_outlives_an_interruption(make_recipe, tmp_path, monkeypatch):
    options, restored = replace(ALWAYS, precision="float16"), []
    with monkeypatch.context() as patch:
        interrupt_loss(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            training.train(make_recipe(), tmp_path / "run", options=options)
    saved = torch.load(tmp_path / "run" / "resume.pt", weights_only=True)["scaler"]
    assert saved["scale"] > 1
    monkeypatch.setattr(torch.amp.GradScaler, "load_state_dict", lambda scaler, state: restored.append(state))
    training.train(make_recipe(train={}), tmp_path / "run", options=options, resume=True)
    assert restored == [saved]


def test_states_are_saved_by_time_and_not_after_every_minibatch(make_recipe, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(Loop, "_save", lambda loop: written.append(loop.done.sums.minibatches))
    training.train(make_recipe(train={"epochs": 1, "epsilon_ramp_epochs": 1}), tmp_path / "a", options=NEVER)
    training.train(make_recipe(train={"epochs": 1, "epsilon_ramp_epochs": 1}), tmp_path / "b", options=ALWAYS)
    assert written == [0, 1, 2, 3, 4, 0]


def test_a_run_goes_on_with_another_micro_batch_but_not_in_another_precision(make_recipe, tmp_path, monkeypatch):
    recipe = make_recipe()
    with monkeypatch.context() as patch:
        interrupt_loss(patch, STEPS + 2)
        with pytest.raises(KeyboardInterrupt):
            training.train(recipe, tmp_path / "run", options=replace(NEVER, channels_last=True))
    for change, named in (
        ({"precision": "bfloat16", "channels_last": True}, 'precision was "float32" and is now "bfloat16"'),
        ({"channels_last": False}, "channels_last was true and is now false"),
        ({"channels_last": True, "compile": True}, "compile was false and is now true"),
    ):
        with pytest.raises(LedgerError, match=f"cannot resume .*{named}"):
            training.train(recipe, tmp_path / "run", options=replace(NEVER, **change), resume=True)
    other = replace(NEVER, channels_last=True, micro_batch=128)
    summary = training.train(recipe, tmp_path / "run", options=other, resume=True)
    assert summary["micro_batch"] == 128


def test_a_micro_batch_that_memory_forced_is_kept_on_resume_and_reported(make_recipe, tmp_path, monkeypatch, capsys):
    """Batches of 256 do not fit: 128 do. After the interruption nothing fails any more."""
    original, seen = OBJECTIVES["trades"], []

    def loss(network, x, y, settings, step):
        seen.append(len(x))
        if len(x) > 128:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        if len(seen) == 2 * STEPS + 4:
            raise KeyboardInterrupt
        return original.loss(network, x, y, settings, step)

    monkeypatch.setitem(OBJECTIVES, "trades", replace(original, loss=loss))
    with pytest.raises(KeyboardInterrupt):
        training.train(make_recipe(), tmp_path / "run", options=NEVER)
    assert seen[:3] == [256, 128, 128]
    summary = training.train(make_recipe(), tmp_path / "run", options=NEVER, resume=True)
    assert seen.count(256) == 1
    assert summary["micro_batch"] == 128
    assert capsys.readouterr().err.count("out of memory: going on with micro-batches of 128 images") == 1


def test_a_run_says_how_it_is_computed(make_recipe, tmp_path):
    options = replace(NEVER, precision="bfloat16", channels_last=True, micro_batch=64)
    training.train(make_recipe(train={"epochs": 1, "epsilon_ramp_epochs": 1}), tmp_path / "run", options=options)
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (run["precision"], run["channels_last"], run["micro_batch"], run["world_size"]) == ("bfloat16", True, 64, 1)
    assert not run["compile"]


def test_noise_belongs_to_the_image_however_the_batch_is_cut(make_recipe, tmp_path, monkeypatch):
    """The points of all 5 minibatches, by parts of at most 100 images and by whole batches. The logged loss and
    accuracy are means over the images."""
    original, drawn, found = OBJECTIVES["natural"], [], []

    def loss(network, x, y, settings, step):
        drawn.append(step.normal(x))
        losses = original.loss(network, x, y, settings, step)
        found.append((losses.total.item() * len(y), int((losses.logits.argmax(1) == y).sum())))
        return losses

    monkeypatch.setitem(OBJECTIVES, "natural", replace(original, loss=loss))
    recipe = make_recipe(objective={"name": "natural"}, train={"epochs": 1, "epsilon_ramp_epochs": 1}, evaluate=[])
    training.train(recipe, tmp_path / "whole", options=NEVER)
    whole, number = torch.cat(drawn), len(drawn)
    training.train(recipe, tmp_path / "parts", options=replace(NEVER, micro_batch=100))
    assert (number, len(drawn) - number) == (5, 4 * 3 + 1)
    assert torch.equal(torch.cat(drawn[number:]), whole)
    assert len(whole.unique()) > 0.99 * whole.numel()
    for name, values in (("whole", found[:number]), ("parts", found[number:])):
        row = table(tmp_path / name)[0]
        assert float(row["loss"]) == pytest.approx(sum(loss for loss, _ in values) / 1038, rel=1e-6)
        assert float(row["train_accuracy"]) == sum(correct for _, correct in values) / 1038


# Averaged weights ------------------------------------------------------------------------------


def test_the_averaged_weights_are_validated_and_kept(make_recipe, tmp_path, monkeypatch):
    """The average, done again in float64 from the weights after every step; it is what validation sees, too."""
    states, validated, update, verdicts = [], [], Average.update, OBJECTIVES["trades"].verdicts

    def watch(average):
        states.append({key: tensor.double().clone() for key, tensor in state_of(average.network).items()})
        update(average)

    def judge(network, *arguments):
        validated.append({key: tensor.clone() for key, tensor in state_of(network).items()})
        return verdicts(network, *arguments)

    monkeypatch.setattr(Average, "update", watch)
    monkeypatch.setitem(OBJECTIVES, "trades", replace(OBJECTIVES["trades"], verdicts=judge))
    recipe = make_recipe(train={"epochs": 1, "epsilon_ramp_epochs": 1, "ema_decay": 0.4})
    expected = {key: tensor.double() for key, tensor in state_of(training.fresh_network(recipe)).items()}
    training.train(recipe, tmp_path / "run", options=NEVER)
    assert len(states) == STEPS
    for number, state in enumerate(states):
        decay = min(0.4, (1 + number) / (10 + number))
        expected = {key: decay * tensor + (1 - decay) * state[key] for key, tensor in expected.items()}
    found = tensors(tmp_path / "run")
    assert all(torch.equal(found[key], tensor) for key, tensor in validated[-1].items())
    for key, tensor in expected.items():
        if not key.endswith("num_batches_tracked"):
            torch.testing.assert_close(found[key].double(), tensor, rtol=1e-4, atol=1e-6)
    assert not torch.equal(found["9.weight"], states[-1]["9.weight"].float())


def test_finetuning_averages_weights_and_keeps_the_mask(line, make_recipe, tmp_path):
    recipe = make_recipe(finetune={"ema_decay": 0.9})
    training.finetune(recipe, str(line.prune), tmp_path / "run", options=NEVER)
    before, after = tensors(line.finetune), tensors(tmp_path / "run")
    for layer in ("0", "3", "7", "9"):
        assert torch.equal(before[f"{layer}.weight"] != 0, after[f"{layer}.weight"] != 0)
    assert not torch.equal(before["9.weight"], after["9.weight"])


def test_scores_are_not_averaged(make_recipe):
    with pytest.raises(ValueError, match=r"ema_decay averages weights, which `prune` does not train; leave it out"):
        make_recipe(prune={"ema_decay": 0.9})


# Diverging -------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["train", "prune", "finetune"])
def test_a_run_that_diverges_keeps_its_best_epoch_as_a_checkpoint(line, make_recipe, tmp_path, monkeypatch, phase):
    """The loss is NaN in step 12, the third of epoch 3; of the epochs before it the better one is kept."""
    original, calls = OBJECTIVES["trades"], []

    def loss(*arguments):
        calls.append(1)
        losses = original.loss(*arguments)
        return StepLoss(losses.total * torch.nan, losses.logits) if len(calls) == 2 * STEPS + 3 else losses

    monkeypatch.setitem(OBJECTIVES, "trades", replace(original, loss=loss))
    recipe = make_recipe(**{phase: {"epochs": 3, **({"density": 0.1} if phase == "prune" else {})}})
    out = tmp_path / "run"

    def run():
        if phase == "train":
            training.train(recipe, out, options=NEVER)
        elif phase == "prune":
            training.prune(recipe, str(line.train), out, options=NEVER)
        else:
            training.finetune(recipe, str(line.prune), out, options=NEVER)

    with pytest.raises(NonFiniteError, match=r"the loss is nan at step 12 \(epoch 3; the best of the 2 epochs before"):
        run()
    values = [float(row["validation_robust_accuracy"]) for row in table(out)]
    header = load_checkpoint(out / "checkpoint.safetensors").header
    assert (header.selection.value, header.phase) == (max(values), phase)
    assert header.selection.epoch == max(number for number, value in enumerate(values, 1) if value == max(values))
    assert json.loads((out / "run.json").read_text())["status"] == "running"
    assert torch.load(out / "resume.pt", weights_only=True)["done"]["epochs"] == 2
    assert not (out / "summary.json").exists()


def test_statistics_that_overflow_stop_the_run_though_every_loss_is_finite(make_recipe, tmp_path, monkeypatch):
    """Batch norm's running variance is infinite after epoch 2: no checkpoint could hold it."""
    original, calls = loop.validate, []

    def validate(network, *arguments, **named):
        calls.append(1)
        if len(calls) == 2:
            first = next(module for module in network.modules() if isinstance(module, nn.BatchNorm2d))
            first.running_var.fill_(torch.inf)
        return original(network, *arguments, **named)

    monkeypatch.setattr(loop, "validate", validate)
    message = (
        r"train tiny: 1\.running_var holds values that are not finite \(epoch 2; the best of the 1 epochs before it"
    )
    with pytest.raises(NonFiniteError, match=message):
        training.train(make_recipe(), tmp_path / "run", options=NEVER)
    assert load_checkpoint(tmp_path / "run" / "checkpoint.safetensors").header.selection.epoch == 1


# TensorBoard -----------------------------------------------------------------------------------


def test_without_tensorboard_nothing_is_started(make_recipe, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"needs the package tensorboard: pip install 'hydrabench\[tensorboard\]'"):
        training.train(make_recipe(), tmp_path / "run", options=replace(NEVER, tensorboard=True))
    assert not (tmp_path / "run").exists()


def test_tensorboard_gets_every_step_and_every_epoch(make_recipe, tmp_path, monkeypatch):
    written, opened = [], []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            opened.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

        def close(self):
            opened.append("closed")

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    options, recipe = replace(NEVER, tensorboard=True), make_recipe()
    with monkeypatch.context() as patch:
        interrupt_loss(patch, STEPS + 2)
        with pytest.raises(KeyboardInterrupt):
            training.train(recipe, tmp_path / "run", options=options)
    training.train(recipe, tmp_path / "run", options=options, resume=True)
    folder = str(tmp_path / "run" / "tensorboard")
    assert opened == [(folder, 0), "closed", (folder, STEPS), "closed"]
    assert [step for name, _, step in written if name == "step/loss"] == [*range(6), *range(5, 15)]
    epochs = [(step, value) for name, value, step in written if name == "epoch/validation_robust_accuracy"]
    assert epochs == [
        (STEPS * number, float(row["validation_robust_accuracy"]))
        for number, row in enumerate(table(tmp_path / "run"), 1)
    ]


# Refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "half"}, r"unknown precision 'half'; choose one of: bfloat16, float16, float32"),
        ({"micro_batch": 0}, r"--micro-batch 0: give 1 or more images"),
    ],
)
def test_a_machine_that_cannot_be_is_refused_before_anything_is_written(make_recipe, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        training.train(make_recipe(), tmp_path / "run", options=replace(NEVER, **options))
    assert not (tmp_path / "run").exists()
