"""The cells of a leaderboard: what each image contributes to each number of each network.

Runs of one network on nested prefixes of a data set (its first 50, 100, 500 images) speak of the same images, and
their numbers are compared on those that all networks have.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from hydrabench.errors import LedgerError
from hydrabench.evaluators import EVALUATORS
from hydrabench.ledger import name_images
from hydrabench.reporting.columns import Column
from hydrabench.reporting.evaluations import Evaluation, ImageSelection
from hydrabench.threat import Threat

Meeting = Literal["common", "each"] | int  # how many images a column has


@dataclass(frozen=True, eq=False)
class Cell:
    """The images of one network in one column.

    values: of the images of the column, in ascending order: truth values, or numbers >= 0. evaluation: that they are
    from; its other images are left out.
    """

    evaluation: Evaluation
    values: np.ndarray[Any, Any]

    @property
    def seconds(self) -> float:
        """Time that the evaluation took for these images, in seconds."""
        return float(np.sum(self.evaluation.fields["seconds"][: len(self.values)]))


def gather(
    evaluations: Sequence[Evaluation], n: Meeting = "common", *, derived: Sequence[tuple[str, Column, Cell]] = ()
) -> dict[tuple[str, Column], Cell]:
    """Return the cell of each network (by hash) and column.

    Args:
        n: "common": where runs are about the first images of a data set, a column is about those that all networks
            have in it. A number: about so many first images, and runs with fewer are left out. "each": runs with
            another number of images have columns of their own.
        derived: cells that follow from several evaluations: hash of the network, column, cell.
    Raises: LedgerError if two runs of one network give an image different verdicts under one protocol, or `n` leaves
        nothing.
    """
    found: dict[Column, dict[str, Cell]] = defaultdict(dict)
    measured = [
        (evaluation.checkpoint.sha256, column, Cell(evaluation, np.asarray(values)))
        for evaluation in evaluations
        for column, values in _measured(evaluation)
    ]
    for sha, column, cell in [*measured, *derived]:
        key = column if n == "each" or column.images.chosen else replace(column, images=_any_number(column.images))
        known = found[key].get(sha)
        found[key][sha] = cell if known is None else _agreed(known, cell, column)
    cells = {(sha, column): cell for key, by_network in found.items() for sha, column, cell in _met(key, by_network, n)}
    if not cells:
        raise LedgerError(f"no run has {n} images or more; choose a smaller --n")
    return cells


def _any_number(images: ImageSelection) -> ImageSelection:
    """Stand for the first images of a split, however many."""
    return replace(images, n=0)


def _met(key: Column, by_network: Mapping[str, Cell], n: Meeting) -> Iterator[tuple[str, Column, Cell]]:
    """Yield the cells of a column, cut to the images that it is about."""
    if key.images.n:  # a selection of its own
        yield from ((sha, key, cell) for sha, cell in by_network.items())
        return
    most = n if isinstance(n, int) else min(len(cell.values) for cell in by_network.values())
    column = replace(key, images=replace(key.images, n=most))
    for sha, cell in by_network.items():
        if len(cell.values) >= most:
            yield sha, column, replace(cell, values=cell.values[:most])


def _agreed(first: Cell, second: Cell, column: Column) -> Cell:
    """Return the cell with more images. Raises: LedgerError if they differ on those that both have."""
    both = min(len(first.values), len(second.values))
    differing = np.flatnonzero(first.values[:both] != second.values[:both])
    if len(differing):
        one, other = first.evaluation, second.evaluation
        images = one.fields["index"][differing].tolist()
        raise LedgerError(
            f"{one.path} and {other.path} give checkpoint {other.checkpoint.name} different verdicts under "
            f"{other.protocol} ({column.metric}) on {name_images(images)}; report only one of them"
        )
    return first if len(first.values) >= len(second.values) else second


def _measured(evaluation: Evaluation) -> Iterator[tuple[Column, Sequence[float]]]:
    """Yield every column that `evaluation` fills, with what each image contributes."""
    base = Column(evaluation.images, evaluation.precision, evaluation.kind, evaluation.protocol, "")
    sigma = float(evaluation.settings["sigma"]) if "sigma" in evaluation.settings else None
    for name, metric in evaluation.metrics.items():
        column = replace(base, metric=name, radius=metric.radius, label=metric.label, interval=metric.interval)
        if metric.column_of is None:
            of_run = evaluation.threat
            threat = of_run if of_run is None or metric.epsilon is None else Threat(of_run.norm, metric.epsilon)
            yield replace(column, threat=threat, sigma=sigma), metric.values
        else:
            yield replace(column, kind=metric.column_of, protocol=default_protocol(metric.column_of)), metric.values


def default_protocol(kind: str) -> str:
    """The protocol of an evaluator with its defaults."""
    return str(EVALUATORS[kind].settings(kind=kind).protocol)
