"""Field types that recipes and evaluation settings share: exact radii, densities, and the strict section."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, PlainSerializer, ValidationInfo

from hydrabench.errors import ConfigError
from hydrabench.threat import parse_radius, radius_text


def _radius(value: object, info: ValidationInfo) -> Fraction:
    """Read a radius, in the norm that was declared before it if there is one."""
    if isinstance(value, Fraction):
        return value
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"is a radius in pixel units such as 8/255, got {value!r}")
    try:
        return parse_radius(value, norm=(info.data or {}).get("norm", "linf"))
    except ConfigError as error:
        raise ValueError(str(error)) from error


def _density(value: float) -> float:
    """Explain the commonest mistake: a density written as a percentage."""
    if not 0 < value <= 1:
        pruned = value if 1 < value < 100 else 99
        raise ValueError(
            f"is the fraction of weights kept, in (0, 1], got {value:g}; "
            f"to prune {pruned:g}% of the weights write `density: {round(1 - pruned / 100, 6):g}`"
        )
    return value


Radius = Annotated[Fraction, BeforeValidator(_radius), PlainSerializer(radius_text)]
Density = Annotated[float, AfterValidator(_density)]
Channels = tuple[float, ...]


class Section(BaseModel):
    """Base of everything that is read from YAML: immutable, and a misspelt key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
