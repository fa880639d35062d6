"""The selection of images of a split, as stored in `run.json` and shown in reports.

`dataset` in `run.json` holds the number `n` of images and, unless they are the first ones, which they are: `first` and
`step` for every step-th image, or `images`, the list of a file; and `chosen`, the name of the selection in a column.
Images that were named one by one are `indices`, which have no name and no column.
Imported tables get their name from the same function, so that the same images are the same column.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

MOST_IMAGES = 10**8  # of a selection; ImageNet-21k has 14 million


def selection_name(indices: Sequence[int]) -> str:
    """Name a selection: "" for the first images, a step, or a hash of the list.

    Args: indices: in ascending order, at least one.
    """
    n = len(indices)
    if indices[0] == 0 and indices[-1] == n - 1:
        return ""
    steps = {after - before for before, after in pairwise(indices)}
    if len(steps) == 1:
        return f"1 in {steps.pop()} from {indices[0]}"
    digest = hashlib.sha256(",".join(map(str, indices)).encode()).hexdigest()[:8]
    return f"{n} of {indices[0]}..{indices[-1]}, list {digest}"


def describe_selection(indices: Sequence[int]) -> dict[str, Any]:
    """Return what `dataset` in `run.json` says beside `n`; nothing for the first images."""
    name = selection_name(indices)
    if name.startswith("1 in "):
        return {"chosen": name, "first": indices[0], "step": indices[1] - indices[0]}
    return {"chosen": name, "images": list(indices)} if name else {}


def selected_indices(dataset: Mapping[str, Any]) -> Sequence[int]:
    """Return the indices that `dataset` of a `run.json` is about, in ascending order; also those named one by one.

    Raises: ValueError that says what is wrong with it.
    """
    n = dataset.get("n")
    if not isinstance(n, int) or isinstance(n, bool) or not 0 < n <= MOST_IMAGES:
        raise ValueError(f"dataset.n is {n!r}, not a number of images from 1 to {MOST_IMAGES:,}")
    first, step = dataset.get("first", 0), dataset.get("step", 1)
    if not (_is_whole(first) and _is_whole(step) and first >= 0 and 0 < step <= MOST_IMAGES):
        raise ValueError(f"dataset.first is {first!r} and dataset.step {step!r}, which select no images")
    indices: Sequence[int] = range(first, first + n * step, step)
    for key in {"images", "indices"} & set(dataset):
        indices = dataset[key]
        if not isinstance(indices, list) or len(indices) != n or not all(map(_is_whole, indices)):
            raise ValueError(f"dataset.{key} is no list of {n} whole numbers")
        if indices[0] < 0 or any(before >= after for before, after in pairwise(indices)):
            raise ValueError(f"dataset.{key} does not ascend")
    if "indices" in dataset:
        return indices
    if dataset.get("chosen", "") != (name := selection_name(indices)):
        raise ValueError(f"dataset.chosen is {dataset.get('chosen', '')!r} for images that are called {name!r}")
    return indices


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
