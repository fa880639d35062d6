"""Recipes: one experiment, from data to leaderboard; the field names are the YAML keys."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from hydrabench.config.evaluation import EvaluationSettings, with_default_threat
from hydrabench.config.fields import Density, Radius, Section
from hydrabench.threat import Norm


class Normalization(Section):
    """Per-channel mean and standard deviation that the model subtracts and divides by in its first layer."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @model_validator(mode="after")
    def fit_together(self) -> Normalization:
        """Refuse zero deviations and unequal lengths."""
        if len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise ValueError(f"needs one mean and one positive std per channel, got {self.mean} and {self.std}")
        return self


class ModelRecipe(Section):
    """The `model:` section. Classes and image size come from the data set."""

    arch: str
    normalization: Normalization | None = None


class DataRecipe(Section):
    """The `data:` section: which images, how they are augmented, how many are held out for selection."""

    name: str
    crop_padding: NonNegativeInt = 0  # random crops of the zero-padded image
    flip: bool = False  # random horizontal flips
    validation_fraction: float = Field(0.1, gt=0, le=0.5)


class NaturalObjective(Section):
    """Cross entropy on clean images."""

    name: Literal["natural"]


class TradesObjective(Section):
    """TRADES (Zhang et al. 2019): cross entropy + beta · KL(clean ‖ adversarial)."""

    name: Literal["trades"]
    norm: Norm = "linf"
    epsilon: Radius
    beta: NonNegativeFloat = 6.0
    steps: PositiveInt = 10
    step_size: Radius | None = None  # None: a quarter of epsilon


class CrownIbpObjective(Section):
    """CROWN-IBP (Zhang et al. 2020): cross entropy of the lower bounds, from CROWN-IBP to `beta_end` of it.

    `beta_end` 0 ends in plain IBP, 1 stays with CROWN-IBP.
    """

    name: Literal["crown-ibp"]
    epsilon: Radius
    beta_end: float = Field(0.0, ge=0, le=1)


Objective = Annotated[NaturalObjective | TradesObjective | CrownIbpObjective, Field(discriminator="name")]


class PhaseRecipe(Section):
    """What the three phases have in common."""

    epochs: PositiveInt
    batch_size: PositiveInt = 128
    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: PositiveFloat
    weight_decay: NonNegativeFloat = 1e-4
    momentum: float = Field(0.9, ge=0, lt=1)  # of sgd; adam ignores it
    schedule: Literal["cosine", "constant"] = "cosine"
    epsilon_ramp_epochs: PositiveInt = 1  # the radius grows linearly over these; 1: full from the first step

    @model_validator(mode="after")
    def ramp_fits(self) -> PhaseRecipe:
        """The ramp must leave at least its last epoch at the full radius."""
        if self.epsilon_ramp_epochs > self.epochs:
            raise ValueError(f"epsilon_ramp_epochs {self.epsilon_ramp_epochs} exceeds epochs {self.epochs}")
        return self


class TrainRecipe(PhaseRecipe):
    """The `train:` section."""


class PruneRecipe(PhaseRecipe):
    """The `prune:` section."""

    density: Density | None = None  # k: fraction of weights kept in every layer; `--density` overrides
    freeze_batch_norm: bool = False


class FinetuneRecipe(PhaseRecipe):
    """The `finetune:` section."""

    density: Density | None = None  # for `--lwm` only: fraction kept by magnitude


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
    def inherit_epsilon(cls, values: Any) -> Any:
        """An `evaluate:` entry without a radius gets the objective's."""
        if not isinstance(values, dict) or not isinstance(values.get("objective"), dict):
            return values
        objective, entries = values["objective"], values.get("evaluate")
        if "epsilon" not in objective or not isinstance(entries, list | tuple):
            return values
        return {**values, "evaluate": [with_default_threat(entry, objective) for entry in entries]}

    @field_validator("evaluate_images", mode="before")
    @classmethod
    def all_images(cls, value: object) -> object:
        """Allow the word "all"."""
        return None if value == "all" else value

    def of_phase(self, section: Literal["train", "prune", "finetune"]) -> dict[str, Any]:
        """What one phase depends on, as plain values: the other phases and the evaluations are left out."""
        return self.model_dump(mode="json", include={"name", "seed", "model", "data", "objective", section})


def sha256_of_values(values: dict[str, Any]) -> str:
    """Hash of plain values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
