"""Robustness against the fast adaptive boundary attack alone: the authors' code, 100 iterations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from hydrabench.config.passes import INPUT_GRADIENT
from hydrabench.config.protocol import unless
from hydrabench.evaluators.attacking import Attacked, attacked_records, ball_attack
from hydrabench.evaluators.ball_settings import NORMS, BallSettings
from hydrabench.evaluators.pgd import TARGETED, short_pgd
from hydrabench.evaluators.upstream_attacks import attack_in_turn, require_logits, require_upstream
from hydrabench.ledger import AttackRecord

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hydrabench.data.images import Block


class FabSettings(BallSettings):
    """FAB from the image itself, so that nothing is drawn; targets: 9 searches towards as many classes in turn."""

    kind: Literal["fab"] = "fab"
    targets: Literal[0, 9] = 0

    @property
    def name(self) -> str:
        """The attack as its authors call it."""
        return "fab-t" if self.targets else "fab"

    @property
    def protocol(self) -> str:
        """`fab-100@1` is untargeted, `fab-100-t9@1` targeted."""
        return f"fab-100{unless(0, 't', self.targets)}{self.radii_text}@1"


def fab_points(network: nn.Module, block: Block, settings: FabSettings) -> tuple[list[AttackRecord], Tensor]:
    """Return the records, and the points that broke the images; see `attacked_records`.

    In the records `broken_by` is "clean", "fab" or "fab-t"; `margin` is that of the point that broke the image, None
    for a robust one. Source: Croce and Hein (2020), arXiv:1907.02044.
    """
    return attacked_records(network, block, settings, _attack)


def _attack(network: nn.Module, block: Block, settings: FabSettings) -> Attacked:
    return attack_in_turn(network, block, settings, (settings.name,))


def _passes(settings: Any, sizes: Any) -> float:
    step = (1 + INPUT_GRADIENT) * min(9, sizes.classes - 1) if settings.targets else 2 + sizes.classes
    return float(2 + 100 * step * len(settings.radii_in_turn))


FAB = ball_attack(
    FabSettings,
    fab_points,
    heading="FAB",
    meaning="right on the clean image and after the fast adaptive boundary attack of 100 iterations, the authors' code",
    passes=_passes,
    piece=short_pgd,
    options=(NORMS, TARGETED),
    require=require_upstream,
    suits=lambda network, block, settings: require_logits(network, block, (settings.name,)),
)
