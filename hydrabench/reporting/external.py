"""Imports into a report: ledgers of other tools, and numbers that only stand in a table somewhere.

A reader of another format returns one `Imported`. Evaluations have a record for each image and are compared like runs.
A `ExternalRow` has numbers alone: it is shown beside the others, and takes part in no test and no ranking that needs
the verdict on each image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from hydrabench.reporting.evaluations import IMPORTED, Evaluation
from hydrabench.threat import Threat


@dataclass(frozen=True)
class ExternalNumber:
    """One number as its source prints it.

    metric: as in `summary.json`: "clean_accuracy", "robust_accuracy", "verified_accuracy", "certified_accuracy@0.5",
        "average_certified_radius".
    value: a fraction in [0, 1], or a mean L2 radius in pixel units.
    n: images it is about; None if the source does not say. chosen: which ones, unless the first.
    protocol: how it was made, in the words of the field: "AutoAttack", "reported", "smoothing N=100,000".
    threat: the ball of an attack or a bound. sigma: the noise of smoothing, in pixel units.
    precision: "published", or that of the column beside which it stands.

    Raises: ValueError for a fraction outside [0, 1], a negative radius, or fewer than one image.
    """

    metric: str
    value: float
    n: int | None = None
    protocol: str = "published"
    threat: Threat | None = None
    sigma: float | None = None
    chosen: str = ""
    precision: str = "published"

    def __post_init__(self) -> None:
        largest = math.inf if self.metric == "average_certified_radius" else 1.0
        if not (math.isfinite(self.value) and 0 <= self.value <= largest):
            raise ValueError(f"{self.metric} is {self.value}, outside [0, {largest:g}]")
        if self.n is not None and self.n < 1:
            raise ValueError(f"{self.metric} is about {self.n} images")

    @property
    def radius(self) -> float | None:
        """The certified L2 radius that the metric names, in pixel units."""
        _, _, radius = self.metric.partition("certified_accuracy@")
        return float(radius) if radius else None


@dataclass(frozen=True)
class ExternalRow:
    """The numbers that a source gives for one network.

    name: of the network. source: where the numbers stand: a link, or a citation. dataset, split: what they are about.
    arch, objective: "unknown" if the source does not say. density: fraction of weights kept. additional_data: whether
    other images than the data set's were trained on. Both None if the source does not say.
    notes: remarks for the reader, one sentence each.
    """

    name: str
    source: str
    dataset: str
    numbers: tuple[ExternalNumber, ...]
    split: str = "test"
    arch: str = "unknown"
    objective: str = "unknown"
    density: float | None = None
    additional_data: bool | None = None
    notes: tuple[str, ...] = ()

    @property
    def identity(self) -> str:
        """A stand-in for the hash of the network: imports of one name are one network, and never one of ours."""
        return f"{IMPORTED}:{self.name}"


@dataclass(frozen=True)
class Imported:
    """The result of one `--import`. skipped: how many files were passed over, by reason."""

    evaluations: tuple[Evaluation, ...] = ()
    rows: tuple[ExternalRow, ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)
