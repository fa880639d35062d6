"""What every block of an evaluation needs, and how its records are made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from hydrabench.bounds import Prepared, prepared
from hydrabench.config import AlphaCrownSettings, EvaluationSettings, VerifiedSettings
from hydrabench.data import Block, ImageSource, load_block
from hydrabench.errors import MemoryShortageError, is_out_of_memory
from hydrabench.evaluators import EVALUATORS, Evaluator, evaluate_reused, require_readable, require_suitable
from hydrabench.ledger import Record
from hydrabench.runtime import World, exact_arithmetic
from hydrabench.workflows.evaluation.block_size import blocks_for
from hydrabench.workflows.evaluation.loading import STORED_IN, Subject
from hydrabench.workflows.run_options import RunOptions

ATTACKS = ("clean", "pgd", "autoattack")
# What takes less memory.
FRUGAL = dict.fromkeys(("crown", "alpha-crown", "cascade", "symbolic"), ", or choose crown-ibp")
FRUGAL |= {"crown-ibp": ", or choose ibp", "smoothing": ", or choose a smaller --batch"}


class Job:
    """What every block needs: the network as it is run, the settings, the images."""

    def __init__(
        self, subject: Subject, settings: EvaluationSettings, images: ImageSource, options: RunOptions
    ) -> None:
        self.subject, self.settings, self.images = subject, settings, images
        self.blocks = blocks_for(settings, subject.network, images.shape)
        self.indices: tuple[int, ...] = ()  # what is evaluated right now
        self.network: nn.Module | Prepared = subject.network
        self.header_of_smoothing: dict[str, Any] = {}
        if isinstance(settings, VerifiedSettings) and settings.engine == "hydrabench":
            self.network = prepared(subject.network)
        self.how: tuple[Any, ...] = ()
        if settings.kind == "smoothing":
            forward, sampling = options.smoothing.forward(subject.precision), options.smoothing.sampling(subject.device)
            self.network, self.how = forward.apply(subject.network), (sampling,)
            self.header_of_smoothing = {"noise": sampling.source.describe(subject.device), **forward.describe()}
        self.evaluate: Evaluator = EVALUATORS[settings.kind]
        if subject.parent is not None:
            parent = subject.parent
            parent.require_arithmetic({"precision": subject.precision, **self.header_of_smoothing})
            self.header_of_smoothing["reused"] = parent.describe()
            self.evaluate = partial(evaluate_reused, parent=forward.apply(parent.network), ledger=parent.records)

    def header(self, world: World) -> dict[str, Any]:
        """What `run.json` says of the evaluation, but for the images and the environment."""
        return {
            "command": "attack" if self.settings.kind in ATTACKS else "certify",
            "settings": self.settings.plain(),
            "protocol": self.settings.protocol,
            "checkpoint": self.subject.describe(),
            "precision": self.subject.precision,
            "block_size": self.blocks.size,
            "world_size": world.size,
            **self.header_of_smoothing,
        }

    def check(self, indices: tuple[int, ...]) -> None:
        """Refuse a network that AutoAttack cannot judge or auto_LiRPA cannot read, going by the first block."""
        self.indices = indices
        with self._memory():
            if self.settings.kind == "autoattack":
                with exact_arithmetic(), torch.no_grad():
                    require_suitable(self.subject.network, self._block(0, indices), self.settings)
            elif isinstance(self.settings, VerifiedSettings | AlphaCrownSettings):
                require_readable(self.subject.network, self._block(0, indices), self.settings)

    def records(self, blocks: Sequence[tuple[int, tuple[int, ...]]]) -> list[Record]:
        """The records of this process's share of a round: one block, or none in the last round."""
        records: list[Record] = []
        for number, self.indices in blocks:
            with self._memory():
                records += self.evaluate(self.network, self._block(number, self.indices), self.settings, *self.how)
        return records

    @contextmanager
    def _memory(self) -> Iterator[None]:
        """Say where memory ran out, and what takes less."""
        try:
            yield
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise MemoryShortageError(
                f"out of memory on {self.subject.device} at {self.current()}; what came before is kept; --resume on a "
                f"device with more memory{FRUGAL.get(self.settings.kind, '')}"
            ) from error

    def current(self) -> str:
        """Which images are evaluated, for the progress line."""
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
