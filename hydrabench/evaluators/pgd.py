"""Robustness against projected gradient descent: every loss, target and restart, until one breaks the image."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from hydrabench.config import Radius
from hydrabench.config.passes import INPUT_GRADIENT
from hydrabench.config.protocol import unless
from hydrabench.errors import ConfigError
from hydrabench.evaluators.attacking import Attacked, attacked_records, ball_attack
from hydrabench.evaluators.ball_settings import NORMS, SEED, BallSettings
from hydrabench.evaluators.blocks import BLOCK_SIZE
from hydrabench.evaluators.clean import clean_logits, require_finite
from hydrabench.evaluators.description import Option
from hydrabench.ledger import AttackRecord
from hydrabench.threat import radius_text

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hydrabench.attacks import Searched
    from hydrabench.data.images import Block

Loss = Literal["ce", "margin", "dlr"]
TARGETS = 9  # of --targeted, as AutoAttack's targeted attacks have


LOSS = Option(
    "loss",
    "ce, margin or dlr; may be repeated.",
    "repeated",
    default="ce and margin; of apgd ce and dlr",
    setting="losses",
)
TARGETED = Option(
    "targeted", f"Search towards each of the {TARGETS} likeliest other classes.", "flag", sets=("targets", str(TARGETS))
)


class PgdSettings(BallSettings):
    """Projected gradient descent: every loss in `losses`, `restarts` times each, until one breaks the image.

    step_size: in pixel units; None: 2.5 times the radius over the steps. momentum: share of the last direction kept.
    targets: 0: any other class; else one search towards each of so many classes, those that are likeliest for the clean
    image. mixed: gradients in bfloat16; logits, losses and verdicts stay in the precision of the run. version: of the
    protocol; how random streams are seeded, see `runtime.stream`.
    """

    kind: Literal["pgd"] = "pgd"
    steps: PositiveInt = 50
    restarts: PositiveInt = 1
    losses: tuple[Loss, ...] = Field(("ce", "margin"), min_length=1)
    seed: NonNegativeInt = 0
    version: Literal[1, 2] = 2
    step_size: Radius | None = None
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: NonNegativeInt = 0
    mixed: bool = False

    def conflicts(self) -> Iterator[str]:
        """Yield what does not go together."""
        yield from super().conflicts()
        if len(set(self.losses)) < len(self.losses):
            yield f"losses: {', '.join(self.losses)} names one twice; --restarts repeats an attack"
        if self.step_size == 0:
            yield "step_size: is above 0"

    @property
    def unused(self) -> frozenset[str]:
        """Momentum and targets of 0: there are none."""
        return frozenset(name for name in ("momentum", "targets") if not getattr(self, name))

    @property
    def protocol(self) -> str:
        """`pgd-50@2` is 50 steps, one restart, both losses, seed 0; whatever differs is spelt out."""
        losses = "" if self.losses == ("ce", "margin") else "-" + "+".join(self.losses)
        step = "" if self.step_size is None else f"-step{radius_text(self.step_size).replace('/', '_')}"
        more = f"{unless(0, 't', self.targets)}{unless(0, 'm', self.momentum)}{step}{self.radii_text}"
        more += "-mixed" * self.mixed
        return (
            f"pgd-{self.steps}{unless(1, 'r', self.restarts)}{losses}{more}{unless(0, 's', self.seed)}@{self.version}"
        )


def evaluate_pgd(network: nn.Module, block: Block, settings: PgdSettings) -> list[AttackRecord]:
    """Attack each image with every loss, target and restart of `settings`, until one changes its prediction.

    Every point of the ascent is classified, the random start and the last point included, and an
    image leaves the batch at the first that is misclassified: what breaks it is a point that was
    forwarded, inside the ball. Its starts come from streams of its own, keyed by (seed, loss,
    restart, index) and the rank of the target, so up to rounding its verdict does not depend on the rest of the block.

    In the records `broken_by` is "clean" (step 0), "pgd-ce", "pgd-margin" or "pgd-dlr"; `step` is the number of
    gradient steps done in that restart, 0 for its start; `margin` is the smallest of all points
    classified, the clean image included.

    Args:
        network: classifier in eval mode, on the device and in the precision of `block.images`.
    Raises: NonFiniteError naming the image if a logit is NaN or infinite.
    Source: Madry et al. (2018), arXiv:1706.06083, section 2.1; the step size is `default_step_size`.
    """
    return pgd_points(network, block, settings)[0]


def pgd_points(network: nn.Module, block: Block, settings: PgdSettings) -> tuple[list[AttackRecord], Tensor]:
    """Return the records, and the points that broke the images; see `attacked_records`."""
    return attacked_records(network, block, settings, attack_by_pgd)


def attack_by_pgd(network: nn.Module, block: Block, settings: PgdSettings) -> Attacked:
    """Run all searches of one radius on images that are right as they are."""
    import torch

    count = len(block.indices)
    result = Attacked([None] * count, [None] * count, block.images.clone())
    ranked = _likeliest(network, block, settings)
    smallest = torch.full((count,), torch.inf, dtype=block.images.dtype, device=block.images.device)
    targets = [None] if ranked is None else list(range(ranked.shape[1]))
    for loss, target, restart in product(settings.losses, targets, range(settings.restarts)):
        rows = [row for row, broken in enumerate(result.breaks) if broken is None]
        if not rows:
            break
        aims = None if ranked is None or target is None else ranked[rows, target]
        key = (loss, restart) if target is None else (loss, restart, f"target {target}")
        found = _search(network, block.rows(rows), settings, key=key, aims=aims)
        smallest[rows] = torch.minimum(smallest[rows], found.smallest)
        for place, done in enumerate(found.broke_at.tolist()):
            if done >= 0:
                result.breaks[rows[place]] = (f"pgd-{loss}", done, restart)
                result.points[rows[place]] = found.points[place]
    result.margins = list(smallest.tolist())
    return result


def _likeliest(network: nn.Module, block: Block, settings: PgdSettings) -> Tensor | None:
    """Return the targets of each image, (B, T), likeliest first; None if any other class will do."""
    if not settings.targets:
        return None
    logits = clean_logits(network, block).scatter(1, block.labels[:, None], -float("inf"))
    return logits.topk(min(settings.targets, logits.shape[1] - 1), dim=1).indices


def _search(
    network: nn.Module, block: Block, settings: PgdSettings, *, key: tuple[object, ...], aims: Tensor | None
) -> Searched:
    """Run one search from a random start of each image. key: of its streams, the loss first. aims: target classes."""
    from hydrabench.attacks import LOSSES, TARGETED_LOSSES, ExactBall, Moves, default_step_size, search
    from hydrabench.attacks.mixed import MixedGradients

    epsilon, loss = float(settings.epsilon), str(key[0])
    size = default_step_size(epsilon, settings.steps) if settings.step_size is None else float(settings.step_size)
    ball = ExactBall.around(block.images, epsilon, settings.norm)

    def check(logits: Tensor, rows: Tensor, done: int) -> None:
        require_finite(logits, [block.indices[row] for row in rows.tolist()], f"a logit after {done} steps of PGD")

    return search(
        MixedGradients(network) if settings.mixed else network,
        ball,
        ball.scaled(start_noise(block, settings, key)),
        (block.labels,) if aims is None else (block.labels, aims),
        LOSSES[loss] if aims is None else TARGETED_LOSSES[loss],
        how=Moves(settings.steps, size, settings.momentum),
        check=check,
    )


def start_noise(block: Block, settings: PgdSettings, key: tuple[object, ...]) -> Tensor:
    """Draw a point of the unit ball for each image, from a stream of its own, (B, C, H, W)."""
    import torch

    from hydrabench.attacks import unit_noise
    from hydrabench.runtime import stream

    shape = (1, *block.images.shape[1:])
    streams = [stream(settings.seed, "pgd", *key, index, version=settings.version) for index in block.indices]
    return torch.cat([unit_noise(shape, norm=settings.norm, generator=one) for one in streams]).to(block.images)


def short_pgd(settings: Any) -> tuple[PgdSettings, int]:
    """Return ten steps at radius 0, where no image breaks: the piece that is timed for gradient attacks."""
    return PgdSettings(norm=settings.norm, epsilon=Fraction(0), steps=10, losses=("ce",)), BLOCK_SIZE


def require_classes(network: nn.Module, block: Block, settings: PgdSettings) -> None:
    """Raise ConfigError if a loss compares more logits than the network has."""
    from hydrabench.attacks import FEWEST_CLASSES

    classes = clean_logits(network, block).shape[1]
    for loss in settings.losses:
        needed = FEWEST_CLASSES[loss] + (loss == "dlr" and settings.targets > 0)
        if classes < needed:
            raise ConfigError(f"losses: {loss} compares {needed} logits, the network has {classes}; give --loss margin")


def pgd_passes(settings: PgdSettings, _sizes: Any) -> float:
    """One clean pass, and the gradients of every search at every radius."""
    searches = settings.restarts * len(settings.losses) * max(settings.targets, 1) * len(settings.radii_in_turn)
    return 1 + (INPUT_GRADIENT + settings.mixed) * settings.steps * searches


PGD = ball_attack(
    PgdSettings,
    pgd_points,
    heading=lambda settings: f"PGD-{settings.steps}",
    meaning="right on the clean image and after projected gradient descent from every loss and restart",
    passes=pgd_passes,
    piece=short_pgd,
    suits=require_classes,
    options=(
        NORMS,
        Option("steps", "Steps of the attack.", "int", default="50"),
        Option("restarts", "PGD random starts for each loss.", "int", default="1"),
        LOSS,
        Option("step_size", "Length of a PGD step in pixel units.", default="2.5 radii over the steps"),
        Option("momentum", "Share of the last direction that a PGD step keeps, in [0, 1).", "float", default="0"),
        TARGETED,
        SEED,
    ),
)
