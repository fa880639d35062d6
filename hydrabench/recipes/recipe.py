"""Recipes: one experiment, from data to leaderboard; the field names are the YAML keys."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from hydrabench.config import DataRecipe, Density, Normalization
from hydrabench.config.fields import Section
from hydrabench.data import DATASETS
from hydrabench.errors import ConfigError
from hydrabench.evaluators import with_default_threat
from hydrabench.models import MODELS
from hydrabench.models.own_code import is_code, short_spec
from hydrabench.objectives import ObjectiveSettings
from hydrabench.recipes.choice import ArchitectureName, DataSetName, EvaluationSection, ObjectiveSection
from hydrabench.recipes.phases import FinetuneRecipe, PhaseRecipe, PruneRecipe, TrainRecipe

SectionName = Literal["train", "prune", "finetune"]


class ModelRecipe(Section):
    """The `model:` section. Classes and image size come from the data set.

    `arch` may name code of the user's own, "mynet.py:build" (a file relative to the recipe), which gets `args`.
    """

    arch: ArchitectureName
    normalization: Normalization | None = None
    args: dict[str, Any] = Field(default_factory=dict)

    def conflicts(self) -> Iterator[str]:
        """Yield what does not fit: arguments are for code."""
        if self.args and not is_code(self.arch):
            yield f"args are for code of your own, and {self.arch} is built in; leave them out"

    def recorded(self) -> dict[str, Any]:
        """The section as plain values, without the folder in which code lies."""
        return {**self.plain(), "arch": short_spec(self.arch)}


class DataSection(DataRecipe):
    """The `data:` section of a recipe, whose data sets must be known."""

    name: DataSetName
    test: DataSetName | None = None

    def recorded(self) -> dict[str, Any]:
        """The section as plain values, without the test images, which no phase sees."""
        return {key: value for key, value in self.plain().items() if key != "test"}


class PipelineRecipe(Section):
    """The `pipeline:` section: which pruned networks to make beside the dense one."""

    densities: tuple[Density, ...] = (0.1, 0.05, 0.01)
    lwm: bool = True  # also the least-weight-magnitude twin of each


class Recipe(Section):
    """One experiment, from data to leaderboard."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    seed: NonNegativeInt = 0
    model: ModelRecipe | None = None  # None: that of --ckpt or --model
    data: DataSection
    objective: ObjectiveSection
    train: TrainRecipe | None = None
    prune: PruneRecipe | None = None
    finetune: FinetuneRecipe | None = None
    pipeline: PipelineRecipe = PipelineRecipe()
    evaluate: tuple[EvaluationSection, ...] = ()
    plugins: tuple[str, ...] = ()  # Python files that add to what can be chosen, see `hydrabench.plugins`
    evaluate_images: PositiveInt | None = None  # first n test images; None: all

    def conflicts(self) -> Iterator[str]:
        """Yield what does not fit: other test images of a known data set; an architecture for other images than its."""
        dataset = DATASETS.get(self.data.name)
        if dataset is not None and self.data.test is not None:
            yield f"data.test: {self.data.name} has test images of its own; leave it out"
        if dataset is None or self.model is None or is_code(self.model.arch):
            return
        if misfit := MODELS[self.model.arch].misfit(dataset.shape, dataset.num_classes):
            yield f"model.arch: {self.model.arch} {misfit} from {self.data.name}; change one of the two"

    @model_validator(mode="before")
    @classmethod
    def inherit_threat(cls, values: Any) -> Any:
        """An `evaluate:` entry without a radius, or noise level, gets the objective's."""
        if not isinstance(values, dict) or not isinstance(values.get("objective"), dict):
            return values
        objective, entries = values["objective"], values.get("evaluate")
        if not isinstance(entries, list | tuple):
            return values
        return {**values, "evaluate": [with_default_threat(entry, objective) for entry in entries]}

    @field_validator("evaluate_images", mode="before")
    @classmethod
    def all_images(cls, value: object) -> object:
        """Allow the word "all"."""
        return None if value == "all" else value

    def objective_of(self, section: SectionName) -> ObjectiveSettings:
        """Return what a phase trains: its own objective if it has one, else the recipe's."""
        phase: PhaseRecipe | None = getattr(self, section)
        return self.objective if phase is None or phase.objective is None else phase.objective

    def network(self) -> ModelRecipe:
        """Return its `model:` section. Raises: ConfigError if it has none."""
        if self.model is None:
            raise ConfigError(
                f"recipe {self.name} has no `model:` section; add one, such as `model: {{arch: cifar_model}}`, or "
                "start from a network with --ckpt or --model"
            )
        return self.model

    def of_phase(self, section: SectionName) -> dict[str, Any]:
        """Return what one phase depends on, as plain values: the other phases and the evaluations are left out."""
        phase: PhaseRecipe | None = getattr(self, section)
        return {
            "name": self.name,
            "seed": self.seed,
            "model": self.model.recorded() if self.model else None,
            "data": self.data.recorded(),
            "objective": self.objective_of(section).plain(),
            section: phase.model_copy(update={"objective": None}).plain() if phase else None,
        }


def sha256_of_values(values: dict[str, Any]) -> str:
    """Hash of plain values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
