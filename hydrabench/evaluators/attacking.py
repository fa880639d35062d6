"""Attacks on a ball: clean images first, radii in ascending order, a record for each image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

from hydrabench.evaluators.ball_settings import CURVE, KEEP, SKIP_CERTIFIED, BallSettings
from hydrabench.evaluators.clean import attack_records, clean_breaks, clean_logits
from hydrabench.evaluators.description import Evaluator, Line, Metric, Option, is_correct, robust_metrics
from hydrabench.ledger import AttackRecord, CurveRecord
from hydrabench.threat import parse_radius, radius_text

if TYPE_CHECKING:
    from fractions import Fraction

    from torch import Tensor, nn

    from hydrabench.data.images import Block
    from hydrabench.evaluators.clean import Break


@dataclass
class Attacked:
    """An attack's result on a block. breaks: what broke each image. margins: the smallest seen, or that of its point.

    points: the one that broke each image, of the others any, (B, C, H, W), inside the ball.
    """

    breaks: list[Break | None]
    margins: list[float | None]
    points: Tensor


Attack = Callable[["nn.Module", "Block", Any], Attacked]


def attacked_records(
    network: nn.Module, block: Block, settings: BallSettings, attack: Attack
) -> tuple[list[AttackRecord], Tensor]:
    """Attack the images that are right as they are, at each radius those that no smaller one has broken.

    Args:
        network: classifier in eval mode, on the device and in the precision of `block.images`.
        attack: judges a block of images that are right as they are, under settings of one radius.
    Returns: the records, of a security curve with the smallest radius that broke each image; and the points that broke
        the images, the image itself where none did, (B, C, H, W).
    Raises: NonFiniteError naming the image if a logit is NaN or infinite.
    """
    from hydrabench.attacks import margin

    started = perf_counter()
    logits = clean_logits(network, block)
    breaks, margins = clean_breaks(logits, block), list[float | None](margin(logits, block.labels).tolist())
    points, distances = block.images.clone(), [None if broken is None else 0.0 for broken in breaks]
    for radius in settings.radii_in_turn:
        rows = [row for row, broken in enumerate(breaks) if broken is None]
        if not rows:
            break
        if settings.epsilons and radius == 0:
            continue  # there is nothing to search
        found = attack(network, block.rows(rows), settings.at(radius))
        for place, row in enumerate(rows):
            margins[row] = _least(margins[row], found.margins[place])
            if found.breaks[place] is not None:
                breaks[row], distances[row] = found.breaks[place], float(radius)
                points[row] = found.points[place]
    records = attack_records(block, logits, breaks, margins, started=started)
    if not settings.epsilons:
        return records, points
    return [CurveRecord(**asdict(one), distance=far) for one, far in zip(records, distances, strict=True)], points


def _least(before: float | None, now: float | None) -> float | None:
    """Return the smaller margin; None if the attack tells none, as robust images of some have it."""
    return None if now is None else now if before is None else min(before, now)


def curve_metrics(lines: Sequence[Line], settings: Any) -> dict[str, Metric]:
    """Return clean and robust accuracy; of a security curve the robust accuracy at each radius instead."""
    found = robust_metrics(lines, settings)
    if getattr(settings, "epsilons", ()):
        del found["robust_accuracy"]
    for given in getattr(settings, "epsilons", ()):
        radius = parse_radius(given, norm=settings.norm) if isinstance(given, str) else given  # as a ledger has it
        name = f"robust_accuracy@{radius_text(radius)}"
        found[name] = Metric(tuple(is_correct(line) and beyond(line, radius) for line in lines), epsilon=radius)
    return found


def beyond(line: Line, radius: Fraction) -> bool:
    """Return whether no perturbation of length `radius` or less is known to break the image of a record."""
    return line["distance"] is None or line["distance"] > float(radius)


def ball_attack(
    settings: type[BallSettings],
    points: Callable[[nn.Module, Block, Any], tuple[Sequence[AttackRecord], Tensor]],
    *,
    options: tuple[Option, ...],
    record: type[AttackRecord] = AttackRecord,
    **said: Any,
) -> Evaluator:
    """Describe an attack on a ball.

    Args:
        settings: its model. points: (network, block, settings) -> the records, and the points that broke the images.
        options: of the command line, beside the radius and what all attacks take.
        record: of one radius; a security curve has a `CurveRecord` of each image.
        said: the other entries of `Evaluator`: heading, meaning, passes, ...
    """
    return Evaluator(
        settings=settings,
        evaluate=lambda network, block, settings: points(network, block, settings)[0],
        points=points,
        record=record,
        variant=lambda values: (settings, CurveRecord) if values.get("epsilons") else None,
        metrics=curve_metrics,
        claims="upper",
        command="attack",
        options=(CURVE, *options, SKIP_CERTIFIED, KEEP),
        **said,
    )
