"""APGD, FAB and Square each on its own, as AutoAttack's authors ship them; see `attacks.upstream`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hydrabench.errors import ConfigError, HydrabenchError, NonFiniteError
from hydrabench.evaluators.attacking import Attacked
from hydrabench.evaluators.autoattack_settings import LOGITS_COMPARED
from hydrabench.evaluators.clean import clean_logits, require_finite

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from hydrabench.data.images import Block

SHORTEST_SIDE = 5  # pixels; Square in L2 and L1 starts from a grid of 5 x 5 windows


def attack_in_turn(
    network: nn.Module, block: Block, settings: Any, names: Sequence[str], *, seed: int = 0, queries: int = 5000
) -> Attacked:
    """Run attacks on images that are right as they are, each on those that none before has broken.

    Points are projected into the exact ball and classified afresh. An image's verdict depends on it, the settings and
    the seed alone: see `attacks.upstream` for the draws and `attacks.padding` for the rounding.
    """
    import torch

    from hydrabench.attacks import Padded, margin, project
    from hydrabench.attacks.upstream import UpstreamAttack, attack_points

    count, epsilon, steady = len(block.indices), float(settings.epsilon), Padded(network)
    classes = clean_logits(network, block.rows([0])).shape[1]
    result = Attacked([None] * count, [None] * count, block.images.clone())
    for name in names:
        rows = [row for row, broken in enumerate(result.breaks) if broken is None]
        if not rows:
            break
        part = block.rows(rows)
        how = UpstreamAttack(name, "standard", settings.norm, epsilon, classes, seed, queries=queries)
        try:
            found = attack_points(network, part.images, part.labels, how).to(part.images)
        except NonFiniteError as error:
            raise NonFiniteError(f"images {part.indices[0]} to {part.indices[-1]}, {name}: {error}") from error
        points = project(found, part.images, epsilon, norm=settings.norm)
        with torch.no_grad():
            logits = steady(points)
        require_finite(logits, part.indices, "a logit of an adversarial image")
        wrong, margins = (logits.argmax(1) != part.labels).tolist(), margin(logits, part.labels).tolist()
        for place, row in enumerate(rows):
            if wrong[place]:
                result.breaks[row], result.margins[row], result.points[row] = (
                    (name, None),
                    margins[place],
                    points[place],
                )
    return result


def require_upstream(_network: Any, _settings: Any) -> None:
    """Raise HydrabenchError that says how to get the package."""
    from hydrabench.attacks.upstream import require_pyautoattack

    require_pyautoattack()


def require_logits(network: nn.Module, block: Block, names: Sequence[str], *, windows: bool = False) -> None:
    """Raise if an attack is not defined for the network. windows: whether it needs a grid of windows.

    Raises: ConfigError for too few classes or pixels; HydrabenchError for outputs that are probabilities.
    """
    import torch

    logits, sides = clean_logits(network, block), block.images.shape[2:]
    for name in names:
        needed = LOGITS_COMPARED.get(name, 2)
        if logits.shape[1] < needed:
            raise ConfigError(
                f"{name} compares {needed} logits, the network has {logits.shape[1]}; give --loss ce alone"
            )
    if windows and min(sides) < SHORTEST_SIDE:
        raise ConfigError(f"square in this norm needs images of at least 5 x 5 pixels, got {tuple(sides)}; use pgd")
    if logits.min() >= 0 and torch.allclose(logits.sum(1), torch.ones_like(logits[:, 0]), rtol=0, atol=1e-5):
        raise HydrabenchError(
            "the network's outputs are probabilities, through which these attacks get no useful gradients; let it "
            "return logits (take its final softmax away)"
        )
