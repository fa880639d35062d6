"""Randomized smoothing (Cohen et al. 2019): counting votes under noise, and what they certify."""

from hydrabench.smoothing.confidence import certified_radius, clopper_pearson_lower
from hydrabench.smoothing.sampling import CHUNK, class_counts

__all__ = ["CHUNK", "certified_radius", "class_counts", "clopper_pearson_lower"]
