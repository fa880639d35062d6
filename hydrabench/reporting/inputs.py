"""Refuse ledgers about different images: other pixels or labels at an index of a split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hydrabench.errors import LedgerError

if TYPE_CHECKING:
    from hydrabench.reporting.evaluations import Evaluation


def refuse_mixed_inputs(evaluations: Sequence[Evaluation]) -> None:
    """Raise unless an index of a split has the same pixels and label in every ledger.

    Of imported records, which have no hash of the pixels, only the labels are compared.
    Raises: LedgerError naming the first difference.
    """
    known: dict[tuple[str, str], list[Evaluation]] = {}
    for evaluation in evaluations:
        of_split = known.setdefault((evaluation.images.name, evaluation.images.split), [])
        for first in of_split:
            for key, what in (("input_sha", "pixels"), ("label", "labels")):
                if (index := _first_difference(first, evaluation, key)) is not None:
                    raise LedgerError(
                        f"{first.path} and {evaluation.path} hold different {what} for image {index} of "
                        f"{evaluation.images.name} {evaluation.images.split}; evaluate both on the same data, or "
                        "report them apart"
                    )
        if not any(_covers(first, evaluation) for first in of_split):
            of_split.append(evaluation)


def _covers(first: Evaluation, second: Evaluation) -> bool:
    """Return whether whatever agrees with `first` agrees with `second`, too."""
    hashed = first.fields["input_sha"][0] is not None or second.fields["input_sha"][0] is None
    return hashed and bool(np.isin(second.fields["index"], first.fields["index"]).all())


def shared(first: Evaluation, second: Evaluation) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return where the images that both ledgers hold stand in the one and in the other."""
    a, b = first.fields["index"], second.fields["index"]
    if len(a) == len(b) and np.array_equal(a, b):
        every = np.arange(len(a))
        return every, every
    _, in_first, in_second = np.intersect1d(a, b, assume_unique=True, return_indices=True)
    return in_first, in_second


def _first_difference(first: Evaluation, second: Evaluation, key: str) -> int | None:
    """Return the first image of which two ledgers say different things, neither of them None; None if there is none."""
    in_first, in_second = shared(first, second)
    a, b = first.fields[key][in_first], second.fields[key][in_second]
    differing = np.flatnonzero(a != b)
    if object in (a.dtype, b.dtype):
        differing = np.array([row for row in differing if a[row] is not None and b[row] is not None], dtype=int)
    return int(first.fields["index"][in_first[differing[0]]]) if len(differing) else None
