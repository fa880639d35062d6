"""auto_LiRPA, the second opinion and the tight end: its registry release (0.3) and its source release alike.

Release 0.3 was written for torch below 1.13. What it uses and has moved or changed since is bridged here, each
gap only where it is there; names that differ between the releases are told apart by looking, not by version.
"""

from __future__ import annotations

import copy
import inspect
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from hydrabench.errors import HydrabenchError, UnsupportedLayerError, lookup
from hydrabench.masking import make_plain
from hydrabench.models.normalize import Normalize
from hydrabench.threat import linf_box

METHODS: dict[str, str] = {"ibp": "IBP", "crown-ibp": "CROWN-IBP", "crown": "CROWN"}
TRACED = 1e-3  # how far, relative to the largest logit, auto_LiRPA's reading of a network may be from the network


def lirpa_margins(network: nn.Module, x: Tensor, y: Tensor, epsilon: float, *, method: str) -> Tensor:
    """Lower bounds of min over j != y of f_y - f_j over the L-infinity ball, computed by auto_LiRPA.

    Args:
        network: in eval mode; left as it is.
        x: images, (B, C, H, W), in [0, 1].
        y: true classes, (B,), int64, in [0, K).
        epsilon: radius in pixel units, >= 0; the ball is clipped to [0, 1].
        method: a key of `METHODS`.
    Returns: (B,), in logit units, without gradients.
    Raises: HydrabenchError if auto_LiRPA is not installed, ConfigError for an unknown method,
        UnsupportedLayerError for a network that it cannot pass, ValueError if `network` is in training mode.
    Source: Xu et al. (2020), arXiv:2002.12920.
    """
    name = lookup("auto_LiRPA method", METHODS, method)
    # CROWN chooses the neurons that it bounds from all images of a batch: one image at a time, it is that image's own.
    bounded = bounded_module(network, x, sparse=method == "crown")
    size = 1 if method == "crown" else len(y)
    parts = []
    for first in range(0, len(y), size):
        rows = slice(first, first + size)
        specification = margin_rows(y[rows], bounded.final_shape[1], x.dtype)
        parts.append(lower_bounds(bounded, perturbed(x[rows], epsilon), specification, name).detach().min(1).values)
    return torch.cat(parts)


def lower_bounds(bounded: Any, ball: Tensor, specification: Tensor, method: str, **options: Any) -> Tensor:
    """Call auto_LiRPA, quietly, for lower bounds of `specification` times the logits: (B, rows).

    It makes new tensors in torch's default type, which is set to that of `ball` meanwhile.
    Args:
        bounded: what `bounded_module` returned. ball: what `perturbed` returned, (B, C, H, W).
        specification: (B, rows, K). method: a value of `METHODS`, or another of its methods.
        options: more arguments of its `compute_bounds`.
    Raises: UnsupportedLayerError if the method cannot pass a part of the network.
    """
    default = torch.get_default_dtype()
    torch.set_default_dtype(ball.dtype)
    try:
        with quiet():
            lower, _ = bounded.compute_bounds(x=(ball,), C=specification, method=method, bound_upper=False, **options)
    except (NotImplementedError, ValueError) as error:
        raise _refusal(f"cannot bound this network by {method} ({error})") from error
    finally:
        torch.set_default_dtype(default)
    return lower  # type: ignore[no-any-return]


def _refusal(what: str) -> UnsupportedLayerError:
    return UnsupportedLayerError(
        f"auto_LiRPA {what}; choose a method of hydrabench's own engine, or smoothing, which needs no rules"
    )


def require_auto_lirpa() -> None:
    """Raises: HydrabenchError saying how to install auto_LiRPA if it is not there."""
    _auto_lirpa()


def bounded_module(network: nn.Module, x: Tensor, *, sparse: bool = False) -> Any:
    """Return auto_LiRPA's `BoundedModule` of a copy of `network`, its masks baked in.

    No slopes are shared in large layers, which would make the bounds of an image depend on the rest of its batch.

    Args:
        network: in eval mode; left as it is.
        x: images of the shape, type and device that will be bounded.
        sparse: bound only neurons that intervals leave unstable in any image of the batch, as auto_LiRPA does if
            nobody asks otherwise; the bounds of an image then depend on the rest of its batch.
    Raises: HydrabenchError if auto_LiRPA is not installed; UnsupportedLayerError if it knows no rule for a part
        of `network` or reads it wrongly; ValueError if a part of `network` is in training mode.
    """
    library = _auto_lirpa()
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
    options = {
        "conv_mode": "matrix" if grouped else "patches",
        "sparse_intermediate_bounds": sparse,
        "use_full_conv_alpha_thresh": sys.maxsize,
    }
    with quiet(), torch.no_grad():
        try:
            bounded = library.BoundedModule(plain, x, device=x.device, bound_opts=options)
        except NotImplementedError as error:
            raise _refusal(f"knows no rule for a part of this network ({error})") from error
        # It traces one run of the network; whatever else this one computes would be missing from the bounds.
        traced, logits = bounded(x), network(x)
    if not torch.allclose(traced, logits, rtol=0, atol=TRACED * max(1.0, float(logits.abs().max()))):
        raise _refusal("reads another function from this network than it computes")
    return bounded


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


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what auto_LiRPA prints and warns of out of the output of the command."""
    with warnings.catch_warnings(record=True), redirect_stdout(io.StringIO()):
        yield


# Bridges ---------------------------------------------------------------------------------------


@cache
def _auto_lirpa() -> ModuleType:
    """Import auto_LiRPA: here and not above, because it takes seconds and may be missing."""
    root, compiler = logging.getLogger(), logging.getLogger("torch.utils.cpp_extension")
    handlers, level = root.handlers[:], compiler.level
    stand_ins: list[str] = []
    try:
        compiler.setLevel(logging.ERROR)  # it warns that there is no GPU, which auto_LiRPA does not need
        with quiet():
            stand_ins = _bridge_imports()
            import auto_LiRPA  # noqa: PLC0415
    except ImportError as error:
        raise HydrabenchError(
            f"auto_LiRPA cannot be imported ({error}); install it with `pip install --no-deps auto_LiRPA` (its pins "
            "would replace torch), and what it needs with `pip install appdirs ninja packaging tqdm pyyaml`"
        ) from error
    finally:  # importing it would log to stdout and change the filters of warnings for everyone
        compiler.setLevel(level)
        root.handlers[:] = handlers
        for name in stand_ins:
            sys.modules.pop(name, None)
    _bridge_members(auto_LiRPA.BoundedModule)
    _bridge_max_pool(import_module("auto_LiRPA.operators").BoundMaxPool)
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


def _bridge_max_pool(pool: type[Any]) -> None:
    """Hand max pooling its coefficients in one piece, because it calls `view`, and sizes as numbers, not as shapes.

    Its slopes, float32 always, get the type of the bounds.
    """
    backward, begin = pool.bound_backward, pool.init_opt_parameters

    def bound_backward(self: Any, last_lower: Any, last_upper: Any, *args: Any, **options: Any) -> Any:
        whole = [A.contiguous() if isinstance(A, Tensor) else A for A in (last_lower, last_upper)]
        return backward(self, *whole, *args, **options)

    def init_opt_parameters(self: Any, start_nodes: Any) -> None:
        begin(self, [(name, int(np.prod(size)), rows) for name, size, rows in start_nodes])
        for name, slopes in self.alpha.items():
            self.alpha[name] = slopes.detach().to(self.inputs[0].lower).requires_grad_()

    pool.bound_backward, pool.init_opt_parameters = bound_backward, init_opt_parameters


class _Clamp(torch.autograd.Function):
    """clamp(x, 0, 1) with the gradient 1 on the whole closed interval."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward((x >= 0) & (x <= 1))
        return x.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * ctx.saved_tensors[0]  # type: ignore[no-any-return]


class _ClosedClamp(TorchFunctionMode):
    """Inside, `torch.clamp(x, min=0, max=1)` passes gradients at 0 and 1, too."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.clamp and len(args) == 1 and kwargs == {"min": 0, "max": 1}:
            return _Clamp.apply(args[0])  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


def slopes_can_leave_their_ends() -> AbstractContextManager[Any]:
    """A context in which auto_LiRPA can optimise slopes that are 0 or 1, as all are in the beginning.

    It clamps them to [0, 1], and newer versions of torch pass no gradient where a clamped value equals its
    bound: no slope ever moved, and alpha-CROWN silently was CROWN.
    """
    end = torch.zeros((), requires_grad=True)
    with torch.enable_grad():
        torch.clamp(end, min=0.0, max=1.0).backward()  # type: ignore[no-untyped-call]
    assert end.grad is not None
    return nullcontext() if end.grad.item() == 1 else _ClosedClamp()
