"""Settings of randomized smoothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from statistics import NormalDist
from typing import Any, Literal

from pydantic import (
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from hydrabench.config.fields import Length, Noise
from hydrabench.config.protocol import unless
from hydrabench.evaluators.description import EvaluationSettings

Mode = Literal["cohen", "curtailed", "adaptive", "betting", "predict"]
SEQUENTIAL = ("curtailed", "adaptive", "betting")
DEFAULT_RADII = (0.0, 0.25, 0.5, 0.75)
GRID_STEP = 0.25


class SmoothingSettings(EvaluationSettings):
    """Randomized smoothing as in Cohen et al. (2019): selection with `n0`, estimation with up to `samples` draws.

    mode: when to stop drawing, see `smoothing.sequential`; "predict" predicts with abstention and certifies no
    radius. rigor: "discrete" draws integer noise, see `smoothing.discrete`. label_aware: stop after the selection
    if it picked another class than the label, for which no radius counts. version: of the protocol; 1 seeds random
    streams in another way, see `runtime.stream`; 3 is mode adaptive with exact boundaries, see `smoothing.rules`.
    """

    kind: Literal["smoothing"] = "smoothing"
    mode: Mode = "cohen"
    sigma: Noise = 0.25
    n0: PositiveInt = 100
    samples: PositiveInt = 100_000
    alpha: float = Field(0.001, gt=0, lt=1)
    radii: tuple[Length, ...] = DEFAULT_RADII
    seed: NonNegativeInt = 0
    rigor: Literal["standard", "discrete"] = "standard"
    label_aware: bool = False
    version: Literal[1, 2, 3] = 2

    model_config = ConfigDict(allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def newest(cls, values: Any) -> Any:
        """Give mode adaptive its newest version, unless a ledger says which one it had."""
        if isinstance(values, dict) and values.get("mode") == "adaptive":
            return {"version": 3, **values}
        return values

    @field_validator("radii", mode="before")
    @classmethod
    def grid(cls, value: Any, info: ValidationInfo) -> Any:
        """Turn "auto" into 0, 0.25, 0.5, ... up to the largest radius that can be certified."""
        if value not in ("auto", ["auto"]):
            return value
        if not {"mode", "sigma", "samples", "alpha"} <= info.data.keys():
            return DEFAULT_RADII  # another setting is wrong, which is reported
        largest = largest_radius(**{name: info.data[name] for name in ("mode", "sigma", "samples", "alpha")})
        return tuple(GRID_STEP * step for step in range(int(largest / GRID_STEP) + 1))

    @field_validator("radii")
    @classmethod
    def ascending(cls, radii: tuple[float, ...]) -> tuple[float, ...]:
        """One order, so that equal grids are one protocol, and no radius twice, which would be one metric twice."""
        if any(smaller >= larger for smaller, larger in pairwise(radii)):
            raise ValueError(f"ascend and differ, got {', '.join(f'{r:g}' for r in radii)}; sort them, each once")
        return radii

    def conflicts(self) -> Iterator[str]:
        """Yield what the mode cannot use."""
        if self.mode in SEQUENTIAL and not self.radii:
            yield f"mode {self.mode} stops when the radii are settled; give at least one, or `radii: auto`"
        if self.version > 2 and self.mode != "adaptive":
            yield f"mode {self.mode} has no version {self.version}; versions are 1 and 2"
        if self.label_aware and self.mode not in SEQUENTIAL:
            yield f"label_aware needs mode {', '.join(SEQUENTIAL)}; mode {self.mode} draws all its samples"

    @property
    def streams(self) -> int:
        """The version of random streams, see `runtime.stream`."""
        return min(self.version, 2)

    @property
    def protocol(self) -> str:
        """`smoothing-cohen@2` is N0 = 100, N = 100,000, alpha = 0.001, seed 0; whatever differs is spelt out.

        So are radii other than the default where the draws, and with them all numbers, depend on them.
        """
        spelt = "-discrete" if self.rigor == "discrete" else ""
        spelt += "-label-aware" if self.label_aware else ""
        spelt += unless(100, "n0_", self.n0) + unless(100_000, "n", self.samples) + unless(0.001, "a", self.alpha)
        spelt += f"-r{radii_text(self.radii)}" if self.mode in SEQUENTIAL and self.radii != DEFAULT_RADII else ""
        return f"smoothing-{self.mode}{spelt}{unless(0, 's', self.seed)}@{self.version}"


def largest_radius(*, mode: Mode, sigma: float, samples: int, alpha: float) -> float:
    """The largest radius that `samples` draws certify, all of which agree; pixel units, 0 if none.

    Clopper-Pearson and the exact boundaries give the probability alpha^(1/N), betting
    (alpha B(N + 1/2, 1/2) / pi)^(1/N).
    """
    level = math.log(alpha)
    if mode == "betting":
        level += math.lgamma(samples + 0.5) + math.lgamma(0.5) - math.lgamma(samples + 1) - math.log(math.pi)
    p_lower = math.exp(level / samples)
    return sigma * NormalDist().inv_cdf(p_lower) if p_lower > 0.5 else 0.0


def radii_text(radii: tuple[float, ...]) -> str:
    """Write radii shortly and without marks that file names cannot have: "0.5", "0+0.1+0.4", "0to2.25by0.25"."""
    if len(radii) > 2:
        step = radii[1] - radii[0]
        if step > 0 and all(math.isclose(r, radii[0] + i * step, abs_tol=1e-9) for i, r in enumerate(radii)):
            return f"{radii[0]:g}to{radii[-1]:g}by{step:g}"
    return "+".join(f"{radius:g}" for radius in radii)
