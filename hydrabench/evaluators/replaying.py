"""Whether an adversarial example is one: in the pixel range, in the ball around its image, and misclassified."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hydrabench.threat import NORM_TEXTS, PIXEL_MAX, PIXEL_MIN

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hydrabench.data.images import Block
    from hydrabench.evaluators.description import Evaluator

TOGETHER = 256  # examples in one forward pass
ORDER_ROUNDING = 2.0**-38  # by which a sum of squares in float64 may depend on its order, relative


@dataclass(frozen=True)
class Replayed:
    """The result of a fresh look at an example: its class, and what is wrong with it, None if nothing is."""

    prediction: int
    problem: str | None


def replay(
    network: nn.Module, block: Block, points: Tensor, within: Sequence[float], evaluator: Evaluator, settings: Any
) -> list[Replayed]:
    """Judge adversarial examples afresh.

    Args:
        network: in eval mode, on the device and in the precision of `block.images`, which are the images themselves.
        points: the examples, (B, C, H, W). within: how far each may lie from its image, as its record says.
    Returns: in order. Distances are measured in float64, classes by forward passes of the examples alone; of the
        smoothed classifier, by the votes of the noise under which it was found.
    """
    from hydrabench.attacks import lengths

    norm = settings.norm
    distances = lengths(points.double() - block.images.double(), norm).tolist()
    outside = (~((points >= PIXEL_MIN) & (points <= PIXEL_MAX))).flatten(1).any(1).tolist()
    given = {float(radius) for radius in getattr(settings, "epsilons", ()) or (settings.epsilon,)}
    moved, classes = replace(block, images=points), []
    for start in range(0, len(points), TOGETHER):
        rows = range(start, min(start + TOGETHER, len(points)))
        classes += evaluator.classes(network, moved.rows(rows), settings)
    found = []
    for row, label in enumerate(block.labels.tolist()):
        problem = None
        if outside[row]:
            problem = f"has pixels outside of [{PIXEL_MIN:g}, {PIXEL_MAX:g}]"
        elif not _is_within(distances[row], within[row], given):
            far, most = distances[row], within[row]
            problem = f"lies {far:.9g} from the image in {NORM_TEXTS[norm]}, its record says {most:.9g}"
        elif classes[row] == label:
            problem = f"is classified as its label, {label}"
        found.append(Replayed(classes[row], problem))
    return found


def fresh_classes(network: nn.Module, block: Block, _settings: Any) -> list[int]:
    """Return the class of each image of a block, whatever else is in the block."""
    import torch

    from hydrabench.attacks import Padded

    with torch.no_grad():
        classes: list[int] = Padded(network)(block.images).argmax(1).tolist()
    return classes


def _is_within(distance: float, most: float, given: set[float]) -> bool:
    """Return whether a distance is at most a radius of the settings, or is what was measured, up to rounding."""
    return distance <= most if most in given else math.isclose(distance, most, rel_tol=ORDER_ROUNDING)
