"""Networks as programs: files of torch.export and TorchScript, which need no code of the user's.

A program of torch.export becomes a module of layers and functions again, so that bounds can read it.
"""

from __future__ import annotations

import logging
import operator
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from hydrabench.checkpoints.header import shown
from hydrabench.errors import CheckpointError

ATEN = torch.ops.aten
TOLERANCE = 1e-4  # relative, between a program and the layers that were made of it


def read_exported(path: Path) -> nn.Module:
    """Return the network of a file of torch.export.save, in layers and functions where they are known.

    Raises: CheckpointError if it is no such file, does not take one tensor of images, or its layers compute
        something else.
    """
    logging.disable(logging.WARNING)  # torch logs the traceback of a file that it cannot read
    try:
        program: Any = torch.export.load(str(path))
        module = program.module()
    except Exception as error:  # what a damaged file makes of the reader can be any exception
        raise CheckpointError(f"{path} is no file of torch.export.save ({shown(str(error), 150)})") from error
    finally:
        logging.disable(logging.NOTSET)
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        raise CheckpointError(f"{path} takes {len(inputs)} inputs; export a network of one, the images")
    value = inputs[0].meta.get("val")
    size = [length if isinstance(length, int) else 2 for length in value.shape]
    images = torch.rand(size, generator=torch.Generator().manual_seed(0), dtype=value.dtype)
    with torch.no_grad():
        before = module(images)  # first, because its layers are shared
        network = _in_layers(module, path)
        after = network(images)
    if not isinstance(before, Tensor) or not torch.allclose(before, after, rtol=TOLERANCE, atol=TOLERANCE):
        raise CheckpointError(f"{path} cannot be read in layers without changing what it computes; give its code")
    return network


def read_torchscript(path: Path) -> nn.Module:
    """Return the network of a TorchScript file. Raises: CheckpointError if it is none, or frozen."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network: nn.Module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    except Exception as error:
        raise CheckpointError(
            f"{path} is no TorchScript file; give the code as --model FILE.py:NAME, and a state dict as --weights"
        ) from error
    if not list(network.parameters()):
        raise CheckpointError(f"{path} has no parameters to count; save it without torch.jit.freeze")
    return network


def _in_layers(program: fx.GraphModule, path: Path) -> nn.Module:
    """Replace the operators of a program, in its graph, by layers and functions of torch.nn."""
    graph = program.graph
    for node in list(graph.nodes):
        if node.op == "call_module" and node.target == "_guards_fn":
            graph.erase_node(node)
        elif node.op == "call_function" and node.target in _LAYERS:
            _LAYERS[node.target](program, node)
        elif node.op == "call_function" and node.target in _OPERATORS and not node.kwargs:
            node.target = _OPERATORS[node.target]
        elif node.op == "call_function" and node.target in _FUNCTIONS:
            node.target = _FUNCTIONS[node.target]
        elif node.op == "call_function" and node.target in _METHODS:
            node.op, node.target = "call_method", _METHODS[node.target]
        elif node.op == "output":
            while isinstance(node.args[0], tuple | list):
                if len(node.args[0]) != 1:
                    raise CheckpointError(f"{path} returns {len(node.args[0])} values; export a network of logits only")
                node.args = (node.args[0][0],)
    graph.set_codegen(fx.graph.CodeGen())
    graph.eliminate_dead_code()
    graph.lint()
    return fx.GraphModule(program, graph)


def _tensor(program: fx.GraphModule, node: Any) -> Any:
    """The parameter or buffer that an argument is; None for none or for a value."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    place, _, name = str(node.target).rpartition(".")
    return getattr(program.get_submodule(place), name)


def _put(program: fx.GraphModule, node: fx.Node, layer: nn.Module) -> None:
    """Make a call of `layer` of a node, on its first argument."""
    name = node.name + "_layer"
    layer.training = False
    program.add_submodule(name, layer)
    node.op, node.target, node.args, node.kwargs = "call_module", name, node.args[:1], {}


def _arguments(node: fx.Node, **defaults: Any) -> list[Any]:
    """The arguments of an operator in order, the image first."""
    given = [*node.args, *list(defaults.values())[len(node.args) :]]
    return [node.kwargs.get(name, value) for name, value in zip(defaults, given, strict=True)]


def _convolution(program: fx.GraphModule, node: fx.Node) -> None:
    _, weight, bias, stride, padding, dilation, groups = _arguments(
        node, input=None, weight=None, bias=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1
    )
    weight, bias = _tensor(program, weight), _tensor(program, bias)
    if weight is None:
        return
    sizes = weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:])
    spread = {"padding": tuple(padding), "dilation": tuple(dilation), "groups": groups, "bias": bias is not None}
    with torch.device("meta"):
        layer = nn.Conv2d(*sizes, stride=tuple(stride), **spread)
    _put(program, node, _with(layer, weight=weight, bias=bias))


def _linear(program: fx.GraphModule, node: fx.Node) -> None:
    _, weight, bias = _arguments(node, input=None, weight=None, bias=None)
    weight, bias = _tensor(program, weight), _tensor(program, bias)
    if weight is None:
        return
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    _put(program, node, _with(layer, weight=weight, bias=bias))


def _batch_norm(program: fx.GraphModule, node: fx.Node) -> None:
    _, weight, bias, mean, var, training, _, eps, _ = _arguments(
        node, input=None, weight=None, bias=None, running_mean=None, running_var=None,
        training=False, momentum=0.1, eps=1e-5, cudnn_enabled=False,
    )  # fmt: skip
    weight, bias, mean, var = (_tensor(program, one) for one in (weight, bias, mean, var))
    if training or mean is None or var is None:
        return
    with torch.device("meta"):
        layer = nn.BatchNorm2d(len(mean), eps=eps, affine=weight is not None)
    layer.num_batches_tracked = torch.tensor(0)
    _put(program, node, _with(layer, weight=weight, bias=bias, running_mean=mean, running_var=var))


def _with(layer: nn.Module, **tensors: Tensor | None) -> nn.Module:
    for name, tensor in tensors.items():
        if tensor is not None and name.startswith("running"):
            setattr(layer, name, tensor.detach())
        elif tensor is not None:
            setattr(layer, name, tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor.detach()))
    return layer


def _dropout(_program: fx.GraphModule, node: fx.Node) -> None:
    """Dropout that is switched off computes nothing."""
    if node.args[2] is False:
        node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
        node.graph.erase_node(node)
    else:
        node.target = functional.dropout


_LAYERS: dict[Any, Callable[[fx.GraphModule, fx.Node], None]] = {
    ATEN.conv2d.default: _convolution,
    ATEN.linear.default: _linear,
    ATEN.batch_norm.default: _batch_norm,
    ATEN.dropout.default: _dropout,
}
# Operators whose arguments are, in order, those of a function.
_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    ATEN.relu.default: torch.relu,
    ATEN.max_pool2d.default: functional.max_pool2d,
    ATEN.avg_pool2d.default: functional.avg_pool2d,
    ATEN.adaptive_avg_pool2d.default: functional.adaptive_avg_pool2d,
    ATEN.flatten.using_ints: torch.flatten,
    ATEN.cat.default: torch.cat,
    ATEN.gelu.default: functional.gelu,
    ATEN.silu.default: functional.silu,
    ATEN.leaky_relu.default: functional.leaky_relu,
    ATEN.elu.default: functional.elu,
    ATEN.sigmoid.default: torch.sigmoid,
    ATEN.tanh.default: torch.tanh,
    ATEN.mean.dim: torch.mean,
}
_OPERATORS: dict[Any, Callable[..., Any]] = {
    ATEN.add.Tensor: operator.add,
    ATEN.add_.Tensor: operator.iadd,
    ATEN.sub.Tensor: operator.sub,
    ATEN.mul.Tensor: operator.mul,
    ATEN.div.Tensor: operator.truediv,
    ATEN.neg.default: operator.neg,
}
_METHODS: dict[Any, str] = {
    ATEN.relu_.default: "relu_",
    ATEN.view.default: "view",
    ATEN.reshape.default: "reshape",
    ATEN.permute.default: "permute",
    ATEN.unsqueeze.default: "unsqueeze",
    ATEN.squeeze.dim: "squeeze",
    ATEN.sym_size.int: "size",
    ATEN.contiguous.default: "contiguous",
}
PROGRAMS: dict[str, Callable[[Path], nn.Module]] = {
    ".pt2": read_exported,
    ".pt": read_torchscript,
    ".ts": read_torchscript,
    ".torchscript": read_torchscript,
}
