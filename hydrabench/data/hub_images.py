"""Data sets of the Hugging Face hub, by hf:ORG/NAME or hf:ORG/NAME:SPLIT, through the library `datasets`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from hydrabench.data.images import ImageSet
from hydrabench.data.parquet import IMAGE_COLUMNS, LABEL_COLUMNS
from hydrabench.errors import DataError


def load_hub(place: Path, name: str, split: str) -> ImageSet:
    """Load one split, `split` unless the name says another, whose images have one size.

    Raises: DataError without the library, for a set that cannot be fetched, without a column of images and one of
        labels, or of images of several sizes.
    """
    try:
        from datasets import load_dataset  # noqa: PLC0415 - may be missing
    except ImportError as error:
        raise DataError(f"{name} needs datasets ({error}); install it with `pip install datasets`") from error
    repository, _, named = place.as_posix().partition(":")
    try:
        rows = load_dataset(repository, split=named or split)
    except Exception as error:  # the library's and the network's own kinds
        reason = " ".join(str(error).split())[:160]
        raise DataError(f"{name} cannot be loaded ({reason}); write hf:ORG/NAME or hf:ORG/NAME:SPLIT") from error
    columns = [_column(rows, wanted, name) for wanted in (IMAGE_COLUMNS, LABEL_COLUMNS)]
    return _in_memory(rows, columns[0], columns[1], name, split)


def _column(rows: Any, wanted: tuple[str, ...], name: str) -> str:
    held = list(rows.features)
    found = next((column for column in wanted if column in held), None)
    if found is None:
        raise DataError(f"{name} has the columns {', '.join(held)}; it needs one of {', '.join(wanted)}")
    return found


def _in_memory(rows: Any, image: str, label: str, name: str, split: str) -> ImageSet:
    pictures = [np.asarray(row[image].convert("RGB")) for row in rows]
    sizes = sorted({picture.shape[:2] for picture in pictures})
    if len(sizes) != 1:
        raise DataError(f"{name} holds images of {len(sizes)} sizes; resize them, and give folder:DIR")
    labels = torch.tensor([int(row) for row in rows[label]])
    names = tuple(getattr(rows.features[label], "names", None) or ())
    pixels = torch.from_numpy(np.stack(pictures).transpose(0, 3, 1, 2).copy())
    return ImageSet(name, split, pixels, labels, len(names) or int(labels.max()) + 1, names=names)
