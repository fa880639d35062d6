"""Field types that recipes and evaluation settings share: exact radii, densities, and the strict section."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    Tag,
    ValidationInfo,
    model_validator,
)
from pydantic.fields import FieldInfo

from hydrabench.errors import ConfigError, shortened
from hydrabench.threat import LARGEST_NOISE, parse_noise, parse_radius, radius_text, read_number


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


def _noise(value: object) -> object:
    """Read a noise level that is a text exactly, and explain a large one; all else is left to pydantic."""
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not read_number(value):
        return value
    try:
        sigma = parse_noise(value)
    except ConfigError as error:
        raise ValueError(str(error)) from error
    return float(sigma) if isinstance(value, str) else value


def _length(value: object) -> object:
    """Read a fraction such as 1/4; what is none is left to pydantic."""
    number = read_number(value) if isinstance(value, str) else None
    return value if number is None else float(number)


def _density(value: float) -> float:
    """Explain the commonest mistake: a density written as a percentage."""
    if not 0 < value <= 1:
        pruned = value if 1 < value < 100 else 99
        raise ValueError(
            f"is the fraction of weights kept, in (0, 1], got {value:g}; "
            f"to prune {pruned:g}% of the weights write `density: {round(1 - pruned / 100, 6):g}`"
        )
    return value


def _named(value: object) -> object:
    """Take numbers as layer names, too: YAML reads the names of a plain sequence as such."""
    return {str(name): density for name, density in value.items()} if isinstance(value, dict) else value


def _form(value: object) -> str:
    return BY_LAYER if isinstance(value, dict) else FOR_ALL


Radius = Annotated[Fraction, BeforeValidator(_radius), PlainSerializer(radius_text)]
Noise = Annotated[float, BeforeValidator(_noise), Field(gt=0, le=LARGEST_NOISE)]  # σ in pixel units
Length = Annotated[float, BeforeValidator(_length), Field(ge=0)]  # an L2 distance in pixel units
Density = Annotated[float, Field(allow_inf_nan=True), AfterValidator(_density)]
LARGEST, LARGEST_SEED = 10**9, 2**63 - 1  # of a number of images, samples, epochs, ...; of a seed, as JSON has it
FOR_ALL, BY_LAYER = "one density", "densities by layer"  # how errors tell the two forms of `Densities` apart
Densities = Annotated[
    Annotated[Density, Tag(FOR_ALL)] | Annotated[dict[str, Density], BeforeValidator(_named), Tag(BY_LAYER)],
    Discriminator(_form),
]


class Conflicts(ValueError):
    """Values of a section that do not go together. found: what is wrong, one text for each mistake."""

    def __init__(self, found: Sequence[str]) -> None:
        super().__init__("; ".join(found))
        self.found = tuple(found)


class Section(BaseModel):
    """Base of everything that is read from YAML: immutable, finite, and a misspelt key is an error.

    No number is larger than `LARGEST`, and no seed than `LARGEST_SEED`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def conflicts(self) -> Iterator[str]:
        """Yield what is wrong with values that are right one by one; each text names the keys that it is about."""
        yield from ()

    @model_validator(mode="before")
    @classmethod
    def _refuse_truth_values(cls, values: Any) -> Any:
        """`epochs: true` is no number, as pydantic has it."""
        given = values.items() if isinstance(values, dict) else ()
        fields = cls.model_fields
        if found := [key for key, value in given if isinstance(value, bool) and _is_number(fields.get(key))]:
            raise Conflicts([f"{key}: is a number, got {str(values[key]).lower()}" for key in found])
        return values

    @model_validator(mode="after")
    def _refuse_conflicts(self) -> Section:
        if found := [*self._too_large(), *self.conflicts()]:
            raise Conflicts(found)
        return self

    def _too_large(self) -> Iterator[str]:
        """Yield the numbers that would take longer than anybody waits, or more memory than there is."""
        for name, value in self:
            largest = LARGEST_SEED if name == "seed" else LARGEST
            if isinstance(value, int | float) and value > largest:
                yield f"{name}: is at most {largest:,}, got {shortened(value)}"

    def plain(self) -> dict[str, Any]:
        """Return all values as JSON has them, defaults included."""
        return self.model_dump(mode="json")


def _is_number(field: FieldInfo | None) -> bool:
    return field is not None and field.annotation in (int, float)
