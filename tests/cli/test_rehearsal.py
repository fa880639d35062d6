"""A mistake in an objective of one's own shows before the first epoch; validation shows how far it has come."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hydrabench.data import ImageSet
from hydrabench.objectives import OBJECTIVES
from hydrabench.runtime import World
from hydrabench.workflows.training import validation
from hydrabench.workflows.training.validation import rehearse, validate

SQUEEZE = """
from pathlib import Path
from typing import Literal

from torch.nn.functional import cross_entropy

from hydrabench.objectives import OBJECTIVES, TRAINING, Objective, ObjectiveSettings, StepLoss
from hydrabench.objectives.pgd import pgd_verdicts


class Settings(ObjectiveSettings):
    name: Literal["squeeze_without_radius"]


def loss(network, x, y, settings, step):
    Path("a step was made").touch()
    return StepLoss(cross_entropy(network(x), y), network(x))


OBJECTIVES["squeeze_without_radius"] = Objective(
    Settings, loss, pgd_verdicts, "robust_accuracy", lambda settings, work: TRAINING
)
"""


@pytest.fixture
def plugin(here):
    (here / "squeeze.py").write_text(SQUEEZE)
    yield here / "squeeze.py"
    OBJECTIVES.pop("squeeze_without_radius", None)


def test_verdicts_that_fail_do_so_before_a_step_is_made(here, hydrabench, write_recipe, plugin):
    recipe = write_recipe(here / "recipe.yml", objective={"name": "squeeze_without_radius"})
    with pytest.raises(AttributeError, match="step_size"):
        hydrabench("train", "--config", recipe, "--plugin", plugin, "--out", "run")
    assert not (here / "a step was made").exists()


@pytest.fixture
def images():
    x = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageSet("five", "validation", x, torch.arange(5) % 3, 3)


def settings(name):
    return OBJECTIVES[name].settings.model_validate({"name": name, "epsilon": "8/255"})


def test_validation_tells_how_many_images_are_done(images, monkeypatch):
    monkeypatch.setattr(validation, "LARGEST_BATCH", 2)
    network, told = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), []
    named = {"seed": 0, "device": torch.device("cpu"), "world": World()}
    alone = validate(network, images, settings("pgd"), **named)
    assert validate(network, images, settings("pgd"), tell=told.append, **named) == alone
    assert told == [f"{count} of 5 held-out images" for count in (2, 4, 5)]


def test_a_rehearsal_changes_nothing_that_training_draws_or_holds(images):
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 3))
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    drawn = torch.random.get_rng_state()
    rehearse(network, images, settings("pgd"), torch.device("cpu"))
    assert torch.equal(drawn, torch.random.get_rng_state())
    assert all(torch.equal(before[key], tensor) for key, tensor in network.state_dict().items())
