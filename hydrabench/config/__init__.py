"""Recipes and evaluation settings: frozen models, checked once, at the boundary."""

from hydrabench.config.data import DataRecipe, PseudoLabelRecipe
from hydrabench.config.evaluation import (
    EVALUATIONS,
    AutoAttackSettings,
    CleanSettings,
    EvaluationSettings,
    PgdSettings,
    at,
    doubt_of,
    with_default_threat,
)
from hydrabench.config.fields import Densities, Density, Radius
from hydrabench.config.loading import load_recipe, parse
from hydrabench.config.objectives import (
    OBJECTIVE_SETTINGS,
    CrownIbpObjective,
    FreeObjective,
    IbpObjective,
    MixtrainObjective,
    NaturalObjective,
    Objective,
    PgdObjective,
    StabilityObjective,
    TradesObjective,
)
from hydrabench.config.phases import BudgetRecipe, FinetuneRecipe, PhaseRecipe, PruneRecipe, Scores, TrainRecipe
from hydrabench.config.recipe import (
    ModelRecipe,
    Normalization,
    PipelineRecipe,
    Recipe,
    SectionName,
    sha256_of_values,
)
from hydrabench.config.reuse import ReuseSettings
from hydrabench.config.smoothing import SmoothingSettings
from hydrabench.config.verified import AlphaCrownSettings, VerifiedSettings

__all__ = [
    "EVALUATIONS",
    "OBJECTIVE_SETTINGS",
    "AlphaCrownSettings",
    "AutoAttackSettings",
    "BudgetRecipe",
    "CleanSettings",
    "CrownIbpObjective",
    "DataRecipe",
    "Densities",
    "Density",
    "EvaluationSettings",
    "FinetuneRecipe",
    "FreeObjective",
    "IbpObjective",
    "MixtrainObjective",
    "ModelRecipe",
    "NaturalObjective",
    "Normalization",
    "Objective",
    "PgdObjective",
    "PgdSettings",
    "PhaseRecipe",
    "PipelineRecipe",
    "PruneRecipe",
    "PseudoLabelRecipe",
    "Radius",
    "Recipe",
    "ReuseSettings",
    "Scores",
    "SectionName",
    "SmoothingSettings",
    "StabilityObjective",
    "TradesObjective",
    "TrainRecipe",
    "VerifiedSettings",
    "at",
    "doubt_of",
    "load_recipe",
    "parse",
    "sha256_of_values",
    "with_default_threat",
]
