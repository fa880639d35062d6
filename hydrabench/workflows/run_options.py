"""Options that are not part of a recipe: device, precision, data folder and the like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hydrabench.data.own_images import OwnImages


@dataclass(frozen=True)
class RunOptions:
    """Options that differ between machines that run the same recipe.

    device: "auto", "cpu", "cuda" or "cuda:N". data_dir: None for HYDRABENCH_DATA. download: fetch missing data.
    computing: options of an evaluator that say how it computes. The others are for training. precision: of the
    network's forward and backward passes, a key of `TRAINING_PRECISIONS`; bounds, losses, weights and everything after
    training stay in float32.
    compile: run these passes through torch.compile. channels_last: store images and convolutions channel by channel
    of a pixel. micro_batch: images that pass through the network at once, None for all of a process's share.
    save_minutes: how often to save the state within an epoch. tensorboard: write the metrics for it, too.
    images: to train on in place of those of the recipe's data set, which is named as they are; None: its own.
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
    images: OwnImages | None = None
    computing: Mapping[str, Any] = field(default_factory=dict)
