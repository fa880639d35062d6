"""Noisy copies of images, drawn row by row from keyed streams."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from hydrabench.runtime import stream
from hydrabench.smoothing.discrete import BITS, LEVELS, largest_noise, thresholds

CHUNK = 1000  # part of the protocol: it fixes which random stream a draw comes from
DEVICE_CHUNK = 200  # the same for generators on the device
_GUIDE_BITS = 16
Fill = Callable[[Tensor, float, torch.Generator], None]


@dataclass(frozen=True)
class NoiseSource:
    """The source of noise: its device and its kind.

    generator: "cpu" gives the same noise on every machine; "device" draws where the network is, which is faster on
    a GPU and depends on its model. rigor: "standard" is Gaussian noise in float32, "discrete" is `smoothing.discrete`.
    version: how streams are seeded, see `runtime.stream`.
    """

    generator: Literal["cpu", "device"] = "cpu"
    rigor: Literal["standard", "discrete"] = "standard"
    version: int = 2

    def describe(self, device: torch.device) -> str:
        """Return the entry in `run.json`: runs of different sources must not be continued by each other."""
        if self.generator == "cpu" or device.type == "cpu":
            return "cpu"
        return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


class NoiseStream:
    """The noise of one image for one purpose, read in order.

    Row i is row i % CHUNK of `runtime.stream(*key, i // CHUNK)` of the source's version, on the CPU in float32.
    `normal_` fills whole groups of 16 numbers in order, so a chunk may be drawn in pieces if an image has a multiple of
    16 numbers; otherwise, and on other devices, it is drawn as one and kept until it is used up.
    """

    def __init__(
        self, source: NoiseSource, shape: torch.Size, device: torch.device, *, sigma: float, key: tuple[object, ...]
    ) -> None:
        self.shape, self.sigma, self.key = shape, sigma, key
        self.device = device if source.generator == "device" else torch.device("cpu")
        on_cpu = self.device.type == "cpu"
        self.chunk = CHUNK if on_cpu else DEVICE_CHUNK
        self.in_pieces = on_cpu and (source.rigor == "discrete" or shape.numel() % 16 == 0)
        self.fill: Fill = fill_discrete if source.rigor == "discrete" else fill_gaussian
        self.version = source.version
        self.drawn = 0
        self.generator = torch.Generator(self.device)
        self.kept = torch.empty(0)

    def read(self, rows: Tensor) -> None:
        """Overwrite `rows`, (R, C, H, W), on this stream's device, float32, with the next R rows of noise."""
        start = 0
        while start < len(rows):
            at = self.drawn % self.chunk
            count = min(len(rows) - start, self.chunk - at)
            self._read_within_chunk(rows[start : start + count], at)
            start += count
            self.drawn += count

    def _read_within_chunk(self, rows: Tensor, at: int) -> None:
        if at == 0:
            self.generator = stream(*self.key, self.drawn // self.chunk, device=self.device, version=self.version)
            if not self.in_pieces:
                self.kept = torch.empty(self.chunk, *self.shape, device=self.device)
                self.fill(self.kept, self.sigma, self.generator)
        if self.in_pieces:
            self.fill(rows, self.sigma, self.generator)
        else:
            rows.copy_(self.kept[at : at + len(rows)])


def fill_gaussian(rows: Tensor, sigma: float, generator: torch.Generator) -> None:
    """Gaussian noise of standard deviation `sigma`, pixel units."""
    rows.normal_(0.0, sigma, generator=generator)


def fill_discrete(rows: Tensor, sigma: float, generator: torch.Generator) -> None:
    """Integer noise in grey levels, exact in float32, by the thresholds of `smoothing.discrete`.

    A table over the leading 16 bits answers for all of them that no threshold divides; only the others are searched.
    """
    cuts, guide, divided = _tables(sigma, rows.device)
    bits = torch.empty(rows.shape, dtype=torch.int64, device=rows.device).random_(0, 2**BITS, generator=generator)
    leading = (bits >> (BITS - _GUIDE_BITS)).to(torch.int32)
    rows.copy_(guide.take(leading.long()))
    searched = divided.take(leading.long()).nonzero(as_tuple=True)
    found = torch.searchsorted(cuts, bits[searched], right=True) - largest_noise(sigma)
    rows[searched] = found.to(rows.dtype)


@lru_cache(maxsize=8)
def _tables(sigma: float, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The thresholds, and for each value of the leading bits the noise without the other bits, and whether they
    matter."""
    # A threshold of 2^62 is never reached by 62 bits and fits into an int64.
    cuts = torch.tensor(thresholds(sigma), dtype=torch.int64)
    lowest = torch.arange(2**_GUIDE_BITS, dtype=torch.int64) << (BITS - _GUIDE_BITS)
    highest = lowest + (2 ** (BITS - _GUIDE_BITS) - 1)
    first, last = (torch.searchsorted(cuts, ends, right=True) for ends in (lowest, highest))
    guide = (first - largest_noise(sigma)).to(torch.float32)
    return cuts.to(device), guide.to(device), (first != last).to(device)


def noisy(rows: Tensor, images: Tensor, source: NoiseSource) -> Tensor:
    """Add noise to images, in float32 or the images' wider precision.

    Args:
        rows: noise as `NoiseStream.read` gives it, (R, C, H, W), on the device of `images`; may be overwritten.
        images: one for each row, (R, C, H, W), in [0, 1].
    Returns: the network's input: x + noise, not clamped; for integer noise (255 x + noise) / 255, where 255 x is
        whole (`grey_levels`), divided in float32.
    """
    if source.rigor == "standard":
        return rows.to(images.dtype).add_(images)
    levels = images.to(torch.float32).mul(LEVELS).round_().add_(rows)
    return levels.div_(LEVELS).to(images.dtype)


def are_grey_levels(images: Tensor) -> bool:
    """Return whether every pixel is the float32 quotient of an integer in [0, 255] by 255, as in an 8-bit image."""
    single = images.to(torch.float32)
    levels = single.mul(LEVELS).round().clamp(0, LEVELS)
    return bool(torch.equal(levels / LEVELS, single) and torch.equal(single.to(images.dtype), images))
