"""Open subproblems in the order of their bounds, in bounded memory."""

from __future__ import annotations

import heapq
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field
from tempfile import TemporaryFile
from typing import IO

from hydrabench.bounds.exact.splits import Subproblem

KEPT = 20_000  # subproblems that a queue keeps in memory; beyond that half go to the disk

Entry = tuple[float, int, Subproblem]  # the bound, and the serial number, by which ties are broken


@dataclass(eq=False)
class _Run:
    """A sorted run of entries on the disk. first: its next entry."""

    file: IO[bytes]
    left: int
    first: Entry

    @classmethod
    def of(cls, entries: list[Entry]) -> _Run:
        file = TemporaryFile()  # noqa: SIM115  (closed after the last entry)
        for entry in entries:
            pickle.dump(entry, file)
        file.seek(0)
        return cls(file, len(entries) - 1, pickle.load(file))

    def rest(self) -> list[Entry]:
        """Return the entries that are left, taking none."""
        place = self.file.tell() if self.left else 0
        found = [self.first, *(pickle.load(self.file) for _ in range(self.left))]
        if self.left:
            self.file.seek(place)
        return found

    def taken(self) -> Entry:
        """Return the first entry and read the next one; `left` is -1 after the last."""
        entry, self.left = self.first, self.left - 1
        if self.left >= 0:
            self.first = pickle.load(self.file)
        else:
            self.file.close()
        return entry


@dataclass(eq=False)
class Queue:
    """Subproblems, the one with the lowest bound first; at most `most` of them, at least 2, are in memory."""

    most: int = KEPT
    near: list[Entry] = field(default_factory=list)
    far: list[_Run] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.near) + sum(run.left + 1 for run in self.far)

    def push(self, subproblem: Subproblem) -> None:
        """Add a subproblem. The half with the best bounds goes to the disk if there are too many."""
        heapq.heappush(self.near, (subproblem.lower, subproblem.serial, subproblem))
        if len(self.near) > self.most:
            self.near.sort(key=lambda entry: entry[:2])
            half = self.most // 2
            self.far.append(_Run.of(self.near[half:]))
            del self.near[half:]

    def all(self) -> list[Subproblem]:
        """Return all subproblems, taking none."""
        return [entry[2] for entry in self.near] + [entry[2] for run in self.far for entry in run.rest()]

    def lowest(self) -> float:
        """Return the lowest bound; infinity if there is none left."""
        return min((entry[0] for entry in self._firsts()), default=float("inf"))

    def pop(self, count: int) -> list[Subproblem]:
        """Take the `count` subproblems with the lowest bounds, or all that are left."""
        return [self._first() for _ in range(min(count, len(self)))]

    def _firsts(self) -> Iterator[Entry]:
        yield from self.near[:1]
        yield from (run.first for run in self.far)

    def _first(self) -> Subproblem:
        run = min(self.far, key=lambda run: run.first[:2], default=None)
        if run is None or (self.near and self.near[0][:2] < run.first[:2]):
            return heapq.heappop(self.near)[2]
        found = run.taken()[2]
        if run.left < 0:
            self.far.remove(run)
        return found
