"""The number of images evaluated and written together; at most one block is lost when a run is killed.

Sizes depend on the network and the settings alone, never on the clock, so that a ledger can be made again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

BLOCK_SIZE = 100  # streams of AutoAttack's first protocol are keyed by block
BLOCK_OPERATIONS = 4.8e12  # of a block of slow bounds, unless one image takes more; about a minute of one core
MINUTE = 60.0  # seconds
REACHED = 0.75  # share of the speed of a plain convolution that passes backward reach


@dataclass(frozen=True)
class Blocks:
    """The blocks that an evaluation is cut into.

    size: images of a block. operations: of one image at most, 0 where that is not known beforehand. search: of one
    image, roughly and in addition, which `time_limit` seconds cut short. rest: what both depend on. cheaper: what takes
    less.
    """

    size: int
    operations: float = 0.0
    search: float = 0.0
    time_limit: float | None = None
    rest: str = ""
    cheaper: str = ""

    @property
    def may_be_slow(self) -> bool:
        """True if an image is so much work that a warning may be due, on a slow machine at least."""
        return self.operations + self.search > BLOCK_OPERATIONS / 10

    def seconds(self, speed: float) -> float:
        """Return what one image may take at so many operations of a plain convolution in a second."""
        first, search = self.operations / (REACHED * speed), self.search / (REACHED * speed)
        return first + search if self.time_limit is None else max(first, min(first + search, self.time_limit))

    def warning(self, kind: str, images: int, speed: float) -> str | None:
        """Return a warning if one image may take more than a minute at this `speed`, as for `seconds`."""
        seconds = self.seconds(speed)
        if seconds <= MINUTE:
            return None
        several = images > 1
        of_all = f", {duration(seconds * images)} for {images}" if several else ""
        rest = f", and {self.rest}" if self.rest else ""
        less = [part for part in (self.cheaper, "a smaller -n" * several) if part]
        return (
            f"{kind} may take {'about' if self.search else 'up to'} {duration(seconds)} of processor time for an "
            f"image of this network{of_all}{rest}" + (f"; cheaper: {', or '.join(less)}" if less else "")
        )


def fixed_blocks(_settings: Any, _network: Any, _shape: tuple[int, int, int]) -> Blocks:
    """Blocks of `BLOCK_SIZE` images, whatever the network."""
    return Blocks(BLOCK_SIZE)


def blocks_of(operations: float, most: int) -> int:
    """Return how many images of so many operations make a block: at least 1 and at most `most`."""
    return most if operations == 0 else int(min(max(BLOCK_OPERATIONS / operations, 1), most))


def duration(seconds: float) -> str:
    """Write 45 as "45 s", 5400 as "1.5 h"."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.2g} s"
