"""Robustness against Auto-PGD alone: the authors' code, 100 iterations, on one loss after another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, NonNegativeInt

from hydrabench.config.passes import INPUT_GRADIENT
from hydrabench.config.protocol import unless
from hydrabench.evaluators.attacking import Attacked, attacked_records, ball_attack
from hydrabench.evaluators.ball_settings import NORMS, SEED, BallSettings
from hydrabench.evaluators.pgd import LOSS, TARGETED, short_pgd
from hydrabench.evaluators.upstream_attacks import attack_in_turn, require_logits, require_upstream
from hydrabench.ledger import AttackRecord

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hydrabench.data.images import Block


class ApgdSettings(BallSettings):
    """Auto-PGD, 100 iterations on each loss; targets: 9 adds the targeted DLR loss on as many classes."""

    kind: Literal["apgd"] = "apgd"
    losses: tuple[Literal["ce", "dlr"], ...] = Field(("ce", "dlr"), min_length=1)
    targets: Literal[0, 9] = 0
    seed: NonNegativeInt = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The attacks as their authors call them, in the order in which they run."""
        return (*(f"apgd-{loss}" for loss in self.losses), *(["apgd-t"] if self.targets else []))

    @property
    def protocol(self) -> str:
        """`apgd-100@1` is the cross entropy and DLR; other losses are spelt out."""
        losses = "" if self.losses == ("ce", "dlr") else "-" + "+".join(self.losses)
        return f"apgd-100{losses}{unless(0, 't', self.targets)}{self.radii_text}{unless(0, 's', self.seed)}@1"


def apgd_points(network: nn.Module, block: Block, settings: ApgdSettings) -> tuple[list[AttackRecord], Tensor]:
    """Return the records, and the points that broke the images; see `attacked_records`.

    In the records `broken_by` is "clean", "apgd-ce", "apgd-dlr" or "apgd-t"; `margin` is that of the point that broke
    the image, None for a robust one.
    Source: Croce and Hein (2020), arXiv:2003.01690; in L1 (2021), arXiv:2103.01208.
    """
    return attacked_records(network, block, settings, _attack)


def _attack(network: nn.Module, block: Block, settings: ApgdSettings) -> Attacked:
    return attack_in_turn(network, block, settings, settings.names, seed=settings.seed)


def _passes(settings: Any, sizes: Any) -> float:
    searches: float = len(settings.losses) + min(settings.targets, sizes.classes - 1)
    return 2 + 100 * INPUT_GRADIENT * searches * len(settings.radii_in_turn)


APGD = ball_attack(
    ApgdSettings,
    apgd_points,
    heading="APGD",
    meaning="right on the clean image and after Auto-PGD of 100 iterations from every loss, the authors' code",
    passes=_passes,
    piece=short_pgd,
    options=(NORMS, LOSS, TARGETED, SEED),
    require=require_upstream,
    suits=lambda network, block, settings: require_logits(network, block, settings.names),
)
