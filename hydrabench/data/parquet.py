"""Parquet files in the layout of the Hugging Face hub: one row per image, its encoded bytes, and its label."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hydrabench.data.cache import Pixels, cached_pixels
from hydrabench.data.decoding import open_rgb
from hydrabench.data.images import ImageSet
from hydrabench.data.labels import Labels, feature_names, named_labels
from hydrabench.errors import DataError

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("fine_label", "label")  # CIFAR-100 on the hub has fine and coarse ones
GROUP_COLUMN = "photo"  # images cut from one photograph overlap
DECODED_AT_ONCE = 1000


def find_parquet(places: Sequence[Path], split: str) -> list[Path]:
    """The files SPLIT-*.parquet of the first of `places` that has some, in order; empty if none has.

    Raises: DataError if the names say (-00000-of-00004) that files are missing.
    """
    for place in places:
        files = sorted(place.glob(f"{split}-*.parquet"))
        if files:
            parts = {int(found[1]) for file in files if (found := re.search(r"-of-(\d+)\.parquet$", file.name))}
            if parts and parts != {len(files)}:
                raise DataError(f"{place} holds {len(files)} of {max(parts)} files {split}-*.parquet; get all of them")
            return files
    return []


def places_of(folder: Path, name: str, hub: str) -> list[Path]:
    """Return where the files of a data set may lie in a data folder; `hub`: their folder on the hub."""
    own = [folder / name, folder / name / hub]
    return [*own, folder, folder / hub] if folder.name == name else own


def read_parquet(
    files: Sequence[Path],
    name: str,
    split: str,
    *,
    shape: tuple[int, int, int],
    num_classes: int,
    class_names: Sequence[str],
) -> ImageSet:
    """Return the images of `files`, decoded, or as they were decoded before.

    Columns: `img` or `image`, a struct with the encoded `bytes`; `fine_label` or `label`; `photo`, if there is one,
    becomes the groups. Rows keep their order; the hub's files have that of the original, of which any prefix is a fair
    sample.

    Args: class_names: of the data set, by label; see `data.labels` for files that name theirs.
    Raises: DataError naming the file that is no such Parquet file, or whose images have another shape, or whose
        labels are of other classes.
    """
    labels = np.concatenate([read_labels(file, class_names) for file in files])
    grouped = all(GROUP_COLUMN in column_names(file) for file in files)
    groups = np.concatenate([read_column(file, (GROUP_COLUMN,)) for file in files]) if grouped else None
    images = cached_pixels(files, (len(labels), *shape), lambda: _decode(files, len(labels), shape))
    return ImageSet(
        name,
        split,
        torch.from_numpy(images),
        torch.from_numpy(labels),
        num_classes,
        None if groups is None else torch.from_numpy(groups),
    )


def column_names(file: Path) -> list[str]:
    """The columns of a Parquet file. Raises: DataError if it is none."""
    import pyarrow as pa  # noqa: PLC0415 - needed for this layout only
    import pyarrow.parquet as pq  # noqa: PLC0415

    try:
        return list(pq.read_schema(file).names)
    except (pa.ArrowException, OSError) as error:
        raise _unfit(file, error) from error


def read_column(file: Path, names: Sequence[str]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The integers of the first of the columns `names` that the file has. Raises: DataError."""
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    column = _choose(file, names)
    try:
        values = pq.read_table(file, columns=[column])[column].to_numpy()
    except (pa.ArrowException, OSError) as error:
        raise _unfit(file, error) from error
    if values.dtype.kind not in "iu":
        raise DataError(f"{file}: column {column} should hold an integer in every row, found {values.dtype}")
    return np.array(values, np.int64)


def read_labels(file: Path, class_names: Sequence[str]) -> Labels:
    """The labels of a file as positions among `class_names`, see `data.labels.named_labels`. Raises: DataError."""
    import pyarrow.parquet as pq  # noqa: PLC0415

    column = _choose(file, LABEL_COLUMNS)
    labels = read_column(file, (column,))
    return named_labels(labels, feature_names(pq.read_schema(file).metadata, column, file), class_names, file)


def read_encoded(file: Path, row_groups: Sequence[int] | None = None) -> Iterator[list[bytes | None]]:
    """Yield the encoded images of a file, or of some of its row groups, in order, a list of many at a time.

    Raises: DataError if there is no column of them.
    """
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.compute as pc  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    column = _choose(file, IMAGE_COLUMNS)
    try:
        with pq.ParquetFile(file) as opened:
            for batch in opened.iter_batches(DECODED_AT_ONCE, columns=[column], row_groups=row_groups):
                yield pc.struct_field(batch[column], "bytes").to_pylist()
    except (pa.ArrowException, OSError, TypeError, NotImplementedError) as error:
        raise _unfit(file, error) from error


def read_paths(file: Path) -> list[str]:
    """The names that a file gives its images, "" for those without one. Raises: DataError as `read_encoded`."""
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    column = _choose(file, IMAGE_COLUMNS)
    try:
        with pq.ParquetFile(file) as opened:
            found = opened.read(columns=[f"{column}.path"])
    except (pa.ArrowException, OSError) as error:
        raise _unfit(file, error) from error
    rows = found[column].to_pylist() if column in found.column_names else [None] * opened.metadata.num_rows
    return [(row or {}).get("path") or "" for row in rows]


def _decode(files: Sequence[Path], count: int, shape: tuple[int, int, int]) -> Pixels:
    images = np.empty((count, *shape), np.uint8)
    row = 0
    with ThreadPoolExecutor() as pool:
        for file in files:
            first = row
            for encoded in read_encoded(file):
                for image in pool.map(partial(_decode_one, size=shape[1:]), encoded):
                    if isinstance(image, str):
                        raise DataError(f"{file}, row {row - first}, cannot be read as an image of {shape}: {image}")
                    images[row] = image
                    row += 1
    return images


def _decode_one(data: bytes | None, size: tuple[int, int]) -> Pixels | str:
    """Decode one image of that height and width to uint8, (3, H, W), or return why that is not possible."""
    try:
        return np.asarray(open_rgb(data or b"", size=size)).transpose(2, 0, 1)
    except ValueError as error:
        return str(error)


def _choose(file: Path, names: Sequence[str]) -> str:
    """The first of the columns `names` that the file has."""
    present = column_names(file)
    for name in names:
        if name in present:
            return name
    raise _unfit(file, f"it has {', '.join(present)}")


def _unfit(file: Path, problem: object) -> DataError:
    return DataError(f"{file} is not a Parquet file with columns img and label (or image, fine_label): {problem}")
