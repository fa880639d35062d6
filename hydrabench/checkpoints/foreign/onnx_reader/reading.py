"""Open an ONNX file, make a network of it, and compare that with onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hydrabench.checkpoints.foreign.onnx_reader.builder import Builder, UnreadableNode
from hydrabench.checkpoints.foreign.onnx_reader.graph import inputs_of, network_of
from hydrabench.checkpoints.header import shown
from hydrabench.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from onnx import ModelProto

FLOAT_TYPES = {1: torch.float32, 10: torch.float16, 11: torch.float64}  # of onnx.TensorProto.DataType
TRIED = 4  # inputs on which a network is compared when it is read


class ChannelsLast(nn.Module):
    """Images (B, C, H, W) as (B, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        """Move the channels."""
        return x.permute(0, 2, 3, 1)


@dataclass(frozen=True)
class OnnxNetwork:
    """The network of an ONNX file.

    module: in eval mode, from (B, *input_shape) to (B, *output), for any B; weights are parameters. input_shape: as the
    file has it, without its batch axis. dtype: of inputs and weights. runtime: what onnxruntime computes from the file.
    """

    path: Path
    module: nn.Module
    input_shape: tuple[int, ...]
    dtype: torch.dtype
    runtime: Callable[[Tensor], Tensor]

    def for_images(self, shape: tuple[int, int, int]) -> nn.Module:
        """Return the network as it takes images (B, C, H, W).

        Flat inputs hold them row by row, channel after channel; inputs (H, W, C) get their channels last.
        Raises: CheckpointError if the sizes do not fit.
        """
        front = self._front(shape)
        return nn.Sequential(*front, self.module) if front else self.module

    def require_same_on_images(self, x: Tensor) -> None:
        """Compare as `require_same`, on images (B, C, H, W)."""
        for layer in self._front((x.shape[1], x.shape[2], x.shape[3])):
            x = layer(x)
        self.require_same(x)

    def _front(self, shape: tuple[int, int, int]) -> list[nn.Module]:
        """The layers that bring images into the shape of an input."""
        channels, height, width = shape
        if self.input_shape == shape:
            return []
        if self.input_shape == (height, width, channels):
            return [ChannelsLast()]
        if prod(self.input_shape) != prod(shape) or len(self.input_shape) == 3:
            raise CheckpointError(
                f"{self.path} takes inputs of {_words(self.input_shape)}, the images are {_words(shape)}; give the "
                "images that it was made for with --dataset"
            )
        return [nn.Flatten(), *([nn.Unflatten(1, self.input_shape)] if len(self.input_shape) > 1 else [])]

    def require_same(self, x: Tensor) -> None:
        """Compare the network with onnxruntime on inputs (B, *input_shape).

        Raises: CheckpointError if a result differs by more than rounding.
        """
        x = x.to("cpu", self.dtype)
        with torch.no_grad():
            found = self.module(x)
        expected = self.runtime(x)
        size = expected[expected.isfinite()].abs().amax().item() if expected.isfinite().any() else 0.0
        tolerance = sqrt(torch.finfo(self.dtype).eps) * size
        if found.shape != expected.shape or not torch.allclose(found, expected, 0, tolerance, equal_nan=True):
            said = (
                f"by {(found - expected).abs().max().item():.3g} of {size:.3g}"
                if found.shape == expected.shape
                else f"in shape, {tuple(found.shape)} for {tuple(expected.shape)}"
            )
            raise CheckpointError(
                f"{self.path} is read as a network that differs from what onnxruntime computes {said}, on "
                f"{len(x)} inputs; give the network's code (FILE.py:NAME) or its file of torch.export (.pt2)"
            )


def read_onnx(path: Path, shape: tuple[int, ...] | None = None) -> OnnxNetwork:
    """Read the network of an ONNX file, in layers and functions of torch, and compare it with onnxruntime.

    A batch size that the file fixes is taken for any: an image's result may not depend on the others.

    Args:
        shape: of one input, for the axes whose size the file leaves open; those it says must be known otherwise.
    Raises: ConfigError if onnx or onnxruntime is missing; CheckpointError in one line if the file is damaged, has an
        operator that is not read (naming it and its node), or computes something else than what was read.
    """
    model, session = _opened(path)
    for what, count in (("inputs", len(inputs_of(model.graph))), ("outputs", len(model.graph.output))):
        if count != 1:
            raise CheckpointError(f"{path} has {count} {what}; export a network of one input and one output")
    dtype, batch, input_shape = _input(path, model, shape)
    try:
        module = network_of(model, Builder(input_shape, dtype, batch))
    except UnreadableNode as reason:
        raise CheckpointError(
            f"{path}: {reason}; give the network's code (FILE.py:NAME), or its file of torch.export (.pt2)"
        ) from reason
    network = OnnxNetwork(path, module, input_shape, dtype, _in_batches(session, path, batch))
    generator = torch.Generator().manual_seed(0)
    count = TRIED if batch is None else batch * -(-TRIED // batch)
    x = torch.randn(count, *input_shape, generator=generator)
    x[::2] = torch.rand(x[::2].shape, generator=generator)
    network.require_same(x)
    return network


def _opened(path: Path) -> tuple[ModelProto, Any]:
    """The file, functions inlined, and a session of onnxruntime."""
    try:
        import onnx  # noqa: PLC0415 - may be missing
        import onnxruntime  # noqa: PLC0415
        from onnx.inliner import inline_local_functions  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            f"reading {path} needs onnx and onnxruntime ({error}); install them with `pip install 'hydrabench[onnx]'`"
        ) from error
    try:
        model = onnx.load(str(path))
        model = inline_local_functions(model) if model.functions else model
    except Exception as error:  # what a damaged file makes of the library can be any exception
        raise CheckpointError(f"{path} is no valid ONNX file ({shown(str(error), 150)})") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return model, onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise CheckpointError(f"onnxruntime cannot open {path} ({shown(str(error), 150)})") from error


def whole_file(path: Path) -> bytes:
    """Return an ONNX file with the weights that it keeps in files beside it, if it does; `read_onnx` has read it."""
    import onnx  # noqa: PLC0415

    graph = onnx.load(str(path), load_external_data=False).graph
    if all(tensor.data_location != onnx.TensorProto.EXTERNAL for tensor in graph.initializer):
        return path.read_bytes()
    whole: bytes = onnx.load(str(path)).SerializeToString(deterministic=True)
    return whole


def _input(
    path: Path, model: ModelProto, shape: tuple[int, ...] | None
) -> tuple[torch.dtype, int | None, tuple[int, ...]]:
    """Type, fixed batch size if there is one, and shape of an input."""
    tensor = inputs_of(model.graph)[0].type.tensor_type
    sizes = [dim.dim_value if dim.dim_value > 0 else None for dim in tensor.shape.dim]
    if tensor.elem_type not in FLOAT_TYPES:
        raise CheckpointError(f"{path} takes inputs that are no floats of 16, 32 or 64 bits; put that into its graph")
    if len(sizes) < 2:
        raise CheckpointError(f"{path} takes inputs of {len(sizes)} axes, none of them for a batch; export it with one")
    batch, axes = sizes[0], sizes[1:]
    if None in axes and (shape is None or len(shape) != len(axes)):
        raise CheckpointError(f"{path} leaves sizes of its input open, {axes}; export it with those of the images")
    known = (size if size is not None else shape[place] for place, size in enumerate(axes))  # type: ignore[index]
    return FLOAT_TYPES[tensor.elem_type], batch, tuple(known)


def _in_batches(session: Any, path: Path, batch: int | None) -> Callable[[Tensor], Tensor]:
    """Return what a session computes, in batches of the size that the file fixes; the last is filled up with zeros."""
    name = session.get_inputs()[0].name

    def compute(x: Tensor) -> Tensor:
        size = batch or len(x)
        full = torch.cat([x, x.new_zeros(-len(x) % size, *x.shape[1:])])
        try:
            found = [
                torch.from_numpy(session.run(None, {name: part.numpy()})[0]) for part in torch.split(full.cpu(), size)
            ]
        except Exception as error:
            raise CheckpointError(f"onnxruntime cannot run {path} ({shown(str(error), 150)})") from error
        return torch.cat(found)[: len(x)]

    return compute


def _words(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
