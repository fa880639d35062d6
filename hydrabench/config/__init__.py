"""Settings that more than one room reads: frozen models, checked once, at the boundary."""

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
from hydrabench.config.normalization import Normalization
from hydrabench.config.parsing import described, parse
from hydrabench.config.reuse import ReuseSettings
from hydrabench.config.smoothing import SmoothingSettings
from hydrabench.config.verified import AlphaCrownSettings, VerifiedSettings

__all__ = [
    "EVALUATIONS",
    "AlphaCrownSettings",
    "AutoAttackSettings",
    "CleanSettings",
    "DataRecipe",
    "Densities",
    "Density",
    "EvaluationSettings",
    "Normalization",
    "PgdSettings",
    "PseudoLabelRecipe",
    "Radius",
    "ReuseSettings",
    "SmoothingSettings",
    "VerifiedSettings",
    "at",
    "described",
    "doubt_of",
    "parse",
    "with_default_threat",
]
