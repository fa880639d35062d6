"""auto_LiRPA's bounds of margins, after a check of the release that is installed."""

from __future__ import annotations

from functools import cache, partial

import torch
from torch import Tensor, nn

from hydrabench.bounds.lirpa.check import TESTED, require_agreement, small_problem
from hydrabench.bounds.lirpa.library import auto_lirpa, calling, release
from hydrabench.bounds.lirpa.modules import (
    OPTIONS,
    bounded_module,
    lower_bounds,
    margin_rows,
    perturbed,
    require_same_function,
)
from hydrabench.errors import HydrabenchError, lookup

METHODS: dict[str, str] = {"ibp": "IBP", "crown-ibp": "CROWN-IBP", "crown": "CROWN"}  # and `search`


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


def require_auto_lirpa() -> None:
    """Raises: HydrabenchError saying how to install auto_LiRPA if it is not there, or what is wrong with its release.

    In each process its bounds of a small network are compared with ours, once.
    """
    auto_lirpa()
    _require_agreement()


def _margins(network: nn.Module, x: Tensor, y: Tensor, epsilon: float, method: str) -> Tensor:
    if not len(y):
        return x.new_empty(0)
    # CROWN chooses the neurons that it bounds from all images of a batch: one image at a time, it is that image's own.
    size = 1 if method == "CROWN" else len(y)
    bounded = bounded_module(network, x[:size], method=method, sparse=method == "CROWN")
    parts = []
    for first in range(0, len(y), size):
        rows = slice(first, first + size)
        if first:  # another image may take another branch of the network than the one that was traced
            require_same_function(bounded, network, x[rows])
        specification = margin_rows(y[rows], bounded.final_shape[1], x.dtype)
        parts.append(lower_bounds(bounded, perturbed(x[rows], epsilon), specification, method).detach().min(1).values)
    return torch.cat(parts)


@cache
def _require_agreement() -> None:
    network, x, _ = small_problem()
    with calling("cannot be driven as the releases that we know"):
        defaults = auto_lirpa().BoundedModule(network, x).bound_opts
    if unknown := OPTIONS.keys() - defaults.keys():  # a renamed one would be ignored
        raise HydrabenchError(f"auto_LiRPA {release()} has no options {', '.join(sorted(unknown))}; {TESTED}")
    require_agreement(lambda method: partial(_named_margins, method), release())


def _named_margins(method: str, network: nn.Module, x: Tensor, y: Tensor, epsilon: float) -> Tensor:
    return _margins(network, x, y, epsilon, METHODS[method])
