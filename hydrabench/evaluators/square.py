"""Robustness against the Square attack alone, which needs no gradients: the authors' code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import NonNegativeInt, PositiveInt

from hydrabench.config.protocol import unless
from hydrabench.evaluators.attacking import Attacked, attacked_records, ball_attack
from hydrabench.evaluators.ball_settings import NORMS, SEED, BallSettings
from hydrabench.evaluators.description import Option
from hydrabench.evaluators.pgd import short_pgd
from hydrabench.evaluators.upstream_attacks import attack_in_turn, require_logits, require_upstream
from hydrabench.ledger import AttackRecord

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hydrabench.data.images import Block


class SquareSettings(BallSettings):
    """Square, on the margin; queries: forward passes at most. The sizes of its windows shrink as in AutoAttack."""

    kind: Literal["square"] = "square"
    queries: PositiveInt = 5000
    seed: NonNegativeInt = 0

    @property
    def protocol(self) -> str:
        """`square-5000@1` is 5000 queries, seed 0."""
        return f"square-{self.queries}{self.radii_text}{unless(0, 's', self.seed)}@1"


def square_points(network: nn.Module, block: Block, settings: SquareSettings) -> tuple[list[AttackRecord], Tensor]:
    """Return the records, and the points that broke the images; see `attacked_records`.

    In the records `broken_by` is "clean" or "square"; `margin` is that of the point that broke the image, None for a
    robust one. Source: Andriushchenko et al. (2020), arXiv:1912.00049.
    """
    return attacked_records(network, block, settings, _attack)


def _attack(network: nn.Module, block: Block, settings: SquareSettings) -> Attacked:
    return attack_in_turn(network, block, settings, ("square",), seed=settings.seed, queries=settings.queries)


SQUARE = ball_attack(
    SquareSettings,
    square_points,
    heading=lambda settings: f"Square-{settings.queries}",
    meaning="right on the clean image and after the queries of the Square attack, the authors' code",
    passes=lambda settings, _sizes: 1 + (settings.queries + 1) * len(settings.radii_in_turn),
    piece=short_pgd,
    options=(
        NORMS,
        Option("queries", "Forward passes of Square.", "int", default="5000"),
        SEED,
    ),
    require=require_upstream,
    suits=lambda network, block, settings: require_logits(network, block, (), windows=settings.norm != "linf"),
)
