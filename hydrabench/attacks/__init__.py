"""Attacks: points of the threat model that a network gets wrong.

`LOSSES` is the registry of what an attack maximises, `pgd` the attack, `ascend` its core for any
objective; `random_start`, `ascent_step`, `steepest` and `project` are the pieces.
"""

from hydrabench.attacks.losses import LOSSES, AttackLoss, margin
from hydrabench.attacks.padding import Padded
from hydrabench.attacks.pgd import (
    ascend,
    ascent_step,
    default_step_size,
    pgd,
    project,
    random_start,
    steepest,
    unit_noise,
)

__all__ = [
    "LOSSES",
    "AttackLoss",
    "Padded",
    "ascend",
    "ascent_step",
    "default_step_size",
    "margin",
    "pgd",
    "project",
    "random_start",
    "steepest",
    "unit_noise",
]
