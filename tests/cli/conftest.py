"""Commands run in a folder of their own, and checkpoints written by hand."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result

from hydrabench.checkpoints import BestEpoch, Header, save_checkpoint, state_of
from hydrabench.cli import main
from hydrabench.data import DATASETS
from hydrabench.masking import attach_masks, bake_masks
from hydrabench.models import build_model

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "model": {"arch": "cifar_model"},
    "data": {"name": "digits", "validation_fraction": 0.2},
    "objective": {"name": "natural"},
    "train": {"epochs": 2, "batch_size": 64, "optimizer": "adam", "lr": 0.01},
    "prune": {"epochs": 1, "batch_size": 256, "optimizer": "adam", "lr": 0.01},
    "finetune": {"epochs": 1, "batch_size": 256, "optimizer": "adam", "lr": 0.01},
    "pipeline": {"densities": [0.1], "lwm": False},
    "evaluate": [{"kind": "clean"}],
    "evaluate_images": 20,
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def hydrabench(here: Path) -> Callable[..., Result]:
    """Run one command in the empty folder; a traceback fails the test."""

    def run(*arguments: object) -> Result:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture(scope="session")
def write_recipe() -> Callable[..., Path]:
    def write(path: Path, **changes: Any) -> Path:
        """Write the tiny recipe with other values for some keys; None leaves a key out."""
        values = {key: value for key, value in {**RECIPE, **changes}.items() if value is not None}
        path.write_text(yaml.safe_dump(values))
        return path

    return write


@pytest.fixture(scope="session")
def write_checkpoint() -> Callable[..., Path]:
    def write(
        path: Path, *, arch: str = "cifar_model", dataset: str = "digits", density: float = 1.0, edit: Any = None
    ) -> Path:
        """Write a checkpoint with random weights, trained (it says) by TRADES at 8/255; `edit` alters its tensors."""
        known = DATASETS[dataset]
        network = build_model(arch, known.shape, known.num_classes, generator=torch.Generator().manual_seed(3))
        if density < 1:
            attach_masks(network, density)
            bake_masks(network)
        state = state_of(network)
        if edit is not None:
            edit(state)
        header = {
            "layout": "dense",
            "phase": "train" if density == 1 else "finetune",
            "arch": arch,
            "dataset": dataset,
            "shape": known.shape,
            "num_classes": known.num_classes,
            "normalization": None,
            "density": density,
            "objective": {"name": "trades", "epsilon": "8/255"},
            "recipe": "by-hand",
            "recipe_sha256": "0" * 64,
            "seed": 0,
            "selection": BestEpoch(split="validation", images=1, metric="robust_accuracy", value=0.5, epoch=1),
            "parent": None,
        }
        save_checkpoint(path, state, Header.model_validate(header))
        return path

    return write


@pytest.fixture
def recipe(here, write_recipe):
    return write_recipe(here / "recipe.yml")


@pytest.fixture
def dense(here, write_checkpoint):
    return write_checkpoint(here / "dense.safetensors")


@pytest.fixture
def listing(here):
    """() -> everything below the folder of the test, hidden files included."""
    return lambda: {str(path): path.read_bytes() if path.is_file() else b"" for path in here.rglob("*")}


@pytest.fixture
def refused(hydrabench, listing):
    """Run a command that must fail with one line that matches, and change nothing."""

    def check(message, *arguments):
        before = listing()
        result = hydrabench(*arguments)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1, result.stderr
        assert re.search(message, result.stderr), result.stderr
        assert listing() == before
        return result.stderr

    return check
