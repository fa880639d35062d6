"""What a progress line says of the images that are done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hydrabench.config import EvaluationSettings, SmoothingSettings
from hydrabench.reporting.statistics import estimate, verdicts

SHOWN = 4


class Tally:
    """Running counts of the fractions that the summary will hold; for smoothing also of the draws."""

    def __init__(self, settings: EvaluationSettings, records: Iterable[Mapping[str, Any]] = ()) -> None:
        self.settings = settings
        self.seen, self.drawn = 0, 0
        self.counts: dict[str, int] = {}
        self.add(list(records))

    def add(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Count the records of one more block."""
        if not records:
            return
        self.seen += len(records)
        self.drawn += sum(record.get("passes", record.get("samples", 0)) for record in records)
        for metric, values in verdicts(self.settings.kind, records, radii_of(self.settings)).items():
            if "accuracy" in metric:
                self.counts[metric] = self.counts.get(metric, 0) + sum(map(bool, values))

    def __str__(self) -> str:
        if not self.seen:
            return ""
        shown = [f"{name.replace('_accuracy', '')} {self._fraction(name)}" for name in list(self.counts)[:SHOWN]]
        if isinstance(self.settings, SmoothingSettings):
            saved = 1 - self.drawn / (self.seen * self.settings.samples)
            shown.append(f"{self.drawn:,} draws, {saved:.1%} saved")
        return ", ".join(shown)

    def _fraction(self, metric: str) -> str:
        """A fraction so far; certified ones with their interval."""
        if not isinstance(self.settings, SmoothingSettings):
            return f"{self.counts[metric] / self.seen:.1%}"
        count = self.counts[metric]
        found = estimate(metric, [True] * count + [False] * (self.seen - count))
        return f"{found.value:.1%} [{found.low * 100:.1f}, {found.high * 100:.1f}]"


def radii_of(settings: EvaluationSettings) -> tuple[float, ...]:
    """The L2 radii at which smoothing certificates are counted."""
    return settings.radii if isinstance(settings, SmoothingSettings) else ()
