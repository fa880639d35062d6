"""Parquet files: columns, shapes and labels are checked; every mistake names its file."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from hydrabench.data import load_images
from hydrabench.errors import DataError


def test_several_files_are_read_in_the_order_of_their_names(tmp_path, write_parquet):
    second = write_parquet(tmp_path / "cifar10" / "train-00001-of-00002.parquet", [3, 4], seed=1)
    first = write_parquet(tmp_path / "cifar10" / "train-00000-of-00002.parquet", [0, 1, 2], seed=2)
    found = load_images("cifar10", "train", tmp_path)
    assert found.labels.tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(found.images[:3], torch.from_numpy(first).permute(0, 3, 1, 2))
    assert torch.equal(found.images[3:], torch.from_numpy(second).permute(0, 3, 1, 2))


def test_a_missing_file_of_several_is_noticed(tmp_path, write_parquet):
    write_parquet(tmp_path / "cifar10" / "train-00000-of-00002.parquet", [0])
    with pytest.raises(DataError, match=r"cifar10 holds 1 of 2 files train-\*\.parquet; get all of them"):
        load_images("cifar10", "train", tmp_path)


def test_a_damaged_parquet_file_is_named(tmp_path):
    (tmp_path / "test-0.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match=r"test-0\.parquet is not a Parquet file with columns img and label"):
        load_images("cifar10", "test", tmp_path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": "picture", "label": "label"}, r"test-0\.parquet is not a Parquet file .*: it has picture, label"),
        ({"image": "img", "label": "class"}, r"test-0\.parquet is not a Parquet file .*: it has img, class"),
    ],
)
def test_other_columns_are_refused_with_those_that_are_there(tmp_path, write_parquet, columns, message):
    write_parquet(tmp_path / "cifar10" / "test-0.parquet", [0], **columns)
    with pytest.raises(DataError, match=message):
        load_images("cifar10", "test", tmp_path)


@pytest.mark.parametrize("labels", [["cat", "dog"], [1, None]])
def test_labels_that_are_not_all_integers_are_refused(tmp_path, write_parquet, labels):
    write_parquet(tmp_path / "cifar10" / "test-0.parquet", labels)
    with pytest.raises(DataError, match=r"column label should hold an integer in every row, found"):
        load_images("cifar10", "test", tmp_path)


@pytest.mark.parametrize(("name", "labels"), [("cifar10", [0, 10]), ("svhn", [-1, 3]), ("cifar100", [100, 7])])
def test_labels_outside_the_classes_are_refused(tmp_path, write_parquet, name, labels):
    write_parquet(tmp_path / name / "test-0.parquet", labels)
    message = rf"{name}: labels should lie in 0\.\.9+, found {min(labels)}\.\.{max(labels)}"
    with pytest.raises(DataError, match=message):
        load_images(name, "test", tmp_path)


def test_images_of_another_size_are_refused_with_their_row(tmp_path, write_parquet):
    write_parquet(tmp_path / "cifar10" / "test-0.parquet", [0, 1], side=28)
    with pytest.raises(
        DataError, match=r"test-0\.parquet, row 0, .* image of \(3, 32, 32\): it has 28 x 28 pixels, not 32 x 32"
    ):
        load_images("cifar10", "test", tmp_path)


@pytest.mark.parametrize("data", [b"not an image", b"", None])
def test_an_image_that_cannot_be_read_is_refused_with_its_row(tmp_path, write_parquet, data):
    file = tmp_path / "cifar10" / "test-0.parquet"
    write_parquet(file, [0, 1])
    images = pq.read_table(file)["img"].to_pylist()
    images[1]["bytes"] = data
    pq.write_table(pa.table({"img": images, "label": [0, 1]}), file)
    with pytest.raises(DataError, match=r"test-0\.parquet, row 1, cannot be read .*: of no known format"):
        load_images("cifar10", "test", tmp_path)


def test_images_that_are_not_a_struct_are_refused(tmp_path):
    (tmp_path / "cifar10").mkdir()
    pq.write_table(pa.table({"img": [b"1", b"2"], "label": [0, 1]}), tmp_path / "cifar10" / "test-0.parquet")
    with pytest.raises(DataError, match=r"test-0\.parquet is not a Parquet file with columns img and label"):
        load_images("cifar10", "test", tmp_path)


def test_a_file_without_rows_is_refused(tmp_path):
    (tmp_path / "svhn").mkdir()
    image = pa.array([], pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    table = pa.table({"image": image, "label": pa.array([], pa.int64())})
    pq.write_table(table, tmp_path / "svhn" / "test-0.parquet")
    with pytest.raises(DataError, match="svhn: the test files hold no images"):
        load_images("svhn", "test", tmp_path)
