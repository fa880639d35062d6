"""Numbers that others printed, as cells of a leaderboard: beside ours, in columns of their own, in no test."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hydrabench.errors import LedgerError
from hydrabench.reporting.columns import PUBLISHED, Column, Protocol
from hydrabench.reporting.evaluations import EvaluatedNetwork, ImageSelection
from hydrabench.reporting.external import ExternalNumber, ExternalRow
from hydrabench.reporting.statistics import Estimate, wilson

MEAN = "average_certified_radius"
MOST_NAMED = 10  # networks of one source that a note names
_LABELS = {"clean_accuracy": "clean", "robust_accuracy": "robust", "verified_accuracy": "verified", MEAN: "mean radius"}

Cells = dict[str, tuple[EvaluatedNetwork, dict[Column, Estimate]]]


def published_cells(rows: Sequence[ExternalRow]) -> Cells:
    """Return the network and the cells of each row, by what stands for the network's hash.

    Raises: LedgerError if two rows give one number of a network different values.
    """
    found: Cells = {}
    sources: dict[tuple[str, Column], ExternalRow] = {}
    for row in rows:
        _, cells = found.setdefault(row.identity, (_network(row), {}))
        for number in row.numbers:
            column, estimate = _column(row, number), _estimate(number)
            first = sources.setdefault((row.identity, column), row)
            if cells.setdefault(column, estimate) != estimate:
                raise LedgerError(
                    f"{first.source} and {row.source} give {row.name} different values of {number.metric} "
                    f"({number.protocol}); leave one of them out"
                )
    return found


def published_protocols(cells: Cells) -> list[Protocol]:
    """Return the protocols of published numbers, each once."""
    names = dict.fromkeys(column.protocol for _, columns in cells.values() for column in columns)
    return [Protocol(name, PUBLISHED, {}) for name in names]


def published_notes(rows: Sequence[ExternalRow]) -> list[str]:
    """Say where published numbers are from, and what their sources remark."""
    by_source: dict[str, list[str]] = {}
    for row in rows:
        by_source.setdefault(row.source, []).append(row.name)
    found = [f"Published numbers of {shortened_names(names)}: {source}." for source, names in by_source.items()]
    remarks = dict.fromkeys(f"{row.name}: {note}" for row in rows for note in row.notes)
    return [*found, *remarks]


def shortened_names(names: Sequence[str]) -> str:
    """Write the first names of a list, and how many more there are."""
    unique = list(dict.fromkeys(names))
    more = f" and {len(unique) - MOST_NAMED} more" if len(unique) > MOST_NAMED else ""
    return ", ".join(unique[:MOST_NAMED]) + more


def _network(row: ExternalRow) -> EvaluatedNetwork:
    about = (row.name, row.identity, row.arch, row.objective, row.density, None, None, None)
    return EvaluatedNetwork(*about, additional_data=row.additional_data)


def _column(row: ExternalRow, number: ExternalNumber) -> Column:
    label = "" if number.radius is None else f"r={number.radius:g}"
    if not label and (number.protocol == ExternalNumber.protocol or number.metric == MEAN):
        label = _LABELS.get(number.metric, number.metric)
    return Column(
        ImageSelection(row.dataset, row.split, number.n or 0, number.chosen),
        number.precision,
        PUBLISHED,
        number.protocol,
        number.metric,
        number.threat,
        number.sigma,
        number.radius,
        label,
    )


def _estimate(number: ExternalNumber) -> Estimate:
    """Return the number as printed; with Wilson's interval if it is a fraction of a known number of images."""
    if number.n is None or number.metric == MEAN:
        method = "mean" if number.metric == MEAN else "none"
        return Estimate(number.value, -math.inf, math.inf, None, number.n or 0, method)
    around = wilson(round(number.value * number.n), number.n)
    low, high = min(around.low, number.value), max(around.high, number.value)
    return Estimate(number.value, low, high, around.count, number.n, around.method)
