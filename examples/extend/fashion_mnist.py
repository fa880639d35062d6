"""FashionMNIST as a data set, from the IDX files in which it is published, compressed or not.

DATA/fashion-mnist/{train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]; `data: {name: fashion-mnist}` in a recipe.

Source: Xiao et al., arXiv:1708.07747. The format: two zero bytes, 8 for unsigned bytes, the number of axes, the length
of each as a big-endian integer of 32 bits, and the values.
"""

from __future__ import annotations

import gzip
from math import prod
from pathlib import Path

import numpy as np
import torch

from hydrabench.data import DATASETS, DataSet, ImageSet
from hydrabench.errors import DataError

CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
PREFIX = {"train": "train", "test": "t10k"}


def read_idx(path: Path, axes: int) -> np.ndarray:
    """Read an IDX file of unsigned bytes, or the same with .gz. Raises: DataError if it is missing or damaged."""
    packed = path.with_name(path.name + ".gz")
    try:
        raw = path.read_bytes() if path.exists() else gzip.decompress(packed.read_bytes())
    except (OSError, EOFError) as error:
        raise DataError(f"{path}[.gz] cannot be read ({error}); fetch it again into --data-dir") from error
    start = 4 + 4 * axes
    if raw[:4] != bytes([0, 0, 8, axes]) or len(raw) < start:
        raise DataError(f"{path} is no IDX file of unsigned bytes with {axes} axes; it begins with {raw[:4].hex()}")
    shape = np.frombuffer(raw[4:start], ">u4").tolist()
    if len(raw) != start + prod(shape):
        raise DataError(f"{path} holds {len(raw) - start} values instead of {prod(shape)}; fetch it again")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def load_fashion_mnist(split: str, folder: Path | None, *, download: bool = False) -> ImageSet:  # noqa: ARG001
    """Return a split, 28x28 grey images in the order of the files."""
    base = (folder or Path("data")) / "fashion-mnist"
    images = read_idx(base / f"{PREFIX[split]}-images-idx3-ubyte", 3)
    labels = read_idx(base / f"{PREFIX[split]}-labels-idx1-ubyte", 1)
    if len(images) != len(labels):
        raise DataError(f"{base} holds {len(images)} images and {len(labels)} labels of the {split} split")
    pixels = torch.from_numpy(images.copy()).unsqueeze(1)
    return ImageSet("fashion-mnist", split, pixels, torch.from_numpy(labels.astype(np.int64)), num_classes=10)


DATASETS["fashion-mnist"] = DataSet((1, 28, 28), 10, load_fashion_mnist, 60_000, 10_000, CLASSES)
