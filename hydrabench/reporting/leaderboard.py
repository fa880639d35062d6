"""The leaderboard: one row per checkpoint, one column per way of making a number."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hydrabench.errors import LedgerError
from hydrabench.evaluators import EVALUATORS
from hydrabench.evaluators.description import CONDITIONS
from hydrabench.ledger import RunFolder, name_images
from hydrabench.reporting.evaluations import (
    EvaluatedNetwork,
    Evaluation,
    ImageSelection,
    read_evaluations,
    refuse_mixed_inputs,
)
from hydrabench.reporting.gate import refuse_contradictions
from hydrabench.reporting.statistics import INTERVALS, Estimate
from hydrabench.threat import Threat, radius_text

_FAMILIES = ("clean", "upper", "lower", "smoothed")


@dataclass(frozen=True)
class Column:
    """One way of making a number; numbers share a column only if all of this is equal.

    threat: of an attack or a bound. sigma: of smoothing; radius: certified L2 radius, both in pixel
    units. metric: as in `summary.json`, "certified_accuracy@0.5" for instance. label: what its heading says of it.
    interval: key of `INTERVALS`.
    """

    images: ImageSelection
    precision: str
    kind: str
    protocol: str
    metric: str
    threat: Threat | None = None
    sigma: float | None = None
    radius: float | None = None
    label: str = ""
    interval: str = "wilson"

    @property
    def key(self) -> str:
        """Seven fields with colons between: data set, split, n, precision, protocol, condition, metric."""
        condition = ""
        if self.threat is not None:
            condition = f"{self.threat.norm}={radius_text(self.threat.epsilon)}"
        elif self.sigma is not None:
            condition = f"sigma={self.sigma:g}"
        images = self.images
        return f"{images.name}:{images.split}:{images.size}:{self.precision}:{self.protocol}:{condition}:{self.metric}"

    @property
    def order(self) -> tuple[Any, ...]:
        """Sort key: columns of the same images together, larger selections first, float32 first; then
        clean, robust, verified, certified; then norm (L∞ first), radius or sigma, method, protocol (ids spell out
        what differs from the default, so the shortest comes first)."""
        return (
            (self.images.name, self.images.split, -self.images.n, self.images.chosen),
            (self.precision != "float32", self.precision),
            _FAMILIES.index(EVALUATORS[self.kind].claims),
            (self.threat is not None and self.threat.norm != "linf", self.threat.epsilon if self.threat else 0),
            (self.sigma or 0.0, list(EVALUATORS).index(self.kind), len(self.protocol), self.protocol),
            (math.inf if self.radius is None else self.radius, self.metric),
        )


@dataclass(frozen=True)
class Row:
    """A checkpoint and its numbers. label: its name, with part of its hash if another has the same name."""

    checkpoint: EvaluatedNetwork
    label: str
    cells: Mapping[Column, Estimate]


@dataclass(frozen=True)
class Protocol:
    """What a protocol id stands for: the kind of evaluation and every setting that the id fixes."""

    id: str
    kind: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Leaderboard:
    """Rows by density, densest first, then by name, so that methods are compared at equal density; unknown last."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    protocols: tuple[Protocol, ...]


def build_leaderboard(runs: Sequence[RunFolder], imported: Sequence[Evaluation] = ()) -> Leaderboard:
    """Make the leaderboard of all evaluations among `runs` and of those imported; their order makes no difference.

    Args: runs: may be empty if there are imported ones, see `reporting.cohen`.
    Raises:
        LedgerError: see `read_evaluations`; also if one checkpoint has contradictory clean predictions,
            or different verdicts under one protocol, or one protocol id stands for different settings.
        GateError: an image is verified in one ledger and broken in another (`refuse_contradictions`).
    """
    of_runs = read_evaluations(runs) if runs or not imported else []
    evaluations = [*of_runs, *sorted(imported, key=lambda one: str(one.path))]  # hashes first, to compare others with
    refuse_mixed_inputs(evaluations)
    refuse_contradictions(evaluations)
    _refuse_contradictory_predictions(evaluations)
    cells = _cells(evaluations)
    columns = tuple(sorted({column for _, column in cells}, key=lambda column: column.order))
    rows = [
        Row(
            checkpoint,
            checkpoint.name,
            {column: INTERVALS[column.interval](cells[sha, column]) for column in columns if (sha, column) in cells},
        )
        for sha, checkpoint in _checkpoints(evaluations).items()
    ]
    rows.sort(key=lambda row: (-(row.checkpoint.density or 0.0), row.label, row.checkpoint.sha256))
    return Leaderboard(columns, _distinct(rows), _protocols(evaluations, columns))


def _measured(evaluation: Evaluation) -> Iterator[tuple[Column, tuple[float, ...]]]:
    """Every column that `evaluation` fills, with what each image contributes."""
    base = Column(evaluation.images, evaluation.precision, evaluation.kind, evaluation.protocol, "")
    sigma = float(evaluation.settings["sigma"]) if "sigma" in evaluation.settings else None
    for name, metric in evaluation.metrics().items():
        column = replace(base, metric=name, radius=metric.radius, label=metric.label, interval=metric.interval)
        if metric.column_of is None:
            yield replace(column, threat=evaluation.threat, sigma=sigma), metric.values
        else:
            yield replace(column, kind=metric.column_of, protocol=_protocol_of(metric.column_of)), metric.values


def _protocol_of(kind: str) -> str:
    """The protocol of an evaluator with its defaults."""
    return str(EVALUATORS[kind].settings(kind=kind).protocol)


def _cells(evaluations: Sequence[Evaluation]) -> dict[tuple[str, Column], tuple[float, ...]]:
    """Return the contents of each cell; two runs may fill one cell if they agree on every image."""
    cells: dict[tuple[str, Column], tuple[Evaluation, tuple[float, ...]]] = {}
    for evaluation in evaluations:
        for column, values in _measured(evaluation):
            first, others = cells.setdefault((evaluation.checkpoint.sha256, column), (evaluation, values))
            differing = [i for i, (a, b) in enumerate(zip(others, values, strict=True)) if a != b]
            if differing:
                raise LedgerError(
                    f"{first.path} and {evaluation.path} give checkpoint {evaluation.checkpoint.name} different "
                    f"verdicts under {evaluation.protocol} ({column.metric}) on {name_images(differing)}; "
                    "report only one of them"
                )
    return {place: values for place, (_, values) in cells.items()}


def _refuse_contradictory_predictions(evaluations: Sequence[Evaluation]) -> None:
    """Raise if one network in one precision has two predictions for a clean image; smoothed ones are separate."""
    seen: dict[tuple[str, str, str, str], dict[int, tuple[Evaluation, int]]] = {}
    for evaluation in evaluations:
        if evaluation.evaluator.claims == "smoothed":
            continue
        images = evaluation.images
        known = seen.setdefault((evaluation.checkpoint.sha256, images.name, images.split, evaluation.precision), {})
        for record in evaluation.records:
            first, prediction = known.setdefault(record["index"], (evaluation, record["prediction"]))
            if prediction != record["prediction"]:
                raise LedgerError(_two_predictions(first, evaluation))


def _two_predictions(first: Evaluation, second: Evaluation) -> str:
    pairs = zip(first.records, second.records, strict=False)
    differing = [a["index"] for a, b in pairs if a["prediction"] != b["prediction"]]
    return (
        f"{first.path} and {second.path} hold contradictory clean predictions of checkpoint {first.checkpoint.name} on "
        f"{name_images(differing)}; they were made by different code or hardware: run both again"
    )


def _checkpoints(evaluations: Sequence[Evaluation]) -> dict[str, EvaluatedNetwork]:
    """Return one checkpoint per hash; of several names, the alphabetically first."""
    found: dict[str, EvaluatedNetwork] = {}
    for evaluation in evaluations:
        checkpoint = evaluation.checkpoint
        known = found.setdefault(checkpoint.sha256, checkpoint)
        found[checkpoint.sha256] = min(known, checkpoint, key=lambda one: one.name)
    return found


def _distinct(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Tell rows of the same name apart by the beginning of their hash."""
    uses = Counter(row.checkpoint.name for row in rows)
    return tuple(
        replace(row, label=f"{row.label} ({row.checkpoint.sha256[:8]})") if uses[row.checkpoint.name] > 1 else row
        for row in rows
    )


def _protocols(evaluations: Sequence[Evaluation], columns: Sequence[Column]) -> tuple[Protocol, ...]:
    """The legend, in the order of the columns; one id must not stand for different settings."""
    shared = {metric.column_of for one in evaluations for metric in one.metrics().values() if metric.column_of}
    found = {_protocol_of(kind): (Protocol(_protocol_of(kind), kind, {}), evaluations[0]) for kind in sorted(shared)}
    for evaluation in evaluations:
        given = ("kind", "version", *CONDITIONS)
        settings = {key: value for key, value in evaluation.settings.items() if key not in given}
        protocol = Protocol(evaluation.protocol, evaluation.kind, settings)
        known, first = found.setdefault(protocol.id, (protocol, evaluation))
        for key in sorted(known.settings.keys() & settings.keys()):
            if known.settings[key] != settings[key]:
                raise LedgerError(
                    f"{first.path} and {evaluation.path} both say {protocol.id}, but {key} is "
                    f"{known.settings[key]!r} in one and {settings[key]!r} in the other; run one of them again"
                )
    return tuple(found[id_][0] for id_ in dict.fromkeys(column.protocol for column in columns))
