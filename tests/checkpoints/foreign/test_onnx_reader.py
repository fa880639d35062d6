"""Networks that are read from ONNX files compute what onnxruntime computes, and what cannot be read is one line.

`read_onnx` itself compares with onnxruntime, so a case that is read is one that agrees with it.
"""

from __future__ import annotations

import io
import json
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.nn import functional as F

from hydrabench.bounds.program.tracing import steps_of
from hydrabench.checkpoints import export_onnx, open_ref
from hydrabench.checkpoints.foreign import onnx_reader
from hydrabench.checkpoints.foreign.onnx_reader.graph import OPERATORS
from hydrabench.cli import main
from hydrabench.errors import CheckpointError, ConfigError, UnsupportedLayerError

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'hydrabench[onnx]'")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'hydrabench[onnx]'")

read_onnx = onnx_reader.read_onnx


def array(*shape: int, low: float = -1.0, high: float = 1.0) -> np.ndarray:
    generator = np.random.default_rng(sum(shape))
    return generator.uniform(low, high, shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def written(path: Path, body: str, *, takes="N,3,4,4", opset=18, **constants: np.ndarray) -> Path:
    """A file whose input is `x` and whose output is `y`."""
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> net (float[{takes}] x) => (float y) {{ {body} }}'
    model = onnx.parser.parse_model(text)
    for name, value in constants.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    model.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(model, path)
    return path


# Every operator ----------------------------------------------------------------------------------

CHANNELS = {"w": array(3), "b": array(3), "m": array(3), "v": array(3, low=0.5)}
CASES = {  # name -> (nodes, constants, whether bounds can read it); the name begins with an operator
    "Conv": ("y = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w, b)", {"w": array(5, 3, 3, 3), "b": array(5)}, True),
    "Conv, one side padded": ("y = Conv<pads=[0,1,1,1]>(x, w)", {"w": array(5, 3, 3, 3)}, True),
    "Conv, auto_pad": ('y = Conv<auto_pad="SAME_LOWER", strides=[2,2]>(x, w)', {"w": array(5, 3, 2, 2)}, True),
    "Conv, bias added": ("z = Conv(x, w) y = Add(z, b)", {"w": array(5, 3, 3, 3), "b": array(1, 5, 1, 1)}, True),
    "Conv, bias added elsewhere": (
        "z = Conv(x, w) u = Add(b, z) y = Mul(z, u)", {"w": array(5, 3, 3, 3), "b": array(5, 1, 1)}, True,
    ),
    "ConvTranspose": ("y = ConvTranspose<strides=[2,2], pads=[1,1,0,0]>(x, w)", {"w": array(3, 4, 3, 3)}, True),
    "Gemm": ("z = Flatten(x) y = Gemm<transB=1, alpha=0.5, beta=2.0>(z, w, b)",
             {"w": array(7, 48), "b": array(7)}, True),
    "Gemm, not transposed": ("z = Flatten(x) y = Gemm(z, w, b)", {"w": array(48, 7), "b": array(1, 1)}, True),
    "MatMul": ("z = Flatten(x) u = MatMul(z, w) y = Add(b, u)", {"w": array(48, 7), "b": array(7)}, True),
    "MatMul, many axes": ("y = MatMul(x, w)", {"w": array(4, 7)}, True),
    "MatMul, of two values": ("t = Transpose<perm=[0,1,3,2]>(x) y = MatMul(x, t)", {}, False),
    "BatchNormalization": ("y = BatchNormalization<epsilon=0.01>(x, w, b, m, v)", CHANNELS, True),
    "MaxPool": ("y = MaxPool<kernel_shape=[3,3], strides=[1,2], pads=[1,1,1,1]>(x)", {}, True),
    "MaxPool, one side padded": ("y = MaxPool<kernel_shape=[2,2], pads=[0,0,1,1]>(x)", {}, None),
    "AveragePool": ("y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(x)", {}, True),
    "AveragePool, pads count": (
        "y = AveragePool<kernel_shape=[2,2], count_include_pad=1, pads=[0,0,1,1]>(x)", {}, True,
    ),
    "GlobalAveragePool": ("y = GlobalAveragePool(x)", {}, True),
    "GlobalMaxPool": ("y = GlobalMaxPool(x)", {}, True),
    "Add": ("z = Relu(x) y = Add(x, z)", {}, True),
    "Sub": ("y = Sub(x, m)", {"m": array(1, 3, 1, 1)}, True),
    "Sub, from a constant": ("y = Sub(m, x)", {"m": array(1)}, True),
    "Mul": ("y = Mul(x, m)", {"m": array(3, 1, 1)}, True),
    "Div": ("y = Div(x, m)", {"m": array(1, 3, 1, 1, low=0.5)}, True),
    "Pow": ("y = Pow(x, p)", {"p": np.float32(2)}, True),
    "Pow, third": ("y = Pow(x, p)", {"p": np.float32(3)}, False),
    "Neg": ("y = Neg(x)", {}, True),
    "Abs": ("y = Abs(x)", {}, True),
    "Max": ("y = Max(x, c)", {"c": np.float32(0.25)}, True),
    "Min": ("y = Min(c, x)", {"c": array(1)}, True),
    "Max, of two values": ("z = Neg(x) y = Max(x, z)", {}, False),
    "Clip": ("y = Clip(x, a, b)", {"a": np.float32(-0.5), "b": np.float32(0.5)}, True),
    "Clip, to six": ("y = Clip(x, a, b)", {"a": np.float32(0), "b": np.float32(6)}, True),
    "Clip, from below": ("y = Clip(x, a)", {"a": np.float32(0.1)}, True),
    "Relu": ("y = Relu(x)", {}, True),
    "LeakyRelu": ("y = LeakyRelu<alpha=0.1>(x)", {}, True),
    "PRelu": ("y = PRelu(x, s)", {"s": array(3, 1, 1)}, True),
    "Elu": ("y = Elu<alpha=0.7>(x)", {}, True),
    "Selu": ("y = Selu(x)", {}, True),
    "Selu, other constants": ("y = Selu<alpha=0.5, gamma=2.0>(x)", {}, True),
    "Celu": ("y = Celu<alpha=0.7>(x)", {}, True),
    "Sigmoid": ("y = Sigmoid(x)", {}, True),
    "Tanh": ("y = Tanh(x)", {}, True),
    "Softplus": ("y = Softplus(x)", {}, True),
    "Softsign": ("y = Softsign(x)", {}, False),
    "Mish": ("y = Mish(x)", {}, False),
    "HardSigmoid": ("y = HardSigmoid(x)", {}, True),
    "HardSigmoid, torch's": ("y = HardSigmoid<alpha=0.16666667>(x)", {}, True),
    "HardSwish": ("y = HardSwish(x)", {}, True),
    "Identity": ("z = Identity(x) y = Relu(z)", {}, True),
    "Cast": ("z = Cast<to=1>(x) y = Relu(z)", {}, True),
    "CastLike": ("z = CastLike(x, c) y = Relu(z)", {"c": array(1)}, True),
    "Dropout": ("z = Dropout(x) y = Relu(z)", {}, True),
    "Erf": ("y = Erf(x)", {}, False),
    "Exp": ("y = Exp(x)", {}, False),
    "Log": ("z = Exp(x) y = Log(z)", {}, False),
    "Sqrt": ("z = Exp(x) y = Sqrt(z)", {}, False),
    "Reciprocal": ("z = Exp(x) y = Reciprocal(z)", {}, False),
    "Sin": ("y = Sin(x)", {}, False),
    "Cos": ("y = Cos(x)", {}, False),
    "Softmax": ("y = Softmax<axis=1>(x)", {}, False),
    "LogSoftmax": ("y = LogSoftmax(x)", {}, False),
    "LayerNormalization": ("y = LayerNormalization<axis=-1>(x, w, b)", {"w": array(4), "b": array(4)}, False),
    "InstanceNormalization": ("y = InstanceNormalization(x, w, b)", {"w": array(3), "b": array(3)}, False),
    "Shape": ("s = Shape<start=1, end=2>(x) k = Concat<axis=0>(zero, s, n) y = Reshape(x, k)",
              {"zero": ints(0), "n": ints(-1)}, True),
    "Size": (
        "s = Size(x) b = Shape<start=0, end=1>(x) r = Div(s, b) k = Concat<axis=0>(b, r) y = Reshape(x, k)", {}, True,
    ),
    "Reshape": ("y = Reshape(x, k)", {"k": ints(-1, 4, 12)}, True),
    "Reshape, flat": ("y = Reshape(x, k)", {"k": ints(0, -1)}, True),
    "Flatten": ("y = Flatten(x)", {}, True),
    "Transpose": ("y = Transpose<perm=[0,2,3,1]>(x)", {}, True),
    "Squeeze": ("z = GlobalAveragePool(x) y = Squeeze(z, k)", {"k": ints(2, -1)}, True),
    "Unsqueeze": ("y = Unsqueeze(x, k)", {"k": ints(1, -1)}, True),
    "Concat": ("z = Neg(x) y = Concat<axis=1>(z, x)", {}, True),
    "Concat, a constant": ("b = Shape<start=0, end=1>(x) "
                           "k = Concat<axis=0>(b, r) z = Expand(c, k) y = Concat<axis=1>(z, x)",
                           {"r": ints(2, 4, 4), "c": array(1, 2, 4, 4)}, False),
    "Split": ("a, b = Split<axis=1>(x, k) y = Concat<axis=1>(b, a)", {"k": ints(1, 2)}, True),
    "Split, evenly": ("a, b = Split<axis=2, num_outputs=2>(x) y = Sub(a, b)", {}, True),
    "Slice": ("y = Slice(x, a, b, k, s)",
              {"a": ints(1, 0), "b": ints(9, 4), "k": ints(2, 3), "s": ints(1, 2)}, True),
    "Slice, backwards": ("y = Slice(x, a, b, k, s)",
                         {"a": ints(-1), "b": ints(-99), "k": ints(1), "s": ints(-1)}, False),
    "Gather": ("y = Gather<axis=1>(x, i)", {"i": np.int64(1)}, True),
    "Gather, a range": ("y = Gather<axis=2>(x, i)", {"i": ints(1, 2)}, True),
    "Gather, in disorder": ("y = Gather<axis=1>(x, i)", {"i": ints(2, 1, 0)}, False),
    "Pad": ("y = Pad(x, k)", {"k": ints(0, 0, 1, 0, 0, 0, 0, 2)}, True),
    "Pad, by reflection": ('y = Pad<mode="reflect">(x, k)', {"k": ints(0, 0, 1, 1, 0, 0, 1, 1)}, False),
    "ReduceMean": ("y = ReduceMean<keepdims=0>(x, k)", {"k": ints(2, 3)}, True),
    "ReduceSum": ("y = ReduceSum(x, k)", {"k": ints(-1)}, True),
    "ReduceMax": ("y = ReduceMax(x, k)", {"k": ints(-1)}, False),
    "ReduceMin": ("y = ReduceMin(x, k)", {"k": ints(-1)}, False),
    "Expand": ("s = Shape(x) z = Expand(x, s) y = Relu(z)", {}, True),
    "Expand, a constant": ("b = Shape<start=0, end=1>(x) k = Concat<axis=0>(b, r) z = Expand(c, k) y = Add(x, z)",
                           {"r": ints(3, 4, 4), "c": array(1, 3, 4, 4)}, False),
    "ConstantOfShape": ("s = Shape(x) z = ConstantOfShape(s) y = Add(x, z)", {}, False),
    "DepthToSpace": ('z = Concat<axis=1>(x, x, x, x) y = DepthToSpace<blocksize=2, mode="CRD">(z)', {}, True),
    "Resize": ('y = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">(x, , s)',
               {"s": np.array([1, 1, 2, 2], np.float32)}, True),
    "Resize, linear": ('y = Resize<mode="linear">(x, , s)', {"s": np.array([1, 1, 2, 2], np.float32)}, False),
}  # fmt: skip
OLD_CASES = {  # opsets in which settings are attributes, or that are newer than 18
    "Squeeze, 11": (11, "z = GlobalAveragePool(x) y = Squeeze<axes=[2,3]>(z)", {}),
    "Slice, 9": (9, "y = Slice<starts=[1], ends=[3], axes=[2]>(x)", {}),
    "Pad, 9": (9, "y = Pad<pads=[0,0,1,1,0,0,1,1]>(x)", {}),
    "Clip, 9": (9, "y = Clip<min=0.0, max=6.0>(x)", {}),
    "ReduceMean, 11": (11, "y = ReduceMean<axes=[2,3]>(x)", {}),
    "Softmax, 11": (11, "y = Softmax<axis=3>(x)", {}),
    "Upsample": (9, 'y = Upsample<mode="nearest">(x, s)', {"s": np.array([1, 1, 2, 2], np.float32)}),
    "Gelu": (20, 'y = Gelu<approximate="tanh">(x)', {}),
}


@pytest.mark.parametrize("case", CASES)
def test_an_operator_is_read_as_onnxruntime_computes_it(case, tmp_path):
    body, constants, bounded = CASES[case]
    network = read_onnx(written(tmp_path / "net.onnx", body, **constants)).module
    assert network(torch.rand(5, 3, 4, 4)).shape[0] == 5
    if bounded:
        assert steps_of(network)
    elif bounded is False:
        with pytest.raises(UnsupportedLayerError):
            steps_of(network)


@pytest.mark.parametrize("case", OLD_CASES)
def test_an_operator_of_another_opset_is_read(case, tmp_path):
    opset, body, constants = OLD_CASES[case]
    read_onnx(written(tmp_path / "net.onnx", body, opset=opset, **constants))


def test_every_operator_has_a_case():
    shown = {case.partition(",")[0] for case in (*CASES, *OLD_CASES)}
    assert set(OPERATORS) - {"Swish"} == shown, "onnxruntime has no Swish yet; any other operator needs a case"


def test_the_comparison_refuses_what_is_read_wrongly(tmp_path, monkeypatch):
    path = written(tmp_path / "net.onnx", "y = Relu(x)")
    monkeypatch.setitem(OPERATORS, "Relu", lambda build, node: build.call(F.relu6, node.value()))
    read_onnx(path)  # inputs below 6 do not tell the two apart
    monkeypatch.setitem(OPERATORS, "Relu", lambda build, node: build.call(F.leaky_relu, node.value()))
    with pytest.raises(CheckpointError, match=r"differs from what onnxruntime computes by 0\.0\d+ of .*\(\.pt2\)"):
        read_onnx(path)


# What is refused ---------------------------------------------------------------------------------

REFUSED = {
    "unknown": ("y = Det(x)", {}, r"net\.onnx: operator Det of node y is not one that is read; give"),
    "quantised": (
        "q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)",
        {"s": np.float32(0.1), "z": np.uint8(128)},
        "operator QuantizeLinear of node q belongs to a quantised network",
    ),
    "mixes the batch": ("y = Reshape(x, k)", {"k": ints(-1, 4)},
                        r"reshapes images of 3 x 4 x 4 to .* mixes the images"),
    "moves the batch": ("y = Transpose<perm=[1,0,2,3]>(x)", {}, "does not keep the batch as its first axis"),
    "reduces the batch": ("y = ReduceMean(x)", {}, "reduces all axes"),
    "random": ("z = RandomNormal<shape=[4]>() y = Add(x, z)", {}, "RandomNormal of node z draws random numbers"),
    "the size of the batch": (
        "s = Shape(x) b = Gather(s, i) f = Cast<to=1>(b) y = Div(x, f)", {"i": np.int64(0)}, "the size of the batch",
    ),
    "weights from images": ("w = Slice(x, a, b, k) y = Conv(x, w)",
                            {"a": ints(0), "b": ints(1), "k": ints(0)}, "axis 0 of 4, which is that of the batch"),
    "whole numbers": ("z = Cast<to=7>(x) y = Cast<to=1>(z)", {}, "have no gradient"),
    "no image": ("y = Neg(c)", {"c": array(2)}, "does not depend on its input"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_one_line_that_names_it(case, tmp_path):
    body, constants, message = REFUSED[case]
    with pytest.raises(CheckpointError, match=message) as refusal:
        read_onnx(written(tmp_path / "net.onnx", body, **constants))
    assert "\n" not in str(refusal.value)


def test_two_outputs_open_sizes_and_damaged_files_are_refused(tmp_path):
    path = written(tmp_path / "net.onnx", "y = Relu(x)")
    model = onnx.load(path)
    model.graph.output.append(onnx.helper.make_tensor_value_info("x", 1, None))
    onnx.save(model, tmp_path / "two.onnx")
    with pytest.raises(CheckpointError, match="2 outputs; export a network of one input and one output"):
        read_onnx(tmp_path / "two.onnx")
    with pytest.raises(CheckpointError, match="leaves sizes of its input open"):
        read_onnx(written(tmp_path / "open.onnx", "y = Relu(x)", takes="N,3,H,W"))
    (tmp_path / "half.onnx").write_bytes(path.read_bytes()[:40])
    with pytest.raises(CheckpointError, match="is no valid ONNX file"):
        read_onnx(tmp_path / "half.onnx")


def test_without_onnxruntime_there_is_a_line_that_says_what_to_install(tmp_path, monkeypatch):
    path = written(tmp_path / "net.onnx", "y = Relu(x)")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"needs onnx and onnxruntime .*pip install 'hydrabench\[onnx\]'"):
        read_onnx(path)


# Batches and layouts -----------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2])
def test_a_batch_size_that_the_file_fixes_is_taken_for_any(batch, tmp_path):
    body, weight = "z = Reshape(x, k) y = Gemm(z, w)", array(48, 10)
    path = written(tmp_path / "net.onnx", body, takes=f"{batch},3,4,4", k=ints(batch, -1), w=weight)
    network, x = read_onnx(path), torch.rand(5, 3, 4, 4)
    assert torch.allclose(network.module(x), x.flatten(1) @ torch.from_numpy(weight), atol=1e-6)
    assert torch.allclose(network.runtime(x), network.module(x), atol=1e-6)


def test_a_constant_of_a_batch_of_one_is_that_of_every_image(tmp_path):
    constant = array(1, 2, 4, 4)
    network = read_onnx(written(tmp_path / "net.onnx", "y = Concat<axis=1>(x, c)", takes="1,3,4,4", c=constant)).module
    assert torch.equal(network(torch.rand(3, 3, 4, 4))[:, 3:], torch.from_numpy(constant).expand(3, -1, -1, -1))


@pytest.mark.parametrize(
    ("takes", "arranged"),
    [
        ("1,48", lambda x: x.flatten(1)),
        ("N,48,1", lambda x: x.flatten(1).unsqueeze(2)),
        ("N,4,4,3", lambda x: x.permute(0, 2, 3, 1)),
    ],
)
def test_images_are_brought_into_the_layout_of_the_input(takes, arranged, tmp_path):
    network = read_onnx(written(tmp_path / "net.onnx", "z = Flatten(x) y = Mul(z, w)", takes=takes, w=array(48)))
    x, taken = torch.rand(2, 3, 4, 4), network.for_images((3, 4, 4))
    assert torch.equal(taken(x), network.module(arranged(x)))
    assert steps_of(taken)
    network.require_same_on_images(x)
    with pytest.raises(CheckpointError, match=r"takes inputs of .*, the images are 3 x 8 x 8"):
        network.for_images((3, 8, 8))


# Exports -----------------------------------------------------------------------------------------


class Everything(nn.Module):
    """Operations that torch's two exporters write in different ways, behind a normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.full((1, 3, 1, 1), 0.2))
        self.first, self.norm = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
        self.second, self.up = nn.Conv2d(8, 8, 2, padding="same", bias=False), nn.ConvTranspose2d(8, 8, 2, 2)
        self.last = nn.Linear(8 * 2 * 2, 10)

    def forward(self, x):
        x = F.silu(self.norm(self.first((x - self.mean) / self.std)))
        x = F.leaky_relu(F.gelu(self.second(x)), 0.1)
        x = F.max_pool2d(F.adaptive_avg_pool2d(F.hardswish(self.up(x)), 4), 3, 2, 1)
        a, b = x.chunk(2, 1)
        x = torch.cat([b, a], 1) + x.mean([2, 3], keepdim=True)
        return self.last(F.relu6(x).view(x.size(0), -1))


def exported(network: nn.Module, path: Path, x: torch.Tensor, **how) -> Path:
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (x,), str(path), external_data=False, **how)
    return path


@pytest.mark.parametrize(
    "how",
    [
        {"dynamo": True, "opset_version": 18, "dynamic_shapes": ({0: torch.export.Dim("n")},), "verbose": False},
        {"dynamo": False, "input_names": ["x"], "dynamic_axes": {"x": {0: "n"}}},
        {"dynamo": False, "opset_version": 11},
    ],
    ids=["dynamo", "legacy", "legacy, a batch of 1, opset 11"],
)
def test_what_torch_exports_is_read_with_its_activations_whole(how, tmp_path):
    torch.manual_seed(0)
    network, x = Everything().eval(), torch.rand(3, 3, 8, 8)
    read = read_onnx(exported(network, tmp_path / "net.onnx", x if how["dynamo"] else x[:1], **how)).module
    with torch.no_grad():
        expected = network(x)
        assert (read(x) - expected).abs().max() < 1e-5 * expected.abs().max()
    called = {node.target for node in read.graph.nodes}
    assert {F.silu, F.gelu, F.hardswish} <= called
    assert steps_of(read)
    names = {name for name, _ in read.named_parameters()}
    assert {"last.weight", "last.bias", "up.weight"} <= names
    assert not any("mean" in name or "constant" in name for name in names)


def test_our_own_export_gives_the_same_verdicts_image_by_image(tmp_path, monkeypatch):
    checkpoint = open_ref("digits-crown-ibp-95")
    export_onnx(checkpoint, tmp_path / "net.onnx")
    torch.export.save(torch.export.export(
        checkpoint.baked().eval(), (torch.rand(2, 1, 8, 8),), dynamic_shapes=({0: torch.export.Dim("n")},)
    ), str(tmp_path / "net.pt2"))  # fmt: skip
    monkeypatch.chdir(tmp_path)
    networks = {"own": ["--ckpt", "digits-crown-ibp-95"], "onnx": ["--model", "net.onnx", "--dataset", "digits"]}
    networks["pt2"] = ["--model", "net.pt2", "--dataset", "digits"]
    commands = {"attack": ["--attack", "pgd", "--steps", "5"], "certify": ["--method", "crown"]}
    for verb, options in commands.items():
        found = {}
        for name, network in networks.items():
            arguments = [verb, *network, *options, "--epsilon", "0.1", "-n", "20", "--out", f"{verb}-{name}"]
            result = CliRunner().invoke(main, arguments)
            assert result.exit_code == 0, result.output
            lines = [json.loads(line) for line in Path(f"{verb}-{name}", "records.jsonl").read_text().splitlines()]
            verdict = "robust" if verb == "attack" else "verified"
            found[name] = [(line["index"], line["prediction"], line[verdict]) for line in lines]
        assert found["own"] == found["onnx"] == found["pt2"]
        assert len({verdict for *_, verdict in found["own"]}) == 2, "verdicts that are all the same prove little"
