"""Attacks: points of the threat model that a network gets wrong.

`ball` is where they may lie, `LOSSES` the registry of what an attack maximises, `pgd` the attack; `ascend` is its core
for any objective, `search` the one that classifies every point on its way.
"""

from hydrabench.attacks.ball import (
    ExactBall,
    lengths,
    project,
    random_start,
    steepest,
    unit_noise,
)
from hydrabench.attacks.losses import FEWEST_CLASSES, LOSSES, TARGETED_LOSSES, AttackLoss, margin
from hydrabench.attacks.padding import Padded
from hydrabench.attacks.pgd import Moves, Searched, ascend, default_step_size, pgd, search

__all__ = [
    "FEWEST_CLASSES",
    "LOSSES",
    "TARGETED_LOSSES",
    "AttackLoss",
    "ExactBall",
    "Moves",
    "Padded",
    "Searched",
    "ascend",
    "default_step_size",
    "lengths",
    "margin",
    "pgd",
    "project",
    "random_start",
    "search",
    "steepest",
    "unit_noise",
]
