"""The `objective:` section of a recipe: one model for each training objective, told apart by `name`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from hydrabench.config.fields import Noise, Radius, Section, members_by_tag
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


class StabilityObjective(Section):
    """Training for randomized smoothing (Carmon et al. 2019): cross entropy + beta · KL(clean ‖ noisy).

    The variant `gaussian` (Cohen et al. 2019) is the cross entropy on noisy images instead; it ignores `beta`.
    """

    name: Literal["stability"]
    sigma: Noise  # standard deviation of the noise in pixel units
    beta: NonNegativeFloat = 6.0
    variant: Literal["stability", "gaussian"] = "stability"


class MixtrainObjective(Section):
    """MixTrain (Wang et al. 2018): cross entropy + weight · sound loss of `samples` images of a minibatch.

    A minibatch gets the sound loss with `probability`. Its weight starts at `weight` and grows by the factor
    `weight_growth` every `weight_every` epochs after the radius has reached epsilon, up to `weight_max`.
    """

    name: Literal["mixtrain"]
    epsilon: Radius
    samples: PositiveInt
    probability: float = Field(0.8, ge=0, le=1)
    weight: PositiveFloat = 0.1
    weight_growth: float = Field(2.5, ge=1)
    weight_every: PositiveInt = 5
    weight_max: PositiveFloat = 50.0

    def conflicts(self) -> Iterator[str]:
        """Yield what does not fit: the weight must not start above where it ends."""
        if self.weight > self.weight_max:
            yield f"weight {self.weight:g} exceeds weight_max {self.weight_max:g}"


class CrownIbpObjective(Section):
    """CROWN-IBP (Zhang et al. 2020): cross entropy of the lower bounds, from CROWN-IBP to `beta_end` of it.

    `beta_end` 0 ends in plain IBP, 1 stays with CROWN-IBP. The share of the clean cross entropy moves from
    `kappa_start` to `kappa_end`; HYDRA uses none.
    """

    added: ClassVar[tuple[str, ...]] = ("kappa_start", "kappa_end")

    name: Literal["crown-ibp"]
    epsilon: Radius
    beta_end: float = Field(0.0, ge=0, le=1)
    kappa_start: float = Field(0.0, ge=0, le=1)
    kappa_end: float = Field(0.0, ge=0, le=1)


class IbpObjective(Section):
    """Interval bounds (Gowal et al. 2018): kappa · clean cross entropy + (1 - kappa) · that of the lower bounds."""

    name: Literal["ibp"]
    epsilon: Radius
    kappa_start: float = Field(1.0, ge=0, le=1)
    kappa_end: float = Field(0.5, ge=0, le=1)


Objective = Annotated[
    NaturalObjective
    | TradesObjective
    | PgdObjective
    | FreeObjective
    | StabilityObjective
    | MixtrainObjective
    | CrownIbpObjective
    | IbpObjective,
    Field(discriminator="name"),
]
OBJECTIVE_SETTINGS = members_by_tag(Objective, "name")
