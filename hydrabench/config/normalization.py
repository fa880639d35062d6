"""What a network does to images in [0, 1] first."""

from __future__ import annotations

from collections.abc import Iterator

from hydrabench.config.fields import Section


class Normalization(Section):
    """Per-channel mean and standard deviation that the model subtracts and divides by in its first layer."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def conflicts(self) -> Iterator[str]:
        """Yield what does not fit: zero deviations and unequal lengths."""
        if len(self.mean) != len(self.std) or min(self.std) <= 0:
            yield f"needs one mean and one positive std per channel, got {self.mean} and {self.std}"
