"""One evaluator bound to one network and one set of images, which are loaded block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hydrabench.data import Block, ImageSource, load_block
from hydrabench.errors import ConfigError, LedgerError, MemoryShortageError, is_out_of_memory
from hydrabench.evaluators import EVALUATORS, EvaluationSettings, Ready
from hydrabench.evaluators.flags import has_flags, network_flags
from hydrabench.evaluators.replaying import Replayed, replay
from hydrabench.ledger import ADVERSARIAL, Attempt, Examples, Record
from hydrabench.runtime import World
from hydrabench.workflows.evaluation.certificates import Certificates
from hydrabench.workflows.evaluation.loading import STORED_IN, Subject

Numbered = Sequence[tuple[int, tuple[int, ...]]]  # blocks: their numbers and images
Points = dict[int, Tensor]  # by image, (C, H, W)


@dataclass(eq=False)
class Judge:
    """An evaluator, ready to judge blocks of `images`; `evaluate.records_of` has it judge them.

    ready: the evaluator of the settings, prepared for the network. indices: what is evaluated right now.
    certificates: of images that need no attack.
    """

    subject: Subject
    settings: EvaluationSettings
    images: ImageSource
    ready: Ready
    indices: tuple[int, ...] = ()
    certificates: Certificates | None = None

    def __post_init__(self) -> None:
        self.evaluator = EVALUATORS[self.settings.kind]
        self.blocks = self.evaluator.blocks(self.settings, self.subject.network, self.images.shape)
        self.keeps = self.evaluator.keeps(self.settings)  # whether adversarial examples are stored
        if self.keeps and self.ready.points is None:
            raise ConfigError(
                f"{self.settings.kind} returns no adversarial images, so none can be kept; leave out --keep"
            )

    def header(self, world: World) -> dict[str, Any]:
        """Return the header in `run.json`, but for the images and the environment."""
        return {
            "command": self.evaluator.command,
            "settings": self.settings.plain(),
            "protocol": self.settings.protocol,
            "checkpoint": self.subject.describe(),
            "origin": self.subject.origin(),
            "precision": self.subject.precision,
            "block_size": self.blocks.size,
            "world_size": world.size,
            **self.ready.header,
            **({"keep": ADVERSARIAL} if self.keeps else {}),
            **({"skipped": self.certificates.describe()} if self.certificates else {}),
        }

    def check(self, indices: tuple[int, ...]) -> None:
        """Raise if the evaluator cannot judge the network; the first block is enough to tell."""
        with self.block(0, indices) as block:
            self.evaluator.suits(self.subject.network, block, self.settings)

    def flags(self, indices: tuple[int, ...]) -> dict[str, float]:
        """Signs on the first images that the network deceives an attack; see `evaluators.flags`."""
        if not has_flags(self.evaluator):
            return {}
        with self.block(0, indices) as block:
            return network_flags(self.subject.network, block, self.settings)

    def replay(self, examples: Examples, within: Mapping[int, float]) -> list[Replayed]:
        """Judge stored examples afresh. within: how far each may lie from its image; see `replaying.replay`."""
        if examples.pixels.shape[1:] != tuple(self.images.shape):
            raise LedgerError(f"the stored examples are images of {examples.pixels.shape[1:]}, not {self.images.shape}")
        with self.block(0, examples.indices) as block:
            points = torch.from_numpy(examples.pixels).to(block.images)
            most = [within[index] for index in examples.indices]
            return replay(self.subject.network, block, points, most, self.evaluator, self.settings)

    def certified(self, indices: Sequence[int]) -> dict[int, Record]:
        """The records of the images that a certificate spares the attack."""
        held = self.certificates
        return {index: held.record(index, self.settings) for index in held.among(indices)} if held else {}

    def attempts(
        self, name: str, number: int, indices: tuple[int, ...], heard: Callable[[], None]
    ) -> tuple[list[Attempt], Points]:
        """Run one attack of an evaluator that attacks in turn. number: of the block that the images belong to.

        Returns: the attempts, and the points of those that broke an image, of a run that keeps them.
        Raises: MemoryShortageError if they are too many at once.
        """
        assert self.evaluator.in_turn is not None
        with self.block(number, indices) as block:
            found, points = self.evaluator.in_turn.attempt(
                self.subject.network, block, name, self.settings, heard=heard
            )
        broken = [row for row, one in enumerate(found) if one.broken] if self.keeps else []
        return found, {found[row].image: points[row].cpu() for row in broken}

    @contextmanager
    def block(self, number: int, indices: tuple[int, ...]) -> Iterator[Block]:
        """Load images of the data set, on the device and in the precision of the network, for what is done with them.

        Raises: MemoryShortageError for an out-of-memory error, naming the images and what needs less memory.
        """
        self.indices = indices
        try:
            block = load_block(self.images, number, indices)
            yield replace(
                block,
                images=block.images.to(device=self.subject.device, dtype=STORED_IN[self.subject.precision]),
                labels=block.labels.to(self.subject.device),
            )
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            less = f", or {self.evaluator.frugal}" if self.evaluator.frugal else ""
            raise MemoryShortageError(
                f"out of memory on {self.subject.device} at {self.current()}; what came before is kept; --resume on a "
                f"device with more memory{less}"
            ) from error

    def current(self) -> str:
        """Return the images that are evaluated now, for the progress line."""
        first, last = self.indices[0], self.indices[-1]
        return f"image {first}" if first == last else f"images {first} to {last}"
