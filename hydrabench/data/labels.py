"""Labels of Parquet files by the names of their classes: another order is mapped, other classes are refused.

Files of the Hugging Face hub say in their metadata what the labels are called. Without names, labels are taken as they
are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hydrabench.documents import parse_json
from hydrabench.errors import ConfigError, DataError

Labels = np.ndarray[Any, np.dtype[np.int64]]
WORDNET_ID = re.compile(r"n\d{8}")
_MISPRINTS = {"cra": "crab"}  # of the hub's cifar100
_SHOWN = 12  # names of a list in a message
_ENOUGH = 900  # of ImageNet's 1,000 names; the lists of torchvision and of the hub differ in some


def named_labels(labels: Labels, names: Sequence[str] | None, known: Sequence[str], file: Path) -> Labels:
    """Return labels as positions among the classes `known`.

    Args:
        labels: int64 (N,), positions among `names`. names: as the file has them, None if it has none.
        known: the classes of the data set in the order of its labels; empty for ImageNet, whose order is that of the
            sorted WordNet ids.
        file: for messages.
    Raises: DataError with both lists if the classes are others.
    """
    if names is None:
        return labels
    order = _imagenet_order(names) if not known else _order(list(map(plain_class, names)), known)
    if order is None:
        expected = known or ("tench", "goldfish", "great white shark", "...: ImageNet's 1,000, by sorted WordNet ids")
        raise DataError(
            f"{file} has labels of other classes: its names are {_list(names)}, those of the data set {_list(expected)}"
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(order):
        raise DataError(f"{file} names {len(order)} classes, but its labels are {labels.min()}..{labels.max()}")
    return np.array(order, np.int64)[labels]


def feature_names(metadata: dict[bytes, bytes] | None, column: str, file: Path) -> list[str] | None:
    """The names of a column's classes in the metadata of a Parquet file, None if there are none.

    Raises: DataError if the metadata are damaged.
    """
    raw = (metadata or {}).get(b"huggingface")
    if raw is None:
        return None
    try:
        found = parse_json(raw.decode(), f"{file}: its metadata `huggingface`")
    except (ConfigError, UnicodeDecodeError) as error:
        raise DataError(str(error)) from error
    for key in ("info", "features", column, "names"):
        found = found.get(key) if isinstance(found, dict) else None
    if found is None:
        return None
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise DataError(f"{file}: the class names of {column} are no list of texts: {json.dumps(found)[:80]}")
    return found


def plain_class(name: str) -> str:
    """The name of a class as it is compared: in small letters, with underscores for spaces."""
    plain = "_".join(name.strip().lower().split())
    return _MISPRINTS.get(plain, plain)


def _order(names: Sequence[str], known: Sequence[str]) -> list[int] | None:
    """The position of each name in `known`; plain numbers name the classes, too. None if the classes are others."""
    for classes in (known, [str(number) for number in range(len(known))]):
        if sorted(names) == sorted(classes):
            return [classes.index(name) for name in names]
    return None


def _imagenet_order(names: Sequence[str]) -> list[int] | None:
    """As `_order`, for ImageNet: WordNet ids in any order, or the usual names in the usual order."""
    if all(map(WORDNET_ID.fullmatch, names)):
        return _order(names, sorted(names)) if len(set(names)) == 1000 else None
    from torchvision.models._meta import _IMAGENET_CATEGORIES as categories  # noqa: PLC0415 - slow to import

    numbers = [str(number) for number in range(len(categories))]
    agreeing = sum(a in b for a, b in zip(categories, names, strict=False))
    right = len(names) == len(categories) and (agreeing >= _ENOUGH or list(names) == numbers)
    return list(range(len(names))) if right else None


def _list(names: Sequence[str]) -> str:
    rest = f", … ({len(names)} in all)" if len(names) > _SHOWN else ""
    return ", ".join(name[:30] for name in names[:_SHOWN]) + rest
