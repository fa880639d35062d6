"""Networks of others, from a file of torch.save through every command that takes a checkpoint."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner

from hydrabench.checkpoints import load_checkpoint, state_of
from hydrabench.cli import main
from hydrabench.workflows.training import commands as training

HALF = {"mean": (0.5,), "std": (0.5,)}
TRAIN = {"epochs": 6, "lr": 0.005, "batch_size": 64, "epsilon_ramp_epochs": 1}


@pytest.fixture(scope="module")
def trained(make_recipe, cpu, tmp_path_factory):
    """The state dict of a network that was trained on digits minus 1/2, times 2, as HYDRA's code would save it."""
    folder = tmp_path_factory.mktemp("trained")
    recipe = make_recipe(
        model={"arch": "cifar_model", "normalization": HALF},
        objective={"name": "natural"},
        train=TRAIN,
        evaluate=[{"kind": "clean"}],
    )
    training.train(recipe, folder / "run", options=cpu)
    state = state_of(load_checkpoint(folder / "run" / "checkpoint.safetensors").network)
    path = folder / "model_best.pth.tar"
    torch.save({"epoch": 6, "arch": "cifar_model", "state_dict": state, "lr": np.float64(0.1)}, path)
    return path


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments):
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return invoke


def test_a_network_on_raw_pixels_that_wants_others_is_said_with_both_accuracies(run, trained):
    judged = ["attack", "--attack", "clean", "--ckpt", trained, "--dataset", "digits", "--json"]
    raw, right = run(*judged, "--out", "a"), run(*judged, "--normalization", "0.5/0.5", "--out", "b")
    assert raw.exit_code == right.exit_code == 0, raw.output + right.output
    said = re.search(
        r"is right on (\S+)% of 256 images as it is, and on (\S+)% under --normalization (\w+)", raw.stderr
    )
    assert said, raw.stderr
    assert float(said[2]) - float(said[1]) >= 10
    assert "--normalization" not in right.stderr
    accuracy = [json.loads(result.stdout)["metrics"]["clean_accuracy"]["value"] for result in (raw, right)]
    assert accuracy[1] - accuracy[0] >= 0.1
    header = json.loads(Path("b/run.json").read_text())
    assert header["checkpoint"]["normalization"] == {"mean": [0.5], "std": [0.5]}


@pytest.mark.parametrize("command", ["attack", "certify", "prune", "finetune", "train"])
def test_every_command_takes_what_the_file_does_not_say(run, trained, command, tmp_path):
    recipe = {"name": "tiny", "model": {"arch": "cifar_model", "normalization": {"mean": [0.5], "std": [0.5]}},
              "data": {"name": "digits", "validation_fraction": 0.2}, "objective": {"name": "natural"},
              **{key: {"epochs": 1, "lr": 0.01} for key in ("train", "prune", "finetune")}}  # fmt: skip
    (tmp_path / "r.yml").write_text(yaml.safe_dump(recipe))
    arguments = {
        "attack": ["attack", "--steps", 1, "-n", 5, "--epsilon", "1/255"],
        "certify": ["certify", "--method", "ibp", "-n", 5, "--epsilon", "1/255"],
        "prune": ["prune", "--config", "r.yml", "--density", 0.5],
        "finetune": ["finetune", "--config", "r.yml", "--lwm", "--density", 0.5],
        "train": ["train", "--config", "r.yml"],
    }[command]
    given = ["--arch", "cifar_model", "--dataset", "digits", "--normalization", "0.5/0.5", "--source-density", 1]
    result = run(*arguments, "--ckpt", trained, "--out", "run", *given)
    assert result.exit_code == 0, result.output
    wrong = run(*arguments, "--ckpt", trained, "--out", "run2", *given[:4], "--normalization", "127.5/127.5")
    assert (wrong.exit_code, wrong.output.count("\n")) == (1, 1)
    assert "divided by 255, give 0.5/0.5" in wrong.output
    if command in ("prune", "finetune", "train"):
        other = run(*arguments, "--ckpt", trained, "--out", "run3", *given[:4], "--normalization", "none")
        assert "normalises with None, recipe tiny with" in other.output


@pytest.mark.parametrize("command", ["attack", "certify"])
def test_what_is_missing_is_asked_for_by_an_option_that_the_command_has(run, trained, command):
    values = torch.load(trained, weights_only=False)
    torch.save(values["state_dict"], "bare.pt")
    given: list[str] = []
    for option, value in (("--arch", "cifar_model"), ("--dataset", "digits"), ("--normalization", "0.5/0.5")):
        result = run(command, "--ckpt", "bare.pt", "--epsilon", "1/255", "-n", 2, *given)
        assert (result.exit_code, result.output.count("\n")) == (1, 1), result.output
        first, *others = re.findall(r"--[a-z-]+", result.output)
        assert first == option
        assert {first, *others} <= set(re.findall(r"--[a-z-]+", run(command, "--help").output))
        given += [option, value]
