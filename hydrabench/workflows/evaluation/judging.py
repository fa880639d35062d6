"""One evaluator bound to one network and one set of images: it turns blocks of images into records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

from hydrabench.data import Block, ImageSource, load_block
from hydrabench.errors import MemoryShortageError, is_out_of_memory
from hydrabench.evaluators import EVALUATORS, Computing, EvaluationSettings
from hydrabench.evaluators.flags import has_flags, network_flags
from hydrabench.ledger import AttackRecord, Attempt, Record
from hydrabench.runtime import World
from hydrabench.workflows.evaluation.certificates import Certificates
from hydrabench.workflows.evaluation.loading import STORED_IN, Subject
from hydrabench.workflows.run_options import RunOptions


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

    def records(self, blocks: Sequence[tuple[int, tuple[int, ...]]]) -> list[Record]:
        """The records of this process's share of a round: one block, or none in the last round."""
        records: list[Record] = []
        for number, indices in blocks:
            held, certified = self.certificates, self.certified(indices)
            parts = held.in_part(indices) if held else {}
            apart = {*certified, *(index for part in parts.values() for index in part)}
            found = [*certified.values(), *self._judged(number, tuple(i for i in indices if i not in apart))]
            for settings, part in parts.items():
                found += self._judged_beyond(number, part, settings)
            records += sorted(found, key=lambda record: record.index)
        return records

    def certified(self, indices: Sequence[int]) -> dict[int, Record]:
        """The records of the images that a certificate spares the attack."""
        held = self.certificates
        return {index: held.record(index, self.settings) for index in held.among(indices)} if held else {}

    def _judged(self, number: int, indices: tuple[int, ...]) -> list[Record]:
        """Judge images of one block."""
        self.indices = indices
        with self._memory():
            return list(self.ready.evaluate(self._block(number, indices))) if indices else []

    def _judged_beyond(self, number: int, indices: tuple[int, ...], settings: EvaluationSettings) -> list[Record]:
        """Judge images of one block at the radii that their certificate does not cover, those of `settings`."""
        self.indices = indices
        assert self.certificates is not None
        with self._memory():
            found = self.evaluator.evaluate(self.subject.network, self._block(number, indices), settings)
        return [replace(cast("AttackRecord", record), certified_by=self.certificates.name) for record in found]

    def attempts(self, name: str, number: int, indices: tuple[int, ...], heard: Callable[[], None]) -> list[Attempt]:
        """Run one attack of an evaluator that attacks in turn. number: of the block that the images belong to.

        Raises: MemoryShortageError if they are too many at once.
        """
        assert self.evaluator.in_turn is not None
        self.indices = indices
        with self._memory():
            block = self._block(number, indices)
            return self.evaluator.in_turn.attempt(self.subject.network, block, name, self.settings, heard=heard)

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
