"""Class names of Parquet files: another order is mapped, other classes are refused with both lists."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from hydrabench.data import DATASETS, load_images
from hydrabench.data.labels import named_labels
from hydrabench.errors import DataError


def name_classes(file: Path, names: object, column: str = "label") -> None:
    """Write the class names as the Hugging Face hub does."""
    about = {"info": {"features": {column: {"names": names, "_type": "ClassLabel"}}}}
    table = pq.read_table(file)
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(about)}), file)


def labels_of(folder: Path, write_parquet, name: str, labels: list[int], names: object, column: str = "label") -> list:
    file = folder / name / "test-0.parquet"
    write_parquet(file, labels, label=column)
    name_classes(file, names, column)
    return load_images(name, "test", folder).labels.tolist()


def test_names_in_another_order_are_mapped(tmp_path, write_parquet):
    names = list(reversed(DATASETS["cifar10"].class_names))
    assert labels_of(tmp_path, write_parquet, "cifar10", [0, 1, 9], names) == [9, 8, 0]


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn"])
def test_the_usual_names_and_plain_numbers_change_nothing(tmp_path, write_parquet, name):
    known = DATASETS[name].class_names
    column = "fine_label" if name == "cifar100" else "label"
    assert labels_of(tmp_path, write_parquet, name, [3, 0, 9], known, column) == [3, 0, 9]
    written = [name.replace("_", " ").title() for name in known]
    assert labels_of(tmp_path, write_parquet, name, [3, 0, 9], written, column) == [3, 0, 9]
    numbers = [str(number) for number in range(len(known))]
    assert labels_of(tmp_path, write_parquet, name, [3, 0, 9], numbers, column) == [3, 0, 9]


def test_the_hubs_misprint_in_cifar100_is_known(tmp_path, write_parquet):
    names = ["cra" if name == "crab" else name for name in DATASETS["cifar100"].class_names]
    assert labels_of(tmp_path, write_parquet, "cifar100", [26, 99], names, "fine_label") == [26, 99]


@pytest.mark.parametrize("names", [["cat", "dog"], [*DATASETS["cifar10"].class_names[:9], "ferry"], ["cat"] * 10])
def test_other_classes_are_refused_with_both_lists(tmp_path, write_parquet, names):
    with pytest.raises(DataError) as refused:
        labels_of(tmp_path, write_parquet, "cifar10", [0, 1], names)
    assert f"its names are {', '.join(names)}, those of the data set airplane, automobile, bird" in str(refused.value)


def test_damaged_names_and_labels_outside_them_are_refused(tmp_path, write_parquet):
    with pytest.raises(DataError, match=r"the class names of label are no list of texts: 3"):
        labels_of(tmp_path, write_parquet, "cifar10", [0, 1], 3)
    with pytest.raises(DataError, match=r"names 10 classes, but its labels are 0\.\.10"):
        labels_of(tmp_path, write_parquet, "cifar10", [0, 10], DATASETS["cifar10"].class_names)


def test_imagenets_classes_are_known_by_wordnet_id_or_by_the_usual_names():
    from torchvision.models._meta import _IMAGENET_CATEGORIES as categories

    labels = named_labels(*_three([f"n{7 * (999 - number):08d}" for number in range(1000)]))
    assert labels.tolist() == [999, 998, 0]
    hub = [f"{name}, {name} again" for name in categories]
    assert named_labels(*_three(hub)).tolist() == [0, 1, 999]
    for other in (sorted(hub), hub[:999], ["n00000000"] * 1000):
        with pytest.raises(DataError, match=r"x\.parquet has labels of other classes: .* tench, goldfish"):
            named_labels(*_three(other))


def _three(names: list[str]) -> tuple:
    import numpy as np

    return np.array([0, 1, 999]), names, (), Path("x.parquet")
