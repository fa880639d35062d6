"""Robustness against projected gradient descent: every loss, every restart, until one breaks the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from time import perf_counter

import torch
from torch import Tensor, nn

from hydrabench.attacks import LOSSES, ascent_step, default_step_size, margin, project, unit_noise
from hydrabench.config import PgdSettings
from hydrabench.data.images import Block
from hydrabench.evaluators.clean import attack_records, clean_breaks, clean_logits, require_finite
from hydrabench.ledger import AttackRecord
from hydrabench.runtime import stream


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
    epsilon, norm = float(settings.epsilon), settings.norm
    step_size = default_step_size(epsilon, settings.steps)
    x, y = block.images, block.labels
    keys = [(settings.seed, "pgd", loss, restart, index) for index in block.indices]
    noise = torch.cat([unit_noise((1, *x.shape[1:]), norm=norm, generator=stream(*key)) for key in keys])
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
    """The images of a block that are still to be attacked."""
    chosen = torch.tensor(rows, device=block.images.device)
    indices, shas = tuple(block.indices[row] for row in rows), tuple(block.shas[row] for row in rows)
    return Block(block.number, indices, block.images[chosen], block.labels[chosen], shas)
