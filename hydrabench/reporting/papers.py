"""Numbers from papers: a YAML file that says where they stand, and what each network has.

source: "Sehwag et al. (2020), arXiv:2002.10509, table 1"
dataset: cifar10
networks:
  - name: HYDRA VGG-16 90 %
    arch: vgg16_bn
    density: 0.1
    numbers:
      - {metric: clean_accuracy, value: 88.9%}
      - {metric: robust_accuracy, value: 55.6%, protocol: PGD-50, epsilon: 8/255, n: 10000}
      - {metric: certified_accuracy@0.5, value: 0.43, sigma: 0.25, n: 500}
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt, field_validator

from hydrabench.config import parse
from hydrabench.config.fields import Density, Noise, Radius, Section
from hydrabench.documents import read_yaml
from hydrabench.errors import ConfigError, LedgerError
from hydrabench.reporting.external import ExternalNumber, ExternalRow, Imported
from hydrabench.threat import Threat

PAPER_BYTES = 1 << 20
METRICS = re.compile(
    r"clean_accuracy|robust_accuracy|verified_accuracy|average_certified_radius|certified_accuracy@\d+(\.\d+)?"
)
_PERCENT = re.compile(r"(\d{1,3}(?:\.\d{1,12})?)\s*%")


class PaperNumber(Section):
    """One number: "88.9%" or a fraction; see `ExternalNumber`."""

    metric: str
    value: float = Field(ge=0)
    n: PositiveInt | None = None
    protocol: str = Field("published", min_length=1)
    norm: Literal["linf", "l2"] = "linf"
    epsilon: Radius | None = None
    sigma: Noise | None = None

    @field_validator("metric")
    @classmethod
    def known(cls, metric: str) -> str:
        """Refuse what a report has no column for."""
        if not METRICS.fullmatch(metric):
            raise ValueError(
                f"is {metric!r}; write clean_accuracy, robust_accuracy, verified_accuracy, certified_accuracy@0.5 or "
                "average_certified_radius"
            )
        return metric

    @field_validator("value", mode="before")
    @classmethod
    def percent(cls, value: Any) -> Any:
        """Read "88.9%"."""
        found = _PERCENT.fullmatch(value.strip()) if isinstance(value, str) else None
        return float(found[1]) / 100 if found else value


class PaperNetwork(Section):
    """One network and its numbers."""

    name: str = Field(min_length=1)
    arch: str = "unknown"
    objective: str = "unknown"
    density: Density | None = None
    additional_data: bool | None = None
    numbers: tuple[PaperNumber, ...] = Field(min_length=1)
    notes: tuple[str, ...] = ()


class Paper(Section):
    """A file of numbers from one source."""

    source: str = Field(min_length=1)
    dataset: str = Field(min_length=1)
    split: str = "test"
    networks: tuple[PaperNetwork, ...] = Field(min_length=1)


def read_papers(text: str) -> Imported:
    """Read what `--import papers FILE` names.

    Raises: ConfigError naming all that is wrong in the file; LedgerError if it cannot be read.
    """
    path = Path(text)
    try:
        values = read_yaml(path, PAPER_BYTES)
    except OSError as error:
        raise LedgerError(f"{path} cannot be read as numbers of a paper: {error.strerror or error}") from error
    paper = parse(Paper, values, str(path))
    return Imported(rows=tuple(_row(paper, network, f"{path}: {network.name}") for network in paper.networks))


def _row(paper: Paper, network: PaperNetwork, place: str) -> ExternalRow:
    return ExternalRow(
        name=network.name,
        source=paper.source,
        dataset=paper.dataset,
        split=paper.split,
        arch=network.arch,
        objective=network.objective,
        density=network.density,
        additional_data=network.additional_data,
        numbers=tuple(_number(number, place) for number in network.numbers),
        notes=network.notes,
    )


def _number(number: PaperNumber, place: str) -> ExternalNumber:
    """Return the number as a report has it. Raises: ConfigError for a fraction above 1."""
    threat = None if number.epsilon is None else Threat(number.norm, number.epsilon)
    try:
        return ExternalNumber(number.metric, number.value, number.n, number.protocol, threat, number.sigma)
    except ValueError as error:
        raise ConfigError(f"{place}: {error}; write 88.9% or 0.889") from error
