"""The minibatches of training: their order, their augmentation, and pseudo-labelled images beside labelled ones."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hydrabench.config import DataRecipe
from hydrabench.data.augment import augment
from hydrabench.data.encoded import EncodedImages
from hydrabench.data.images import ImageSource, pixels
from hydrabench.errors import ConfigError, DataError
from hydrabench.runtime import stream

WORKERS = 8  # processes that decode images, at most
BatchPart = Callable[[int], slice]  # minibatch size -> the rows wanted


class TrainingBatches:
    """The minibatches of every epoch, each determined by its number alone.

    With pseudo-labelled images, a minibatch holds `batch_size` labelled images and after them `batch_size`
    pseudo-labelled ones, and an epoch ends with the shorter of the two sets (HYDRA's 128 + 128; of the larger
    set, every epoch sees other images). The last minibatch of a set may be smaller; a single image that is left over
    joins the minibatch before it, because batch norm needs two.

    Images in memory are augmented in batches on the device. Encoded ones are decoded and cut at random by worker
    processes, each by a stream of its own, so that nothing depends on how many workers there are.
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
        Raises: ConfigError if the settings ask for what encoded images do not have.
        """
        if isinstance(labelled, EncodedImages) and (settings.crop_padding or pseudo is not None):
            raise ConfigError(
                f"data: {labelled.name} is trained on random parts of images; leave out crop_padding and pseudo_labels"
            )
        self.sources = [source.to(device) for source in (labelled, pseudo) if source is not None]
        self.settings = settings
        self.batch_size = batch_size
        self.key = key
        self.per_epoch = min(len(minibatch_sizes(len(source), batch_size)) for source in self.sources)

    @property
    def decodes(self) -> bool:
        """Return whether images are decoded during training, which is slow and fails if one is damaged."""
        return isinstance(self.sources[0], EncodedImages)

    def epoch(self, number: int, *, first: int = 0, rows: BatchPart | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the minibatches of epoch `number` (from 0), from minibatch `first` on.

        Args:
            rows: says which images of a minibatch are needed, for a process that trains on a part of each; it may
                travel to worker processes. Of encoded images, the others are not decoded, and are zeros; images in
                memory cost nothing, and all are there. None: all.
        Yields: images, float32 (B, C, H, W) in [0, 1], and labels, int64 (B,), on the device.
        Raises: DataError naming an image that cannot be decoded.
        """
        labelled = self.sources[0]
        if isinstance(labelled, EncodedImages):
            return self._decoded(labelled, number, first, rows)
        return self._kept(number, first)

    def _kept(self, number: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Minibatches of images in memory."""
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

    def _decoded(
        self, labelled: EncodedImages, number: int, first: int, rows: BatchPart | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Minibatches of encoded images."""
        chosen = self._order(0, number)[first:]
        views = _Views(labelled.to(torch.device("cpu")), self.settings.flip, (*self.key, "augment", number), rows)
        # A generator of its own: the loader would take a number from the global one.
        loader = DataLoader(
            views,
            sampler=chosen,
            batch_size=None,
            num_workers=_workers(),
            generator=torch.Generator(),
        )
        for images, indices in zip(loader, chosen, strict=True):
            if isinstance(images, DataError):
                raise images
            yield pixels(images.to(labelled.device)), labelled.labels[indices.to(labelled.device)]

    def _order(self, source: int, number: int) -> list[Tensor]:
        """The indices of an epoch's minibatches: of the labelled images (0) or the pseudo-labelled ones (1)."""
        count = len(self.sources[source])
        key = (*self.key, "order", number) if source == 0 else (*self.key, "pseudo-labelled order", number)
        order = torch.randperm(count, generator=stream(*key))
        return list(torch.split(order, minibatch_sizes(count, self.batch_size)))


def minibatch_sizes(count: int, batch_size: int) -> list[int]:
    """Return how many of `count` images each minibatch of an epoch has: `batch_size`, but for the last one."""
    whole, rest = divmod(count, batch_size)
    sizes = [batch_size] * whole + [rest] * (rest > 0)
    return [*sizes[:-2], batch_size + 1] if rest == 1 and whole else sizes


@dataclass(frozen=True)
class _Views(Dataset[Tensor | DataError]):
    """Random views of encoded images, a minibatch at a time; what a worker process works on."""

    images: EncodedImages
    flip: bool
    key: tuple[object, ...]
    rows: BatchPart | None

    def __getitem__(self, indices: Tensor) -> Tensor | DataError:
        """Returns an error instead of raising it: on its way out of a worker, the loader would rewrite its message."""
        wanted = slice(None) if self.rows is None else self.rows(len(indices))
        try:
            views = torch.stack([self._view(index) for index in indices[wanted].tolist()])
        except DataError as error:
            return error
        if len(views) == len(indices):
            return views
        images = views.new_zeros(len(indices), *views.shape[1:])
        images[wanted] = views
        return images

    def _view(self, index: int) -> Tensor:
        return self.images.random_view(index, flip=self.flip, generator=stream(*self.key, index))


def _workers() -> int:
    """Processes to decode with: the processors of this machine, shared by the processes of a torchrun start."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(WORKERS, processors // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
