"""One evaluator bound to one network and one set of images: it turns blocks of images into records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hydrabench.data import Block, ImageSource, load_block
from hydrabench.errors import ConfigError, LedgerError, MemoryShortageError, is_out_of_memory
from hydrabench.evaluators import EVALUATORS, Computing, EvaluationSettings
from hydrabench.evaluators.flags import has_flags, network_flags
from hydrabench.evaluators.replaying import Replayed, replay
from hydrabench.ledger import ADVERSARIAL, Attempt, Examples, Record
from hydrabench.runtime import World
from hydrabench.workflows.evaluation.certificates import Certificates
from hydrabench.workflows.evaluation.loading import STORED_IN, Subject
from hydrabench.workflows.run_options import RunOptions

Numbered = Sequence[tuple[int, tuple[int, ...]]]  # blocks: their numbers and images
Points = dict[int, Tensor]  # by image, (C, H, W)


class Judge:
    """An evaluator, ready to judge blocks of `images`."""

    def __init__(
        self, subject: Subject, settings: EvaluationSettings, images: ImageSource, options: RunOptions
    ) -> None:
        self.subject, self.settings, self.images = subject, settings, images
        self.evaluator = EVALUATORS[settings.kind]
        self.blocks = self.evaluator.blocks(settings, subject.network, images.shape)
        computing = Computing(subject.device, subject.precision, options.computing, subject.parent)
        self.ready = self.evaluator.ready(subject.network, settings, computing)
        self.keeps = self.evaluator.keeps(settings)  # whether adversarial examples are stored
        if self.keeps and self.ready.points is None:
            raise ConfigError(f"{settings.kind} returns no adversarial images, so none can be kept; leave out --keep")
        self.indices: tuple[int, ...] = ()  # what is evaluated right now
        self.certificates: Certificates | None = None  # of images that need no attack

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
        self.indices = indices
        with self._memory():
            self.evaluator.suits(self.subject.network, self._block(0, indices), self.settings)

    def flags(self, indices: tuple[int, ...]) -> dict[str, float]:
        """Signs on the first images that the network deceives an attack; see `evaluators.flags`."""
        if not has_flags(self.evaluator):
            return {}
        self.indices = indices
        with self._memory():
            return network_flags(self.subject.network, self._block(0, indices), self.settings)

    def records(self, blocks: Numbered) -> list[Record]:
        """The records of some blocks."""
        return self.judged(blocks)[0]

    def judged(self, blocks: Numbered) -> tuple[list[Record], Points]:
        """Judge this process's share of a round: one block, or none in the last round.

        Returns: the records, and the adversarial examples by image, of a run that keeps them.
        """
        records: list[Record] = []
        examples: Points = {}
        for number, indices in blocks:
            certified = self.certified(indices)
            self.indices = tuple(index for index in indices if index not in certified)
            found, points = self._evaluated(number) if self.indices else ([], None)
            if points is not None:
                plain = self.settings.plain()
                broken = [row for row, one in enumerate(found) if one.example_within(plain) is not None]
                examples |= {found[row].index: points[row].cpu() for row in broken}
            records += sorted([*found, *certified.values()], key=lambda record: record.index)
        return records, examples

    def _evaluated(self, number: int) -> tuple[Sequence[Record], Tensor | None]:
        """The records of the present images, and the points that broke them, of a run that keeps them."""
        with self._memory():
            block = self._block(number, self.indices)
            if self.keeps and self.ready.points is not None:
                return self.ready.points(block)
            return self.ready.evaluate(block), None

    def replay(self, examples: Examples, within: Mapping[int, float]) -> list[Replayed]:
        """Judge stored examples afresh. within: how far each may lie from its image; see `replaying.replay`."""
        if examples.pixels.shape[1:] != tuple(self.images.shape):
            raise LedgerError(f"the stored examples are images of {examples.pixels.shape[1:]}, not {self.images.shape}")
        self.indices = examples.indices
        with self._memory():
            block = self._block(0, examples.indices)
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
        self.indices = indices
        with self._memory():
            block = self._block(number, indices)
            found, points = self.evaluator.in_turn.attempt(
                self.subject.network, block, name, self.settings, heard=heard
            )
        broken = [row for row, one in enumerate(found) if one.broken] if self.keeps else []
        return found, {found[row].image: points[row].cpu() for row in broken}

    @contextmanager
    def _memory(self) -> Iterator[None]:
        """Turn an out-of-memory error into one that names the images and what needs less memory."""
        try:
            yield
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

    def _block(self, number: int, indices: tuple[int, ...]) -> Block:
        """Images of the data set, on the device and in the precision of the network."""
        block = load_block(self.images, number, indices)
        return replace(
            block,
            images=block.images.to(device=self.subject.device, dtype=STORED_IN[self.subject.precision]),
            labels=block.labels.to(self.subject.device),
        )
