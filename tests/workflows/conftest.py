"""A recipe that trains in a fraction of a second on the real digits, and one finished run of each of its phases."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hydrabench.recipes import Recipe
from hydrabench.workflows.run_options import RunOptions
from hydrabench.workflows.training import commands as training

CPU = RunOptions(device="cpu")
RECIPE: dict[str, Any] = {
    "name": "tiny",
    "model": {"arch": "cifar_model_bn"},
    "data": {"name": "digits", "crop_padding": 1, "validation_fraction": 0.2},
    "objective": {"name": "trades", "epsilon": "8/255", "steps": 1},
    "train": {"epochs": 3, "batch_size": 256, "optimizer": "adam", "lr": 0.01, "epsilon_ramp_epochs": 3},
    "prune": {"epochs": 2, "batch_size": 256, "lr": 0.1},
    "finetune": {"epochs": 2, "batch_size": 256, "lr": 0.01},
    "pipeline": {"densities": [0.1]},
    "evaluate": [{"kind": "pgd", "steps": 3}, {"kind": "crown-ibp", "epsilon": "1/255"}],
    "evaluate_images": 120,
}


def make_recipe(**changes: Any) -> Recipe:
    """The tiny recipe with changes: those of data, train, prune and finetune are merged into the section, others
    replace it."""
    values = dict(RECIPE)
    for key, value in changes.items():
        merges = key in ("data", "train", "prune", "finetune") and isinstance(value, dict)
        values[key] = {**RECIPE[key], **value} if merges else value
    return Recipe.model_validate(values)


@dataclass(frozen=True)
class Line:
    """The run folders of one recipe's phases: dense, pruned to a tenth, finetuned, and the LWM twin."""

    train: Path
    prune: Path
    finetune: Path
    lwm: Path


@pytest.fixture(name="make_recipe", scope="session")
def make_recipe_fixture() -> Callable[..., Recipe]:
    return make_recipe


@pytest.fixture(scope="session")
def cpu() -> RunOptions:
    return CPU


@pytest.fixture(scope="session")
def line(tmp_path_factory: pytest.TempPathFactory) -> Line:
    root = tmp_path_factory.mktemp("line")
    folders = Line(root / "train", root / "prune", root / "finetune", root / "lwm")
    training.train(make_recipe(), folders.train, options=CPU)
    training.prune(make_recipe(prune={"density": 0.1}), str(folders.train), folders.prune, options=CPU)
    training.finetune(make_recipe(), str(folders.prune), folders.finetune, options=CPU)
    lwm = make_recipe(finetune={"density": 0.1})
    training.finetune(lwm, str(folders.train), folders.lwm, options=CPU, lwm=True)
    return folders


@pytest.fixture(scope="session")
def comparable() -> Callable[[Path], list[dict[str, Any]]]:
    """The records of a run folder without their times."""

    def read(folder: Path) -> list[dict[str, Any]]:
        lines = (folder / "records.jsonl").read_text().splitlines()
        return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]

    return read
