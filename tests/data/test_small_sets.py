"""CIFAR-10, CIFAR-100 and SVHN: each from its own files, in the hub's layout or torchvision's, and the real ones."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy import io as scipy_io
from torchvision import datasets as torchvision_datasets

from hydrabench.data import load_images, validation_split
from hydrabench.errors import DataError

SHARED = Path(__file__).parents[3] / "shared" / "data"


def needs(name: str) -> pytest.MarkDecorator:
    missing = not (SHARED / name).is_dir()
    return pytest.mark.skipif(missing, reason=f"real images are not beside this checkout (../shared/data/{name})")


def sealed(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_batches(folder: Path, monkeypatch: pytest.MonkeyPatch, kind: type, *, classes: int, label: str) -> np.ndarray:
    """Write torchvision's files, two images in each, and let it accept their hashes; returns all images, NHWC."""
    rng = np.random.default_rng(classes)
    base = folder / kind.base_folder
    base.mkdir()
    images = []
    lists = {"train_list": [], "test_list": []}
    for name, old in ((which, old) for which in lists for old in getattr(kind, which)):
        images.append(rng.integers(0, 256, (2, 3, 32, 32), dtype=np.uint8))
        batch = {"data": images[-1].reshape(2, 3072), label: [len(images), classes - 1]}
        (base / old[0]).write_bytes(pickle.dumps(batch))
        lists[name].append([old[0], sealed(base / old[0])])
    meta = dict(kind.meta)
    (base / meta["filename"]).write_bytes(pickle.dumps({meta["key"]: list(map(str, range(classes)))}))
    meta["md5"] = sealed(base / meta["filename"])
    for name, value in {**lists, "meta": meta}.items():
        monkeypatch.setattr(kind, name, value)
    return np.concatenate(images)


@pytest.mark.parametrize(("name", "classes", "label"), [("cifar10", 10, "labels"), ("cifar100", 100, "fine_labels")])
def test_torchvisions_cifar_files_are_read(tmp_path, monkeypatch, name, classes, label):
    kind = getattr(torchvision_datasets, name.upper())
    images = write_batches(tmp_path, monkeypatch, kind, classes=classes, label=label)
    train, test = load_images(name, "train", tmp_path), load_images(name, "test", tmp_path)
    assert np.array_equal(torch.cat([train.images, test.images]).numpy(), images)
    assert test.labels.tolist() == [len(images) // 2, classes - 1]
    assert (train.name, train.split, train.num_classes, test.split) == (name, "train", classes, "test")
    assert train.images.is_contiguous()


def test_cifar100_is_evaluated_on_its_own_test_set(tmp_path, write_parquet, monkeypatch):
    """The original took CIFAR-10's; its files beside, or in place of, CIFAR-100's must not be read."""
    write_parquet(tmp_path / "cifar10" / "test-00000-of-00001.parquet", range(10), seed=1)
    write_parquet(tmp_path / "test-00000-of-00001.parquet", range(10), seed=2)
    write_batches(tmp_path, monkeypatch, torchvision_datasets.CIFAR10, classes=10, label="labels")
    with pytest.raises(DataError, match=r"no CIFAR-100 in .*nor cifar-100-python"):
        load_images("cifar100", "test", tmp_path)
    file = tmp_path / "cifar100" / "test-00000-of-00001.parquet"
    raw = write_parquet(file, [99, 0], label="fine_label", coarse_label=[19, 1], seed=3)
    found = load_images("cifar100", "test", tmp_path)
    assert torch.equal(found.images, torch.from_numpy(raw).permute(0, 3, 1, 2))
    assert (found.labels.tolist(), found.num_classes) == ([99, 0], 100)


@pytest.mark.parametrize("place", ["cifar100", "cifar100/cifar100", "."])
def test_cifar100_may_lie_in_its_folder_on_the_hub_or_in_a_data_folder_of_its_own(tmp_path, write_parquet, place):
    root = tmp_path / "cifar100" if place == "." else tmp_path
    write_parquet(root / place / "train-00000-of-00001.parquet", [50, 99], label="fine_label")
    assert load_images("cifar100", "train", root).labels.tolist() == [50, 99]


@pytest.mark.parametrize("place", ["svhn", "."])
def test_torchvisions_svhn_files_are_read_and_ten_is_the_digit_zero(tmp_path, monkeypatch, place):
    images = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
    (tmp_path / place).mkdir(exist_ok=True)
    file = tmp_path / place / "test_32x32.mat"
    scipy_io.savemat(file, {"X": images, "y": np.array([[10], [1], [9], [10]], np.uint8)})
    split_list = {"test": ["", file.name, sealed(file)], "train": ["", "train_32x32.mat", ""], "extra": ["", "", ""]}
    monkeypatch.setattr(torchvision_datasets.SVHN, "split_list", split_list)
    found = load_images("svhn", "test", tmp_path)
    assert found.labels.tolist() == [0, 1, 9, 0]
    assert np.array_equal(found.images[2, 1], images[:, :, 1, 2])
    assert found.images.is_contiguous()
    assert found.groups is None


def test_missing_svhn_says_what_was_looked_for(tmp_path):
    with pytest.raises(
        DataError, match=r"no SVHN test images in .*test_32x32\.mat; name the folder .*or add --download"
    ):
        load_images("svhn", "test", tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn"])
def test_a_download_that_fails_says_why(tmp_path, monkeypatch, name):
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    for kind in (torchvision_datasets.CIFAR10, torchvision_datasets.SVHN):
        monkeypatch.setattr(kind, "download", refuse)
    with pytest.raises(DataError, match=r"could not be fetched into .*: no route to host"):
        load_images(name, "train", tmp_path, download=True)


def test_photographs_of_svhn_stay_on_one_side_of_the_validation_split(tmp_path, write_parquet):
    file = tmp_path / "svhn" / "train-00000-of-00001.parquet"
    write_parquet(file, [n % 10 for n in range(40)], image="image", photo=[n // 4 for n in range(40)])
    train, held_out = validation_split(load_images("svhn", "train", tmp_path), 0.1)
    assert (len(train), len(held_out)) == (36, 4)
    assert len(set(held_out.groups.tolist())) == 1


@needs("cifar10")
def test_the_real_cifar10_test_images_are_read():
    found = load_images("cifar10", "test", SHARED)
    assert len(found) == 5000
    assert found.labels.bincount().tolist() == [500] * 10
    assert found.labels[:100].bincount().min() >= 8


@needs("svhn")
def test_the_real_svhn_digits_are_read_and_split_by_photograph():
    found = load_images("svhn", "train", SHARED)
    photo = pq.read_table(SHARED / "svhn" / "train-00000-of-00001.parquet")["photo"].to_pylist()
    assert len(found) == 786
    assert found.groups.tolist() == photo
    assert found.labels.bincount(minlength=10).min() > 0
    train, held_out = validation_split(found, 0.1)
    assert len(train) + len(held_out) == 786
    assert 79 <= len(held_out) <= 85
    assert not set(train.groups.tolist()) & set(held_out.groups.tolist())


@needs("svhn")
def test_svhn_of_the_sample_has_no_test_split_and_says_so():
    with pytest.raises(DataError, match=r"no SVHN test images in"):
        load_images("svhn", "test", SHARED)
