"""The `objective:` section of a recipe: one model for each training objective, told apart by `name`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from hydrabench.config.fields import Radius, Section, members_by_tag
from hydrabench.threat import Norm


class NaturalObjective(Section):
    """Cross entropy on clean images."""

    name: Literal["natural"]


class TradesObjective(Section):
    """TRADES (Zhang et al. 2019): cross entropy + beta · KL(clean ‖ adversarial)."""

    name: Literal["trades"]
    norm: Norm = "linf"
    epsilon: Radius
    beta: NonNegativeFloat = 6.0
    steps: PositiveInt = 10
    step_size: Radius | None = None  # None: epsilon / 4; in L2, 2 epsilon / steps


class PgdObjective(Section):
    """Adversarial training (Madry et al. 2018): cross entropy on PGD examples."""

    name: Literal["pgd"]
    norm: Norm = "linf"
    epsilon: Radius
    steps: PositiveInt = 10
    step_size: Radius | None = None  # None: epsilon / 4; in L2, 2 epsilon / steps


class FreeObjective(Section):
    """Free adversarial training (Shafahi et al. 2019): every minibatch `repeats` times in a row."""

    name: Literal["free"]
    epsilon: Radius
    repeats: PositiveInt = 4


class CrownIbpObjective(Section):
    """CROWN-IBP (Zhang et al. 2020): cross entropy of the lower bounds, from CROWN-IBP to `beta_end` of it.

    `beta_end` 0 ends in plain IBP, 1 stays with CROWN-IBP.
    """

    name: Literal["crown-ibp"]
    epsilon: Radius
    beta_end: float = Field(0.0, ge=0, le=1)


Objective = Annotated[
    NaturalObjective | TradesObjective | PgdObjective | FreeObjective | CrownIbpObjective,
    Field(discriminator="name"),
]
OBJECTIVE_SETTINGS = members_by_tag(Objective, "name")
