"""Robustness by fast minimum norm: one run finds a distance for each image, and so the accuracy at every radius."""

from __future__ import annotations

from dataclasses import asdict
from time import perf_counter
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import PositiveInt

from hydrabench.config.passes import INPUT_GRADIENT
from hydrabench.evaluators.attacking import ball_attack
from hydrabench.evaluators.ball_settings import NORMS, BallSettings
from hydrabench.evaluators.clean import Break, attack_records, clean_breaks, clean_logits, require_finite
from hydrabench.evaluators.description import Option
from hydrabench.evaluators.pgd import short_pgd
from hydrabench.ledger import CurveRecord

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hydrabench.data.images import Block


class FmnSettings(BallSettings):
    """Fast minimum norm; the radii only say where the distances are counted."""

    by_radius: ClassVar[bool] = False
    kind: Literal["fmn"] = "fmn"
    steps: PositiveInt = 100

    @property
    def protocol(self) -> str:
        """`fmn-100@1` is 100 steps."""
        return f"fmn-{self.steps}@1"


def evaluate_fmn(network: nn.Module, block: Block, settings: FmnSettings) -> list[CurveRecord]:
    """Find the smallest perturbation of each image that is right as it is; robust is what needs more than `epsilon`.

    In the records `distance` is its length, measured in float64, None if nothing was found; `margin` is that of its
    point, None for a robust image.

    Args:
        network: classifier in eval mode, on the device and in the precision of `block.images`.
    Raises: NonFiniteError naming the image if a logit is NaN or infinite.
    Source: Pintor et al. (2021), arXiv:2102.12827.
    """
    return fmn_points(network, block, settings)[0]


def fmn_points(network: nn.Module, block: Block, settings: FmnSettings) -> tuple[list[CurveRecord], Tensor]:
    """Return the records, and the nearest misclassified points, (B, C, H, W)."""
    import torch

    from hydrabench.attacks import margin
    from hydrabench.attacks.fmn import fmn

    started = perf_counter()
    logits = clean_logits(network, block)

    def check(seen: Tensor, done: int) -> None:
        require_finite(seen, block.indices, f"a logit after {done} steps of FMN")

    best, points = fmn(network, block.images, block.labels, norm=settings.norm, steps=settings.steps, check=check)
    with torch.no_grad():
        margins = margin(network(points), block.labels).tolist()
    distances = [length if length < float("inf") else None for length in best.tolist()]
    reached = [length is not None and length <= float(settings.epsilon) for length in distances]
    breaks: list[Break | None] = [
        first or (("fmn", None) if broken else None)
        for first, broken in zip(clean_breaks(logits, block), reached, strict=True)
    ]
    known = [lowest if broken else None for lowest, broken in zip(margins, breaks, strict=True)]
    records = attack_records(block, logits, breaks, known, started=started)
    return [CurveRecord(**asdict(one), distance=far) for one, far in zip(records, distances, strict=True)], points


FMN = ball_attack(
    FmnSettings,
    fmn_points,
    record=CurveRecord,
    heading=lambda settings: f"FMN-{settings.steps}",
    meaning="right on the clean image, and the smallest perturbation that fast minimum norm finds exceeds the radius",
    passes=lambda settings, _sizes: 2 + INPUT_GRADIENT * settings.steps,
    piece=short_pgd,
    options=(NORMS, Option("steps", "Steps of the attack.", "int", default="100")),
)
