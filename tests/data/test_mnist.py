"""MNIST and Fashion-MNIST in the files of their authors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hydrabench.data import DATASETS, load_images
from hydrabench.errors import DataError
from hydrabench.models import build_model

FOLDERS = {"mnist": "MNIST", "fashionmnist": "FashionMNIST"}


def write_idx(path: Path, values: np.ndarray) -> None:
    """The format: two zero bytes, the type (8: uint8), the number of dimensions, each size, the values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.tobytes())


def write_files(folder: Path, name: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng, written = np.random.default_rng(len(name)), {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = rng.integers(0, 256, (12, 28, 28), dtype=np.uint8)
        labels = (np.arange(12) % 10).astype(np.uint8)
        write_idx(folder / FOLDERS[name] / "raw" / f"{prefix}-images-idx3-ubyte", images)
        write_idx(folder / FOLDERS[name] / "raw" / f"{prefix}-labels-idx1-ubyte", labels)
        written[split] = images, labels
    return written


@pytest.mark.parametrize("name", FOLDERS)
def test_the_files_are_read_in_their_order(tmp_path, name):
    for split, (images, labels) in write_files(tmp_path, name).items():
        found = load_images(name, split, tmp_path)
        assert np.array_equal(found.images[:, 0].numpy(), images)
        assert found.labels.tolist() == labels.tolist()
        assert (found.name, found.split, found.shape, found.num_classes) == (name, split, (1, 28, 28), 10)
    network = build_model("mnist_model", DATASETS[name].shape, 10)
    assert network(found.images[:2] / 255).shape == (2, 10)


@pytest.mark.parametrize("name", FOLDERS)
def test_what_is_missing_or_damaged_is_one_line(tmp_path, name):
    with pytest.raises(DataError, match=rf"{FOLDERS[name]}/raw' holds no files of .* add --download"):
        load_images(name, "test", tmp_path)
    write_files(tmp_path, name)
    raw = tmp_path / FOLDERS[name] / "raw"
    whole = (raw / "t10k-images-idx3-ubyte").read_bytes()
    for damaged in (whole[:-1], whole[:10], b"", b"\x00\x00\x09\x03" + whole[4:]):
        (raw / "t10k-images-idx3-ubyte").write_bytes(damaged)
        with pytest.raises(DataError, match="holds damaged files of"):
            load_images(name, "test", tmp_path)
    write_idx(raw / "t10k-images-idx3-ubyte", np.zeros((11, 28, 28), np.uint8))
    with pytest.raises(DataError, match=r"holds \(11, 28, 28\) pixels and 12 labels"):
        load_images(name, "test", tmp_path)
    write_files(tmp_path, name)
    write_idx(raw / "t10k-labels-idx1-ubyte", np.full(12, 10, np.uint8))
    with pytest.raises(DataError, match=r"labels should lie in 0\.\.9, found 10\.\.10"):
        load_images(name, "test", tmp_path)
