"""How many images are evaluated, and written, together: what is lost at most when a run is killed.

Sizes depend on the network and the settings alone, never on the clock, so that a ledger can be made again.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from hydrabench.bounds import Search, image_seconds, search_seconds
from hydrabench.config import AlphaCrownSettings, EvaluationSettings, SmoothingSettings, VerifiedSettings

BLOCK_SIZE = 100  # AutoAttack's streams are keyed by block
# The draws of one image fill batches if all are made; looks at a few draws of many images fill them together.
FIXED_SIZE_BLOCK, SEQUENTIAL_BLOCK = 1, 32
SLOW_BOUNDS = ("symbolic", "crown", "alpha-crown", "cascade")  # up to hours an image on a deep network
SEARCHED_BLOCK = 10  # of alpha-crown, and where auto_LiRPA is asked, of which little is known beforehand
MINUTE = 60.0  # processor seconds that a block of slow bounds may take, unless one image takes more


@dataclass(frozen=True)
class Blocks:
    """size: images of a block. seconds: what one image may take of one core, 0 where that is not known beforehand.

    searched: how much of that is alpha-crown's, a rough figure and no upper limit.
    """

    size: int
    seconds: float = 0.0
    searched: float = 0.0

    def warning(self, kind: str, images: int) -> str | None:
        """A line for the user if an image may take more than a minute."""
        if self.seconds <= MINUTE:
            return None
        several = images > 1
        of_all = f", {duration(self.seconds * images)} for {images}" if several else ""
        rest = "less if few neurons are undecided"
        if self.searched:
            rest = "many times that with slopes all"
        return (
            f"{kind} may take {'about' if self.searched else 'up to'} {duration(self.seconds)} of processor time for "
            f"an image of this network{of_all}, and {rest}; cheaper are --method ibp or crown-ibp, seconds for an "
            f"image{', or a smaller -n' * several}"
        )


def blocks_for(settings: EvaluationSettings, network: nn.Module, shape: tuple[int, int, int]) -> Blocks:
    """Choose the blocks of an evaluation.

    Args: network: in eval mode. shape: (C, H, W) of its images.
    Raises: UnsupportedLayerError for a layer without a rule, if our bounds are asked for.
    """
    if isinstance(settings, SmoothingSettings):
        return Blocks(FIXED_SIZE_BLOCK if settings.mode in ("cohen", "predict") else SEQUENTIAL_BLOCK)
    if settings.kind not in SLOW_BOUNDS:
        return Blocks(BLOCK_SIZE)
    if not isinstance(settings, VerifiedSettings | AlphaCrownSettings) or settings.engine != "hydrabench":
        return Blocks(SEARCHED_BLOCK)
    if isinstance(settings, AlphaCrownSettings):
        searched = _search_seconds(settings, network, shape)
        return Blocks(SEARCHED_BLOCK, searched, searched)
    methods = settings.methods if settings.kind == "cascade" else (settings.kind,)
    seconds = image_seconds(network, shape, methods)
    most = SEARCHED_BLOCK if settings.searches else BLOCK_SIZE
    searched = _search_seconds(settings, network, shape) if settings.searches else 0.0
    return Blocks(most if seconds == 0 else int(min(max(MINUTE / seconds, 1), most)), seconds + searched, searched)


def _search_seconds(
    settings: VerifiedSettings | AlphaCrownSettings, network: nn.Module, shape: tuple[int, int, int]
) -> float:
    search = Search(settings.slopes, settings.iterations, settings.learning_rate, settings.time_limit)
    return search_seconds(network, shape, search)


def duration(seconds: float) -> str:
    """Seconds in the largest unit of which there are two."""
    for unit, size in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"
