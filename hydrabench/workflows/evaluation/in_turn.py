"""Attacks that run one after another: every finished share of images is kept, all processes work, nothing runs twice.

The unit of work is one attack on one share of the images that no attack has broken yet. Shares are cut anew for every
attack, so that they stay full however many images have broken; where verdicts depend on the image alone they may have
any size, otherwise a share is what is left of a fixed block.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch

from hydrabench.data.identity import identities
from hydrabench.errors import LedgerError, MemoryShortageError
from hydrabench.ledger import AS_IT_IS, Attempt, AttemptLog, Record, RunFolder
from hydrabench.runtime import World
from hydrabench.workflows.evaluation.judging import Judge, Numbered, Points
from hydrabench.workflows.evaluation.keeping import Keeper
from hydrabench.workflows.evaluation.running_totals import RunningTotals
from hydrabench.workflows.progress import LOG_SECONDS, Advance, say

SHARE_SECONDS = 60.0  # that a share is meant to take: what a killed run loses
FEWEST, FIRST, MOST = 16, 64, 4096  # images of a share, where time or memory do not ask for fewer
GROWTH = 4  # times the largest share so far that the device held


class Standing:
    """The state of each image after the attacks so far."""

    def __init__(self, attacks: Sequence[str], images: Sequence[int]) -> None:
        """attacks: in the order in which they run. images: those that are attacked."""
        self.attacks = attacks
        self.of: dict[int, list[Attempt]] = {image: [] for image in images}

    def add(self, attempts: Sequence[Attempt]) -> None:
        """Take attempts in. Raises: LedgerError if an image was attacked twice, or out of turn."""
        for one in attempts:
            if one.image not in self.of:
                continue  # of a record that is written already
            before = self.of[one.image]
            if self.is_settled(one.image) or one.attack != self.attacks[len(before)]:
                raise LedgerError(
                    f"image {one.image} has an attempt {one.attack!r} after "
                    f"{', '.join(attempt.attack for attempt in before) or 'none'}; remove attacks.jsonl, and --resume "
                    "attacks these images again"
                )
            before.append(one)

    def is_settled(self, image: int) -> bool:
        """True if its verdict is known."""
        done = self.of[image]
        return len(done) == len(self.attacks) or any(one.broken for one in done)

    def losses(self) -> tuple[int, int]:
        """Count the images that are misclassified as they are, and those that an attack has broken."""
        by = [done[-1].attack for done in self.of.values() if done and done[-1].broken]
        return by.count(AS_IT_IS), len(by) - by.count(AS_IT_IS)

    def waiting(self, attack: str) -> list[int]:
        """The images whose next attack is this one, in order."""
        place = self.attacks.index(attack)
        return [image for image, done in self.of.items() if len(done) == place and not self.is_settled(image)]


class ShareSize:
    """The number of images of one share: as many as the device takes, and as a share's time allows."""

    def __init__(self) -> None:
        self.limit, self.held = MOST, FIRST
        self.rate: float | None = None  # seconds that an image takes for one forward pass

    def __call__(self, passes: float) -> int:
        """Return the images of the next share. passes: of the attack, for an image that it does not break."""
        if self.rate is None:
            return min(FIRST, self.limit)
        in_time = max(FEWEST, int(SHARE_SECONDS / max(self.rate * passes, 1e-9)))
        return min(in_time, self.held * GROWTH, self.limit)

    def took(self, images: int, seconds: float, passes: float) -> None:
        """Learn from a share that is finished."""
        self.held = max(self.held, images)
        self.rate = seconds / (images * passes)

    def was_too_much(self, images: int) -> None:
        """Learn that the device has too little memory for so many images."""
        self.limit = self.held = max(1, images // 2)


def whole_turns(attempts: Sequence[Attempt], block: Sequence[int], attacks: Sequence[str]) -> list[Attempt]:
    """Return the attempts on a block up to the first attack that some image of it still waits for."""
    kept: list[Attempt] = []
    left = set(block)
    for attack in attacks:
        done = [one for one in attempts if one.attack == attack and one.image in left]
        if {one.image for one in done} != left:
            break
        kept += done
        left -= {one.image for one in done if one.broken}
    return kept


@dataclass
class Turns:
    """One evaluation in turn. blocks: those without records, numbered, in order."""

    run: RunFolder
    judge: Judge
    world: World
    blocks: Numbered
    advance: Advance
    totals: RunningTotals

    def __post_init__(self) -> None:
        in_turn = self.judge.evaluator.in_turn
        assert in_turn is not None
        self.in_turn, settings = in_turn, self.judge.settings
        self.log, self.attacks = AttemptLog(self.run.path), in_turn.attacks(settings)
        self.keeper = Keeper(self.run, self.judge) if self.judge.keeps else None
        images = [index for _, block in self.blocks for index in block]
        self.spared = self.judge.certified(images)
        self.standing = Standing(self.attacks, [index for index in images if index not in self.spared])
        self.number = {index: number for number, block in self.blocks for index in block}
        classes = self.judge.images.num_classes
        self.passes = {name: in_turn.passes(settings, name, classes) for name in self.attacks}
        self.size, self.spent, self.shown = ShareSize(), 0.0, 0.0
        self.written, self.heard_at, self.note = 0, time.monotonic(), ""

    def finish(self) -> None:
        """Run what is left of every attack on every image, and write the records."""
        self.standing.add(self.world.on_main(self._kept))
        if self.spared:
            self.advance(len(self.spared), "")
        for attack in self.attacks:
            while waiting := self.standing.waiting(attack):
                self._round(attack, waiting)
        self._write_settled()
        self.note = str(self.totals)
        self._advance()
        closing = self.in_turn.closing([one for done in self.standing.of.values() for one in done])
        if closing and self.world.is_main:
            say(closing)

    def _kept(self) -> list[Attempt]:
        """Read the attempts of an earlier start; of blocks that are judged as a whole, those of whole blocks."""
        attempts = self.log.read(self.attacks)
        if not self.judge.evaluator.by_image(self.judge.settings):
            whole = [one for _, block in self.blocks for one in whole_turns(attempts, block, self.attacks)]
            if len(whole) < len(attempts):
                self.log.replace(whole)
            attempts = whole
        if self.keeper is not None:
            self.keeper.settle(attempts)
        return attempts

    def _round(self, attack: str, waiting: Sequence[int]) -> None:
        """Have every process attack one share, and keep what they found."""
        shares = self._shares(waiting, self.size(self.passes[attack]))
        mine = shares[self.world.rank] if self.world.rank < len(shares) else ()
        self._show(attack, waiting, shares)
        started = time.perf_counter()
        found = self.world.share(partial(self._attempts, attack, mine))
        seconds = max(self.world.share(lambda: time.perf_counter() - started))
        if None in found:
            if self.judge.subject.device.type == "cuda":
                torch.cuda.empty_cache()
            self.size.was_too_much(max(map(len, shares)))
        else:
            self.size.took(max(map(len, shares)), seconds, self.passes[attack])
        attempts = [attempt for part in found if part is not None for attempt in part[0]]
        points = {image: point for part in found if part is not None for image, point in part[1].items()}
        if attempts:
            self._keep(attack, attempts, points)
        self._write_settled()

    def _shares(self, waiting: Sequence[int], size: int) -> list[tuple[int, ...]]:
        """The next share of every process, in order; there may be fewer than processes."""
        if not self.judge.evaluator.by_image(self.judge.settings):
            of_block: dict[int, list[int]] = {}
            for image in waiting:
                of_block.setdefault(self.number[image], []).append(image)
            return [tuple(images) for images in of_block.values()][: self.world.size]
        size = min(size, -(-len(waiting) // self.world.size))
        starts = range(0, len(waiting), size)[: self.world.size]
        return [tuple(waiting[start : start + size]) for start in starts]

    def _attempts(self, attack: str, share: tuple[int, ...]) -> tuple[list[Attempt], Points] | None:
        """Attack one share; None if it does not fit into memory and a smaller one may."""
        if not share:
            return [], {}
        may_shrink = len(share) > 1 and self.judge.evaluator.by_image(self.judge.settings)
        try:
            return self.judge.attempts(attack, self.number[share[0]], share, self._heard)
        except MemoryShortageError:
            if not may_shrink:
                raise
            return None

    def _keep(self, attack: str, attempts: Sequence[Attempt], points: Points) -> None:
        """Write down what was done, after the examples that it rests on if they are kept."""
        keeper = self.keeper
        if keeper is not None and attack != AS_IT_IS:
            attempts = self.world.on_main(lambda: keeper.attempts(attempts, points))
        if self.world.is_main:
            self.log.append(attempts)
        self.standing.add(attempts)
        self.spent += self.passes[attack] * len(attempts)

    def _write_settled(self) -> None:
        """Append the records of the next blocks whose images are all settled."""
        while self.written < len(self.blocks):
            _, indices = self.blocks[self.written]
            if not all(index in self.spared or self.standing.is_settled(index) for index in indices):
                return
            self.written += 1
            if self.world.is_main:
                records = list(self._records(indices))
                self.run.append(records)
                self.totals.add([asdict(record) for record in records])

    def _records(self, indices: Sequence[int]) -> Iterator[Record]:
        known = identities(self.judge.images, indices)
        for index, (sha, label) in zip(indices, known, strict=True):
            if index in self.spared:
                yield self.spared[index]
            else:
                yield self.in_turn.conclude(index, sha, label, self.standing.of[index])

    # Progress --------------------------------------------------------------------------------------

    def _show(self, attack: str, waiting: Sequence[int], shares: Sequence[tuple[int, ...]]) -> None:
        """Say which attack is at which images, and move the bar by the share of the passes that is done."""
        first, last = shares[0][0], shares[-1][-1]
        later = self.attacks[self.attacks.index(attack) + 1 :]
        after = f"; then {', '.join(later)}" if later else ""  # last: a short line cuts it off
        wrong, broken = self.standing.losses()
        self.note = f"{attack} at images {first} to {last}, {len(waiting)} wait; {wrong} wrong, {broken} broken{after}"
        self._advance()

    def _advance(self) -> None:
        left = sum(
            self.passes[name]
            for image, done in self.standing.of.items()
            if not self.standing.is_settled(image)
            for name in self.attacks[len(done) :]
        )
        total = len(self.standing.of)
        reached = total * self.spent / (self.spent + left) if left else total
        self.advance(max(reached - self.shown, 0), self.note)
        self.shown = max(reached, self.shown)

    def _heard(self) -> None:
        """Show a sign of life after a forward pass, every few seconds."""
        if time.monotonic() - self.heard_at >= LOG_SECONDS:
            self.heard_at = time.monotonic()
            self.advance(0, self.note)
