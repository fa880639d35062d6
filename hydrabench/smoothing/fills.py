"""Fills: functions that overwrite rows with the next noise of a keyed stream.

The normal law of torch's generator on the CPU ends at 5.8 deviations, because its uniform numbers have 24 bits: in
150,528 coordinates that costs 1e-3 in total variation, more than what 100,000 draws leave open. From version 3 on,
Gaussian noise comes from numpy's ziggurat in float64, whose layers are chosen with 52 bits and whose tail beyond 3.65
deviations is an exact inverse of 53-bit uniform numbers: it ends beyond 9 deviations. Integer noise has its exact law
in every version; from version 3 on it draws 16 bits a number, and the other 46 only where a threshold needs them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hydrabench.runtime import bits, stream
from hydrabench.smoothing.discrete import BITS, largest_noise, thresholds

GUIDE_BITS = 16
REST = BITS - GUIDE_BITS
Fill = Callable[[Tensor], None]


def real_fill(law: str, key: tuple[object, ...], sigma: float, device: torch.device, version: int) -> Fill:
    """Return the fill with noise of a law and standard deviation `sigma`, pixel units, in float32.

    Version 3: of numpy's float64 on the CPU, from torch's float64 elsewhere. 1 and 2 have the Gaussian alone, torch's
    of float32, see `runtime.stream`.
    """
    if version <= 2:
        generator = stream(*key, device=device, version=version)
        return lambda rows: _copy(rows, rows.normal_(0.0, sigma, generator=generator))
    if device.type != "cpu":
        generator = stream(*key, device=device, version=2)
        return lambda rows: _copy(rows, _ON_DEVICES[law](torch.empty_like(rows, dtype=torch.float64), sigma, generator))
    source = np.random.Generator(bits(*key, "noise"))

    def fill(rows: Tensor) -> None:
        np.copyto(rows.numpy(), _ON_CPU[law](source, sigma, tuple(rows.shape)), casting="same_kind")

    return fill


def _copy(rows: Tensor, drawn: Tensor) -> None:
    if drawn is not rows:
        rows.copy_(drawn)


_ON_CPU: dict[str, Callable[[np.random.Generator, float, tuple[int, ...]], NDArray[np.float64]]] = {
    "gaussian": lambda source, sigma, shape: source.standard_normal(shape) * sigma,
    "uniform": lambda source, sigma, shape: (2 * source.random(shape) - 1) * (sigma * math.sqrt(3)),
    "laplace": lambda source, sigma, shape: source.laplace(0.0, sigma / math.sqrt(2), shape),
}
_ON_DEVICES: dict[str, Callable[[Tensor, float, torch.Generator], Tensor]] = {
    "gaussian": lambda empty, sigma, generator: empty.normal_(0.0, sigma, generator=generator),
    "uniform": lambda empty, sigma, generator: empty.uniform_(
        -sigma * math.sqrt(3), sigma * math.sqrt(3), generator=generator
    ),
    "laplace": lambda empty, sigma, generator: laplace_of(empty.uniform_(-1, 1, generator=generator), sigma),
}


def laplace_of(uniform: Tensor, sigma: float) -> Tensor:
    """Return Laplace noise of standard deviation `sigma` by the inverse of its law, from uniform numbers in (-1, 1)."""
    return uniform.sign() * torch.log1p(-uniform.abs()) * (-sigma / math.sqrt(2))


def integer_fill(key: tuple[object, ...], sigma: float, device: torch.device, version: int) -> Fill:
    """Return the fill with integer noise in grey levels, by the thresholds of `smoothing.discrete`."""
    if version > 2 and device.type == "cpu":
        leading, others = bits(*key, "leading"), bits(*key, "others")
        return lambda rows: fill_lazily(rows, sigma, leading, others)
    generator = stream(*key, device=device, version=min(version, 2))
    return lambda rows: fill_discrete(rows, sigma, generator)


def fill_lazily(rows: Tensor, sigma: float, leading: Any, others: Any) -> None:
    """Fill with integers whose 62 bits are 16 of `leading` and, if a threshold divides those, 46 of `others`.

    Args: rows: float32 on the CPU, a multiple of 4 numbers. leading, others: numpy's bit generators, 64 bits a word.
    """
    cuts, guide = _guide(sigma)
    first = leading.random_raw(rows.numel() // 4).astype("<u8", copy=False).view("<u2")
    flat = rows.view(-1)
    torch.index_select(guide, 0, torch.from_numpy(first.astype(np.int32)), out=flat)
    levels = flat.numpy()
    open_ = np.flatnonzero(np.isnan(levels))
    rest = (others.random_raw(len(open_)) >> np.uint64(64 - REST)).astype(np.int64)
    whole = (first[open_].astype(np.int64) << REST) | rest
    levels[open_] = np.searchsorted(cuts, whole, side="right") - largest_noise(sigma)


def fill_discrete(rows: Tensor, sigma: float, generator: torch.Generator) -> None:
    """Fill with integers of 62 bits each: on other devices, and of version 2."""
    cuts, guide = _guide(sigma)
    drawn = torch.empty(rows.shape, dtype=torch.int64, device=rows.device).random_(0, 2**BITS, generator=generator)
    rows.copy_(guide.to(rows.device).take(drawn >> REST))
    searched = rows.isnan().nonzero(as_tuple=True)
    found = torch.searchsorted(torch.from_numpy(cuts).to(rows.device), drawn[searched], right=True)
    rows[searched] = (found - largest_noise(sigma)).to(rows.dtype)


@lru_cache(maxsize=8)
def _guide(sigma: float) -> tuple[NDArray[np.int64], Tensor]:
    """The thresholds, and for each value of the leading bits the noise, NaN where the other bits matter."""
    # A threshold of 2^62 is never reached by 62 bits and fits into an int64.
    cuts = np.array(thresholds(sigma), dtype=np.int64)
    lowest = np.arange(2**GUIDE_BITS, dtype=np.int64) << REST
    first, last = (np.searchsorted(cuts, ends, side="right") for ends in (lowest, lowest + (2**REST - 1)))
    guide = np.where(first == last, first - largest_noise(sigma), np.nan)
    return cuts, torch.from_numpy(guide.astype(np.float32))
