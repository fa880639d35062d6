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
from hydrabench.threat import AttackNorm

AttackName = Literal["apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square"]
ATTACKS: dict[str, tuple[AttackName, ...]] = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
LOGITS_COMPARED = {"apgd-dlr": 3, "apgd-t": 4}  # a DLR loss compares three logits, its targeted form four
TARGETS_TRIED = 9  # classes that a targeted attack tries, but APGD in L1
SHORT_PGD = "pgd-10"
PASSES_OF_VERDICT = 20  # of a randomised network, whose class is the one that wins most of them


class AutoAttackSettings(KeepingSettings):
    """Croce and Hein's ensemble of attacks, the authors' own code: each attack on the images that none has broken yet.

    ensemble: the authors' version. "standard" is APGD-CE, APGD-T, FAB-T, Square; "plus" has more attacks and five
    restarts; "rand" is for randomised networks: APGD on two losses, gradients averaged over 20 passes, and the verdict
    that of 20 fresh ones. In L1 the standard ensemble is the authors' own for that norm: APGD from three radii, five
    restarts on the cross entropy and five targets.
    attacks: these alone, in the order given, each with the settings that it has in `ensemble`.
    cascade: ten steps of PGD come first, APGD-CE second, so that most images break early.
    mixed: gradients in bfloat16; logits, losses and verdicts stay in the precision of the run.
    version: of the protocol. 1: all images of a block of 100 draw from one stream, keyed by the block.
    """

    kind: Literal["autoattack"] = "autoattack"
    norm: AttackNorm = "linf"
    epsilon: Radius
    ensemble: Literal["standard", "plus", "rand"] = "standard"
    attacks: tuple[AttackName, ...] = ()
    cascade: bool = False
    mixed: bool = False
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
        other = self.attacks or self.cascade or self.mixed or self.ensemble != "standard" or self.norm == "l1"
        if self.version == 1 and other:
            yield "version: 1 of the protocol is the standard ensemble alone; leave it out for anything else"
        if self.norm == "l1" and self.ensemble != "standard":
            yield f"norm: l1 is none that the authors made {self.ensemble} for; leave out ensemble, or take linf or l2"
        if self.keep and self.ensemble == "rand":
            yield "keep: one pass judges stored examples, which says little of randomised networks; leave it out"
        if self.mixed and self.order == ("square",):
            yield "mixed: changes gradients, which square does not follow; leave it out"

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
        return self.version > 1

    @property
    def apgd_restarts(self) -> int:
        """Starts of APGD on one loss, as the authors have it."""
        return 5 if self.ensemble == "plus" or self.norm == "l1" else 1

    @property
    def apgd_targets(self) -> int:
        """Classes that APGD-T tries, as the authors have it."""
        return 5 if self.norm == "l1" else TARGETS_TRIED

    @property
    def protocol(self) -> str:
        """`aa-standard@2` is the standard ensemble of L∞ and L2, seed 0; a list of attacks is spelt out."""
        parts = [self.ensemble] if self.ensemble != "standard" or not self.attacks else []
        name = "-".join([*parts, *(["+".join(self.attacks)] if self.attacks else [])])
        more = "-l1" * (self.norm == "l1") + "-cascade" * self.cascade + "-mixed" * self.mixed
        return f"aa-{name}{more}{unless(0, 's', self.seed)}@{self.version}"


def passes_of(settings: AutoAttackSettings, name: str, classes: float) -> float:
    """Forward passes that an attack takes for an image that it does not break."""
    if name == SHORT_PGD:
        return 1 + 10 * INPUT_GRADIENT
    targets = min(TARGETS_TRIED, classes - 1)
    gradient = INPUT_GRADIENT + settings.mixed  # the pass in full precision comes on top
    verdict = PASSES_OF_VERDICT if settings.ensemble == "rand" else 0
    apgd = 100 * gradient * settings.apgd_restarts * (20 if settings.ensemble == "rand" else 1) + verdict
    return {
        "clean": verdict or 1,
        "apgd-ce": apgd,
        "apgd-dlr": apgd,
        "apgd-t": 100 * gradient * min(settings.apgd_targets, targets),
        "fab": 100 * (2 + classes) * (5 if settings.ensemble == "plus" else 1),  # one gradient for each logit
        "fab-t": 100 * (1 + gradient) * targets,
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
