"""CIFAR-10, from a folder of Parquet files in the Hugging Face layout or from torchvision's files."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from hydrabench.data.images import ImageSet
from hydrabench.errors import DataError


def load_cifar10(split: str, folder: Path | None, *, download: bool = False) -> ImageSet:
    """Return CIFAR-10's "train" or "test" images.

    Looked for, in this order: `folder/cifar10/{split}-*.parquet`, `folder/{split}-*.parquet`, and
    torchvision's `folder/cifar-10-batches-py`, which `download` fetches.
    Raises: DataError that says how to get the data if none of them is there.
    """
    if folder is not None:
        for place in (folder / "cifar10", folder):
            files = sorted(place.glob(f"{split}-*.parquet"))
            if files:
                return _from_parquet(files, split)
    return _from_torchvision(split, folder, download=download)


def _from_parquet(files: list[Path], split: str) -> ImageSet:
    """Decode the images of Parquet files with columns `img` (or `image`): {bytes, path}, and `label`."""
    import pyarrow as pa  # noqa: PLC0415 - needed for this layout only
    import pyarrow.parquet as pq  # noqa: PLC0415

    encoded: list[bytes] = []
    labels: list[int] = []
    for file in files:
        try:
            table = pq.read_table(file)
            column = "img" if "img" in table.column_names else "image"
            encoded += table[column].combine_chunks().field("bytes").to_pylist()
            labels += table["label"].to_pylist()
        except (pa.ArrowException, KeyError, OSError) as error:
            raise DataError(f"{file} is not a Parquet file with columns img and label: {error}") from error
    with ThreadPoolExecutor() as pool:
        # `stack` keeps the layout of its parts, channels last here.
        images = np.ascontiguousarray(np.stack(list(pool.map(_decode, encoded))))
    return ImageSet("cifar10", split, torch.from_numpy(images), torch.tensor(labels), num_classes=10)


def _decode(data: bytes) -> np.ndarray:  # type: ignore[type-arg]
    """Decode one image to uint8, (3, 32, 32)."""
    from PIL import Image  # noqa: PLC0415 - comes with torchvision

    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).transpose(2, 0, 1)


def _from_torchvision(split: str, folder: Path | None, *, download: bool) -> ImageSet:
    from torchvision.datasets import CIFAR10  # noqa: PLC0415 - slow to import

    root = folder or Path("data")
    try:
        found = CIFAR10(root, train=split == "train", download=download)
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"no CIFAR-10 in {str(root)!r}: neither {split}-*.parquet (Hugging Face layout) nor cifar-10-batches-py; "
            "name the folder with --data-dir or HYDRABENCH_DATA, or add --download"
        ) from error
    images = torch.from_numpy(found.data).permute(0, 3, 1, 2).contiguous()
    return ImageSet("cifar10", split, images, torch.tensor(found.targets), num_classes=10)
