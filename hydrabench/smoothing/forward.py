"""Faster forward passes of the base classifier. Each changes rounding only, but a vote may hang on that: all opt-in."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


@dataclass(frozen=True)
class Forward:
    """The options of the base classifier's forward pass.

    precision: "bfloat16" computes under autocast; images and noise stay float32 until then, and so do the weights.
    fold_batch_norm: merge batch norms into the convolutions before them. channels_last, compile: as in PyTorch.
    """

    precision: str = "float32"
    fold_batch_norm: bool = False
    channels_last: bool = False
    compile: bool = False

    def describe(self) -> dict[str, bool]:
        """Return the switches that are on, which `run.json` says beside the precision."""
        names = ("fold_batch_norm", "channels_last", "compile")
        return {name: True for name in names if getattr(self, name)}

    def apply(self, network: nn.Module) -> nn.Module:
        """Return the network to run, in eval mode: a changed copy or wrapper, or the given one if no option applies.

        Raises: ValueError if `network` is in train mode and batch norms are to be folded.
        """
        if self.fold_batch_norm:
            network = folded(network)
        if self.channels_last:
            network = copy.deepcopy(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.compile:
            network = cast("nn.Module", torch.compile(network))
        if self.precision == "bfloat16" or self.channels_last:
            network = _Prepared(network, bfloat16=self.precision == "bfloat16", channels_last=self.channels_last)
        return network.eval()


class _Prepared(nn.Module):
    """A network that takes its images in another memory format, or computes in bfloat16."""

    def __init__(self, network: nn.Module, *, bfloat16: bool, channels_last: bool) -> None:
        super().__init__()
        self.network, self.reduced = network, bfloat16
        self.format = torch.channels_last if channels_last else torch.contiguous_format

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=self.format)
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self.reduced):
            return cast("Tensor", self.network(x))


def folded(network: nn.Module) -> nn.Module:
    """A copy of a network whose batch norms are merged into the convolutions before them, where that is exact.

    A batch norm is merged if its input is the output of a convolution that nothing else uses, and if both
    modules are called once; all others stay. In real arithmetic the copy computes the same function.

    Args: network: in eval mode, traceable by torch.fx.
    Raises: ValueError if a module is in train mode.
    """
    if any(module.training for module in network.modules()):
        raise ValueError("batch norms can be folded in eval mode only; call network.eval() first")
    traced = fx.symbolic_trace(copy.deepcopy(network))
    modules = dict(traced.named_modules())
    calls = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    for node in list(traced.graph.nodes):
        norm, source = _module(node, modules), node.args[0] if node.args else None
        conv = _module(source, modules)
        if not isinstance(norm, nn.BatchNorm2d) or not isinstance(conv, nn.Conv2d) or norm.running_mean is None:
            continue
        assert isinstance(source, fx.Node)
        if len(source.users) > 1 or max(calls.count(node.target), calls.count(source.target)) > 1:
            continue
        parent, _, name = str(source.target).rpartition(".")
        setattr(traced.get_submodule(parent), name, fuse_conv_bn_eval(conv, norm))
        node.replace_all_uses_with(source)
        traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced.eval()


def _module(node: Any, modules: dict[str, nn.Module]) -> nn.Module | None:
    """The module that a node calls, if it calls one."""
    return modules.get(str(node.target)) if isinstance(node, fx.Node) and node.op == "call_module" else None
