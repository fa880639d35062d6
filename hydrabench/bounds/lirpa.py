"""auto_LiRPA, the second opinion and the tight end: its registry release (0.3) and its source releases alike.

Nothing that it says is taken on trust: before the first use its bounds of a small network are compared with ours,
and its rules are checked on each network. Names that differ between releases are told apart by looking, not by version.
"""

from __future__ import annotations

import copy
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from functools import cache, partial
from importlib import import_module
from math import prod
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hydrabench.bounds.agreement import TESTED, require_agreement, small_problem
from hydrabench.bounds.bridges import bridge_imports, bridge_members, bridge_pooling, bridge_slopes
from hydrabench.errors import HydrabenchError, UnsupportedLayerError, is_out_of_memory, lookup
from hydrabench.masking import make_plain
from hydrabench.models.normalize import Normalize
from hydrabench.threat import linf_box

METHODS: dict[str, str] = {"ibp": "IBP", "crown-ibp": "CROWN-IBP", "crown": "CROWN"}
OPTIONS = {"conv_mode": "patches", "sparse_intermediate_bounds": False, "use_full_conv_alpha_thresh": sys.maxsize}
TRACED = 1e-3  # how far, relative to the largest logit, auto_LiRPA's reading of a network may be from the network
ROUNDING = 200  # units in the last place; up to 11 were seen, in wide ResNets; wrong rules were 100 times as far off
CHECKED = 1 << 28  # bytes of the functions of one layer's neurons up to which they are checked, too


def lirpa_margins(network: nn.Module, x: Tensor, y: Tensor, epsilon: float, *, method: str) -> Tensor:
    """Lower bounds of min over j != y of f_y - f_j over the L-infinity ball, computed by auto_LiRPA.

    Args:
        network: in eval mode; left as it is.
        x: images, (B, C, H, W), in [0, 1].
        y: true classes, (B,), int64, in [0, K).
        epsilon: radius in pixel units, >= 0; the ball is clipped to [0, 1].
        method: a key of `METHODS`.
    Returns: (B,), in logit units, without gradients.
    Raises: HydrabenchError if auto_LiRPA is not installed or fails the check of `require_auto_lirpa`, ConfigError for
        an unknown method, UnsupportedLayerError for a network that it cannot pass, ValueError if `network` is in
        training mode.
    Source: Xu et al. (2020), arXiv:2002.12920.
    """
    name = lookup("auto_LiRPA method", METHODS, method)
    require_auto_lirpa()
    return _margins(network, x, y, epsilon, name)


def _margins(network: nn.Module, x: Tensor, y: Tensor, epsilon: float, method: str) -> Tensor:
    # CROWN chooses the neurons that it bounds from all images of a batch: one image at a time, it is that image's own.
    size = 1 if method == "CROWN" else len(y)
    bounded = bounded_module(network, x[:size], method=method, sparse=method == "CROWN")
    parts = []
    for first in range(0, len(y), size):
        rows = slice(first, first + size)
        if first:  # another image may take another branch of the network than the one that was traced
            _require_same_function(bounded, network, x[rows])
        specification = margin_rows(y[rows], bounded.final_shape[1], x.dtype)
        parts.append(lower_bounds(bounded, perturbed(x[rows], epsilon), specification, method).detach().min(1).values)
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
        with quiet(), _refusing(f"cannot bound this network by {method}"):
            lower, _ = bounded.compute_bounds(x=(ball,), C=specification, method=method, bound_upper=False, **options)
    finally:
        torch.set_default_dtype(default)
    return lower  # type: ignore[no-any-return]


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Turn what auto_LiRPA raises inside, which for layers it has no rule for is of every kind, into a refusal."""
    try:
        yield
    except HydrabenchError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise _refusal(f"{what} ({_last_words(error)})") from error


def _last_words(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].removeprefix("RuntimeError: ") if lines else type(error).__name__


def _refusal(what: str) -> UnsupportedLayerError:
    return UnsupportedLayerError(
        f"auto_LiRPA {what}; choose a method of hydrabench's own engine, or smoothing, which needs no rules"
    )


def require_auto_lirpa() -> None:
    """Raises: HydrabenchError saying how to install auto_LiRPA if it is not there, or what is wrong with its release.

    In each process its bounds of a small network are compared with ours, once.
    """
    _auto_lirpa()
    _require_agreement()


@cache
def _require_agreement() -> None:
    network, x, _ = small_problem()
    with quiet(), _refusing("cannot be driven as the releases that we know"):
        defaults = _auto_lirpa().BoundedModule(network, x).bound_opts
    if unknown := OPTIONS.keys() - defaults.keys():  # a renamed one would be ignored
        raise HydrabenchError(f"auto_LiRPA {release()} has no options {', '.join(sorted(unknown))}; {TESTED}")
    require_agreement(lambda method: partial(_named_margins, method), release())


def _named_margins(method: str, network: nn.Module, x: Tensor, y: Tensor, epsilon: float) -> Tensor:
    return _margins(network, x, y, epsilon, METHODS[method])


def release() -> str:
    """What the installed auto_LiRPA calls itself, "0.3"."""
    return str(getattr(_auto_lirpa(), "__version__", "(a release without a number)"))


def bounded_module(
    network: nn.Module, x: Tensor, *, method: str = "CROWN", sparse: bool = False, like: Any = None
) -> Any:
    """Return auto_LiRPA's `BoundedModule` of a copy of `network`, its masks baked in, after a check of its rules.

    No slopes are shared in large layers, which would make the bounds of an image depend on the rest of its batch.
    Patches make CROWN some ten times faster than matrices. Where not everything is square, or a convolution is dilated,
    release 0.3 gets them wrong, without a word; and in them it cannot take groups apart, nor pass some sums: there,
    matrices are used.

    Args:
        network: in eval mode; left as it is.
        x: images of the shape, type and device that will be bounded.
        method: a value of `METHODS`; what is going to be asked, so that the check passes the same rules.
        sparse: bound only neurons that intervals leave unstable in any image of the batch, as auto_LiRPA does if
            nobody asks otherwise; the bounds of an image then depend on the rest of its batch.
        like: what this function returned for other images, whose check is not repeated.
    Raises: HydrabenchError if auto_LiRPA is not installed; UnsupportedLayerError if it knows no rule for a part
        of `network`, reads it wrongly or has a wrong rule; ValueError if a part of `network` is in training mode.
    """
    plain = _plain(network)
    if like is not None:
        bounded = _read(plain, network, x, like.bound_opts["conv_mode"])
    else:
        bounded = _checked_in_some_mode(plain, network, x, method)
    bounded.set_bound_opts({"sparse_intermediate_bounds": sparse})
    return bounded


def _plain(network: nn.Module) -> nn.Module:
    """A copy that auto_LiRPA can read."""
    plain = copy.deepcopy(network).requires_grad_(False)
    for module in list(plain.modules()):
        if parametrize.is_parametrized(module):
            make_plain(module)
        for name, child in module.named_children():
            if isinstance(child, Normalize):
                setattr(module, name, _as_batch_norm(child))
            elif isinstance(child, nn.Dropout):  # it would put the whole network into training mode for it
                setattr(module, name, nn.Identity().train(child.training))
    if any(module.training for module in plain.modules()):
        raise ValueError("auto_LiRPA bounds networks in eval mode only; call eval()")
    return plain


def _checked_in_some_mode(plain: nn.Module, network: nn.Module, x: Tensor, method: str) -> Any:
    if _suits_patches(plain, x):
        with suppress(UnsupportedLayerError):
            return _checked(_read(plain, network, x, "patches"), x, method)
    return _checked(_read(plain, network, x, "matrix"), x, method)


def _suits_patches(plain: nn.Module, x: Tensor) -> bool:
    """Whether everything is square, and no convolution is dilated or grouped."""
    square = x.shape[-2] == x.shape[-1]
    for layer in plain.modules():
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
            for sides in (layer.kernel_size, layer.stride, layer.padding):
                square = square and (not isinstance(sides, tuple) or len(set(sides)) == 1)
        if isinstance(layer, nn.Conv2d):
            square = square and layer.dilation == (1, 1) and layer.groups == 1
    return square


def _read(plain: nn.Module, network: nn.Module, x: Tensor, mode: str) -> Any:
    library = _auto_lirpa()
    options = OPTIONS | {"conv_mode": mode}
    with quiet(), torch.no_grad(), _refusing("knows no rule for a part of this network"):
        bounded = library.BoundedModule(plain, x, device=x.device, bound_opts=options)
    _require_same_function(bounded, network, x)
    return bounded


def _require_same_function(bounded: Any, network: nn.Module, x: Tensor) -> None:
    """It traces one run of the network; whatever else this one computes would be missing from the bounds."""
    with quiet(), torch.no_grad(), _refusing("reads another function from this network than it computes"):
        traced, logits = bounded(x), network(x)
    if not _close(traced, logits, TRACED):
        raise _refusal("reads another function from this network than it computes")


def _checked(bounded: Any, x: Tensor, method: str) -> Any:
    """In a ball of radius 0 every bound is the value itself, unless a rule carries functions backward wrongly.

    Release 0.3 does so for average pooling whose windows overlap or leave a margin. Of a large network the margins
    alone are carried backward, because all neurons would take minutes.
    """
    if method == "IBP":
        return bounded
    neurons = max((prod(node.inputs[0].output_shape[1:]) for node in bounded.optimizable_activations), default=0)
    if len(x) * neurons**2 * x.element_size() > CHECKED:
        method = "CROWN-IBP"
    with quiet(), torch.no_grad():
        logits = bounded(x)
        inputs = [node.inputs[0] for node in bounded.optimizable_activations if node.perturbed]
        values = [node.forward_value for node in inputs]
        rows = margin_rows(torch.zeros(len(x), dtype=torch.long, device=x.device), logits.shape[1], x.dtype)
        margins = lower_bounds(bounded, perturbed(x, 0.0), rows, method)
    tolerance = ROUNDING * torch.finfo(x.dtype).eps
    exact = _close(margins, torch.einsum("brk,bk->br", rows, logits), tolerance)
    for node, value in zip(inputs, values, strict=True):
        for end in (getattr(node, "lower", None), getattr(node, "upper", None)):
            exact = exact and (end is None or _close(end, value, tolerance))
    if not exact:
        raise _refusal("has a wrong rule for a part of this network: its bounds of a single point are not its value")
    return bounded


def _close(found: Tensor, value: Tensor, tolerance: float) -> bool:
    """Whether they are the same up to `tolerance`, relative to the largest entry, or to 1 if that is less."""
    scale = max(1.0, float(value.abs().max()))
    return found.shape == value.shape and torch.allclose(found, value, rtol=0, atol=tolerance * scale)


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


@cache
def _auto_lirpa() -> ModuleType:
    """Import auto_LiRPA: here and not above, because it takes seconds and may be missing."""
    root, compiler = logging.getLogger(), logging.getLogger("torch.utils.cpp_extension")
    handlers, level = root.handlers[:], compiler.level
    stand_ins: list[str] = []
    try:
        compiler.setLevel(logging.ERROR)  # it warns that there is no GPU, which auto_LiRPA does not need
        with quiet():
            stand_ins = bridge_imports()
            import auto_LiRPA  # noqa: PLC0415
    except (ImportError, AttributeError) as error:
        raise HydrabenchError(
            f"auto_LiRPA cannot be imported ({error}); install what it needs, `pip install 'hydrabench[lirpa]'`, and "
            "its release 0.3, `pip install --no-deps auto_LiRPA`, whose pins would ask for torch below 1.13"
        ) from error
    finally:  # importing it would log to stdout and change the filters of warnings for everyone
        compiler.setLevel(level)
        root.handlers[:] = handlers
        for name in stand_ins:
            sys.modules.pop(name, None)
    # What it logs, to stderr where nobody listens, comes as an error, too.
    logging.getLogger("auto_LiRPA").addHandler(logging.NullHandler())
    bridge_members(auto_LiRPA.BoundedModule)
    operators = import_module("auto_LiRPA.operators")
    for pool in (operators.BoundMaxPool, operators.BoundAveragePool):
        bridge_pooling(pool)
    bridge_slopes(operators.BoundMaxPool)
    return auto_LiRPA  # type: ignore[no-any-return]
