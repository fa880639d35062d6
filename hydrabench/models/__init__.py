"""Architectures: plain torch.nn modules that know nothing about masks or phases."""

from hydrabench.models.normalize import Normalize, inner_network, normalized
from hydrabench.models.registry import MODELS, Architecture, build_model

__all__ = ["MODELS", "Architecture", "Normalize", "build_model", "inner_network", "normalized"]
