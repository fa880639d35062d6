"""Training on a fraction of the images, and on pseudo-labelled ones beside them."""

from __future__ import annotations

import csv
import io
import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from hydrabench.recipes import load_recipe
from hydrabench.workflows.run_options import RunOptions
from hydrabench.workflows.training import commands as training

RECIPE = {
    "name": "tiny",
    "model": {"arch": "cifar_model"},
    "data": {"name": "cifar10", "crop_padding": 2, "flip": True, "validation_fraction": 0.2},
    "objective": {"name": "natural"},
    "train": {"epochs": 2, "batch_size": 8, "lr": 0.01},
}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """40 training images of CIFAR-10's size, and 100 with pseudo-labels."""
    monkeypatch.setenv("HYDRABENCH_CACHE", str(tmp_path / "cache"))
    images = np.random.default_rng(0).integers(0, 256, (140, 32, 32, 3), dtype=np.uint8)
    encoded = []
    for image in images[:40]:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "PNG")
        encoded.append({"bytes": stream.getvalue(), "path": None})
    folder = tmp_path / "data" / "cifar10"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"img": encoded, "label": [n % 10 for n in range(40)]}), folder / "train-0.parquet")
    extra = {"data": images[40:], "extrapolated_targets": np.arange(100) % 10}
    (tmp_path / "data" / "extra.pickle").write_bytes(pickle.dumps(extra))
    return tmp_path / "data"


def train(data: Path, out: Path, *overrides: str) -> tuple[dict, list[dict[str, str]]]:
    """Train, and return what run.json says of the data, and metrics.csv."""
    file = data / "recipe.yml"
    file.write_text(yaml.safe_dump(RECIPE))
    training.train(load_recipe(file, overrides), out, options=RunOptions("cpu", data))
    with (out / "metrics.csv").open() as table:
        dataset = json.loads((out / "run.json").read_text())["dataset"]
        assert len(dataset.pop("fingerprint")) == 64
        return dataset, list(csv.DictReader(table))


def test_a_run_says_how_many_images_of_each_kind_it_had(data, tmp_path):
    kind, _ = train(data, tmp_path / "plain")
    assert kind == {"name": "cifar10", "train": 32, "validation": 8}
    kind, _ = train(data, tmp_path / "fraction", "data.fraction=0.5")
    assert kind == {"name": "cifar10", "train": 16, "validation": 8}
    kind, _ = train(data, tmp_path / "pseudo", "data.pseudo_labels={path: extra.pickle, fraction: 0.9}")
    assert kind == {"name": "cifar10", "train": 32, "validation": 8, "pseudo_labelled": 90}


def test_pseudo_labelled_images_change_what_is_learnt(data, tmp_path):
    _, plain = train(data, tmp_path / "plain")
    _, mixed = train(data, tmp_path / "mixed", "data.pseudo_labels={path: extra.pickle}")
    assert [row["loss"] for row in plain] != [row["loss"] for row in mixed]
    assert all(0 <= float(row["train_accuracy"]) <= 1 for row in mixed)
