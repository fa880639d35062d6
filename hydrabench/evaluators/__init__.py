"""Evaluators: a network and a block of images in, one frozen record per image out.

`EVALUATORS` holds a description of each, keyed by the `kind` of its settings; see `description.Evaluator`. To add one,
write a file with its settings, its function and its description, and add a line to `registry`; a plugin adds an entry
at run time. Importing this package imports no torch.
"""

from __future__ import annotations

from hydrabench.evaluators.apgd import ApgdSettings
from hydrabench.evaluators.autoattack_settings import AutoAttackSettings
from hydrabench.evaluators.clean import CleanSettings
from hydrabench.evaluators.corruptions import CorruptionSettings
from hydrabench.evaluators.description import (
    Computing,
    EvaluationSettings,
    Evaluator,
    Metric,
    Option,
    Ready,
    Sizes,
    at,
    said,
)
from hydrabench.evaluators.exact import ExactSettings
from hydrabench.evaluators.fab import FabSettings
from hydrabench.evaluators.fmn import FmnSettings
from hydrabench.evaluators.hydra import HydraSettings
from hydrabench.evaluators.pgd import PgdSettings
from hydrabench.evaluators.registry import (
    EVALUATORS,
    parse_settings,
    record_of,
    recorded_settings,
    with_default_threat,
)
from hydrabench.evaluators.reuse_settings import ReuseSettings
from hydrabench.evaluators.smooth_attack import SmoothAttackSettings
from hydrabench.evaluators.smoothing_settings import SmoothingSettings
from hydrabench.evaluators.square import SquareSettings
from hydrabench.evaluators.verified_settings import AlphaCrownSettings, VerifiedSettings

__all__ = [
    "EVALUATORS",
    "AlphaCrownSettings",
    "ApgdSettings",
    "AutoAttackSettings",
    "CleanSettings",
    "Computing",
    "CorruptionSettings",
    "EvaluationSettings",
    "Evaluator",
    "ExactSettings",
    "FabSettings",
    "FmnSettings",
    "HydraSettings",
    "Metric",
    "Option",
    "PgdSettings",
    "Ready",
    "ReuseSettings",
    "Sizes",
    "SmoothAttackSettings",
    "SmoothingSettings",
    "SquareSettings",
    "VerifiedSettings",
    "at",
    "parse_settings",
    "record_of",
    "recorded_settings",
    "said",
    "with_default_threat",
]
