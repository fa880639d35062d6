"""Randomized smoothing (Cohen et al. 2019): counting votes under noise, and what they certify."""

from hydrabench.smoothing.confidence import certified_radius, clopper_pearson_lower, prediction_p_value
from hydrabench.smoothing.discrete import slack
from hydrabench.smoothing.noise import CHUNK, NoiseSource, are_grey_levels
from hydrabench.smoothing.reuse import SHARE, LostVotes
from hydrabench.smoothing.rules import RULES, rule_of
from hydrabench.smoothing.sampling import Draws, Routine, Sampling, class_counts, collect
from hydrabench.smoothing.sequential import FixedSize, Plan, Rule

__all__ = [
    "CHUNK",
    "RULES",
    "SHARE",
    "Draws",
    "FixedSize",
    "LostVotes",
    "NoiseSource",
    "Plan",
    "Routine",
    "Rule",
    "Sampling",
    "are_grey_levels",
    "certified_radius",
    "class_counts",
    "clopper_pearson_lower",
    "collect",
    "prediction_p_value",
    "rule_of",
    "slack",
]
