"""The sandwich: verified ≤ robust ≤ clean, image by image, and what lies between proof and attack."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from hydrabench.reporting.cells import Cell
from hydrabench.reporting.columns import OPEN, Column
from hydrabench.reporting.evaluations import Evaluation, ImageSelection
from hydrabench.selection import selection_name
from hydrabench.threat import Threat

PROTOCOL = f"{OPEN}@1"
Mask = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True, eq=False)
class Sandwich:
    """The images of one network under one threat, which both a bound and an attack judged.

    right, verified, broken: one truth value an image; `broken` holds for misclassified images, too. Every image is
    one of verified, open, broken although right, and wrong.
    """

    evaluation: Evaluation
    images: ImageSelection
    threat: Threat
    right: Mask
    verified: Mask
    broken: Mask

    @property
    def open(self) -> Mask:
        """Images that are neither proved nor broken."""
        return ~self.verified & ~self.broken

    @property
    def column(self) -> Column:
        """The column of the number of open images."""
        return Column(self.images, self.evaluation.precision, OPEN, PROTOCOL, "undecided", self.threat)

    @property
    def parts(self) -> dict[str, int]:
        """The numbers of images that are verified, open, broken and wrong; they add up to all."""
        broken = self.broken & self.right
        return {
            "verified": int(self.verified.sum()),
            "open": int(self.open.sum()),
            "broken": int(broken.sum()),
            "wrong": int((~self.right).sum()),
        }


def sandwiches(evaluations: Sequence[Evaluation]) -> Iterator[Sandwich]:
    """Yield a sandwich for each network, data set, precision and threat that a bound and an attack judged.

    An image counts as verified if any bound proves it, as broken if any attack breaks it, on the images that all of
    them hold. Contradictions must have been refused before, see `contradictions`.
    """
    groups: dict[Any, list[Evaluation]] = defaultdict(list)
    for one in evaluations:
        if one.evaluator.claims in ("upper", "lower") and one.threat is not None:
            images = one.images
            groups[one.checkpoint.sha256, images.name, images.split, one.precision, one.threat].append(one)
    for group in groups.values():
        if {one.evaluator.claims for one in group} == {"upper", "lower"}:
            found = _sandwich(group)
            if found is not None:
                yield found


def _sandwich(group: Sequence[Evaluation]) -> Sandwich | None:
    indices = reduce(np.intersect1d, [one.fields["index"] for one in group])
    if not len(indices):
        return None
    right, verified, broken = (np.zeros(len(indices), dtype=bool) for _ in range(3))
    for one in group:
        rows = np.searchsorted(one.fields["index"], indices)
        right = one.right[rows]
        if one.evaluator.claims == "lower":
            verified |= one.fields["verified"][rows] & right
            if "verdict" in one.fields:
                broken |= one.fields["verdict"][rows] == "broken"
        else:
            broken |= ~one.fields["robust"][rows].astype(bool)
    first = group[0]
    threat = first.threat
    assert threat is not None
    images = ImageSelection(first.images.name, first.images.split, len(indices), selection_name(indices.tolist()))
    return Sandwich(first, images, threat, right, verified, broken | ~right)


def gap_cells(found: Sequence[Sandwich]) -> list[tuple[str, Column, Cell]]:
    """Return the cells of the columns of open images, by network (its hash) and column."""
    return [(one.evaluation.checkpoint.sha256, one.column, Cell(one.evaluation, one.open)) for one in found]
