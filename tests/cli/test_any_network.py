"""--model: networks of the user's own code, of libraries and of program files, from the command to the report."""

from __future__ import annotations

import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

CIFAR10 = Path(__file__).parents[3] / "shared" / "data"
CODE = '''
import torch
from torch import nn


class Net(nn.Module):
    """It normalises in its forward."""

    def __init__(self, width=8, size=32):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4914, 0.4822, 0.4465]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.2471, 0.2435, 0.2616]).view(1, 3, 1, 1))
        self.conv = nn.Conv2d(3, width, 4, stride=4)
        self.norm = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(width * (size // 4) ** 2, 10)

    def forward(self, x):
        x = (x - self.mean) / self.std
        x = torch.relu(self.norm(self.conv(x)))
        return self.head(self.drop(x.flatten(1)))


class Probabilities(Net):
    def forward(self, x):
        return super().forward(x).softmax(1)


class BatchStatistics(Net):
    def forward(self, x):
        return super().forward(x - x.mean(0))


class Noisy(Net):
    def forward(self, x):
        return super().forward(nn.functional.dropout(x, 0.5, training=True))


class NotANumber(Net):
    def forward(self, x):
        return super().forward(x) / 0 * 0


class Features(Net):
    def forward(self, x):
        return self.conv(x)


class Narrow(Net):
    def forward(self, x):
        return super().forward(x)[:, :7]


class Trained(nn.Module):
    """Right wherever the class is the mean level times ten, if images are normalised."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, 1))

    def forward(self, x):
        level = (x.mean((1, 2, 3)) * 0.5 + 0.5) * 10 if x.min() < 0 else torch.zeros(len(x))
        return -((level[:, None] - torch.arange(10) - 0.5) ** 2) * self.scale


class Colours(nn.Module):
    """Its classes are which channel is brightest, the first being blue."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, 1))

    def forward(self, x):
        return x.mean((2, 3)).flip(1) * self.scale


def build(width=8, size=32):
    torch.manual_seed(1)
    return Net(width, size)


def fails():
    raise ValueError("no disk")


def nothing():
    return 3


NUMBER = 3
ready = build(size=8)
'''


@pytest.fixture
def code(here):
    """A file with networks, and small images of the ten classes, in the working folder."""
    (here / "mynet.py").write_text(CODE)
    levels = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
    np.savez(here / "small.npz", images=levels, labels=np.arange(30) % 10)
    return here


def records(folder):
    lines = (Path(folder) / "records.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


SMALL = ("--dataset", "npz:small.npz", "-n", 20)
BUILD = ("--model", "mynet.py:build", "--model-args", "size=8")
KINDS = {
    "clean": ("attack", "--attack", "clean"),
    "pgd": ("attack", "--epsilon", "1/255", "--steps", 5),
    "crown-ibp": ("certify", "--epsilon", "1/2550"),
    "smoothing": ("certify", "--method", "smoothing", "--sigma", 0.25, "--samples", 100, "--n0", 10),
}


@pytest.mark.skipif(not (CIFAR10 / "cifar10").is_dir(), reason="the images are not here")
def test_an_own_network_on_cifar10_from_a_state_dict_to_the_report(code, hydrabench):
    script = {}
    exec(CODE, script)
    network = script["build"](width=4).eval()
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, "w.pt")
    images = ("--dataset", "cifar10", "--data-dir", CIFAR10, "-n", 12, "--device", "cpu")
    own = ("--model", "mynet.py:build", "--model-args", "width=4", "--weights", "w.pt")
    for name, arguments in KINDS.items():
        result = hydrabench(*arguments, *own, *images, "--out", f"runs/{name}")
        assert result.exit_code == 0, result.output
    with torch.no_grad():
        from hydrabench.data import load_images, pixels

        first = load_images("cifar10", "test", CIFAR10).take(torch.arange(12))
        predictions = network(pixels(first)).argmax(1).tolist()
    assert [record["prediction"] for record in records("runs/clean")] == predictions
    about = json.loads(Path("runs/pgd/run.json").read_text())["checkpoint"]
    assert about["external"] is True
    assert about["arch"] == "mynet.py:build"
    assert about["arguments"] == {"width": 4}
    assert hydrabench("report", "runs", "--out", "report").exit_code == 0
    result = hydrabench("verify", "runs/pgd", *own, "--data-dir", CIFAR10, "--device", "cpu")
    assert "12 records of runs/pgd are what computing them again gives" in result.output


@pytest.fixture
def calibrated(code):
    """An untrained network that is right on every image of small.npz, as its code, and in `net.pt2` and `net.onnx`.

    The labels are what it says, and its logits are moved so that it does not say the same of all images.
    """
    script = {}
    exec(CODE, script)
    torch.manual_seed(0)
    network = script["build"](size=8).eval()
    with np.load("small.npz") as file:
        levels = file["images"]
    images = torch.from_numpy(levels).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        network.head.bias -= network(images).mean(0)
        labels = network(images).argmax(1)
    np.savez("small.npz", images=levels, labels=labels.numpy())
    torch.save(network.state_dict(), "w.pt")
    exported, sizes = torch.rand(2, 3, 8, 8), ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(network, (exported,), dynamic_shapes=sizes), "net.pt2")
    if find_spec("onnxscript"):
        torch.onnx.export(network, (exported,), "net.onnx", dynamo=True, dynamic_shapes=sizes, verbose=False)
    return {"code": (*BUILD, "--weights", "w.pt"), "pt2": ("--model", "net.pt2"), "onnx": ("--model", "net.onnx")}


@pytest.mark.parametrize("form", ["pt2", *(["onnx"] if find_spec("onnxscript") else [])])
@pytest.mark.parametrize("kind", ["pgd", "crown-ibp", "smoothing"])
def test_a_file_of_a_network_gives_the_verdicts_of_its_code_image_by_image(calibrated, hydrabench, kind, form):
    """Radii at which some images withstand and some do not, so that equal verdicts say something."""
    command = {
        "pgd": ("attack", "--epsilon", "2/255", "--steps", 5),
        "crown-ibp": ("certify", "--epsilon", "2/255"),
        "smoothing": ("certify", "--method", "smoothing", "--sigma", 0.1, "--samples", 200, "--n0", 10),
    }[kind]
    for out in ("code", form):
        result = hydrabench(*command, *calibrated[out], *SMALL, "--out", out)
        assert result.exit_code == 0, result.output
    verdict = {"pgd": "robust", "crown-ibp": "verified", "smoothing": "radius"}[kind]
    code_says, file_says = ([record[verdict] for record in records(out)] for out in ("code", form))
    assert len(set(code_says)) > 1
    assert code_says == file_says
    abouts = [json.loads(Path(f"{out}/run.json").read_text())["checkpoint"] for out in ("code", form)]
    assert abouts[0]["density"] == abouts[1]["density"]


def test_torchscript_is_attacked_and_smoothed_and_refused_by_bounds(code, hydrabench):
    example = nn.Sequential(nn.Conv2d(3, 4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(100, 10)).eval()
    torch.jit.trace(example, torch.rand(2, 3, 8, 8)).save("net.pt")
    for kind in ("pgd", "smoothing"):
        result = hydrabench(*KINDS[kind], "--model", "net.pt", *SMALL)
        assert result.exit_code == 0, result.output
    result = hydrabench(*KINDS["crown-ibp"], "--model", "net.pt", *SMALL)
    assert result.exit_code == 1
    assert "TorchScript has no layers that bounds could read" in result.output


def test_a_network_of_torchvision_with_fresh_weights_is_attacked(code, hydrabench):
    torchvision = ("--model", "torchvision:resnet18", "--normalization", "half")
    result = hydrabench(*KINDS["pgd"], *torchvision, "--dataset", "npz:small.npz", "-n", 4)
    assert result.exit_code == 0, result.output
    assert "torchvision-resnet18 has fresh weights from seed 0; give trained ones with --weights" in result.output


def test_an_instance_and_a_module_of_the_working_folder_are_networks_too(code, hydrabench):
    for model in ("mynet.py:ready", "mynet:ready"):
        result = hydrabench(*KINDS["clean"], "--model", model, *SMALL, "--out", f"run-of-{model.replace('.', '-')}")
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("Probabilities", r"add up to 1 on each of 30 images: probabilities"),
        (
            "BatchStatistics",
            r"gives an image alone logits that differ by .* more than 0\.001: it uses batch statistics",
        ),
        ("Noisy", r"logits that differ by .* the second time, more than 0\.001: dropout or other noise is on"),
        ("NotANumber", r"NaN or infinite logits on 30 of 30 images; check --weights"),
        ("Features", r"returns \(1, 8, 2, 2\) for 1 images; it must return logits, \(1, K\)"),
        ("Narrow", r"has 7 outputs, npz:small\.npz has 10 classes; give another --dataset"),
    ],
)
def test_networks_that_would_give_wrong_numbers_are_refused(code, hydrabench, model, message):
    result = hydrabench(*KINDS["pgd"], "--model", f"mynet.py:{model}", "--model-args", "size=8", *SMALL)
    assert result.exit_code == 1
    assert not Path("runs").exists()
    assert len(result.stderr.splitlines()) == 1
    assert re.search(message, result.output), result.output


def test_a_far_better_normalization_is_refused_or_if_one_was_given_said(code, hydrabench):
    levels = np.repeat(np.arange(10), 3)
    images = np.full((30, 8, 8, 3), 0, np.uint8) + ((levels + 0.5) * 25.5).astype(np.uint8)[:, None, None, None]
    np.savez("levels.npz", images=images, labels=levels)
    judged = (*KINDS["clean"], "--model", "mynet.py:Trained", "--dataset", "npz:levels.npz")
    result = hydrabench(*judged)
    assert result.exit_code == 1
    assert "is right on 10% of 30 images as it is, and on" in result.output
    assert "under --normalization half; give that, or --normalization none" in result.output
    result = hydrabench(*judged, "--normalization", "none")
    assert result.exit_code == 0
    assert "was it trained on images normalised so?" in result.output


def colours(path):
    """Noisy images, ten of each of red, green and blue."""
    labels = np.arange(30) % 3
    images = np.random.default_rng(0).integers(0, 40, (30, 8, 8, 3), dtype=np.uint8)
    images[np.arange(30), :, :, labels] += 150
    np.savez(path, images=images, labels=labels)


def test_channels_in_another_order_are_said(code, hydrabench):
    colours("colours.npz")
    result = hydrabench(*KINDS["clean"], "--model", "mynet.py:Colours", "--dataset", "npz:colours.npz")
    assert result.exit_code == 0, result.output
    assert (
        "is right on 33% of 30 images as it is, and on 100% with blue, green, red for red, green, blue" in result.stderr
    )
    (code / "right.py").write_text(CODE.replace(".flip(1) * self.scale", " * self.scale"))
    result = hydrabench(*KINDS["clean"], "--model", "right.py:Colours", "--dataset", "npz:colours.npz")
    assert result.exit_code == 0
    assert "blue, green, red" not in result.stderr


def test_weights_of_safetensors_are_those_of_the_state_dict(code, hydrabench):
    script = {}
    exec(CODE, script)
    state = script["build"](size=8).state_dict()
    torch.save(state, "w.pt")
    save_file(state, "w.safetensors")
    for weights in ("w.pt", "w.safetensors"):
        run = (*KINDS["pgd"], *BUILD, "--weights", weights, *SMALL, "--out", f"run-{weights}")
        assert hydrabench(*run).exit_code == 0
    assert records("run-w.pt") == records("run-w.safetensors")
    save_file({key: value for key, value in state.items() if key != "head.bias"}, "few.safetensors")
    result = hydrabench(*KINDS["pgd"], *BUILD, "--weights", "few.safetensors", *SMALL)
    assert "--weights few.safetensors does not fit the network of --model: missing head.bias" in result.output


BAD = [
    (
        (*BUILD, "--ckpt", "x"),
        "leave it or --weights, --model-args, --threat out",
    ),
    (("--ckpt", "x", "--weights", "w.pt"), "--weights is for --model; with --ckpt leave it out"),
    (("--model", "mynet.py:build", "--arch", "vgg4"), "--arch is for a checkpoint file of others"),
    (("--model", "mynet.py:build", "--source-density", 0.1), "--source-density is for a checkpoint file of others"),
    (("--model", "mynet.py"), "--model 'mynet.py' names no network; give FILE.py:NAME, package.module:NAME"),
    (("--model", "other.py:build"), "--model other.py: there is no such file"),
    (("--model", "mynet.py:wrong"), "no wrong there; it has Net, Probabilities"),
    (("--model", "mynet.py:NUMBER"), "is 3, not a module, a class or a function that returns one"),
    (("--model", "mynet.py:nothing"), "returns a int, not a torch.nn.Module"),
    (("--model", "mynet.py:fails"), "mynet.py:fails, line 83: ValueError: no disk"),
    (("--model", "mynet.py:build", "--model-args", "depth=3"), "unexpected keyword argument 'depth'"),
    (("--model", "mynet.py:build", "--model-args", "3"), "--model-args '3' is not KEY=VALUE"),
    (("--model", "mynet.py:ready", "--model-args", "width=3"), "ready is a module already, leave them out"),
    (("--model", "no.such.package:Net"), "No module named 'no'; install the package"),
    (("--model", "torchvision:resnet19", "--normalization", "half"), "torchvision has no network 'resnet19'"),
    (("--model", "torchvision:resnet18"), "does not say how it normalises images; give --normalization, one of none"),
    (("--model", "none.pt2"), "--model none.pt2: there is no such file"),
    (("--model", "broken.pt2"), "broken.pt2 is no file of torch.export.save"),
    (("--model", "broken.pt"), "broken.pt is no TorchScript file; give the code as --model FILE.py:NAME"),
    ((*BUILD, "--weights", "none.pt"), "--weights none.pt: there is no such file"),
    ((*BUILD, "--weights", "broken.pt"), "broken.pt is no file of torch.save, or is damaged"),
    ((*BUILD, "--weights", "few.pt"), "does not fit the network of --model: missing mean; missing std"),
    ((*BUILD, "--normalization", "0.5/0.5"), "--normalization has 1 channels, the images of npz:small.npz have 3"),
    (("--model", "mynet.py:build"), "fails on images of 1 x 3 x 8 x 8 (RuntimeError:"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_each_mistake_is_one_line(code, hydrabench, arguments, message):
    for name in ("broken.pt", "broken.pt2"):
        Path(name).write_bytes(b"nothing")
    torch.save({"conv.weight": torch.zeros(8, 3, 4, 4)}, "few.pt")
    result = hydrabench("attack", "--epsilon", "1/255", *arguments, "--dataset", "npz:small.npz")
    assert result.exit_code == 1
    assert message in result.output
    assert len(result.stderr.splitlines()) == 1


def test_code_for_a_checkpoint_that_needs_none_is_refused(code, hydrabench):
    result = hydrabench("attack", "--model", "mynet.py:build", "--ckpt", "digits-trades-95")
    assert result.exit_code == 1
    assert "is a cifar_model_bn, which needs no code such as mynet.py:build; leave --model out" in result.output


def test_no_network_at_all_is_a_usage_error(hydrabench):
    result = hydrabench("attack", "--epsilon", "1/255")
    assert result.exit_code == 2
    assert "name a network: --ckpt FILE, run folder or zoo id, or --model FILE.py:NAME" in result.output


def test_a_missing_data_set_and_a_missing_radius_are_named(code, hydrabench):
    result = hydrabench("attack", "--epsilon", "1/255", *BUILD)
    assert "--model needs --dataset: one of cifar10, cifar100, digits" in result.output
    assert "folder:DIR (one folder per class), npz:FILE" in result.output
    result = hydrabench("attack", *BUILD, *SMALL)
    assert (
        "does not say which radius it was trained for in this norm; add --epsilon, for example 8/255" in result.output
    )


def test_timm_is_named_where_it_is_not_installed(code, hydrabench, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    result = hydrabench(*KINDS["clean"], "--model", "timm:resnet18", "--normalization", "half", *SMALL)
    assert "--model timm:resnet18 needs timm, which is not installed; `pip install timm`" in result.output


def test_a_network_of_timm_is_built_for_the_classes_and_attacked(code, hydrabench, monkeypatch):
    """With a stand-in of its interface: is_model, create_model, __version__."""
    script, calls = {}, []
    exec(CODE, script)

    def create_model(name, pretrained, **given):
        calls.append((name, pretrained, given))
        return script["build"](size=8)

    stand_in = SimpleNamespace(is_model="small".__eq__, create_model=create_model, __version__="1.0")
    monkeypatch.setitem(sys.modules, "timm", stand_in)
    given = ("--normalization", "none", *SMALL, "--out", "run")
    assert hydrabench(*KINDS["clean"], "--model", "timm:small", "--model-args", "depth=3", *given).exit_code == 0
    assert calls == [("small", False, {"num_classes": 10, "depth": 3})]
    about = json.loads(Path("run/run.json").read_text())["checkpoint"]
    assert (about["arch"], about["version"], about["name"]) == ("timm:small", "1.0", "timm-small")
    result = hydrabench(*KINDS["clean"], "--model", "timm:large", *given[:-1], "other")
    assert result.exit_code == 1
    assert "timm has no network 'large'; see timm.list_models()" in result.output


def test_a_real_network_of_timm_is_attacked(code, hydrabench):
    pytest.importorskip("timm")
    given = ("--model", "timm:resnet10t", "--normalization", "half", *SMALL)
    assert hydrabench(*KINDS["clean"], *given, "--out", "run").exit_code == 0
