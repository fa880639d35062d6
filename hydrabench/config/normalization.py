"""The normalization that a network applies to images in [0, 1] first."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite

from hydrabench.config.fields import Section


class Normalization(Section):
    """Per-channel mean and standard deviation that the model subtracts and divides by in its first layer."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def conflicts(self) -> Iterator[str]:
        """Yield what does not fit: values that are not finite, zero deviations, unequal lengths, grey levels."""
        values = (*self.mean, *self.std)
        if len(self.mean) != len(self.std) or not all(map(isfinite, values)) or min(self.std, default=0) <= 0:
            yield f"needs one finite mean and one finite positive std per channel, got {self.mean} and {self.std}"
        elif max(map(abs, values)) > 1:
            mean, std = ([round(value / 255, 4) for value in side] for side in (self.mean, self.std))
            yield f"is in grey levels, images are in [0, 1]; divided by 255: mean {mean}, std {std}"
