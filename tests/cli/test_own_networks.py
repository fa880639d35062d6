"""Networks of somebody's own code as checkpoints: trained, pruned, fine-tuned, exported, and opened again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import prune as torch_prune

import hydrabench as hb
from hydrabench.checkpoints import load_checkpoint, save_checkpoint
from hydrabench.errors import CheckpointError

CIFAR10 = Path(__file__).parents[3] / "shared" / "data"
CODE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width * 16, 10)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).flatten(1))


def build(width=4):
    return Net(width)


def nine(width=4):
    net = Net(width)
    net.head = nn.Linear(width * 16, 9)
    return net
"""
RECIPE = """
name: mine
model: {arch: "mynet.py:build", args: {width: 6}}
data: {name: digits, validation_fraction: 0.2}
objective: {name: trades, epsilon: 16/255, beta: 6.0, steps: 1}
train: {epochs: 1, batch_size: 64, optimizer: adam, lr: 0.01}
prune: {epochs: 1, batch_size: 256, optimizer: adam, lr: 0.01}
finetune: {epochs: 1, batch_size: 256, optimizer: adam, lr: 0.01}
pipeline: {densities: [0.2], lwm: true}
evaluate: [{kind: clean}, {kind: crown-ibp}]
evaluate_images: 20
"""


@pytest.fixture
def code(here):
    """A folder `lab` with a recipe and the network that it names."""
    (here / "lab").mkdir()
    (here / "lab" / "mynet.py").write_text(CODE)
    (here / "lab" / "mine.yml").write_text(RECIPE)
    return here


@pytest.fixture(scope="module")
def of_mine(tmp_path_factory):
    """A run of `train` with the recipe of `code`, its data and network."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "mynet.py").write_text(CODE)
    (folder / "mine.yml").write_text(RECIPE)
    hb.train(folder / "mine.yml", out=folder / "run")
    return folder / "run"


@pytest.fixture
def trained(code, of_mine):
    """The folder of `code`, with a copy of that run."""
    shutil.copytree(of_mine, code / "run")
    return code


def header(folder):
    return load_checkpoint(Path(folder) / "checkpoint.safetensors").header


def test_a_pipeline_of_an_own_network_whose_checkpoints_open_again(code, hydrabench):
    result = hydrabench("pipeline", "--config", "lab/mine.yml", "--out", "run")
    assert result.exit_code == 0, result.output
    made = header("run/finetune-0.2")
    assert (made.arch, made.code.arguments, made.density) == ("mynet.py:build", {"width": 6}, 0.2)
    assert (code / "run/prune-0.2/mynet.py").read_text() == CODE  # so that every checkpoint opens by itself
    assert json.loads((code / "run/train/run.json").read_text())["recipe"]["model"]["arch"] == "mynet.py:build"
    network = hb.load("run/finetune-0.2")
    assert int(network.conv.weight.count_nonzero()) <= 11  # 54 - floor(0.8 * 54)
    assert hydrabench("attack", "--ckpt", "run/lwm-0.2", "--attack", "clean", "-n", 10).exit_code == 0
    assert hydrabench("pipeline", "--config", "lab/mine.yml", "--out", "run", "--resume").exit_code == 0


def test_what_a_checkpoint_of_own_code_needs_to_open(trained, hydrabench):
    tensors = hb.load("run").state_dict()
    file = trained / "run" / "mynet.py"
    file.write_text(CODE + "# changed\n")
    with pytest.raises(CheckpointError, match=r"is not the file that run/checkpoint\.safetensors was made with"):
        hb.load("run")
    file.unlink()
    with pytest.raises(
        CheckpointError, match=r"needs mynet\.py, which is not beside it; put it there, or name it with"
    ):
        hb.load("run")
    assert hydrabench("attack", "--ckpt", "run", "--attack", "clean", "--model", "lab/mynet.py:build").exit_code == 0
    (trained / "lab" / "mynet.py").write_text(CODE + "# changed\n")
    result = hydrabench("attack", "--ckpt", "run", "--attack", "clean", "--model", "lab/mynet.py:build", "-n", 5)
    assert "warning: run/checkpoint.safetensors was made with another version of mynet.py:build" in result.stderr
    result = hydrabench("attack", "--ckpt", "run", "--model", "lab/mynet.py:nine")
    assert "was made with mynet.py:build, not with lab/mynet.py:nine" in result.output
    again = hb.load("run", model="lab/mynet.py:build").state_dict()
    assert all(torch.equal(again[key], tensors[key]) for key in tensors)


def test_a_checkpoint_never_names_other_code_that_is_run(trained, hydrabench):
    """Neither a package, nor a library with arguments that are no numbers, nor a file elsewhere."""
    path = trained / "run" / "checkpoint.safetensors"
    known = load_checkpoint(path).header
    for arch, arguments, message in (
        ("os:system", {"command": "touch ran"}, "was made with code that it does not hold, os:system; name it with"),
        ("torchvision:resnet18", {"norm_layer": "x"}, "gives torchvision arguments that are no numbers"),
        ("../lab/mynet.py:build", {"width": 6}, "is not the file|needs mynet.py"),
    ):
        bad = known.code.model_copy(update={"arguments": arguments, "file_sha256": "0" * 64})
        save_checkpoint(
            trained / "bad.safetensors", load_file(path), known.model_copy(update={"arch": arch, "code": bad})
        )
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(trained / "bad.safetensors")
    assert not (trained / "ran").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "model.arch=mynet.py:build"), "there is no such file"),
        (("--set", "model.arch=lab/mynet.py:nine"), r"returns (2, 9) for 2 images of 10 classes"),
        (("--set", "model.args={depth: 3}"), "unexpected keyword argument 'depth'"),
        (("--set", "model.arch=cifar_model"), "args are for code of your own, and cifar_model is built in"),
        (("--set", "model.arch=mynet"), "or give code of your own, FILE.py:NAME"),
        (("--set", "model.normalization={mean: [0, 0, 0], std: [1, 1, 1]}"), "has 3 channels, the images have 1"),
        (("--model", "lab/mynet.py:build", "--dataset", "cifar10"), "trains on digits, --dataset says cifar10"),
    ],
)
def test_each_mistake_in_training_an_own_network_is_one_line(code, hydrabench, arguments, message):
    result = hydrabench("train", "--config", "lab/mine.yml", *arguments)
    assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1), result.output
    assert message in result.output
    assert not (code / "runs").exists()


def test_resuming_with_another_version_of_the_code_is_refused(trained, hydrabench):
    (trained / "lab" / "mynet.py").write_text(CODE + "# changed\n")
    result = hydrabench("train", "--config", "lab/mine.yml", "--out", "run", "--resume")
    assert result.exit_code == 1
    assert "code" in result.output


def exported(kind, module, shape=(1, 8, 8)):
    """A file `net.KIND` of a module, as torch writes it."""
    images, sizes = torch.zeros(2, *shape), ({0: torch.export.Dim("batch")},)
    if kind == "pt2":
        torch.export.save(torch.export.export(module.eval(), (images,), dynamic_shapes=sizes), "net.pt2")
    else:
        pytest.importorskip("onnxscript")
        kept = {"external_data": kind == "onnx with its weights beside it"}
        torch.onnx.export(
            module.eval(), (images,), "net.onnx", dynamo=True, dynamic_shapes=sizes, verbose=False, **kept
        )
    return "net.pt2" if kind == "pt2" else "net.onnx"


@pytest.mark.parametrize("kind", ["pt2", "onnx", "onnx with its weights beside it"])
def test_the_network_of_a_file_is_pruned_and_fine_tuned_and_opens_again(code, hydrabench, kind):
    """The recipe names no network, so that it takes any; the file lies beside each checkpoint."""
    file = exported(kind, hb.load(code_checkpoint(hydrabench)))
    values = yaml.safe_load(Path("lab/mine.yml").read_text())
    Path("any.yml").write_text(yaml.safe_dump({key: values[key] for key in values if key != "model"}))
    result = hydrabench("prune", "--config", "any.yml", "--model", file, "--density", 0.2, "--out", "pruned")
    assert result.exit_code == 0, result.output
    for beside in code.glob("net.*"):
        beside.unlink()
    result = hydrabench("finetune", "--config", "any.yml", "--ckpt", "pruned", "--out", "tuned")
    assert result.exit_code == 0, result.output
    assert (header("tuned").arch, header("tuned").density) == (file, 0.2)
    zeros = [
        (hb.load(folder).get_submodule(name).weight == 0).clone()
        for folder in ("pruned", "tuned")
        for name in conv_names(hb.load("pruned"))
    ]
    assert all(torch.equal(*pair) for pair in zip(zeros[:2], zeros[2:], strict=True))
    assert sum(int(one.sum()) for one in zeros[:2]) == 43 + 768  # of 54 and 960 weights
    assert hydrabench("attack", "--ckpt", "tuned", "--attack", "clean", "-n", 10).exit_code == 0
    Path("tuned", file).write_bytes(Path("tuned", file).read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match=rf"tuned/{file} is not the file that tuned/checkpoint"):
        hb.load("tuned")


def code_checkpoint(hydrabench):
    assert hydrabench("train", "--config", "lab/mine.yml", "--out", "dense").exit_code == 0
    return "dense"


def conv_names(network):
    return [name for name, part in network.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)]


class WithToken(nn.Module):
    """A network with a weight that is in no layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.token = nn.Conv2d(1, 4, 4, stride=4), nn.Parameter(torch.randn(16, 10))

    def forward(self, x):
        return self.conv(x).flatten(1) @ self.token


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_a_file_with_weights_that_no_mask_reaches_is_refused(code, hydrabench, kind):
    torch.manual_seed(0)
    file = exported(kind, WithToken())
    result = hydrabench("prune", "--config", "lab/mine.yml", "--model", file, "--density", 0.2, "--out", "run")
    if kind == "pt2":
        assert "net.pt2 computes with token, 16 x 10, which is in no convolution or linear layer" in result.output
    else:  # the reader makes a linear layer of it
        assert result.exit_code == 0, result.output
    torch.jit.script(WithToken().conv).save("net.pt")
    result = hydrabench("prune", "--config", "lab/mine.yml", "--model", "net.pt", "--density", 0.2, "--out", "other")
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1


def test_a_recipe_without_a_network_needs_one_to_start_from(code, hydrabench):
    values = yaml.safe_load(Path("lab/mine.yml").read_text())
    Path("any.yml").write_text(yaml.safe_dump({key: values[key] for key in values if key != "model"}))
    for command in (("train",), ("pipeline",), ("pipeline", "--dry-run")):
        result = hydrabench(*command, "--config", "any.yml", "--out", "run")
        assert "error: recipe mine has no `model:` section; add one, such as" in result.stderr
        assert result.exit_code == 1
    assert hydrabench("train", "--config", "any.yml", "--ckpt", code_checkpoint(hydrabench)).exit_code == 0
    result = hydrabench("prune", "--config", "digits-trades", "--ckpt", "dense", "--density", 0.2)
    assert "wants a cifar_model_bn for digits; without its `model:` it takes any network" in result.stderr


def pruned_resnet(path):
    """torchvision's ResNet-18 for ten classes, globally pruned to 20 % by torch, saved with its masks."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    network = resnet18(num_classes=10)
    layers = [(part, "weight") for part in network.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    torch_prune.global_unstructured(layers, torch_prune.L1Unstructured, amount=0.8)
    torch.save(network.state_dict(), path)
    return network.eval()


@pytest.mark.slow
@pytest.mark.skipif(not CIFAR10.is_dir(), reason="real CIFAR-10 images lie in ../shared/data")
def test_a_torchvision_network_pruned_by_torch_is_attacked_certified_finetuned_and_exported(here, hydrabench):
    network = pruned_resnet("pruned.pt")
    own = ("--model", "torchvision:resnet18", "--weights", "pruned.pt", "--normalization", "cifar10")
    own += ("--data-dir", CIFAR10)
    assert hydrabench("attack", *own, "--dataset", "cifar10", "--epsilon", "2/255", "-n", 2).exit_code == 0
    judged = hydrabench("certify", *own, "--dataset", "cifar10", "--epsilon", "1/2550", "--method", "ibp", "-n", 2)
    assert judged.exit_code == 0, judged.output
    Path("r.yml").write_text(
        "{name: r, model: {arch: wrn_10_1}, data: {name: cifar10, fraction: 0.0001, validation_fraction: 0.0001},"
        "objective: {name: trades, epsilon: 8/255, beta: 6, steps: 1}, train: {epochs: 1, lr: 0.1},"
        "finetune: {epochs: 1, lr: 0.01}}"
    )
    result = hydrabench("finetune", "--config", "r.yml", *own, "--out", "tuned")
    assert result.exit_code == 0, result.output
    before = {name: part.weight != 0 for name, part in network.named_modules() if hasattr(part, "weight_mask")}
    tuned = hb.load("tuned")[1]
    assert len(before) == 21
    for name, kept in before.items():
        weight = tuned.get_submodule(name).weight
        assert not weight[~kept].any(), name  # the mask is fixed
        assert not torch.equal(weight, network.get_submodule(name).weight)
    assert 0.199 < header("tuned").density < 0.201
    assert hydrabench("zoo", "export", "tuned", "--format", "compact", "--out", "tuned.safetensors").exit_code == 0
    state = hb.load("tuned.safetensors").state_dict()
    assert all(torch.equal(state[key], value) for key, value in hb.load("tuned").state_dict().items())


def test_an_own_network_pruned_by_torch_keeps_its_mask_when_finetuned_and_is_exported(code, hydrabench):
    torch.manual_seed(0)
    space: dict = {}
    exec(CODE, space)
    network = space["build"](width=6)
    layers = [(network.conv, "weight"), (network.head, "weight")]
    torch_prune.global_unstructured(layers, torch_prune.L1Unstructured, amount=0.8)
    torch.save(network.state_dict(), "pruned.pt")
    own = ("--model", "lab/mynet.py:build", "--model-args", "width=6", "--weights", "pruned.pt")
    result = hydrabench("finetune", "--config", "lab/mine.yml", *own, "--out", "tuned")
    assert result.exit_code == 0, result.output
    tuned = hb.load("tuned")
    assert not tuned.conv.weight[network.conv.weight_mask == 0].any()
    assert not tuned.head.weight[network.head.weight_mask == 0].any()
    assert int(tuned.head.weight.count_nonzero()) == int(network.head.weight_mask.sum())
    own = (*own, "--dataset", "digits")
    for layout in ("dense", "masked", "compact", "state-dict"):
        result = hydrabench("zoo", "export", *own, "--format", layout, "--out", f"out/{layout}")
        assert result.exit_code == 0, result.output
    for layout in ("dense", "masked", "compact"):
        again = hb.load(f"out/{layout}")
        assert torch.equal(again.head.weight, network.head.weight)
    result = hydrabench("zoo", "export", *own, "--format", "hydra", "--out", "out/hydra")
    assert "HYDRA's code has no mynet.py:build; export --format state-dict or onnx" in result.output
    result = hydrabench("prune", "--config", "lab/mine.yml", "--ckpt", "out/masked", "--density", 0.1, "--out", "fewer")
    assert result.exit_code == 0, result.output
    again = ("--model", "lab/mynet.py:build", "--model-args", "width=6", "--weights", "tuned/checkpoint.safetensors")
    assert hydrabench("attack", *again, "--dataset", "digits", "--attack", "clean", "-n", 5).exit_code == 0
