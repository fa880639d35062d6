"""Where and how a command computes, and where it finds data sets: what is no part of a recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from hydrabench.smoothing import NoiseSource, Sampling
from hydrabench.smoothing.forward import Forward


@dataclass(frozen=True)
class SmoothingOptions:
    """How smoothing computes, apart from what is computed.

    compile, channels_last, fold_batch_norm: see `smoothing.forward`. batch: noisy images in one forward pass, None:
    by their size. noise: where it is drawn, "cpu" or "device"; "auto": on a GPU if there is one.
    """

    compile: bool = False
    channels_last: bool = False
    fold_batch_norm: bool = False
    batch: int | None = None
    noise: str = "auto"

    def forward(self, precision: str) -> Forward:
        """How to compute the base classifier."""
        return Forward(precision, self.fold_batch_norm, self.channels_last, self.compile)

    def sampling(self, device: torch.device) -> Sampling:
        """How to draw for a network on `device`."""
        on_device = self.noise == "device" or (self.noise == "auto" and device.type == "cuda")
        return Sampling(NoiseSource("device" if on_device else "cpu"), self.batch)


@dataclass(frozen=True)
class RunOptions:
    """What differs between machines that run the same recipe.

    device: "auto", "cpu", "cuda" or "cuda:N". data_dir: None for HYDRABENCH_DATA. download: fetch missing data.
    smoothing: how smoothing computes. The others are for training. precision: of the network's forward and backward
    passes, a key of `TRAINING_PRECISIONS`; bounds, losses, weights and everything after training stay in float32.
    compile: run these passes through torch.compile. channels_last: store images and convolutions channel by channel
    of a pixel. micro_batch: images that pass through the network at once, None for all of a process's share.
    save_minutes: how often to save the state within an epoch. tensorboard: write the metrics for it, too.
    """

    device: str = "auto"
    data_dir: Path | None = None
    download: bool = False
    precision: str = "float32"
    compile: bool = False
    channels_last: bool = False
    micro_batch: int | None = None
    save_minutes: float = 10.0
    tensorboard: bool = False
    smoothing: SmoothingOptions = field(default_factory=SmoothingOptions)
