"""Running totals for the progress line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hydrabench.evaluators import EVALUATORS, EvaluationSettings
from hydrabench.reporting.statistics import clopper_pearson

SHOWN_TOTALS = 4


class RunningTotals:
    """Running counts of the fractions that the summary will hold, and of the draws where images are sampled."""

    def __init__(self, settings: EvaluationSettings, records: Iterable[Mapping[str, Any]] = ()) -> None:
        self.settings, self.evaluator = settings, EVALUATORS[settings.kind]
        self.seen, self.drawn = 0, 0
        self.counts: dict[str, int] = {}
        self.add(list(records))

    def add(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Count the records of one more block."""
        if not records:
            return
        self.seen += len(records)
        self.drawn += sum(record.get("passes", record.get("samples", 0)) for record in records)
        for name, metric in self.evaluator.metrics(records, self.settings).items():
            if metric.interval != "t":
                self.counts[name] = self.counts.get(name, 0) + sum(map(bool, metric.values))

    def __str__(self) -> str:
        if not self.seen:
            return ""
        shown: list[str] = []
        before = ""
        for name in list(self.counts)[:SHOWN_TOTALS]:
            metric, at, radius = name.replace("_accuracy", "").partition("@")
            called = at + radius if metric == before else metric + at + radius
            shown.append(f"{called} {self.counts[name] / self.seen:.1%}" + ("" if shown else self._interval(name)))
            before = metric
        most = self.seen * getattr(self.settings, "samples", 0)
        if 0 < self.drawn < most:
            shown.append(f"{self.drawn:,} draws, {1 - self.drawn / most:.1%} saved")
        return ", ".join(shown)

    def _interval(self, metric: str) -> str:
        """The interval of a smoothed classifier's first fraction so far: its images take long, so there are few."""
        if self.evaluator.claims != "smoothed":
            return ""
        found = clopper_pearson(self.counts[metric], self.seen)
        return f" [{found.low * 100:.1f}, {found.high * 100:.1f}]"
