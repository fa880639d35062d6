"""Recipes and evaluation settings: frozen models, checked once, at the boundary."""

from hydrabench.config.evaluation import (
    AutoAttackSettings,
    CleanSettings,
    EvaluationSettings,
    PgdSettings,
    SmoothingSettings,
    VerifiedSettings,
    with_default_threat,
)
from hydrabench.config.fields import Density, Radius
from hydrabench.config.loading import load_recipe, parse
from hydrabench.config.recipe import (
    CrownIbpObjective,
    DataRecipe,
    FinetuneRecipe,
    ModelRecipe,
    NaturalObjective,
    Normalization,
    Objective,
    PhaseRecipe,
    PipelineRecipe,
    PruneRecipe,
    Recipe,
    TradesObjective,
    TrainRecipe,
    sha256_of_values,
)

__all__ = [
    "AutoAttackSettings",
    "CleanSettings",
    "CrownIbpObjective",
    "DataRecipe",
    "Density",
    "EvaluationSettings",
    "FinetuneRecipe",
    "ModelRecipe",
    "NaturalObjective",
    "Normalization",
    "Objective",
    "PgdSettings",
    "PhaseRecipe",
    "PipelineRecipe",
    "PruneRecipe",
    "Radius",
    "Recipe",
    "SmoothingSettings",
    "TradesObjective",
    "TrainRecipe",
    "VerifiedSettings",
    "load_recipe",
    "parse",
    "sha256_of_values",
    "with_default_threat",
]
