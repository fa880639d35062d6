"""The attacks of AutoAttack that run, their order, and the protocol id that says so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import NonNegativeInt

from hydrabench.config import Radius
from hydrabench.config.passes import INPUT_GRADIENT
from hydrabench.config.protocol import unless
from hydrabench.errors import ConfigError
from hydrabench.evaluators.ball_settings import KeepingSettings
from hydrabench.threat import Norm

AttackName = Literal["apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square"]
ATTACKS: dict[str, tuple[AttackName, ...]] = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
LOGITS_COMPARED = {"apgd-dlr": 3, "apgd-t": 4}  # a DLR loss compares three logits, its targeted form four
SHORT_PGD = "pgd-10"


class AutoAttackSettings(KeepingSettings):
    """Croce and Hein's ensemble of attacks, the authors' own code: each attack on the images that none has broken yet.

    ensemble: the authors' version. "standard" is APGD-CE, APGD-T, FAB-T, Square; "plus" has more attacks and five
    restarts; "rand" is for randomised networks: APGD on two losses, gradients averaged over 20 passes.
    attacks: these alone, in the order given, each with the settings that it has in `ensemble`.
    cascade: ten steps of PGD come first, APGD-CE second, so that most images break early.
    version: of the protocol. 1: all images of a block of 100 draw from one stream, keyed by the block.
    """

    kind: Literal["autoattack"] = "autoattack"
    norm: Norm = "linf"
    epsilon: Radius
    ensemble: Literal["standard", "plus", "rand"] = "standard"
    attacks: tuple[AttackName, ...] = ()
    cascade: bool = False
    seed: NonNegativeInt = 0
    version: Literal[1, 2] = 2

    def conflicts(self) -> Iterator[str]:
        """Yield what does not go together."""
        if len(set(self.attacks)) < len(self.attacks):
            yield f"attacks: names one attack twice, {', '.join(self.attacks)}; name each once"
        able = ATTACKS["rand"]
        others = [name for name in self.attacks if name not in able] if self.ensemble == "rand" else []
        if others:
            yield f"attacks: {others[0]} averages no gradients; with ensemble: rand choose among {', '.join(able)}"
        if self.cascade and self.ensemble == "rand":
            yield "cascade: starts with PGD, which averages no gradients; leave it out with ensemble: rand"
        if self.version == 1 and (self.attacks or self.cascade or self.ensemble != "standard"):
            yield "version: 1 of the protocol is the standard ensemble alone; leave it out for anything else"

    @property
    def order(self) -> tuple[str, ...]:
        """The attacks in the order in which they run."""
        names: tuple[str, ...] = self.attacks or ATTACKS[self.ensemble]
        first = [name for name in ("apgd-ce",) if name in names]
        rest = [name for name in names if name not in first]
        return (SHORT_PGD, *first, *rest) if self.cascade else names

    @property
    def by_image(self) -> bool:
        """True if a verdict depends on the image alone, and not on what is attacked beside it."""
        return self.version > 1 and self.ensemble != "rand"

    @property
    def protocol(self) -> str:
        """`aa-standard@2` is the standard ensemble, seed 0; a list of attacks is spelt out."""
        parts = [self.ensemble] if self.ensemble != "standard" or not self.attacks else []
        name = "-".join([*parts, *(["+".join(self.attacks)] if self.attacks else [])])
        return f"aa-{name}{'-cascade' * self.cascade}{unless(0, 's', self.seed)}@{self.version}"


def passes_of(settings: AutoAttackSettings, name: str, classes: float) -> float:
    """Forward passes that an attack takes for an image that it does not break."""
    if name == SHORT_PGD:
        return 1 + 10 * INPUT_GRADIENT
    targets = min(9, classes - 1)
    restarts = 5 if settings.ensemble == "plus" else 1
    averaged = 20 if settings.ensemble == "rand" else 1
    return {
        "clean": 1,
        "apgd-ce": 100 * INPUT_GRADIENT * restarts * averaged,
        "apgd-dlr": 100 * INPUT_GRADIENT * restarts * averaged,
        "apgd-t": 100 * INPUT_GRADIENT * targets,
        "fab": 100 * (2 + classes) * restarts,  # one gradient for each logit; it classifies every point once more
        "fab-t": 100 * (1 + INPUT_GRADIENT) * targets,
        "square": 5000,
    }[name]


def fitted_to_classes(settings: Any, classes: int) -> Any:
    """Return the settings for a network of `classes` logits: the ensemble without attacks that need more of them.

    The shorter ensemble is spelt out in its protocol id.
    Raises: ConfigError if an attack that was asked for by name needs more classes.
    """
    lacking = [name for name in settings.order if LOGITS_COMPARED.get(name, 2) > classes]
    if not lacking:
        return settings
    if settings.attacks or settings.version == 1:
        raise ConfigError(
            f"{lacking[0]} compares {LOGITS_COMPARED[lacking[0]]} logits, the network has {classes}; leave it out of "
            f"the attacks, which are {', '.join(settings.order)}"
        )
    left = tuple(name for name in ATTACKS[settings.ensemble] if name not in lacking)
    return settings.model_copy(update={"attacks": left})
