"""The number of images evaluated and written together; at most one block is lost when a run is killed.

Sizes depend on the network and the settings alone, never on the clock, so that a ledger can be made again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

BLOCK_SIZE = 100  # streams of the first version of AutoAttack's protocol are keyed by block
MINUTE = 60.0  # processor seconds that a block of slow bounds may take, unless one image takes more


@dataclass(frozen=True)
class Blocks:
    """How an evaluation is cut into blocks.

    size: images of a block. seconds: what one image may take of one core, 0 where that is not known beforehand.
    about: whether `seconds` is a rough figure and no upper limit. rest: what it depends on. cheaper: what takes less.
    """

    size: int
    seconds: float = 0.0
    about: bool = False
    rest: str = ""
    cheaper: str = ""

    def warning(self, kind: str, images: int) -> str | None:
        """Return a warning if one image may take more than a minute."""
        if self.seconds <= MINUTE:
            return None
        several = images > 1
        of_all = f", {duration(self.seconds * images)} for {images}" if several else ""
        rest = f", and {self.rest}" if self.rest else ""
        less = [part for part in (self.cheaper, "a smaller -n" * several) if part]
        return (
            f"{kind} may take {'about' if self.about else 'up to'} {duration(self.seconds)} of processor time for an "
            f"image of this network{of_all}{rest}" + (f"; cheaper: {', or '.join(less)}" if less else "")
        )


def fixed_blocks(_settings: Any, _network: Any, _shape: tuple[int, int, int]) -> Blocks:
    """Blocks of `BLOCK_SIZE` images, whatever the network."""
    return Blocks(BLOCK_SIZE)


def blocks_of_a_minute(seconds: float, most: int) -> int:
    """Return blocks that take one core about a minute: at least 1 and at most `most` images."""
    return most if seconds == 0 else int(min(max(MINUTE / seconds, 1), most))


def duration(seconds: float) -> str:
    """Write 45 as "45 s", 5400 as "1.5 h"."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.2g} s"
