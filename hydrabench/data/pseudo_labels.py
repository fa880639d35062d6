"""Images with pseudo-labels, such as Carmon's 500,000 of Tiny Images, from a pickle that is read as data only."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hydrabench.data.images import ImageSet, check_labels
from hydrabench.data.parquet import read_parquet
from hydrabench.errors import DataError

SPLIT = "pseudo-labelled"
# What pickles of arrays call, by its names in NumPy 1 and 2, and pickles of bytes in Python 2's protocol.
_MODULES = ("numpy.core", "numpy._core")
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    **{(f"{module}.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0] for module in _MODULES},
    **{(f"{module}.numeric", "_frombuffer"): np.empty(0).__reduce_ex__(5)[0] for module in _MODULES},
}


def load_pseudo_labels(
    path: Path,
    fraction: float,
    *,
    name: str,
    shape: tuple[int, int, int],
    num_classes: int,
    class_names: Sequence[str] = (),
) -> ImageSet:
    """Return a fixed pseudo-random `fraction` of the images in a file, the same for every seed.

    Args:
        path: a pickle of a dictionary with `data`, uint8 (N, 32, 32, 3), and `extrapolated_targets`, N integers, as
            ti_500K_pseudo_labeled.pickle; or a Parquet file, or a folder of them (see `read_parquet`).
        fraction: in (0, 1]; of N images, round(fraction · N) are taken.
        name, shape, num_classes, class_names: of the data set that they go with.
    Raises: DataError if there is nothing, it does not go with the data set, or the pickle holds more than arrays.
    Source: Carmon et al., Unlabeled Data Improves Adversarial Robustness, arXiv:1905.13736, section 6.
    """
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not path.exists():
        raise DataError(
            f"no pseudo-labelled images at {str(path)!r}; data.pseudo_labels.path names a pickle or Parquet files, "
            "from the data folder (--data-dir or HYDRABENCH_DATA) on"
        )
    if files[0].suffix == ".parquet":
        images = read_parquet(files, name, SPLIT, shape=shape, num_classes=num_classes, class_names=class_names)
    elif name == "cifar10":
        images = _from_pickle(path, shape)
    else:
        raise DataError(f"{path} has labels of CIFAR-10's classes, data.name is {name}; use Parquet files of its own")
    check_labels(images, str(path))
    count = round(fraction * len(images))
    if count == 0:
        raise DataError(f"data.pseudo_labels.fraction {fraction} of {len(images)} images leaves none")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images if count == len(images) else images.subset(order[:count].sort().values, SPLIT)


class _ArraysOnly(pickle.Unpickler):
    """Reads plain values and arrays; everything else in a pickle, which could run any code, is refused."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what a pickle may call."""
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        if (module, name) == ("_codecs", "encode"):
            return _encode
        raise DataError(f"it wants to call {module}.{name}, which no array needs; do not trust this file")


def _encode(text: str, encoding: str) -> bytes:
    """Return bytes as protocol 2 writes them."""
    if encoding != "latin1":
        raise DataError(f"it holds bytes in the encoding {encoding!r}, which no array needs; do not trust this file")
    return text.encode("latin1")


def _from_pickle(path: Path, shape: tuple[int, int, int]) -> ImageSet:
    try:
        with path.open("rb") as file:
            found = _ArraysOnly(file, encoding="latin1").load()
        images, labels = np.asarray(found["data"]), np.asarray(found["extrapolated_targets"])
    except DataError as error:
        raise DataError(f"{path} is refused: {error}") from error
    except Exception as error:  # a damaged pickle raises nearly anything
        raise DataError(
            f"{path} is not a pickle of a dictionary with arrays data and extrapolated_targets: {error!r}"
        ) from error
    channels, height, width = shape
    expected = (len(labels) if labels.ndim == 1 else -1, height, width, channels)
    if images.dtype != np.uint8 or labels.dtype.kind not in "iu" or images.shape != expected:
        raise DataError(
            f"{path} should hold uint8 images (N, {height}, {width}, {channels}) and N integers, found "
            f"{images.dtype} {images.shape} and {labels.dtype} {labels.shape}"
        )
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return ImageSet("cifar10", SPLIT, pixels, torch.from_numpy(labels.astype(np.int64)), num_classes=10)
