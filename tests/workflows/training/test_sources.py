"""Train, prune and finetune start from every kind of checkpoint file, with the same result from each."""

from __future__ import annotations

import pytest
import torch

from hydrabench.checkpoints import EXPORTS, load_checkpoint, open_ref
from hydrabench.errors import CheckpointError
from hydrabench.workflows.training import commands as training

DENSE_FORMATS = ("dense", "compact", "hydra", "state-dict")


def exported(line_folder, kind, tmp_path):
    """The checkpoint of a run in another format; a plain state dict names no density, so only a dense one is taken."""
    path = tmp_path / f"source.{ {'hydra': 'pth.tar', 'state-dict': 'pt'}.get(kind, 'safetensors') }"
    EXPORTS[kind](open_ref(str(line_folder)), path)
    return str(path)


def tensors(folder):
    return load_checkpoint(folder / "checkpoint.safetensors").network.state_dict()


def test_training_starts_from_the_weights_it_is_given(line, make_recipe, cpu, tmp_path):
    """A step too small to change a float32 leaves the source's weights as they are."""
    still = make_recipe(train={"epochs": 1, "lr": 1e-30, "weight_decay": 0, "epsilon_ramp_epochs": 1})
    training.train(still, tmp_path / "again", options=cpu, ref=str(line.train))
    source, again = tensors(line.train), tensors(tmp_path / "again")
    weights = [key for key in source if "running" not in key and "tracked" not in key]
    assert len(weights) == 12
    assert all(torch.equal(source[key], again[key]) for key in weights)
    assert (
        load_checkpoint(tmp_path / "again" / "checkpoint.safetensors").header.parent == open_ref(str(line.train)).sha256
    )


@pytest.mark.parametrize("kind", DENSE_FORMATS)
def test_every_phase_takes_every_format_of_a_dense_network(line, make_recipe, cpu, tmp_path, kind):
    recipe = make_recipe(
        train={"epochs": 1, "epsilon_ramp_epochs": 1},
        prune={"epochs": 1, "density": 0.1},
        finetune={"epochs": 1, "density": 0.1},
    )
    results = []
    for source in (str(line.train), exported(line.train, kind, tmp_path)):
        folder = tmp_path / f"runs-{len(results)}"
        training.train(recipe, folder / "train", options=cpu, ref=source)
        training.prune(recipe, source, folder / "prune", options=cpu)
        training.finetune(recipe, source, folder / "lwm", options=cpu, lwm=True)
        results.append([tensors(folder / phase) for phase in ("train", "prune", "lwm")])
    for first, second in zip(*results, strict=True):
        assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())


@pytest.mark.parametrize("kind", ["dense", "masked", "compact", "hydra"])
def test_finetuning_takes_every_format_of_a_pruned_network(line, make_recipe, cpu, tmp_path, kind):
    recipe = make_recipe(finetune={"epochs": 1})
    training.finetune(recipe, exported(line.finetune, kind, tmp_path), tmp_path / "run", options=cpu)
    before, after = tensors(line.finetune), tensors(tmp_path / "run")
    weights = [key for key in before if before[key].ndim in (2, 4)]
    assert len(weights) == 4
    for key in weights:
        assert torch.equal(before[key] != 0, after[key] != 0)


def test_training_does_not_fill_the_zeros_of_a_pruned_network(line, make_recipe, cpu, tmp_path):
    with pytest.raises(CheckpointError, match="is pruned, and `train` would fill its zeros; use `hydrabench finetune`"):
        training.train(make_recipe(), tmp_path / "run", options=cpu, ref=str(line.finetune))
    assert not (tmp_path / "run").exists()
