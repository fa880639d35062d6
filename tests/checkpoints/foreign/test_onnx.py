"""ONNX files: onnxruntime computes from them what torch computes from the checkpoint, and they need nothing else."""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import hydrabench
from hydrabench.checkpoints import Checkpoint, Header, export_onnx, load_checkpoint, open_ref, save_checkpoint, state_of
from hydrabench.checkpoints.header import read_header
from hydrabench.cli import main
from hydrabench.data import load_images, pixels
from hydrabench.errors import HydrabenchError
from hydrabench.masking import attach_masks, kept_count, prunable_layers, score_masks
from hydrabench.models import MODELS, build_model, inner_network
from hydrabench.workflows.zoo import export_entry

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'hydrabench[onnx]'")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install 'hydrabench[onnx]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime, which reads the files, is not installed")

PLAIN = {"Conv", "BatchNormalization", "Gemm", "Relu", "Add", "MaxPool", "AveragePool", "GlobalAveragePool", "Flatten"}
DIGITS, CIFAR = (1, 8, 8), (3, 32, 32)


@dataclass(frozen=True)
class Case:
    """A network to export; with a density it is masked."""

    arch: str
    shape: tuple[int, int, int]
    normalized: bool = False
    density: float | None = None


CASES = {
    "cifar_model": Case("cifar_model", DIGITS),
    "cifar_model_bn, normalised": Case("cifar_model_bn", CIFAR, normalized=True),
    "vgg2_bn": Case("vgg2_bn", CIFAR),
    "resnet18, normalised": Case("resnet18", CIFAR, normalized=True),
    "wrn_28_1": Case("wrn_28_1", CIFAR),
    "masked cifar_model_bn, normalised": Case("cifar_model_bn", DIGITS, normalized=True, density=0.1),
    "masked vgg2_bn": Case("vgg2_bn", CIFAR, density=0.05),
}


def checkpoint_of(case: Case) -> Checkpoint:
    """A checkpoint in memory, with biases and running statistics as after a training.

    Weights from N(0, 2 / inputs) let the image through many layers.
    """
    channels = case.shape[0]
    normalization = {"mean": (0.4, 0.5, 0.45)[:channels], "std": (0.25, 0.2, 0.3)[:channels]}
    constants = (normalization["mean"], normalization["std"]) if case.normalized else None
    generator = torch.Generator().manual_seed(7)
    network = build_model(case.arch, case.shape, 10, normalization=constants, generator=generator).eval()
    for name, tensor in state_of(network).items():
        if name.endswith(("bias", "running_mean")):
            tensor.uniform_(-0.2, 0.2, generator=generator)
        elif name.endswith("running_var") or tensor.dim() == 1:
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.dim() > 1:
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
    if case.density is not None:
        attach_masks(network, case.density)
    header = Header(
        layout="dense" if case.density is None else "masked",
        phase="imported",
        arch=case.arch,
        dataset="cifar10",
        shape=case.shape,
        num_classes=10,
        normalization=normalization if case.normalized else None,
        density=case.density or 1.0,
        objective=None,
        recipe=None,
        recipe_sha256=None,
        seed=None,
        selection=None,
        parent=None,
    )
    return Checkpoint(Path("here"), "", header, network)


@dataclass(frozen=True)
class Exported:
    """A file, and what was written to it: the reference is computed before, by the masked network if there is one."""

    path: Path
    header: Header
    network: nn.Module
    images: Tensor
    logits: Tensor


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def exported(request, tmp_path_factory) -> Exported:
    checkpoint = checkpoint_of(request.param)
    images = torch.rand(5, *request.param.shape, generator=torch.Generator().manual_seed(8))
    with torch.no_grad():
        logits = checkpoint.network(images)
    assert bool(score_masks(checkpoint.network)) == (request.param.density is not None)
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    export_onnx(checkpoint, path)
    return Exported(path, checkpoint.header, checkpoint.network, images, logits)


def run(path: Path, images: Tensor) -> Tensor:
    """The logits that onnxruntime computes; feeding it by name, it must take `images` and give `logits`."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def initializers(path: Path) -> dict[str, Tensor]:
    graph = onnx.load(path).graph
    return {tensor.name: torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}


def assert_same_logits(found: Tensor, expected: Tensor) -> None:
    """Up to 1e-5 of the largest logit; logits that hardly depend on the image would prove nothing."""
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


# what the file computes -------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_another_runtime_computes_the_same_logits_in_batches_of_any_size(exported, batch):
    assert exported.logits.std(0).max() > 1e-3 * exported.logits.abs().max()
    assert_same_logits(run(exported.path, exported.images[:batch]), exported.logits[:batch])


def test_pruned_weights_are_exactly_zero_and_the_others_are_there(exported):
    """Folding batch norm into a convolution scales its weights, so only where they are zero can be compared."""
    prefix = "network." if exported.header.normalization else ""
    values = initializers(exported.path)
    layers = prunable_layers(inner_network(exported.network))
    assert layers
    for name, layer in layers.items():
        found = values[f"{prefix}{name}.weight"]
        assert torch.equal(found == 0, layer.weight == 0)
        assert found.count_nonzero() == kept_count(found.numel(), exported.header.density)


def test_the_normalisation_is_part_of_the_graph(exported):
    nodes = [node.op_type for node in onnx.load(exported.path).graph.node]
    if exported.header.normalization is None:
        assert nodes[0] == "Conv"
        return
    assert nodes[:3] == ["Sub", "Div", "Conv"]
    values = initializers(exported.path)
    assert torch.equal(values["normalize.mean"].flatten(), torch.tensor(exported.header.normalization.mean))
    assert torch.equal(values["normalize.std"].flatten(), torch.tensor(exported.header.normalization.std))


# the file itself --------------------------------------------------------------------------------


def assert_plain(model: onnx.ModelProto, shape: tuple[int, int, int]) -> None:
    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    assert not model.functions
    assert {node.op_type for node in model.graph.node} <= PLAIN | {"Sub", "Div"}
    (images,), (logits,) = model.graph.input, model.graph.output
    for value, name, rest in ((images, "images", shape), (logits, "logits", (10,))):
        batch, *others = value.type.tensor_type.shape.dim
        assert (value.name, value.type.tensor_type.elem_type) == (name, onnx.TensorProto.FLOAT)
        assert batch.dim_param == "batch"
        assert tuple(dim.dim_value for dim in others) == rest


def test_the_graph_is_made_of_plain_operators_and_says_its_shapes(exported):
    assert_plain(onnx.load(exported.path), exported.header.shape)


@pytest.mark.slow
@pytest.mark.parametrize("arch", MODELS)
def test_every_architecture_is_exported_in_plain_operators(tmp_path, arch):
    case = Case(arch, (3, 64, 64) if arch.startswith("ResNet") else (1, 28, 28) if "mnist" in arch else CIFAR)
    checkpoint = checkpoint_of(case)
    images = torch.rand(2, *case.shape, generator=torch.Generator().manual_seed(8))
    export_onnx(checkpoint, tmp_path / "net.onnx")
    assert_plain(onnx.load(tmp_path / "net.onnx"), case.shape)
    with torch.no_grad():
        assert_same_logits(run(tmp_path / "net.onnx", images), checkpoint.network(images))


def test_the_file_is_alone_and_names_no_folder_of_the_machine_that_wrote_it(exported):
    assert list(exported.path.parent.iterdir()) == [exported.path]
    written = exported.path.read_bytes()
    for folder in (Path(hydrabench.__file__).parent.parent, Path(torch.__file__).parent, exported.path.parent):
        assert str(folder).encode() not in written
    assert b".py" not in written


def test_the_header_can_be_read_from_the_metadata(exported):
    (entry,) = onnx.load(exported.path).metadata_props
    assert entry.key == "hydrabench"
    assert read_header(entry.value, "it") == exported.header.model_copy(update={"layout": "dense"})


def test_the_same_checkpoint_gives_the_same_bytes(tmp_path):
    case = CASES["masked cifar_model_bn, normalised"]
    hashes = {export_onnx(checkpoint_of(case), tmp_path / f"{copy}.onnx") for copy in range(2)}
    assert len(hashes) == 1
    assert (tmp_path / "0.onnx").read_bytes() == (tmp_path / "1.onnx").read_bytes()


# what is printed, and what goes wrong -----------------------------------------------------------


def test_what_the_exporter_says_is_heard_only_if_it_fails(tmp_path, monkeypatch, capsys):
    checkpoint, export = checkpoint_of(CASES["cifar_model"]), torch.onnx.export

    def talkative(*arguments, **options):
        print("half way")
        warnings.warn("old", stacklevel=1)
        print("a detail", file=sys.stderr)
        return export(*arguments, **options) if heard else 1 / 0

    heard: list[str] = []
    monkeypatch.setattr(torch.onnx, "export", talkative)
    with pytest.raises(ZeroDivisionError):
        export_onnx(checkpoint, tmp_path / "net.onnx")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "half way\na detail\n"
    assert list(tmp_path.iterdir()) == []
    heard.append(captured.err)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_onnx(checkpoint, tmp_path / "net.onnx")
    assert capsys.readouterr() == ("", "")


def test_nothing_is_left_of_a_file_that_cannot_be_written(tmp_path, monkeypatch):
    def full(self: Path, data: bytes) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space left"):
        export_onnx(checkpoint_of(CASES["cifar_model"]), tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(HydrabenchError, match=r"needs onnx and onnxscript .*pip install 'hydrabench\[onnx\]'"):
        export_onnx(checkpoint_of(CASES["cifar_model"]), tmp_path / "net.onnx")
    result = command("digits-crown-ibp-99", tmp_path / "net.onnx")
    assert result.exit_code == 1
    assert result.output.startswith("error: writing ONNX needs onnx and onnxscript (")
    assert package in result.output
    assert result.output.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# the command ------------------------------------------------------------------------------------


def command(ref: object, out: Path):
    return CliRunner().invoke(main, ["zoo", "export", str(ref), "--format", "onnx", "--out", str(out)])


@pytest.mark.parametrize("name", ["digits-crown-ibp-99", "digits-trades-95"])
def test_the_command_exports_a_checkpoint_of_the_zoo(tmp_path, name):
    out = tmp_path / "new" / "net.onnx"
    result = command(name, out)
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"{out}: ")
    assert result.output.count("\n") == 1
    checkpoint = open_ref(name)
    images = torch.rand(4, *checkpoint.header.shape, generator=torch.Generator().manual_seed(8))
    with torch.no_grad():
        assert_same_logits(run(out, images), checkpoint.network(images))
    (entry,) = onnx.load(out).metadata_props
    assert json.loads(entry.value)["density"] == checkpoint.header.density


def test_the_command_exports_a_masked_file_and_prints_one_line(tmp_path, capfd):
    """And nothing past it, from loggers that hold the streams of the process, or code that is not Python."""
    before = checkpoint_of(CASES["masked cifar_model_bn, normalised"])
    save_checkpoint(tmp_path / "masked.safetensors", state_of(before.network), before.header)
    out = tmp_path / "net.onnx"
    result = command(tmp_path / "masked.safetensors", out)
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"{out}: ")
    assert result.output.count("\n") == 1
    assert capfd.readouterr() == ("", "")
    network = load_checkpoint(tmp_path / "masked.safetensors").network
    images = torch.rand(3, *before.header.shape, generator=torch.Generator().manual_seed(8))
    with torch.no_grad():
        assert_same_logits(run(out, images), network(images))


@pytest.mark.parametrize("name", ["digits-trades-99", "cifar10-crown-ibp-99"])
def test_a_narrow_file_gives_the_same_logits_with_fewer_weights(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = open_ref(name)
    for layout in ("onnx", "onnx-narrow"):
        export_entry(name, tmp_path / f"{layout}.onnx", layout)
    x = pixels(load_images(checkpoint.header.dataset, "test").take(torch.arange(64)))
    whole, narrow = (run(tmp_path / f"{layout}.onnx", x) for layout in ("onnx", "onnx-narrow"))
    assert_same_logits(narrow, whole)
    sizes = [
        sum(tensor.numel() for tensor in initializers(tmp_path / f"{layout}.onnx").values())
        for layout in ("onnx", "onnx-narrow")
    ]
    assert sizes[1] < 0.6 * sizes[0]
    assert_plain(onnx.load(tmp_path / "onnx-narrow.onnx"), checkpoint.header.shape)
