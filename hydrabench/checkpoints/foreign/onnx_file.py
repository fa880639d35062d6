"""Checkpoints as ONNX files, for verifiers and runtimes that know nothing of torch.

The graph comes from torch's own exporter, at an opset that is widely read. Every network of the registry becomes
Conv, BatchNormalization, Gemm, Relu, Add, MaxPool, AveragePool, GlobalAveragePool and Flatten, behind Sub and Div
if it has a normalisation. Batch norm that follows a convolution is folded into it, so these weights are not
those of the checkpoint bit by bit; weights that are zero stay zero.
"""

from __future__ import annotations

import io
import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hydrabench.checkpoints.format import Checkpoint
from hydrabench.checkpoints.peeking import METADATA_KEY
from hydrabench.errors import HydrabenchError
from hydrabench.files import replacing, sha256_of

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto
    from torch import nn

OPSET = 18  # the oldest that torch's exporter writes without converting
INPUT, OUTPUT, BATCH = "images", "logits", "batch"


def export_onnx(checkpoint: Checkpoint, path: Path, *, network: nn.Module | None = None) -> str:
    """Write the network as one ONNX file, whole or not at all, and return its SHA-256.

    Its input `images` is float32, (batch, C, H, W), in [0, 1], with any batch size; its output is `logits`,
    (batch, K). Masks are baked in, and the normalisation is part of the graph, so that a radius in pixel units
    is one for any program. Our header, as JSON, is the entry "hydrabench" of `metadata_props`. The same
    checkpoint gives the same bytes, with the same versions of torch and onnxscript.
    Args: network: to be written in its place, of the same shapes, in eval mode.
    Raises: HydrabenchError if onnx or onnxscript is not installed.
    """
    try:  # here and not above, because they take seconds and may be missing
        import onnx  # noqa: PLC0415
        import onnxscript  # noqa: F401, PLC0415
    except ImportError as error:
        raise HydrabenchError(
            f"writing ONNX needs onnx and onnxscript ({error}); install them with `pip install 'hydrabench[onnx]'`"
        ) from error
    model = _traced(network or checkpoint.baked().eval(), checkpoint.header.shape)
    _forget_sources(model)
    _use_plain_operators(model.graph)
    header = checkpoint.header.model_copy(update={"layout": "dense"})
    onnx.helper.set_model_props(model, {METADATA_KEY: header.to_json()})
    onnx.checker.check_model(model, full_check=True)
    with replacing(path) as scratch:
        scratch.write_bytes(model.SerializeToString(deterministic=True))
    return sha256_of(path)


def _traced(network: nn.Module, shape: tuple[int, int, int]) -> ModelProto:
    """Return what torch's exporter makes of a network for images of a shape."""
    example = torch.zeros(2, *shape)
    with _quiet():
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim(BATCH)},),
            verbose=False,
        )
    assert program is not None  # the exporter that `dynamo` selects always returns one
    return program.model_proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress output and warnings of the block unless it fails."""
    said = io.StringIO()
    try:
        with warnings.catch_warnings(), redirect_stdout(said), redirect_stderr(said):
            warnings.simplefilter("ignore")
            yield
    except Exception:
        sys.stderr.write(said.getvalue())
        raise


def _forget_sources(model: ModelProto) -> None:
    """Remove the exporter's metadata: stack traces, which name folders of this machine, and torch's names."""
    graph = model.graph
    parts = (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer)
    for part in parts:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def _use_plain_operators(graph: GraphProto) -> None:
    """Replace Reshape and ReduceMean of the exporter by Flatten and GlobalAveragePool.

    Fewer verifiers read the latter two, which take their shape and their axes as a tensor.
    """
    from onnx import helper, numpy_helper  # noqa: PLC0415

    values = {tensor.name: tensor for tensor in graph.initializer}
    shapes = {info.name: [dim.dim_value for dim in info.type.tensor_type.shape.dim] for info in graph.value_info}
    for node in graph.node:
        if node.op_type not in ("Reshape", "ReduceMean") or len(node.input) != 2 or node.input[1] not in values:
            continue
        argument = numpy_helper.to_array(values[node.input[1]]).tolist()
        shape = shapes.get(node.input[0], [])
        if node.op_type == "Reshape" and argument == [-1, math.prod(shape[1:])]:
            _replace(node, "Flatten")
            node.attribute.append(helper.make_attribute("axis", 1))
        elif node.op_type == "ReduceMean" and len(shape) == 4 and sorted(axis % 4 for axis in argument) == [2, 3]:
            keep = [attribute.i for attribute in node.attribute if attribute.name == "keepdims"]
            if keep != [0]:
                _replace(node, "GlobalAveragePool")
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)


def _replace(node: NodeProto, operator: str) -> None:
    """Make `node` another operator, of its first input and without attributes."""
    node.op_type = operator
    del node.input[1:]
    del node.attribute[:]
