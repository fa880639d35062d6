"""The batch of an optimizer step, split over the processes, then into micro-batches that fit into memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise

import torch
from torch import Tensor

from hydrabench.data import TrainingBatches
from hydrabench.runtime import World


@dataclass(frozen=True)
class MicroBatch:
    """Rows of a batch that pass through the network together.

    rows: which.
    images: how many of them count; 0 if the process has no share of the batch and repeats a row of it.
    share: `images` over those of the whole batch.
    """

    rows: slice
    images: int
    share: float


def cut(whole: int, world: World, micro_batch: int | None) -> list[MicroBatch]:
    """Return the micro-batches of this process.

    Every process gets the same number, of nearly equal sizes, because batch norm may be synchronised at each. A process
    whose share has too few rows repeats a row of the batch, which does not count.

    Args:
        whole: images of the step, >= 1. micro_batch: most rows of a part, >= 1, or None for all of a share.
    """
    mine = world.rows(whole)
    largest = -(-whole // world.size)
    count = 1 if micro_batch is None else -(-largest // micro_batch)
    length = mine.stop - mine.start
    edges = [mine.start + length * number // count for number in range(count + 1)]
    parts = []
    for start, stop in pairwise(edges):
        first = min(start, whole - 1)
        parts.append(MicroBatch(slice(first, max(stop, first + 1)), stop - start, (stop - start) / whole))
    return parts


def needed(whole: int, world: World) -> slice:
    """Return the rows of a batch that the micro-batches of this process hold, repeated rows included."""
    mine = world.rows(whole)
    first = min(mine.start, whole - 1)
    return slice(first, max(mine.stop, first + 1))


def minibatches(batches: TrainingBatches, world: World, *, epoch: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the minibatches of an epoch from `first` on, of which this process decodes the rows that it needs.

    Raises: DataError on all processes if an image cannot be decoded on one, so that none waits for it.
    """
    if world.size == 1 or not batches.decodes:
        yield from batches.epoch(epoch, first=first)
        return
    source = batches.epoch(epoch, first=first, rows=partial(needed, world=world))
    found: list[tuple[Tensor, Tensor]] = []
    while True:
        found.clear()
        world.share(lambda: found.extend(islice(source, 1)))
        if not found:
            return
        yield found[0]


def halved(whole: int, world: World, micro_batch: int | None) -> int | None:
    """Return half the size of the largest micro-batch that `cut` makes, or None if that is one image."""
    largest = -(-whole // world.size)
    now = largest if micro_batch is None else min(micro_batch, largest)
    return now // 2 or None


class Memory:
    """State that an objective carries from step to step: tensors with a row for each image of a batch.

    A process changes the rows of its own images only. `gather` brings together what the processes have; it
    is due before the state is saved, and whenever the rows are dealt out in another way.
    """

    def __init__(self, world: World, tensors: dict[str, Tensor] | None = None) -> None:
        self.world = world
        self.tensors: dict[str, Tensor] = tensors or {}
        self.dealt: int | None = None  # images of the last batch

    def deal(self, whole: int) -> dict[str, Tensor]:
        """Return the tensors for a step on `whole` images."""
        if self.dealt != whole:
            self.gather()
        self.dealt = whole
        return self.tensors

    def gather(self) -> None:
        """Give every process the rows of all."""
        if self.world.size == 1 or self.dealt is None:
            return
        mine = self.world.rows(self.dealt)
        for tensor in self.tensors.values():
            others = torch.ones(len(tensor), dtype=torch.bool, device=tensor.device)
            others[mine] = False
            if self.world.is_main:
                others[self.dealt :] = False  # rows that the last batch did not have are the same everywhere
            tensor[others] = 0
            self.world.add_up(tensor)
