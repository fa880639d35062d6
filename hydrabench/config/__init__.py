"""Settings that more than one room reads: frozen models, checked once, at the boundary."""

from hydrabench.config.data import DataRecipe, PseudoLabelRecipe
from hydrabench.config.fields import Densities, Density, Radius
from hydrabench.config.normalization import Normalization
from hydrabench.config.parsing import described, parse

__all__ = [
    "DataRecipe",
    "Densities",
    "Density",
    "Normalization",
    "PseudoLabelRecipe",
    "Radius",
    "described",
    "parse",
]
