"""Records of corrupted images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from hydrabench.ledger.records import Record

SEVERITIES = (1, 2, 3, 4, 5)
CORRUPTIONS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)


@dataclass(frozen=True)
class CorruptionRecord(Record):
    """The predictions of an image under each corruption, at severities 1 to 5. prediction: without any."""

    exact: ClassVar[tuple[str, ...]] = ("prediction", "right")

    right: dict[str, list[bool]]

    def problems(self, settings: Mapping[str, Any]) -> Iterator[str]:
        """Yield what cannot be."""
        yield from super().problems(settings)
        if tuple(self.right) != CORRUPTIONS:
            yield f"names the corruptions {', '.join(self.right)[:80]}, which are not the fifteen"
        yield from (
            f"has {len(verdicts)} verdicts under {name}, one for each of {len(SEVERITIES)} severities are needed"
            for name, verdicts in self.right.items()
            if len(verdicts) != len(SEVERITIES)
        )
