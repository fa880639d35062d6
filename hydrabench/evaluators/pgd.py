"""Robustness against projected gradient descent: every loss, every restart, until one breaks the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from hydrabench.config import Radius
from hydrabench.config.passes import INPUT_GRADIENT
from hydrabench.config.protocol import unless
from hydrabench.evaluators.blocks import BLOCK_SIZE
from hydrabench.evaluators.clean import attack_records, clean_breaks, clean_logits, require_finite
from hydrabench.evaluators.description import EvaluationSettings, Evaluator, Option, robust_metrics
from hydrabench.ledger import AttackRecord
from hydrabench.threat import Norm

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hydrabench.data.images import Block


class PgdSettings(EvaluationSettings):
    """Projected gradient descent: every loss in `losses`, `restarts` times each, until one breaks the image.

    version: of the protocol; how random streams are seeded, see `runtime.stream`.
    """

    kind: Literal["pgd"] = "pgd"
    norm: Norm = "linf"
    epsilon: Radius
    steps: PositiveInt = 50
    restarts: PositiveInt = 1
    losses: tuple[Literal["ce", "margin"], ...] = Field(("ce", "margin"), min_length=1)
    seed: NonNegativeInt = 0
    version: Literal[1, 2] = 2

    @property
    def protocol(self) -> str:
        """`pgd-50@2` is 50 steps, one restart, both losses, seed 0; whatever differs is spelt out."""
        losses = "" if self.losses == ("ce", "margin") else "-" + "+".join(self.losses)
        return f"pgd-{self.steps}{unless(1, 'r', self.restarts)}{losses}{unless(0, 's', self.seed)}@{self.version}"


def evaluate_pgd(network: nn.Module, block: Block, settings: PgdSettings) -> list[AttackRecord]:
    """Attack each image with every loss and restart of `settings`, until one changes its prediction.

    Every point of the ascent is classified, the random start and the last point included, and an
    image leaves the batch at the first that is misclassified: what breaks it is a point that was
    forwarded, inside the ball. Its starts come from streams of its own, keyed by (seed, loss,
    restart, index), so up to rounding its verdict does not depend on the rest of the block.

    In the records `broken_by` is "clean" (step 0), "pgd-ce" or "pgd-margin"; `step` is the number of
    gradient steps done in that restart, 0 for its start; `margin` is the smallest of all points
    classified, the clean image included.

    Args:
        network: classifier in eval mode, on the device and in the precision of `block.images`.
    Raises: NonFiniteError naming the image if a logit is NaN or infinite.
    Source: Madry et al. (2018), arXiv:1706.06083, section 2.1; the step size is `default_step_size`.
    """
    from hydrabench.attacks import margin

    started = perf_counter()
    logits = clean_logits(network, block)
    breaks, smallest = clean_breaks(logits, block), margin(logits, block.labels).tolist()
    for loss, restart in product(settings.losses, range(settings.restarts)):
        rows = [row for row, broken in enumerate(breaks) if broken is None]
        if not rows:
            break
        result = _attack_once(network, _rows(block, rows), settings, loss=loss, restart=restart)
        for row, done, lowest in zip(rows, result.broke_at.tolist(), result.smallest_margin.tolist(), strict=True):
            breaks[row] = (f"pgd-{loss}", done) if done >= 0 else None
            smallest[row] = min(smallest[row], lowest)
    return attack_records(block, logits, breaks, smallest, started=started)


@dataclass(frozen=True)
class _Outcome:
    """One restart: gradient steps done when each image broke, -1 where it did not; smallest margins; both (B,)."""

    broke_at: Tensor
    smallest_margin: Tensor


def _attack_once(network: nn.Module, block: Block, settings: PgdSettings, *, loss: str, restart: int) -> _Outcome:
    """Run one restart on all images of `block`; the broken ones leave the batch at once."""
    import torch

    from hydrabench.attacks import LOSSES, ascent_step, default_step_size, margin, project, unit_noise
    from hydrabench.runtime import stream

    epsilon, norm = float(settings.epsilon), settings.norm
    step_size = default_step_size(epsilon, settings.steps)
    x, y = block.images, block.labels
    keys = [(settings.seed, "pgd", loss, restart, index) for index in block.indices]
    streams = [stream(*key, version=settings.version) for key in keys]
    noise = torch.cat([unit_noise((1, *x.shape[1:]), norm=norm, generator=one) for one in streams])
    points = project(x + epsilon * noise.to(x), x, epsilon, norm=norm)
    broke_at = torch.full_like(y, -1)
    smallest = torch.full((len(y),), torch.inf, dtype=x.dtype, device=x.device)
    alive = torch.arange(len(y), device=x.device)
    for done in range(settings.steps + 1):
        points.requires_grad_()
        with torch.enable_grad():
            logits = network(points)
            total = LOSSES[loss](logits, y).sum()
        require_finite(logits, [block.indices[row] for row in alive.tolist()], f"a logit after {done} steps of PGD")
        smallest[alive] = torch.minimum(smallest[alive], margin(logits.detach(), y))
        wrong = logits.argmax(1) != y
        broke_at[alive[wrong]] = done
        if done == settings.steps or wrong.all():
            break
        moved = ascent_step(points, total, x, epsilon, norm=norm, step_size=step_size)
        points, x, y, alive = moved[~wrong], x[~wrong], y[~wrong], alive[~wrong]
    return _Outcome(broke_at, smallest)


def _rows(block: Block, rows: Sequence[int]) -> Block:
    """Return the rows of a block that are still to be attacked."""
    import torch

    from hydrabench.data.images import Block

    chosen = torch.tensor(rows, device=block.images.device)
    indices, shas = tuple(block.indices[row] for row in rows), tuple(block.shas[row] for row in rows)
    return Block(block.number, indices, block.images[chosen], block.labels[chosen], shas)


EPSILON = Option("epsilon", "Radius in pixel units, e.g. 8/255.", default="the checkpoint's training radius")
NORM = Option("norm", "linf or l2.", default="the checkpoint's, else linf")
SEED = Option("seed", "Key of all random streams.", "int", default="0")


def short_pgd(settings: Any) -> tuple[PgdSettings, int]:
    """Return ten steps at radius 0, where no image breaks: the piece that is timed for gradient attacks."""
    return PgdSettings(norm=settings.norm, epsilon=Fraction(0), steps=10, losses=("ce",)), BLOCK_SIZE


PGD = Evaluator(
    settings=PgdSettings,
    evaluate=evaluate_pgd,
    record=AttackRecord,
    metrics=robust_metrics,
    claims="upper",
    command="attack",
    heading=lambda settings: f"PGD-{settings.steps}",
    meaning="right on the clean image and after projected gradient descent from every loss and restart",
    passes=lambda settings, _sizes: 1 + INPUT_GRADIENT * settings.steps * settings.restarts * len(settings.losses),
    piece=short_pgd,
    options=(
        EPSILON,
        NORM,
        Option("steps", "PGD steps.", "int", default="50"),
        Option("restarts", "PGD random starts for each loss.", "int", default="1"),
        SEED,
    ),
)
