"""Networks as auto_LiRPA reads them, its rules checked on each, and its call for bounds.

Names that differ between releases are told apart by looking, not by version.
"""

from __future__ import annotations

import copy
import sys
from contextlib import suppress
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hydrabench.bounds.lirpa.library import auto_lirpa, calling, refusal
from hydrabench.errors import UnsupportedLayerError
from hydrabench.masking import make_plain
from hydrabench.models.normalize import Normalize
from hydrabench.threat import linf_box

OPTIONS = {"conv_mode": "patches", "sparse_intermediate_bounds": False, "use_full_conv_alpha_thresh": sys.maxsize}
TRACED = 1e-3  # how far, relative to the largest logit, auto_LiRPA's reading of a network may be from the network
ROUNDING = 200  # units in the last place; up to 11 were seen, in wide ResNets; wrong rules were 100 times as far off
CHECKED = 1 << 28  # bytes of the functions of one layer's neurons up to which they are checked, too


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
        method: one of its methods; the one to be used, so that the check passes the same rules.
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
    """Return whether everything is square, and no convolution is dilated or grouped."""
    square = x.shape[-2] == x.shape[-1]
    for layer in plain.modules():
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
            for sides in (layer.kernel_size, layer.stride, layer.padding):
                square = square and (not isinstance(sides, tuple) or len(set(sides)) == 1)
        if isinstance(layer, nn.Conv2d):
            square = square and layer.dilation == (1, 1) and layer.groups == 1
    return square


def _read(plain: nn.Module, network: nn.Module, x: Tensor, mode: str) -> Any:
    options = OPTIONS | {"conv_mode": mode}
    with calling("knows no rule for a part of this network"), torch.no_grad():
        bounded = auto_lirpa().BoundedModule(plain, x, device=x.device, bound_opts=options)
    require_same_function(bounded, network, x)
    return bounded


def require_same_function(bounded: Any, network: nn.Module, x: Tensor) -> None:
    """It traces one run of the network; whatever else this one computes would be missing from the bounds.

    Raises: UnsupportedLayerError if what it traced gives other logits for `x`.
    """
    with torch.no_grad():
        logits = network(x)
        with calling("reads another function from this network than it computes"):
            traced = bounded(x)
    if not _close(traced, logits, TRACED):
        raise refusal("reads another function from this network than it computes")


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
    with torch.no_grad():
        with calling("cannot compute this network"):
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
        raise refusal("has a wrong rule for a part of this network: its bounds of a single point are not its value")
    return bounded


def _close(found: Tensor, value: Tensor, tolerance: float) -> bool:
    """Return whether they are the same up to `tolerance`, relative to the largest entry, or to 1 if that is less."""
    scale = max(1.0, float(value.abs().max()))
    return found.shape == value.shape and torch.allclose(found, value, rtol=0, atol=tolerance * scale)


def _as_batch_norm(layer: Normalize) -> nn.BatchNorm2d:
    """The same map as a layer that auto_LiRPA 0.3 can pass backward; differences of constants it cannot."""
    norm = nn.BatchNorm2d(layer.mean.numel(), eps=0.0).requires_grad_(False).to(layer.mean)
    norm.running_mean, norm.running_var = layer.mean.flatten(), layer.std.flatten() ** 2
    return norm.eval()


def perturbed(x: Tensor, epsilon: float) -> Tensor:
    """Return `x` as auto_LiRPA's tensor with the L-infinity ball of `epsilon`, clipped to [0, 1], around it."""
    library = auto_lirpa()
    lower, upper = linf_box(x, epsilon)
    ball = library.PerturbationLpNorm(norm=np.inf, eps=epsilon, x_L=lower, x_U=upper)
    return library.BoundedTensor(x, ball)  # type: ignore[no-any-return]


def margin_rows(y: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """The rows e_y - e_j for every class j != y: (B, K - 1, K)."""
    identity = torch.eye(classes, dtype=dtype, device=y.device)
    differences = identity[y].unsqueeze(1) - identity
    return differences[torch.arange(classes, device=y.device) != y.unsqueeze(1)].view(len(y), classes - 1, classes)


def lower_bounds(bounded: Any, ball: Tensor, specification: Tensor, method: str, **options: Any) -> Tensor:
    """Call auto_LiRPA, quietly, for lower bounds of `specification` times the logits: (B, rows).

    It makes new tensors in torch's default type, which is set to that of `ball` meanwhile.
    Args:
        bounded: what `bounded_module` returned. ball: what `perturbed` returned, (B, C, H, W).
        specification: (B, rows, K). method: one of its methods.
        options: more arguments of its `compute_bounds`.
    Raises: UnsupportedLayerError if the method cannot pass a part of the network.
    """
    default = torch.get_default_dtype()
    torch.set_default_dtype(ball.dtype)
    try:
        with calling(f"cannot bound this network by {method}"):
            lower, _ = bounded.compute_bounds(x=(ball,), C=specification, method=method, bound_upper=False, **options)
    finally:
        torch.set_default_dtype(default)
    return lower  # type: ignore[no-any-return]
