"""Recipes: one experiment, from data to leaderboard; the field names are the YAML keys."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from math import isfinite
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from hydrabench.config.data import DataRecipe
from hydrabench.config.evaluation import EvaluationSettings, with_default_threat
from hydrabench.config.fields import Density, Section
from hydrabench.config.objectives import Objective
from hydrabench.config.phases import FinetuneRecipe, PhaseRecipe, PruneRecipe, TrainRecipe

SectionName = Literal["train", "prune", "finetune"]


class Normalization(Section):
    """Per-channel mean and standard deviation that the model subtracts and divides by in its first layer."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def conflicts(self) -> Iterator[str]:
        """Yield what does not fit: values that are not finite, zero deviations, unequal lengths, grey levels."""
        values = (*self.mean, *self.std)
        if len(self.mean) != len(self.std) or not all(map(isfinite, values)) or min(self.std, default=0) <= 0:
            yield f"needs one finite mean and one finite positive std per channel, got {self.mean} and {self.std}"
        elif max(map(abs, values)) > 1:
            mean, std = ([round(value / 255, 4) for value in side] for side in (self.mean, self.std))
            yield f"is in grey levels, images are in [0, 1]; divided by 255: mean {mean}, std {std}"


class ModelRecipe(Section):
    """The `model:` section. Classes and image size come from the data set."""

    arch: str
    normalization: Normalization | None = None


class PipelineRecipe(Section):
    """The `pipeline:` section: which pruned networks to make beside the dense one."""

    densities: tuple[Density, ...] = (0.1, 0.05, 0.01)
    lwm: bool = True  # also the least-weight-magnitude twin of each


class Recipe(Section):
    """One experiment, from data to leaderboard."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    seed: NonNegativeInt = 0
    model: ModelRecipe
    data: DataRecipe
    objective: Objective
    train: TrainRecipe
    prune: PruneRecipe | None = None
    finetune: FinetuneRecipe | None = None
    pipeline: PipelineRecipe = PipelineRecipe()
    evaluate: tuple[EvaluationSettings, ...] = ()
    evaluate_images: PositiveInt | None = None  # first n test images; None: all

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

    def objective_of(self, section: SectionName) -> Objective:
        """What a phase trains: its own objective if it has one, else the recipe's."""
        phase: PhaseRecipe | None = getattr(self, section)
        return self.objective if phase is None or phase.objective is None else phase.objective

    def of_phase(self, section: SectionName) -> dict[str, Any]:
        """What one phase depends on, as plain values: the other phases and the evaluations are left out."""
        phase: PhaseRecipe | None = getattr(self, section)
        return {
            "name": self.name,
            "seed": self.seed,
            "model": self.model.plain(),
            "data": self.data.plain(),
            "objective": self.objective_of(section).plain(),
            section: phase.model_copy(update={"objective": None}).plain() if phase else None,
        }


def sha256_of_values(values: dict[str, Any]) -> str:
    """Hash of plain values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
