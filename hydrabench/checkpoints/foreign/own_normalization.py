"""The normalisation that a network applies to its input by itself, found by watching its first operations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hydrabench.config import Normalization

_ATEN = torch.ops.aten
_ARITHMETIC = frozenset({_ATEN.sub, _ATEN.sub_, _ATEN.add, _ATEN.add_, _ATEN.mul, _ATEN.mul_, _ATEN.div, _ATEN.div_})
_COPIES = frozenset({_ATEN.clone, _ATEN.detach, _ATEN.alias, _ATEN._to_copy, _ATEN.lift_fresh})
_AFFINE = 1e-3  # how far values may lie from a line, relative to the largest


class _FirstSteps(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the input through arithmetic with constants; `value` is what comes before the first other operation."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.value, self.open = x, True

    def __torch_dispatch__(
        self, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        uses = sum(one is self.value for one in tree_leaves((args, kwargs)))
        if self.open and uses:
            packet = func.overloadpacket
            self.open = uses == 1 and packet in _ARITHMETIC | _COPIES and found.shape == self.value.shape
            self.value = found if self.open else self.value.clone()
        return found


def own_normalization(network: nn.Module, x: Tensor) -> Normalization | None:
    """Return what `network` subtracts from its input in [0, 1] and divides it by, before anything else.

    Only values that images have are taken for a normalisation: means and deviations in (0, 1). A batch norm, or
    arithmetic on single channels, is none.
    Args: network: in eval mode. x: images that it takes, (B, C, H, W).
    """
    probe = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
    watched = _FirstSteps(probe.clone())
    try:
        with torch.no_grad(), watched:
            network(watched.value)
    except Exception:
        return None
    return _normalization(probe.double(), watched.value.double()) if watched.value.shape == probe.shape else None


def _normalization(x: Tensor, y: Tensor) -> Normalization | None:
    """Return the normalisation that makes y of x, (B, C, H, W); None if there is none."""
    x, y = (one.transpose(0, 1).flatten(1) for one in (x, y))
    lowest, highest = x.argmin(1, keepdim=True), x.argmax(1, keepdim=True)
    slope = (y.gather(1, highest) - y.gather(1, lowest)) / (x.gather(1, highest) - x.gather(1, lowest))
    mean, std = x.gather(1, lowest) - y.gather(1, lowest) / slope, 1 / slope
    off = (y - (x - mean) / std).abs().max()
    values = torch.cat([mean, std])
    if not (off <= _AFFINE * y.abs().max() and values.min() > 0 and values.max() < 1 - _AFFINE):
        return None
    return Normalization(mean=tuple(mean.flatten().tolist()), std=tuple(std.flatten().tolist()))
