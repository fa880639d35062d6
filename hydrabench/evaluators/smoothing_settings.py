"""Settings of randomized smoothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
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
from hydrabench.laws import radius_of

Mode = Literal["cohen", "adaptive", "predict"]
WITHDRAWN = ("curtailed", "betting")  # modes that only release 0.1 has
DEFAULT_RADII = (0.0, 0.25, 0.5, 0.75)
GRID_STEP = 0.25
FINEST = 0.02  # tolerance in units of sigma: 630 thresholds, of which each takes 7 ms to plan


class SmoothingSettings(EvaluationSettings):
    """Randomized smoothing as in Cohen et al. (2019): selection with `n0`, estimation with up to `samples` draws.

    mode: when to stop drawing, see `smoothing.sequential`; "predict" predicts with abstention and certifies no
    radius. law: of the noise, see `laws`; it decides the norm of the radii. rigor: "discrete" draws integer noise, see
    `smoothing.discrete`. label_aware: stop after the selection if it picked another class than the label, for which no
    radius counts. tolerance: of mode adaptive, how much of the radius, in pixel units, stopping early may cost beside
    what `radii` ask for; None: anything. randomized: of mode cohen, `confidence.randomized_lower` instead of
    Clopper-Pearson. version: of the protocol; today's is 5 for mode adaptive and 4 for the others, 3 is mode adaptive
    with noise of version 2; for noise see `NoiseSource`, for the rule `smoothing.rules`.
    """

    kind: Literal["smoothing"] = "smoothing"
    mode: Mode = "cohen"
    sigma: Noise = 0.25
    law: Literal["gaussian", "uniform", "laplace"] = "gaussian"
    n0: PositiveInt = 100
    samples: PositiveInt = 100_000
    alpha: float = Field(0.001, gt=0, lt=1)
    radii: tuple[Length, ...] = DEFAULT_RADII
    seed: NonNegativeInt = 0
    rigor: Literal["standard", "discrete"] = "standard"
    label_aware: bool = False
    tolerance: Length | None = None
    randomized: bool = False
    version: Literal[1, 2, 3, 4, 5] = 4

    model_config = ConfigDict(allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def withdrawn(cls, values: Any) -> Any:
        """Refuse modes that are gone."""
        mode = values.get("mode") if isinstance(values, dict) else None
        if mode in WITHDRAWN:
            raise ValueError(f"mode {mode} is gone, because adaptive takes fewer draws; certify again with that")
        return values

    @model_validator(mode="before")
    @classmethod
    def newest(cls, values: Any) -> Any:
        """Give mode adaptive its newest version, unless a ledger says which one it had."""
        if isinstance(values, dict) and values.get("mode") == "adaptive":
            return {"version": 5, **values}
        return values

    @field_validator("radii", mode="before")
    @classmethod
    def grid(cls, value: Any, info: ValidationInfo) -> Any:
        """Turn "auto" into 0, 0.25, 0.5, ... up to the largest radius that can be certified."""
        if value not in ("auto", ["auto"]):
            return value
        if not {"sigma", "law", "samples", "alpha"} <= info.data.keys():
            return DEFAULT_RADII  # another setting is wrong, which is reported
        largest = largest_radius(**{name: info.data[name] for name in ("sigma", "law", "samples", "alpha")})
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
        if self.mode == "adaptive" and not self.radii:
            yield "mode adaptive stops when the radii are settled; give at least one, or `radii: auto`"
        if self.version in (3, 5) and self.mode != "adaptive":
            yield f"mode {self.mode} has no version {self.version}; versions are 1, 2 and 4"
        if self.label_aware and self.mode != "adaptive":
            yield f"label_aware needs mode adaptive; mode {self.mode} draws all its samples"

        if self.law != "gaussian" and (self.rigor == "discrete" or self.version < 4):
            yield f"{self.law} noise is real noise; rigor discrete has Gaussian noise only"
        if self.tolerance is not None and (self.mode != "adaptive" or self.version < 4):
            yield "tolerance is for mode adaptive; without it all samples are drawn"
        elif self.tolerance is not None and not self.tolerance >= FINEST * self.sigma:
            yield f"tolerance {self.tolerance:g} is below {FINEST * self.sigma:g}, {FINEST:g} of sigma; give more"
        if self.randomized and (self.mode != "cohen" or self.version < 4):
            yield f"randomized is for mode cohen, whose bound has one look; mode {self.mode} has others"

    @property
    def streams(self) -> int:
        """The version of random streams, see `NoiseSource`."""
        return {1: 1, 2: 2, 3: 2, 4: 3, 5: 3}[self.version]

    @property
    def unused(self) -> frozenset[str]:
        """The selection's draws, where a vote alone predicts."""
        return frozenset(("n0",) if self.mode == "predict" else ())

    @property
    def protocol(self) -> str:
        """`smoothing-cohen@2` is N0 = 100, N = 100,000, alpha = 0.001, seed 0; whatever differs is spelt out.

        So are radii other than the default where the draws, and with them all numbers, depend on them.
        """
        spelt = "" if self.law == "gaussian" else f"-{self.law}"
        spelt += "-discrete" if self.rigor == "discrete" else ""
        spelt += "-label-aware" if self.label_aware else ""
        spelt += unless(100, "n0_", self.n0) + unless(100_000, "n", self.samples) + unless(0.001, "a", self.alpha)
        spelt += f"-r{radii_text(self.radii)}" if self.mode == "adaptive" and self.radii != DEFAULT_RADII else ""
        spelt += "-randomized" if self.randomized else ""
        spelt += "" if self.tolerance is None else f"-t{self.tolerance:g}"
        return f"smoothing-{self.mode}{spelt}{unless(0, 's', self.seed)}@{self.version}"


def largest_radius(*, sigma: float, samples: int, alpha: float, law: str = "gaussian") -> float:
    """The largest radius that `samples` draws certify, all of which agree; pixel units, 0 if none.

    Clopper-Pearson and the exact boundaries give the probability alpha^(1/N).
    """
    p_lower = math.exp(math.log(alpha) / samples)
    return radius_of(p_lower, sigma=sigma, law=law) or 0.0


def radii_text(radii: tuple[float, ...]) -> str:
    """Write radii shortly and without marks that file names cannot have: "0.5", "0+0.1+0.4", "0to2.25by0.25"."""
    if len(radii) > 2:
        step = radii[1] - radii[0]
        if step > 0 and all(math.isclose(r, radii[0] + i * step, abs_tol=1e-9) for i, r in enumerate(radii)):
            return f"{radii[0]:g}to{radii[-1]:g}by{step:g}"
    return "+".join(f"{radius:g}" for radius in radii)
