"""HYDRA's own evaluation: one run of PGD whose start may leave the pixel range, judged on its last points alone."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Literal

from pydantic import NonNegativeInt, PositiveInt

from hydrabench.config import Radius
from hydrabench.config.passes import INPUT_GRADIENT
from hydrabench.config.protocol import unless
from hydrabench.evaluators.attacking import Attacked, attacked_records, ball_attack
from hydrabench.evaluators.ball_settings import SEED, BallSettings
from hydrabench.evaluators.clean import require_finite
from hydrabench.evaluators.description import Option
from hydrabench.evaluators.pgd import short_pgd
from hydrabench.ledger import AttackRecord
from hydrabench.threat import radius_text

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hydrabench.data.images import Block

HYDRA_STEP = Fraction("0.0078")


class HydraSettings(BallSettings):
    """PGD as HYDRA's code evaluates: cross entropy, one uniform start, fixed steps, verdict on the last point."""

    kind: Literal["hydra"] = "hydra"
    norm: Literal["linf"] = "linf"
    steps: PositiveInt = 50
    step_size: Radius = HYDRA_STEP
    seed: NonNegativeInt = 0

    @property
    def protocol(self) -> str:
        """`hydra-pgd-50@1` is 50 steps of 0.0078, seed 0."""
        step = "" if self.step_size == HYDRA_STEP else f"-step{radius_text(self.step_size).replace('/', '_')}"
        return f"hydra-pgd-{self.steps}{step}{self.radii_text}{unless(0, 's', self.seed)}@1"


def evaluate_hydra(network: nn.Module, block: Block, settings: HydraSettings) -> list[AttackRecord]:
    """Attack once from a uniform start that is not clamped to the pixel range, and classify the last point.

    The start only gives the first gradient: it may lie outside [0, 1] and is no attack. The original counts an image
    that is misclassified as it is by its last point, too; here it is wrong at once. Later points are clamped.

    Args:
        network: classifier in eval mode, on the device and in the precision of `block.images`.
    Raises: NonFiniteError naming the image if a logit is NaN or infinite.
    Source: Sehwag et al. (2020), arXiv:2002.10509, the code of its evaluation `adv`.
    """
    return hydra_points(network, block, settings)[0]


def hydra_points(network: nn.Module, block: Block, settings: HydraSettings) -> tuple[list[AttackRecord], Tensor]:
    """Return the records, and the points that broke the images; see `attacked_records`."""
    return attacked_records(network, block, settings, attack_as_hydra)


def attack_as_hydra(network: nn.Module, block: Block, settings: HydraSettings) -> Attacked:
    """Run the attack on images that are right as they are."""
    import torch

    from hydrabench.attacks import LOSSES, ExactBall, margin, steepest, unit_noise
    from hydrabench.attacks.pgd import input_gradient
    from hydrabench.runtime import stream

    ball = ExactBall.around(block.images, float(settings.epsilon), "linf")
    shape = (1, *block.images.shape[1:])
    streams = [stream(settings.seed, "hydra", index, version=2) for index in block.indices]
    noise = torch.cat([unit_noise(shape, norm="linf", generator=one) for one in streams]).to(block.images)
    points = block.images + float(settings.epsilon) * noise
    for _ in range(settings.steps):
        points.requires_grad_()
        with torch.enable_grad():
            total = LOSSES["ce"](network(points), block.labels).sum()
        gradient = input_gradient(total, points)
        points = ball.project(steepest(points.detach(), gradient, float(settings.step_size), norm="linf"))
    with torch.no_grad():
        logits = network(points)
    require_finite(logits, block.indices, f"a logit after {settings.steps} steps of PGD")
    wrong = (logits.argmax(1) != block.labels).tolist()
    margins = list[float | None](margin(logits, block.labels).tolist())
    return Attacked([("pgd-ce", settings.steps) if broken else None for broken in wrong], margins, points)


HYDRA = ball_attack(
    HydraSettings,
    hydra_points,
    heading=lambda settings: f"HYDRA's PGD-{settings.steps}",
    meaning="right on the clean image and on the last point of one PGD run, as HYDRA's code evaluates",
    passes=lambda settings, _sizes: 2 + INPUT_GRADIENT * settings.steps * len(settings.radii_in_turn),
    piece=short_pgd,
    options=(
        Option("steps", "Steps of the attack.", "int", default="50"),
        Option(
            "step_size", "Length of a PGD step in pixel units; of hydra 0.0078.", default="2.5 radii over the steps"
        ),
        SEED,
    ),
)
