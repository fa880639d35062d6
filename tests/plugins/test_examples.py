"""Every example of an extension, from training to a report, with nothing of the package changed."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from torch import nn

import hydrabench
from hydrabench.bounds import interval_margins
from hydrabench.checkpoints import load_checkpoint
from hydrabench.cli import main
from hydrabench.data import DATASETS, load_images
from hydrabench.errors import DataError
from hydrabench.models import build_model
from hydrabench.objectives import OBJECTIVES, TrainingStep
from hydrabench.recipes import load_plugin, load_recipe
from hydrabench.runtime import stream

EXTEND = Path(hydrabench.__file__).parents[1] / "examples" / "extend"
PHASE = {"epochs": 1, "batch_size": 256, "optimizer": "adam", "lr": 0.01}
RECIPE = {
    "name": "extended",
    "model": {"arch": "cifar_model"},
    "data": {"name": "digits"},
    "objective": {"name": "natural"},
    "train": PHASE,
    "prune": PHASE,
    "evaluate": [{"kind": "pgd", "epsilon": "1/255"}],
}
CHANGES = {
    "mart": {"objective": {"name": "mart", "epsilon": "8/255", "steps": 2}},
    "fashion_mnist": {"data": {"name": "fashion-mnist"}},
    "depthwise_net": {"model": {"arch": "depthwise_net"}},
}


def run(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 1, result.output
    return result.output


def write_idx(path: Path, values: np.ndarray, *, packed: bool) -> None:
    raw = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(path.name + ".gz" * packed).write_bytes(gzip.compress(raw) if packed else raw)


def write_fashion_mnist(folder: Path) -> None:
    """The digits, each pixel 3x3 and a border of two, as if they were clothes; the test images not compressed."""
    for split, prefix in (("train", "train"), ("test", "t10k")):
        digits = load_images("digits", split)
        grey = np.pad(np.kron(digits.images[:300, 0].numpy(), np.ones((3, 3))), ((0, 0), (2, 2), (2, 2)))
        base, packed = folder / "fashion-mnist", split == "train"
        write_idx(base / f"{prefix}-images-idx3-ubyte", grey, packed=packed)
        write_idx(base / f"{prefix}-labels-idx1-ubyte", digits.labels[:300].numpy(), packed=packed)


@pytest.mark.parametrize("name", CHANGES)
def test_an_example_is_trained_pruned_certified_and_reported(tmp_path, monkeypatch, forget, name):
    monkeypatch.chdir(tmp_path)
    write_fashion_mnist(tmp_path)
    Path("recipe.yml").write_text(yaml.safe_dump({**RECIPE, **CHANGES[name]}))
    plugin = ("--plugin", EXTEND / f"{name}.py")
    data = ("--data-dir", tmp_path)
    run("train", "--config", "recipe.yml", "--out", "dense", *data, *plugin)
    run("prune", "--config", "recipe.yml", "--ckpt", "dense", "--density", 0.5, "--out", "pruned", *data, *plugin)
    certify = ("certify", "--ckpt", "pruned", "--epsilon", "1/255", "-n", 50, "--out", "runs/certified", *data)
    run(*certify, *plugin)
    run("attack", "--ckpt", "pruned", "--epsilon", "1/255", "-n", 50, "--out", "runs/attacked", *data, *plugin)
    report = json.loads(run("report", "runs", "--json", *plugin))
    assert report
    (used,) = json.loads(Path("runs/certified/run.json").read_text())["plugins"]
    assert used["file"] == f"{name}.py"
    assert [file.plain() for file in load_checkpoint(Path("pruned/checkpoint.safetensors")).header.plugins] == [used]
    planned = json.loads(run("pipeline", "--config", "recipe.yml", "--dry-run", "--json", "--set",
                             "pipeline={densities: [0.5], lwm: false}", *plugin))  # fmt: skip
    assert planned["runs"][0]["steps"] > 0

    forget()
    wanted = f"needs plugin {name}.py (sha256 {used['sha256'][:12]}…): give --plugin {name}.py"
    assert wanted in refused(*certify[:-4], "--out", "again", *data)
    assert wanted in refused("report", "runs")
    assert wanted in refused(*certify, "--resume")


def test_the_recipe_beside_the_examples_names_all_that_it_needs():
    recipe = load_recipe(EXTEND / "mart.yml")
    assert (recipe.objective.name, recipe.data.name, recipe.model.arch) == ("mart", "fashion-mnist", "depthwise_net")


def test_mart_worked_by_hand():
    """At radius 0 the divergence vanishes: p = (0.8, 0.2) and y = 0 give -log 0.8 - log(1 - 0.2)."""
    load_plugin(EXTEND / "mart.py")
    mart = OBJECTIVES["mart"]
    network = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    with torch.no_grad():
        network[1].weight.zero_()
        network[1].bias.copy_(torch.tensor([0.8, 0.2]).log())
    x, y = torch.full((3, 1, 1, 1), 0.5), torch.zeros(3, dtype=torch.int64)
    settings = mart.settings(name="mart", epsilon="8/255")
    losses = mart.loss(network, x, y, settings, TrainingStep(0.0, 0.0, stream("test")))
    assert losses.total.item() == pytest.approx(-2 * np.log(0.8), rel=1e-6)
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([[3.0], [-3.0]]))
    far = mart.loss(network, x, y, settings, TrainingStep(0.1, 1.0, stream("test"))).total
    lighter = settings.model_copy(update={"weight": 0.0})
    assert far > mart.loss(network, x, y, lighter, TrainingStep(0.1, 1.0, stream("test"))).total


def test_mart_of_the_parts_of_a_batch_adds_up_to_that_of_the_batch():
    load_plugin(EXTEND / "mart.py")
    mart = OBJECTIVES["mart"]
    settings = mart.settings(name="mart", epsilon="8/255", steps=2)
    network = build_model("cifar_model", (1, 8, 8), 10, generator=stream("weights"))
    x, y = torch.rand(6, 1, 8, 8, generator=stream("images")), torch.arange(6)
    whole = mart.loss(network, x, y, settings, TrainingStep(8 / 255, 1.0, stream("step"))).total
    total = torch.zeros(())
    for rows in (slice(0, 2), slice(2, 6)):
        step = TrainingStep(8 / 255, 1.0, stream("step"), rows=rows, whole=6)
        total = total + mart.loss(network, x[rows], y[rows], settings, step).total * len(y[rows]) / 6
    torch.testing.assert_close(total, whole)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: b"\1" + raw[1:], r"no IDX file of unsigned bytes with 3 axes; it begins with 01000803"),
        (lambda raw: raw[:-1], r"holds 235199 values instead of 235200; fetch it again"),
        (lambda raw: raw[:9], r"no IDX file of unsigned bytes with 3 axes"),
        (None, r"images-idx3-ubyte\[\.gz\] cannot be read \(.*No such file.*\); fetch it again into --data-dir"),
    ],
)
def test_damaged_idx_files_are_refused(tmp_path, damage, message):
    load_plugin(EXTEND / "fashion_mnist.py")
    write_fashion_mnist(tmp_path)
    path = tmp_path / "fashion-mnist" / "t10k-images-idx3-ubyte"
    raw = path.read_bytes()
    path.unlink()
    if damage is not None:
        path.write_bytes(damage(raw))
    with pytest.raises(DataError, match=message):
        load_images("fashion-mnist", "test", tmp_path)


def test_idx_files_of_different_lengths_are_refused(tmp_path):
    load_plugin(EXTEND / "fashion_mnist.py")
    write_fashion_mnist(tmp_path)
    write_idx(tmp_path / "fashion-mnist" / "t10k-labels-idx1-ubyte", np.zeros(299), packed=False)
    with pytest.raises(DataError, match="holds 300 images and 299 labels of the test split"):
        load_images("fashion-mnist", "test", tmp_path)
    assert len(load_images("fashion-mnist", "train", tmp_path)) == 300
    assert DATASETS["fashion-mnist"].class_names[9] == "ankle boot"


def test_bounds_of_the_depthwise_network_hold_at_sampled_points():
    load_plugin(EXTEND / "depthwise_net.py")
    network = build_model("depthwise_net", (1, 8, 8), 10, generator=stream("weights")).eval()
    x, y = torch.rand(4, 1, 8, 8, generator=stream("images")), torch.arange(4)
    lower = interval_margins(network, x, y, 0.05)
    for key in range(20):
        noise = 0.1 * torch.rand(x.shape, generator=stream("noise", key)) - 0.05
        logits = network((x + noise).clamp(0, 1))
        others = logits.scatter(1, y[:, None], -torch.inf).amax(1)
        assert (logits.gather(1, y[:, None]).squeeze(1) - others >= lower - 1e-5).all()


def test_every_process_of_a_torchrun_runs_the_plugin(tmp_path):
    recipe = {**RECIPE, **CHANGES["mart"], "plugins": [str(EXTEND / "mart.py")]}
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(recipe))
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "hydrabench"]
    environment = os.environ | {"PYTHONPATH": str(EXTEND.parents[1]), "OMP_NUM_THREADS": "1"}
    environment |= {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    command = ["train", "--config", str(tmp_path / "recipe.yml"), "--out", str(tmp_path / "run"), "--device", "cpu"]
    done = subprocess.run([*start, *command], env=environment, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    header = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (header["world_size"], [plugin["file"] for plugin in header["plugins"]]) == (2, ["mart.py"])
