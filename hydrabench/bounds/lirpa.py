"""auto_LiRPA as a second opinion, its registry release (0.3) and its source release (0.7) alike.

Release 0.3 was written for torch below 1.13. Four names that it uses have moved or changed since;
`_bridge` puts them back where they are missing and leaves everything else alone.
"""

from __future__ import annotations

import copy
import inspect
import logging
import sys
import warnings
from collections.abc import Iterator
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hydrabench.errors import HydrabenchError, lookup
from hydrabench.masking import make_plain
from hydrabench.models.normalize import Normalize
from hydrabench.threat import linf_box

METHODS: dict[str, str] = {"ibp": "IBP", "crown-ibp": "CROWN-IBP", "crown": "CROWN"}


def lirpa_margins(network: nn.Module, x: Tensor, y: Tensor, epsilon: float, *, method: str) -> Tensor:
    """Lower bounds of min over j != y of f_y - f_j over the L-infinity ball, computed by auto_LiRPA.

    Args:
        network: in eval mode; left as it is.
        x: images, (B, C, H, W), in [0, 1].
        y: true classes, (B,), int64, in [0, K).
        epsilon: radius in pixel units, >= 0; the ball is clipped to [0, 1].
        method: a key of `METHODS`.
    Returns: (B,), in logit units, without gradients.
    Raises: HydrabenchError if auto_LiRPA is not installed, ConfigError for an unknown method, ValueError
        if `network` is in training mode.
    Source: Xu et al. (2020), arXiv:2002.12920.
    """
    name = lookup("auto_LiRPA method", METHODS, method)
    bounded = bounded_module(network, x)
    (lower, _) = bounded.compute_bounds(
        x=(perturbed(x, epsilon),), C=margin_rows(y, bounded.final_shape[1], x.dtype), method=name, bound_upper=False
    )
    return lower.detach().min(1).values  # type: ignore[no-any-return]


def bounded_module(network: nn.Module, x: Tensor) -> Any:
    """Return auto_LiRPA's `BoundedModule` of a copy of `network`, its masks baked in.

    Args:
        network: in eval mode; left as it is.
        x: images of the shape, type and device that will be bounded.
    Raises: HydrabenchError if auto_LiRPA is not installed, ValueError if a part of `network` is in training mode.
    """
    plain = copy.deepcopy(network).requires_grad_(False)
    for module in list(plain.modules()):
        if parametrize.is_parametrized(module):
            make_plain(module)
        for name, child in module.named_children():
            if isinstance(child, Normalize):
                setattr(module, name, _as_batch_norm(child))
    if any(module.training for module in plain.modules()):
        raise ValueError("auto_LiRPA bounds networks in eval mode only; call eval()")
    # Patches make CROWN some ten times faster, but release 0.3 cannot take groups apart in them.
    grouped = any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in plain.modules())
    options = {"conv_mode": "matrix" if grouped else "patches"}
    return _auto_lirpa().BoundedModule(plain, x, device=x.device, bound_opts=options)


def _as_batch_norm(layer: Normalize) -> nn.BatchNorm2d:
    """The same map as a layer that auto_LiRPA 0.3 can pass backward; differences of constants it cannot."""
    norm = nn.BatchNorm2d(layer.mean.numel(), eps=0.0).requires_grad_(False).to(layer.mean)
    norm.running_mean, norm.running_var = layer.mean.flatten(), layer.std.flatten() ** 2
    return norm.eval()


def perturbed(x: Tensor, epsilon: float) -> Tensor:
    """Return `x` as auto_LiRPA's tensor with the L-infinity ball of `epsilon`, clipped to [0, 1], around it."""
    library = _auto_lirpa()
    lower, upper = linf_box(x, epsilon)
    ball = library.PerturbationLpNorm(norm=np.inf, eps=epsilon, x_L=lower, x_U=upper)
    return library.BoundedTensor(x, ball)  # type: ignore[no-any-return]


def margin_rows(y: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """The rows e_y - e_j for every class j != y: (B, K - 1, K)."""
    identity = torch.eye(classes, dtype=dtype, device=y.device)
    differences = identity[y].unsqueeze(1) - identity
    return differences[torch.arange(classes, device=y.device) != y.unsqueeze(1)].view(len(y), classes - 1, classes)


@cache
def _auto_lirpa() -> ModuleType:
    """Import auto_LiRPA: here and not above, because it takes seconds and may be missing."""
    stand_ins, root = _bridge_imports(), logging.getLogger()
    handlers = root.handlers[:]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import auto_LiRPA  # noqa: PLC0415
    except ImportError as error:
        raise HydrabenchError(
            f"auto_LiRPA cannot be imported ({error}); install it with `pip install --no-deps auto_LiRPA` (its pins "
            "would replace torch), and what it needs with `pip install appdirs ninja packaging tqdm pyyaml`"
        ) from error
    finally:  # importing it would log to stdout and change the filters of warnings for everyone
        root.handlers[:] = handlers
        for name in stand_ins:
            sys.modules.pop(name, None)
    _bridge_members(auto_LiRPA.BoundedModule)
    return auto_LiRPA  # type: ignore[no-any-return]


def _bridge_imports() -> list[str]:
    """Put back what auto_LiRPA 0.3 imports; return the stand-in modules, needed during the import only."""
    helper: Any = import_module("torch.onnx.symbolic_helper")  # the name `torch.onnx` exports is another module
    if not hasattr(helper, "_set_opset_version"):
        exporter = import_module("torch.onnx.utils")._optimize_graph.__globals__["GLOBALS"]
        helper._set_opset_version = partial(setattr, exporter, "export_onnx_opset_version")
    graph_node: Any = torch._C.Node
    if not hasattr(graph_node, "__getitem__"):
        graph_node.__getitem__ = lambda node, key: getattr(node, node.kindOf(key))(key)
    if find_spec("numpy.lib.arraysetops") is not None:
        return []
    stand_in = ModuleType("numpy.lib.arraysetops")
    stand_in.isin = np.isin  # type: ignore[attr-defined]
    sys.modules[stand_in.__name__] = stand_in
    return [stand_in.__name__]


def _bridge_members(bounded: type[Any]) -> None:
    """Let `BoundedModule._named_members` take the argument that torch passes since 2.0."""
    original = bounded._named_members
    if "remove_duplicate" in inspect.signature(original).parameters:
        return

    def named_members(
        self: Any, get_members_fn: Any, prefix: str = "", recurse: bool = True, **_options: Any
    ) -> Iterator[tuple[str, Any]]:
        return original(self, get_members_fn, prefix, recurse)  # type: ignore[no-any-return]

    bounded._named_members = named_members
