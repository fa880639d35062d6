"""Settings of randomized smoothing."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from hydrabench.config.fields import Section
from hydrabench.config.protocol import unless


class SmoothingSettings(Section):
    """Randomized smoothing as in Cohen et al. (2019): selection with `n0`, estimation with `samples` draws."""

    kind: Literal["smoothing"] = "smoothing"
    sigma: PositiveFloat = 0.25
    n0: PositiveInt = 100
    samples: PositiveInt = 100_000
    alpha: float = Field(0.001, gt=0, lt=1)
    radii: tuple[NonNegativeFloat, ...] = (0.0, 0.25, 0.5, 0.75)
    seed: NonNegativeInt = 0

    @property
    def protocol(self) -> str:
        """`smoothing-cohen@1` is N0 = 100, N = 100,000, alpha = 0.001, seed 0; whatever differs is spelt out."""
        spelt = unless(100, "n0_", self.n0) + unless(100_000, "n", self.samples) + unless(0.001, "a", self.alpha)
        return f"smoothing-cohen{spelt}{unless(0, 's', self.seed)}@1"
