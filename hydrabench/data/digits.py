"""scikit-learn's handwritten digits: 1,797 real 8x8 grey images that need no download."""

from __future__ import annotations

from pathlib import Path

import torch

from hydrabench.data.images import ImageSet

TRAIN_IMAGES = 1297


def load_digits(split: str, folder: Path | None = None, *, download: bool = False) -> ImageSet:  # noqa: ARG001
    """Return the "train" (first 1,297) or "test" (last 500, other writers for the most part) images.

    Grey levels 0..16 become uint8 as round(255 · v / 16). `folder` and `download` are not used: the
    images come with scikit-learn.
    Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI repository, 1998.
    """
    from sklearn import datasets  # noqa: PLC0415 - a second of import time that other data sets do not need

    raw = datasets.load_digits()
    grey = torch.from_numpy(raw.images)
    images = (grey * 255 / 16).round().to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(raw.target).to(torch.int64)
    part = slice(None, TRAIN_IMAGES) if split == "train" else slice(TRAIN_IMAGES, None)
    return ImageSet("digits", split, images[part], labels[part], num_classes=10)
