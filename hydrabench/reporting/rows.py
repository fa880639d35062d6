"""Rows of a leaderboard: networks, each by the hash of its checkpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from hydrabench.reporting.columns import Column
from hydrabench.reporting.evaluations import EvaluatedNetwork, Evaluation
from hydrabench.reporting.statistics import Estimate


@dataclass(frozen=True)
class Row:
    """A checkpoint and its numbers.

    label: its name, with part of its hash if another has the same name. group: the rows that it is ranked among.
    rank: the best and the worst rank that it may have there, None if it lacks the number that ranks.
    """

    checkpoint: EvaluatedNetwork
    label: str
    cells: Mapping[Column, Estimate]
    group: str = ""
    rank: tuple[int, int] | None = None


def networks_of(evaluations: Sequence[Evaluation]) -> dict[str, EvaluatedNetwork]:
    """Return one checkpoint per hash; of several names, the alphabetically first."""
    found: dict[str, EvaluatedNetwork] = {}
    for evaluation in evaluations:
        checkpoint = evaluation.checkpoint
        known = found.setdefault(checkpoint.sha256, checkpoint)
        found[checkpoint.sha256] = min(known, checkpoint, key=lambda one: (one.name, _unknown(one)))
    return found


def _unknown(network: EvaluatedNetwork) -> int:
    """Return how much is not known of a network."""
    return sum(value is None for value in vars(network).values())


def distinct(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Tell rows of the same name apart by the beginning of their hash."""
    uses = Counter(row.checkpoint.name for row in rows)
    return tuple(
        replace(row, label=f"{row.label} ({row.checkpoint.sha256[:8]})") if uses[row.checkpoint.name] > 1 else row
        for row in rows
    )
