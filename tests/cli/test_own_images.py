"""Images of the user's own, in folders or files of numpy, from training to a report, on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import hydrabench as hb
from hydrabench.data import load_images, pixels

CLASSES = ("circle", "cross", "square")
RECIPE = """
name: shapes
model: {arch: "mynet.py:Net"}
data: {name: "folder:images/train", test: "folder:images/val", validation_fraction: 0.2}
objective: {name: natural}
train: {epochs: 12, batch_size: 16, optimizer: adam, lr: 0.02}
prune: {epochs: 4, batch_size: 16, optimizer: adam, lr: 0.02}
finetune: {epochs: 6, batch_size: 16, optimizer: adam, lr: 0.02}
pipeline: {densities: [0.5], lwm: false}
evaluate: [{kind: clean}]
"""
CODE = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 5 * 5, 3)
        )
"""


def shape(kind: int, rng: np.random.Generator) -> np.ndarray:
    """A bright ring, cross or filled square on dark noise, uint8 (10, 10, 3)."""
    rows, columns = np.mgrid[:10, :10]
    distance = np.maximum(abs(rows - 4.5), abs(columns - 4.5))
    drawn = (distance == 3.5, (abs(rows - columns) < 1) | (rows + columns == 9), distance < 3)[kind]
    image = rng.integers(0, 60, (10, 10, 3))
    image[drawn] += 180
    return image.astype(np.uint8)


@pytest.fixture
def shapes(here):
    """A folder `lab` with a recipe, the network that it names, and images of three classes in two splits."""
    rng = np.random.default_rng(0)
    for split, each in (("train", 20), ("val", 7)):
        drawn = [(shape(kind, rng), kind) for _ in range(each) for kind in range(3)]
        for number, (image, kind) in enumerate(drawn):
            folder = here / "lab" / "images" / split / CLASSES[kind]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{number}.png")
        images, labels = zip(*drawn, strict=True)
        np.savez(here / f"{split}.npz", images=np.stack(images), labels=np.array(labels))
    (here / "lab" / "mynet.py").write_text(CODE)
    (here / "lab" / "shapes.yml").write_text(RECIPE)
    return here


def accuracy(folder: str) -> float:
    return json.loads(Path(folder, "summary.json").read_text())["metrics"]["clean_accuracy"]["value"]


def ran(result) -> None:
    assert result.exit_code == 0, result.output


VAL = ("--dataset", "folder:lab/images/val")


def test_training_pruning_and_finetuning_on_class_folders_whose_checkpoints_are_judged_on_others(shapes, hydrabench):
    recipe = ("--config", "lab/shapes.yml")
    ran(hydrabench("train", *recipe, "--out", "dense"))
    ran(hydrabench("prune", *recipe, "--ckpt", "dense", "--density", 0.5, "--out", "pruned"))
    ran(hydrabench("finetune", *recipe, "--ckpt", "pruned", "--out", "tuned"))
    said = json.loads(Path("tuned/run.json").read_text())["dataset"]
    assert (said["name"], said["train"], said["validation"]) == ("folder:lab/images/train", 48, 12)
    ran(hydrabench("attack", "--ckpt", "tuned", *VAL, "--attack", "clean", "--out", "clean"))
    images = load_images("folder:lab/images/val", "test")
    x, y = pixels(images.take(torch.arange(21))), images.labels
    right = hb.load("tuned")(x).argmax(1) == y
    assert accuracy("clean") == float(right.double().mean())
    assert accuracy("clean") > 0.8  # of three classes that a line tells apart
    ran(hydrabench("certify", "--ckpt", "tuned", "--dataset", "npz:val.npz", "--epsilon", "1/255", "--out", "bound"))
    assert hydrabench("verify", "bound", "--sample", 5).exit_code == 0
    assert json.loads(Path("bound/run.json").read_text())["dataset"]["name"] == "npz:val.npz"
    assert hb.attack("tuned", "npz:val.npz", attack="clean").summary["n"] == 21
    ran(hydrabench("attack", "--ckpt", "tuned", *VAL, "--attack", "clean", "--out", "clean", "--resume"))


def test_a_file_of_numpy_named_by_set_trains_an_architecture_of_the_registry(shapes, hydrabench):
    own = ("--set", "data.name=npz:train.npz", "--set", "model={arch: cifar_model}", "--set", "train.epochs=1")
    ran(hydrabench("train", "--config", "lab/shapes.yml", *own, "--out", "dense"))
    assert hb.load("dense")(torch.zeros(1, 3, 10, 10)).shape == (1, 3)
    ran(hydrabench("attack", "--ckpt", "dense", "--dataset", "npz:val.npz", "--attack", "clean"))


def test_pruning_what_model_names_on_own_images(shapes, hydrabench):
    values = yaml.safe_load(RECIPE)
    Path("any.yml").write_text(yaml.safe_dump({**values, "model": None, "data": {"name": "npz:train.npz"}}))
    torch.save(torch.nn.Sequential(*own_network()).state_dict(), "w.pt")
    own = ("--model", "lab/mynet.py:Net", "--weights", "w.pt", "--normalization", "none")
    ran(hydrabench("prune", "--config", "any.yml", *own, "--density", 0.5, "--out", "pruned"))
    ran(hydrabench("attack", "--ckpt", "pruned", "--dataset", "npz:val.npz", "--attack", "clean"))


def own_network():
    space: dict = {}
    exec(CODE, space)
    torch.manual_seed(0)
    return space["Net"]()


def test_a_pipeline_is_judged_on_the_test_images_that_its_recipe_names(shapes, hydrabench):
    planned = hydrabench("pipeline", "--config", "lab/shapes.yml", "--dry-run", "--json")
    ran(planned)
    assert [run["images"] for run in json.loads(planned.stdout)["runs"]] == [48] * 3
    assert json.loads(planned.stdout)["evaluations"][0]["images"] == 21
    ran(hydrabench("pipeline", "--config", "lab/shapes.yml", "--out", "all"))
    ledgers = [json.loads(path.read_text()) for path in Path("all/evaluations").rglob("run.json")]
    assert {run["dataset"]["name"] for run in ledgers} == {"folder:lab/images/val"}
    assert len(ledgers) == 2
    again = ("--set", "data.test=npz:val.npz", "--out", "all", "--resume")  # no phase has seen the test images
    result = hydrabench("pipeline", "--config", "lab/shapes.yml", *again)
    assert "all/train is complete already" in result.stderr


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            ("pipeline", "--config", "lab/shapes.yml", "--set", "data.test=null"),
            "data.name folder:lab/images/train is trained on, and no test images are named; add data.test, for example",
        ),
        (
            ("train", "--config", "lab/shapes.yml", "--set", "data.name=folder:nowhere"),
            "folder:nowhere: there is no nowhere; give folder:DIR (one folder per class)",
        ),
        (
            ("train", "--config", "lab/shapes.yml", "--set", "data.name=shapes"),
            "data.name: unknown data set 'shapes'; choose one of",
        ),
        (
            ("train", "--config", "digits-trades", "--set", "data.test=npz:val.npz"),
            "data.test: digits has test images of its own; leave it out",
        ),
        (
            ("train", "--config", "lab/shapes.yml", "--set", "data.name=cifar10c:x/fog/3"),
            "cifar10c:x/fog/3 has no train images: CIFAR-10-C is made of test images, and is evaluated only",
        ),
        (("attack", "--ckpt", "digits-trades-95", *VAL), "images have shape (3, 10, 10); digits-trades-95 takes"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(shapes, hydrabench, command, message):
    result = hydrabench(*command, "--out", "out")
    assert result.exit_code == 1
    assert message in result.stderr
    assert not Path("out").exists()


def test_a_network_trained_on_own_images_does_not_take_them_for_test_images(shapes, hydrabench):
    ran(hydrabench("train", "--config", "lab/shapes.yml", "--set", "train.epochs=1", "--out", "dense"))
    result = hydrabench("attack", "--ckpt", "dense", "--attack", "clean")
    assert "dense was trained on folder:lab/images/train, whose test images it does not know; name them" in (
        result.stderr
    )
    Path("lab/images/val/cross").rename("lab/images/val-cross")
    result = hydrabench("attack", "--ckpt", "dense", *VAL, "--attack", "clean")
    assert "dense has 3 outputs, folder:lab/images/val has 2 classes" in result.stderr
