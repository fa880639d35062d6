"""How the batch of a step is cut over processes and micro-batches, and what happens to an objective's memory."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hydrabench.errors import DataError
from hydrabench.runtime import World
from hydrabench.workflows.training.micro_batches import Memory, cut, halved, minibatches, needed

wholes, sizes = st.integers(1, 40), st.integers(1, 5)
micro_batches = st.none() | st.integers(1, 12)


def world(rank: int, size: int) -> World:
    found = World()
    found.rank, found.size = rank, size
    return found


def test_seven_images_over_two_processes_in_parts_of_two_worked_by_hand():
    """Shares are rows 0-2 and 3-6; the larger has 4, so each makes 2 parts: 1 + 2 and 2 + 2 rows."""
    parts = [[(part.rows.start, part.rows.stop) for part in cut(7, world(rank, 2), 2)] for rank in (0, 1)]
    assert parts == [[(0, 1), (1, 3)], [(3, 5), (5, 7)]]
    assert [part.share for part in cut(7, world(0, 2), 2)] == [1 / 7, 2 / 7]


@settings(max_examples=60)
@given(whole=wholes, size=sizes, micro_batch=micro_batches)
def test_every_image_counts_once_and_every_process_makes_as_many_parts(whole, size, micro_batch):
    processes = [cut(whole, world(rank, size), micro_batch) for rank in range(size)]
    parts = [part for process in processes for part in process]
    rows = [list(range(part.rows.start, part.rows.stop)) for part in parts]
    counted = [row for part, chosen in zip(parts, rows, strict=True) if part.images for row in chosen]
    assert counted == list(range(whole))
    assert len({len(process) for process in processes}) == 1
    assert sum(part.share for part in parts) == pytest.approx(1, abs=1e-12)
    for part, chosen in zip(parts, rows, strict=True):
        assert 1 <= len(chosen) == max(part.images, 1)
        assert part.rows.stop <= whole
        assert micro_batch is None or len(chosen) <= micro_batch


def test_a_process_without_a_share_repeats_a_row_that_counts_nothing():
    parts = [cut(1, world(rank, 3), None)[0] for rank in range(3)]
    assert [(part.rows, part.images, part.share) for part in parts] == [
        (slice(0, 1), 0, 0.0),
        (slice(0, 1), 0, 0.0),
        (slice(0, 1), 1, 1.0),
    ]


@settings(max_examples=60)
@given(whole=wholes, size=sizes, micro_batch=micro_batches)
def test_a_process_needs_the_rows_of_its_parts_and_no_others(whole, size, micro_batch):
    for rank in range(size):
        rows = needed(whole, world(rank, size))
        parts = cut(whole, world(rank, size), micro_batch)
        assert {row for part in parts for row in range(whole)[part.rows]} == set(range(whole)[rows])


class Decoding:
    """Three minibatches of encoded images; the second has one that is damaged, in the rows of process 1."""

    decodes = True

    def __init__(self) -> None:
        self.asked: list[slice] = []

    def epoch(self, number, *, first, rows):
        for position in range(first, 3):
            self.asked.append(rows(5))
            if position == 1 and rows(5) == slice(2, 5):
                raise DataError("photo.jpeg cannot be read")
            yield torch.tensor([number]), torch.tensor([position])


def test_an_image_that_one_process_cannot_decode_stops_all_of_them(monkeypatch):
    """Process 0 hears of it from process 1 when they share the outcome of the second minibatch."""
    outcomes = [None, None, DataError("photo.jpeg cannot be read")]

    def share(work):
        work()
        if outcome := outcomes.pop(0):
            raise outcome

    other, failing = world(0, 2), world(1, 2)
    monkeypatch.setattr(other, "share", share)
    monkeypatch.setattr(failing, "share", lambda work: work())
    for process, before in ((other, 2), (failing, 1)):
        source = Decoding()
        found = minibatches(source, process, epoch=0, first=0)
        assert [int(number) for _, number in islice(found, before)] == list(range(before))
        with pytest.raises(DataError, match=r"photo\.jpeg cannot be read"):
            next(found)
        assert source.asked == [process.rows(5)] * len(source.asked)


def test_minibatches_may_begin_late_and_end_on_all_processes(monkeypatch):
    process = world(0, 2)
    monkeypatch.setattr(process, "share", lambda work: [work()])
    found = [(int(x), int(y)) for x, y in minibatches(Decoding(), process, epoch=4, first=1)]
    assert found == [(4, 1), (4, 2)]


@settings(max_examples=30)
@given(whole=wholes, size=sizes, micro_batch=micro_batches)
def test_halving_makes_parts_smaller_until_one_image_is_left(whole, size, micro_batch):
    largest = [micro_batch]
    while (smaller := halved(whole, world(0, size), largest[-1])) is not None:
        largest.append(smaller)
    longest = [max(max(part.images for part in cut(whole, world(rank, size), m)) for rank in range(size))
               for m in largest]  # fmt: skip
    assert longest[-1] == 1
    assert all(after < before for before, after in pairwise(longest))


@dataclass
class Exchange:
    """Two processes in one: adds up what they hand over, in turn."""

    memories: list[Memory]

    def gather(self) -> None:
        """Run `gather` of both; the sums are of what both handed over."""
        handed: list[list[torch.Tensor]] = [[], []]
        for number, memory in enumerate(self.memories):
            memory.world.add_up = handed[number].append
            memory.gather()
        for own, other in zip(*handed, strict=True):
            total = own + other
            own.copy_(total)
            other.copy_(total)


@pytest.mark.parametrize("last", [4, 3, 1])
def test_processes_exchange_the_rows_of_their_own_images(last):
    """Of 4 rows the last batch had `last`; each process changed its own share of these, the others agree."""
    exchange = Exchange([Memory(world(rank, 2), {"perturbation": torch.zeros(4, 1)}) for rank in (0, 1)])
    expected = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    for memory in exchange.memories:
        memory.dealt = last
        mine = memory.world.rows(last)
        memory.tensors["perturbation"][last:] = expected[last:]
        memory.tensors["perturbation"][mine] = expected[mine]
    exchange.gather()
    for memory in exchange.memories:
        assert torch.equal(memory.tensors["perturbation"], expected)


def test_memory_is_exchanged_only_when_the_rows_are_dealt_anew(monkeypatch):
    memory, calls = Memory(world(0, 2)), []
    monkeypatch.setattr(memory, "gather", lambda: calls.append(memory.dealt))
    for whole in (4, 4, 3, 4):
        assert memory.deal(whole) is memory.tensors
    assert calls == [None, 4, 3]
