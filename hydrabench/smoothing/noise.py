"""Noisy copies of images, drawn row by row from keyed streams."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from hydrabench.smoothing.discrete import LEVELS
from hydrabench.smoothing.fills import Fill, integer_fill, real_fill

CHUNK = 1000  # part of the protocol: it fixes which random stream a draw comes from
DEVICE_CHUNK = 200  # the same for generators on the device


@dataclass(frozen=True)
class NoiseSource:
    """The source of noise: its device and its kind.

    generator: "cpu" gives the same noise on every machine; "device" draws where the network is, which is faster on
    a GPU and depends on its model. rigor: "standard" is noise of a `law` of `laws` in float32, "discrete" is Gaussian
    noise in integers, see `smoothing.discrete`.
    version: how streams are seeded and numbers drawn from them, see `smoothing.fills`.
    """

    generator: Literal["cpu", "device"] = "cpu"
    rigor: Literal["standard", "discrete"] = "standard"
    version: int = 3
    law: str = "gaussian"

    def describe(self, device: torch.device) -> str:
        """Return the entry in `run.json`: runs of different sources must not be continued by each other."""
        if self.generator == "cpu" or device.type == "cpu":
            return "cpu"
        return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


class NoiseStream:
    """The noise of one image for one purpose, read in order.

    Row i is row i % CHUNK of the stream `(*key, i // CHUNK)`, in float32, drawn on the CPU or the source's device. A
    chunk is drawn in pieces where that gives the same noise, otherwise as one and kept until it is used up.
    """

    def __init__(
        self, source: NoiseSource, shape: torch.Size, device: torch.device, *, sigma: float, key: tuple[object, ...]
    ) -> None:
        self.shape, self.sigma, self.key = shape, sigma, key
        self.device = device if source.generator == "device" else torch.device("cpu")
        on_cpu = self.device.type == "cpu"
        self.chunk = CHUNK if on_cpu else DEVICE_CHUNK
        self.in_pieces = on_cpu and shape.numel() % _group(source) == 0
        self.start = integer_fill if source.rigor == "discrete" else partial(real_fill, source.law)
        self.version = source.version
        self.drawn = 0
        self.fill: Fill
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
            self.fill = self.start((*self.key, self.drawn // self.chunk), self.sigma, self.device, self.version)
            if not self.in_pieces:
                self.kept = torch.empty(self.chunk, *self.shape, device=self.device)
                self.fill(self.kept)
        if self.in_pieces:
            self.fill(rows)
        else:
            rows.copy_(self.kept[at : at + len(rows)])


def _group(source: NoiseSource) -> int:
    """The numbers that are drawn at once on the CPU: torch's `normal_` fills 16, a word has 4 times 16 bits."""
    if source.rigor == "discrete":
        return 4 if source.version > 2 else 1
    return 1 if source.version > 2 else 16


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
