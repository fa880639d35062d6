"""Adversarial examples on their way to the disk: written, read back, and judged afresh before they count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hydrabench.evaluators import record_of
from hydrabench.files import sha256_of
from hydrabench.ledger import AS_IT_IS, Attempt, Examples, Record, RunFolder, parse_record
from hydrabench.workflows.evaluation.judging import Judge
from hydrabench.workflows.progress import say


class Keeper:
    """Stores the examples of one run; for the process that writes it."""

    def __init__(self, run: RunFolder, judge: Judge) -> None:
        self.run, self.judge, self.store = run, judge, run.examples
        self.settings = judge.settings.plain()

    def settle(self, attempts: Sequence[Attempt] = ()) -> None:
        """Keep the examples of what the run holds already. attempts: of images that have no record yet.

        Raises: LedgerError if one is missing, or a shard was altered.
        """
        lines = self.run.records() if self.run.records_path.exists() else ()
        records = [parse_record(line, record_of(self.judge.settings)) for line in lines]
        self.store.settle({*self._within(records), *(one.image for one in attempts if _breaks(one))})

    def records(self, records: Sequence[Record], points: Mapping[int, Tensor]) -> list[Record]:
        """Store the examples of a round, and return its records; what does not hold when read back is not broken."""
        lost = self._lost(self._within(records), points)
        return [one.without_example() if one.index in lost else one for one in records]

    def attempts(self, attempts: Sequence[Attempt], points: Mapping[int, Tensor]) -> list[Attempt]:
        """Store the examples of a share, and return its attempts; what does not hold when read back is no break."""
        settings: Any = self.judge.settings
        lost = self._lost({one.image: float(settings.epsilon) for one in attempts if _breaks(one)}, points)
        return [replace(one, broken=False) if one.image in lost else one for one in attempts]

    def describe(self) -> dict[str, Any]:
        """Return what `run.json` and `summary.json` say of the examples."""
        shards = self.store.shards()
        images = sum(len(shard.images) for shard in shards)
        return {"images": images, "shards": len(shards), "list_sha256": sha256_of(self.store.list)}

    def _within(self, records: Sequence[Record]) -> dict[int, float]:
        """Return how far the example of each image may lie from it, for those that have one."""
        found = {one.index: one.example_within(self.settings) for one in records}
        return {index: most for index, most in found.items() if most is not None}

    def _lost(self, within: Mapping[int, float], points: Mapping[int, Tensor]) -> set[int]:
        """Store examples, read them back, and return the images whose example is none."""
        if not within:
            return set()
        images = tuple(sorted(within))
        examples = Examples(images, torch.stack([points[image] for image in images]).cpu().numpy())
        file = self.store.write(examples)
        again = self.judge.replay(self.store.read(file), within)
        held = [row for row, one in enumerate(again) if one.problem is None]
        if len(held) < len(images):
            self.store.discard(file)
            examples = Examples(tuple(images[row] for row in held), examples.pixels[held])
            file = self.store.write(examples)
        self.store.add(file, examples, [again[row].prediction for row in held])
        for image, one in zip(images, again, strict=True):
            if one.problem is not None:
                say(f"image {image}: its adversarial image, read back, {one.problem}; it counts as not broken")
        return set(images) - set(examples.indices)


def _breaks(attempt: Attempt) -> bool:
    return attempt.broken and attempt.attack != AS_IT_IS
