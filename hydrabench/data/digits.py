"""scikit-learn's handwritten digits: 1,797 real 8x8 grey images that need no download."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hydrabench.data.images import ImageSet

TRAIN_IMAGES = 1297


def load_digits(split: str, folder: Path | None = None, *, download: bool = False) -> ImageSet:  # noqa: ARG001
    """Return the "train" (first 1,297) or "test" (last 500, other writers for the most part) images.

    Grey levels 0..16 become uint8 as round(255 · v / 16). `folder` and `download` are not used: the
    images come with scikit-learn.
    Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI repository, 1998.
    """
    table = torch.from_numpy(_table())
    images = (table[:, :64].reshape(-1, 1, 8, 8) * 255 / 16).round().to(torch.uint8)
    labels = table[:, 64].to(torch.int64)
    part = slice(None, TRAIN_IMAGES) if split == "train" else slice(TRAIN_IMAGES, None)
    return ImageSet("digits", split, images[part], labels[part], num_classes=10)


def _table() -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return 64 grey levels and the label of each image, (1797, 65).

    The file is read where it lies, because importing scikit-learn takes a second; if it lies elsewhere, by it.
    """
    spec = find_spec("sklearn")
    for folder in (spec and spec.submodule_search_locations) or ():
        file = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():
            return np.loadtxt(file, delimiter=",")
    from sklearn import datasets  # noqa: PLC0415 - see above

    raw = datasets.load_digits()
    return np.column_stack([raw.data, raw.target])
