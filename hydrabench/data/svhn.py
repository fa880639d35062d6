"""SVHN, the cropped house numbers, from Parquet files in the Hugging Face layout or from torchvision's files."""

from __future__ import annotations

from pathlib import Path

import torch

from hydrabench.data.class_names import DIGITS
from hydrabench.data.images import ImageSet
from hydrabench.data.parquet import find_parquet, places_of, read_parquet
from hydrabench.errors import DataError


def load_svhn(split: str, folder: Path | None, *, download: bool = False) -> ImageSet:
    """Return SVHN's "train" (73,257) or "test" (26,032) images; its easier "extra" ones are left out, as by HYDRA.

    Looked for, in this order: `folder/svhn/{split}-*.parquet`, the same in `svhn/cropped_digits` (as on the hub) or
    in `folder` itself if that is called svhn, and `{split}_32x32.mat` in `folder/svhn` or `folder`, which
    `download` fetches. A column `photo` says which digits come from one photograph and must stay together.
    Raises: DataError that says how to get the data if none of them is there.
    Source: Netzer et al., Reading Digits in Natural Images with Unsupervised Feature Learning, 2011.
    """
    files = find_parquet(places_of(folder, "svhn", "cropped_digits"), split) if folder is not None else []
    if files:
        return read_parquet(files, "svhn", split, shape=(3, 32, 32), num_classes=10, class_names=DIGITS)
    return _from_torchvision(split, folder or Path("data"), download=download)


def _from_torchvision(split: str, folder: Path, *, download: bool) -> ImageSet:
    from torchvision.datasets import SVHN  # noqa: PLC0415 - slow to import

    file = f"{split}_32x32.mat"
    root = folder if (folder / file).exists() or folder.name == "svhn" else folder / "svhn"
    try:
        found = SVHN(str(root), split=split, download=download)
    except (RuntimeError, OSError) as error:
        if download:
            raise DataError(f"SVHN could not be fetched into {str(root)!r}: {error}") from error
        raise DataError(
            f"no SVHN {split} images in {str(folder)!r}: neither svhn/{split}-*.parquet (Hugging Face layout) nor a "
            f"whole {file}; name the folder with --data-dir or HYDRABENCH_DATA, or add --download"
        ) from error
    images = torch.from_numpy(found.data).contiguous()
    return ImageSet("svhn", split, images, torch.from_numpy(found.labels), num_classes=10)
