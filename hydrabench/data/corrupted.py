"""CIFAR-10-C: CIFAR-10's test images under common corruptions, in numpy files as published.

A folder holds `labels.npy` and one file for each corruption, uint8 (N, 32, 32, 3), in five blocks of equal length, one
for each severity from 1 to 5; as published N is 50,000. Every block shows the same images in the same order.
Source: Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions and perturbations",
2019; the 15 corruptions of the benchmark, and 4 more that are meant for validation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from hydrabench.data.class_names import CIFAR10
from hydrabench.data.forms import CORRUPTED
from hydrabench.data.images import ImageSet
from hydrabench.errors import DataError
from hydrabench.ledger import CORRUPTIONS, SEVERITIES

MORE_CORRUPTIONS = ("gaussian_blur", "saturate", "spatter", "speckle_noise")


def load_corrupted(folder: Path, corruption: str, severity: int, name: str | None = None) -> ImageSet:
    """Return CIFAR-10's test images under one corruption, in the order of the file.

    Args:
        folder: with `labels.npy` and `CORRUPTION.npy`. corruption: of `CORRUPTIONS` or `MORE_CORRUPTIONS`.
        severity: 1 to 5. name: of the set; None: "cifar10c:FOLDER/CORRUPTION/SEVERITY".
    Raises: DataError in one line for another name or severity, a missing file, or one of another layout.
    """
    title = name or f"cifar10c:{folder}/{corruption}/{severity}"
    if corruption not in (*CORRUPTIONS, *MORE_CORRUPTIONS):
        raise DataError(f"{title}: no corruption {corruption!r}; one of {', '.join((*CORRUPTIONS, *MORE_CORRUPTIONS))}")
    if severity not in SEVERITIES:
        raise DataError(f"{title}: severity {severity} is outside 1..5")
    images, labels = _array(folder / f"{corruption}.npy", title), _array(folder / "labels.npy", title)
    if images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3) or not len(images) or len(images) % len(SEVERITIES):
        raise DataError(
            f"{title}: {corruption}.npy should be uint8 (N, 32, 32, 3) in five blocks, found {images.dtype} "
            f"{images.shape}"
        )
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise DataError(f"{title}: labels.npy should be {len(images)} integers, found {labels.dtype} {labels.shape}")
    size = len(images) // len(SEVERITIES)
    block = slice(size * (severity - 1), size * severity)
    pixels = torch.from_numpy(np.ascontiguousarray(images[block].transpose(0, 3, 1, 2)))
    return ImageSet(title, "test", pixels, torch.from_numpy(labels[block].astype(np.int64)), 10, names=CIFAR10)


def load_place(place: Path, name: str, split: str) -> ImageSet:
    """Load DIR/CORRUPTION/SEVERITY. Raises: DataError as `load_corrupted`, or if they are to be trained on."""
    if split != "test":
        raise DataError(f"{name} has no {split} images: CIFAR-10-C is made of test images, and is evaluated only")
    if not place.name.isdecimal() or not place.parent.name:
        raise DataError(f"{name} does not name a corruption and a severity; give {CORRUPTED}")
    return load_corrupted(place.parent.parent, place.parent.name, int(place.name[:9]), name)


def _array(path: Path, title: str) -> np.ndarray[Any, Any]:
    """An array that stays on the disk until it is read."""
    try:
        found: np.ndarray[Any, Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"{title}: there is no {path}; unpack CIFAR-10-C.tar there") from error
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{title}: {path} is no array of numpy.save ({' '.join(str(error).split())[:100]})") from error
    return found
