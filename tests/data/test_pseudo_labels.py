"""Pseudo-labelled images: Carmon's pickle is read as arrays and never as code; Parquet files do as well."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from hydrabench.config import DataRecipe
from hydrabench.data import load_training_images
from hydrabench.data.pseudo_labels import load_pseudo_labels
from hydrabench.errors import DataError

CIFAR10 = {"name": "cifar10", "shape": (3, 32, 32), "num_classes": 10}
CARMON = "ti_500K_pseudo_labeled.pickle"


def some(count: int = 20) -> dict:
    images = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return {"data": images, "extrapolated_targets": np.arange(count) % 10}


def write(path: Path, values: object, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(values, protocol))
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_carmons_pickle_is_read_in_every_protocol(tmp_path, protocol):
    values = some()
    found = load_pseudo_labels(write(tmp_path / CARMON, values, protocol), 1.0, **CIFAR10)
    assert np.array_equal(found.images.permute(0, 2, 3, 1).numpy(), values["data"])
    assert found.labels.tolist() == values["extrapolated_targets"].tolist()
    assert (found.name, found.split, found.num_classes) == ("cifar10", "pseudo-labelled", 10)
    assert found.images.is_contiguous()


def test_arrays_pickled_by_numpy_1_and_by_python_2_are_read(tmp_path):
    """NumPy 1 calls its modules numpy.core; Python 2 writes bytes as strings, here the three bytes 00 80 ff."""
    new = pickle.dumps(some(), 2)
    assert b"numpy._core.multiarray" in new or b"numpy.core.multiarray" in new
    (tmp_path / CARMON).write_bytes(new.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert len(load_pseudo_labels(tmp_path / CARMON, 1.0, **CIFAR10)) == 20
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR(I1\n(I1\nI1\nI1\nI3\ntcnumpy\ndtype\n"
        b"(U\x02u1I0\nI1\ntR(I3\nU\x01|NNNI-1\nI-1\nI0\ntbI00\nU\x03\x00\x80\xfftb"
    )
    (tmp_path / CARMON).write_bytes(b"\x80\x02}(U\x04data" + array + b"U\x14extrapolated_targets](I7\neu.")
    found = load_pseudo_labels(tmp_path / CARMON, 1.0, name="cifar10", shape=(3, 1, 1), num_classes=10)
    assert (found.images.flatten().tolist(), found.labels.tolist()) == ([0, 128, 255], [7])


def test_labels_may_be_a_list(tmp_path):
    values = some() | {"extrapolated_targets": [3] * 20, "anything": "else"}
    assert load_pseudo_labels(write(tmp_path / CARMON, values), 1.0, **CIFAR10).labels.tolist() == [3] * 20


class Runs:
    """Pickled as a call of `function`, which unpickling would make."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hidden_name(value: object) -> str:
    return value.__module__ + "." + value.__qualname__


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (os.system, ("touch ran",)),
        (eval, ("open('ran', 'w')",)),
        (exec, ("open('ran', 'w')",)),
        (getattr, (1, "real")),
        (np.load, ("ran",)),
        (pickle.loads, (pickle.dumps(1),)),
        (Path, ("ran",)),
        (torch.load, ("ran",)),
    ],
    ids=lambda value: hidden_name(value) if callable(value) else "",
)
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_pickle_that_calls_anything_else_is_refused_by_name_and_not_run(
    tmp_path, monkeypatch, function, arguments, protocol
):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / CARMON, some() | {"more": Runs(function, *arguments)}, protocol)
    with pytest.raises(
        DataError, match=r"pickle is refused: it wants to call \w+(\.\w+)+, which no array needs"
    ) as said:
        load_pseudo_labels(path, 1.0, **CIFAR10)
    assert function.__name__ in str(said.value)
    assert not (tmp_path / "ran").exists()


def test_bytes_in_other_encodings_are_refused(tmp_path):
    """`_codecs.encode` finds codecs by name, and importing one runs its module."""
    (tmp_path / CARMON).write_bytes(b"c_codecs\nencode\n(Vx\nVrot13\ntR.")
    with pytest.raises(DataError, match=r"bytes in the encoding 'rot13', which no array needs"):
        load_pseudo_labels(tmp_path / CARMON, 1.0, **CIFAR10)


@pytest.mark.parametrize("data", [b"", b"not a pickle", pickle.dumps(some())[:-100]], ids=["empty", "text", "torn"])
def test_a_damaged_pickle_is_named(tmp_path, data):
    (tmp_path / CARMON).write_bytes(data)
    with pytest.raises(DataError, match=rf"{CARMON} is not a pickle of a dictionary with arrays data and extra"):
        load_pseudo_labels(tmp_path / CARMON, 1.0, **CIFAR10)


@pytest.mark.parametrize(
    "values",
    [
        [1, 2],
        {"data": some()["data"]},
        {"data": [[1], [2, 3]], "extrapolated_targets": [0, 1]},
    ],
    ids=["list", "no labels", "ragged"],
)
def test_a_pickle_of_something_else_is_named(tmp_path, values):
    with pytest.raises(DataError, match=rf"{CARMON} is not a pickle of a dictionary with arrays data and extra"):
        load_pseudo_labels(write(tmp_path / CARMON, values), 1.0, **CIFAR10)


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"data": some()["data"].astype(np.float32)}, r"float32 \(20, 32, 32, 3\)"),
        ({"data": some()["data"].transpose(0, 3, 1, 2)}, r"uint8 \(20, 3, 32, 32\)"),
        ({"data": some(19)["data"]}, r"uint8 \(19, 32, 32, 3\) and int64 \(20,\)"),
        ({"extrapolated_targets": np.zeros(20)}, r"float64 \(20,\)"),
        ({"extrapolated_targets": np.zeros((20, 10), int)}, r"int64 \(20, 10\)"),
        ({"data": np.array([None] * 20)}, r"object \(20,\)"),
    ],
)
def test_arrays_of_other_kinds_are_refused_with_what_they_are(tmp_path, changed, found):
    with pytest.raises(DataError, match=rf"should hold uint8 images \(N, 32, 32, 3\) and N integers, found .*{found}"):
        load_pseudo_labels(write(tmp_path / CARMON, some() | changed), 1.0, **CIFAR10)


def test_labels_of_other_classes_are_refused(tmp_path):
    values = some() | {"extrapolated_targets": np.full(20, 10)}
    with pytest.raises(DataError, match=rf"{CARMON}: labels should lie in 0\.\.9, found 10\.\.10"):
        load_pseudo_labels(write(tmp_path / CARMON, values), 1.0, **CIFAR10)


def test_a_pickle_goes_with_cifar10_alone(tmp_path):
    path = write(tmp_path / CARMON, some())
    with pytest.raises(DataError, match=r"has labels of CIFAR-10's classes, data\.name is svhn; use Parquet files"):
        load_pseudo_labels(path, 1.0, name="svhn", shape=(3, 32, 32), num_classes=10)


def test_a_fraction_is_fixed_and_keeps_images_with_their_labels(tmp_path):
    path = write(tmp_path / CARMON, some())
    whole, part = (load_pseudo_labels(path, fraction, **CIFAR10) for fraction in (1.0, 0.3))
    assert (len(whole), len(part)) == (20, 6)
    found = [next(n for n in range(20) if torch.equal(whole.images[n], image)) for image in part.images]
    assert sorted(set(found)) == found != list(range(6))
    assert part.labels.tolist() == whole.labels[found].tolist()
    assert torch.equal(load_pseudo_labels(path, 0.3, **CIFAR10).images, part.images)
    with pytest.raises(DataError, match=r"data\.pseudo_labels\.fraction 0\.01 of 20 images leaves none"):
        load_pseudo_labels(path, 0.01, **CIFAR10)


def recipe(path: str, **more: object) -> DataRecipe:
    return DataRecipe(name="cifar10", pseudo_labels={"path": path, **more})


@pytest.mark.parametrize("place", ["extra", "extra/train-00000-of-00001.parquet"])
def test_pseudo_labels_may_be_parquet_files_in_the_data_folder(tmp_path, write_parquet, place):
    write_parquet(tmp_path / "cifar10" / "train-00000-of-00001.parquet", [0] * 10)
    raw = write_parquet(tmp_path / "extra" / "train-00000-of-00001.parquet", [1, 2, 3], seed=1)
    images = load_training_images(recipe(place), tmp_path, seed=0)
    assert torch.equal(images.pseudo.images, torch.from_numpy(raw).permute(0, 3, 1, 2))
    assert images.pseudo.labels.tolist() == [1, 2, 3]
    assert (len(images.labelled), len(images.validation)) == (9, 1)


def test_carmons_pickle_lies_in_the_data_folder_or_anywhere(tmp_path, write_parquet):
    write_parquet(tmp_path / "data" / "cifar10" / "train-00000-of-00001.parquet", [0] * 10)
    path = write(tmp_path / "data" / CARMON, some())
    inside = load_training_images(recipe(CARMON, fraction=0.5), tmp_path / "data", seed=0)
    moved = path.rename(tmp_path / CARMON)
    outside = load_training_images(recipe(str(moved), fraction=0.5), tmp_path / "data", seed=0)
    assert len(inside.pseudo) == 10
    assert torch.equal(inside.pseudo.images, outside.pseudo.images)


@pytest.mark.parametrize("path", ["nowhere.pickle", "cifar10/empty"])
def test_missing_pseudo_labels_say_where_they_were_looked_for(tmp_path, write_parquet, path):
    write_parquet(tmp_path / "cifar10" / "train-00000-of-00001.parquet", [0] * 10)
    (tmp_path / "cifar10" / "empty").mkdir()
    with pytest.raises(DataError, match=rf"no pseudo-labelled images at '.*{path}'; data\.pseudo_labels\.path names"):
        load_training_images(recipe(path), tmp_path, seed=0)


def test_pseudo_labelled_images_of_another_size_are_refused(tmp_path, write_parquet):
    write_parquet(tmp_path / "cifar10" / "train-00000-of-00001.parquet", [0] * 10)
    write_parquet(tmp_path / "extra.parquet", [0], side=64)
    with pytest.raises(DataError, match=r"extra\.parquet, row 0, .*: it has 64 x 64 pixels, not 32 x 32"):
        load_training_images(recipe("extra.parquet"), tmp_path, seed=0)
