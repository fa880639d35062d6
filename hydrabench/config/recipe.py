"""Recipes: one experiment, from data to leaderboard; the field names are the YAML keys."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, ClassVar, Literal

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
from hydrabench.config.fields import Densities, Density, Radius, Section
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


# How importance scores start: the keys of `SCORE_INITS` in hydrabench.masking.
Scores = Literal["scaled", "kaiming_normal", "kaiming_uniform", "xavier_normal", "xavier_uniform", "snip"]


class PhaseRecipe(Section):
    """What the three phases have in common.

    Keys in `added` came after the first checkpoints. Where they have their defaults they are left out of what a phase
    depends on, so that hashes and runs from before them still agree.
    """

    added: ClassVar[tuple[str, ...]] = ()

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


class BudgetRecipe(PhaseRecipe):
    """A phase that may choose which weights to keep.

    `scope: layer` gives every layer the density, or its own if `density` is a mapping from layer names;
    `scope: global` gives all layers one budget together.
    """

    added: ClassVar[tuple[str, ...]] = ("scope",)

    density: Densities | None = None  # k: fraction of weights kept
    scope: Literal["layer", "global"] = "layer"

    @model_validator(mode="after")
    def scope_fits(self) -> BudgetRecipe:
        """A global budget is one number."""
        if self.scope == "global" and isinstance(self.density, dict):
            raise ValueError("scope global takes one density for all layers together, not one for each layer")
        return self


class TrainRecipe(BudgetRecipe):
    """The `train:` section. Below density 1 a sparse network is trained from scratch, with a mask that stays."""

    added: ClassVar[tuple[str, ...]] = ("density", "scope", "scores", "rescale_weights")

    density: Densities = 1.0
    scores: Scores = "snip"  # what chooses the mask; snip looks at one batch, random scores give a random mask
    rescale_weights: bool = False  # multiply the initial weights by 1 / sqrt(density)


class PruneRecipe(BudgetRecipe):
    """The `prune:` section. `--density` overrides the density."""

    added: ClassVar[tuple[str, ...]] = ("scope", "scores")

    scores: Scores = "scaled"
    freeze_batch_norm: bool = False


class FinetuneRecipe(BudgetRecipe):
    """The `finetune:` section. Its density and scope are for `--lwm` only, which keeps by scaled magnitude."""


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
        values = self.model_dump(mode="json", include={"name", "seed", "model", "data", "objective", section})
        phase: PhaseRecipe | None = getattr(self, section)
        if phase is not None:
            fields = type(phase).model_fields
            for key in phase.added:
                if getattr(phase, key) == fields[key].default:
                    del values[section][key]
        return values


def sha256_of_values(values: dict[str, Any]) -> str:
    """Hash of plain values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
