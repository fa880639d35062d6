"""Attacks: points of the threat model that a network gets wrong.

`LOSSES` is the registry of what an attack maximises, `pgd` the attack, `ascend` its core for any
objective; `random_start`, `step` and `project` are the pieces.
"""

from hydrabench.attacks.losses import LOSSES, AttackLoss, margin
from hydrabench.attacks.pgd import ascend, default_step_size, pgd, project, random_start, step, unit_noise

__all__ = [
    "LOSSES",
    "AttackLoss",
    "ascend",
    "default_step_size",
    "margin",
    "pgd",
    "project",
    "random_start",
    "step",
    "unit_noise",
]
