"""The minibatches of training: their order, their augmentation, and pseudo-labelled images beside labelled ones."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hydrabench.config import DataRecipe
from hydrabench.data.augment import augment
from hydrabench.data.images import ImageSource, batches, pixels
from hydrabench.runtime import stream


class TrainingBatches:
    """The minibatches of every epoch, each determined by its number alone.

    With pseudo-labelled images, a minibatch holds `batch_size` labelled images and after them `batch_size`
    pseudo-labelled ones, and an epoch ends with the shorter of the two sets (HYDRA's 128 + 128; of the larger
    set, every epoch sees other images). The last minibatch of a set may be smaller.
    """

    def __init__(
        self,
        labelled: ImageSource,
        pseudo: ImageSource | None,
        settings: DataRecipe,
        *,
        batch_size: int,
        key: tuple[object, ...],
        device: torch.device,
    ) -> None:
        """Make the minibatches of a phase.

        Args:
            labelled: the training images. pseudo: images with pseudo-labels, or None.
            settings: says how images are augmented.
            batch_size: images of each of the two sets in one minibatch.
            key: what the random streams depend on: order and augmentation add the number of the epoch or
                minibatch to it (see `hydrabench.runtime.stream`).
            device: where images in memory are kept and augmented, and minibatches come out.
        """
        self.sources = [source.to(device) for source in (labelled, pseudo) if source is not None]
        self.settings = settings
        self.batch_size = batch_size
        self.key = key
        self.per_epoch = min(-(-len(source) // batch_size) for source in self.sources)

    def epoch(self, number: int, *, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the minibatches of epoch `number` (from 0), from minibatch `first` on.

        Yields: images, float32 (B, C, H, W) in [0, 1], and labels, int64 (B,), on the device.
        """
        chosen = list(zip(*(self._order(source, number) for source in range(len(self.sources))), strict=False))
        for position in range(first, self.per_epoch):
            parts = list(zip(self.sources, chosen[position], strict=True))
            images = augment(
                torch.cat([source.take(indices) for source, indices in parts]),
                crop_padding=self.settings.crop_padding,
                flip=self.settings.flip,
                generator=stream(*self.key, "augment", number * self.per_epoch + position),
            )
            yield pixels(images), torch.cat([source.labels[indices.to(images.device)] for source, indices in parts])

    def _order(self, source: int, number: int) -> list[Tensor]:
        """The indices of an epoch's minibatches: of the labelled images (0) or the pseudo-labelled ones (1)."""
        count = len(self.sources[source])
        key = (*self.key, "order", number) if source == 0 else (*self.key, "pseudo-labelled order", number)
        return list(batches(count, self.batch_size, torch.randperm(count, generator=stream(*key))))
