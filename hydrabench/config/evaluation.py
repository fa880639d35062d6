"""Settings of the evaluators: the `evaluate:` entries of a recipe, or the options of `attack` and `certify`.

Each knows its protocol id, which names exactly how a number is made; a setting that differs from
the protocol's default is spelt out in the id, so that different procedures never share a column.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from hydrabench.config.fields import Radius, Section
from hydrabench.threat import Norm


class CleanSettings(Section):
    """Accuracy on the unperturbed images."""

    kind: Literal["clean"] = "clean"

    @property
    def protocol(self) -> str:
        """The protocol id."""
        return "clean@1"


class PgdSettings(Section):
    """Projected gradient descent: every loss in `losses`, `restarts` times each, until one breaks the image."""

    kind: Literal["pgd"] = "pgd"
    norm: Norm = "linf"
    epsilon: Radius
    steps: PositiveInt = 50
    restarts: PositiveInt = 1
    losses: tuple[Literal["ce", "margin"], ...] = Field(("ce", "margin"), min_length=1)
    seed: NonNegativeInt = 0

    @property
    def protocol(self) -> str:
        """`pgd-50@1` is 50 steps, one restart, both losses, seed 0; whatever differs is spelt out."""
        losses = "" if self.losses == ("ce", "margin") else "-" + "+".join(self.losses)
        return f"pgd-{self.steps}{_unless(1, 'r', self.restarts)}{losses}{_unless(0, 's', self.seed)}@1"


class AutoAttackSettings(Section):
    """The standard AutoAttack ensemble (APGD-CE, APGD-T, FAB-T, Square) in seeded blocks."""

    kind: Literal["autoattack"] = "autoattack"
    norm: Norm = "linf"
    epsilon: Radius
    seed: NonNegativeInt = 0

    @property
    def protocol(self) -> str:
        """The protocol id."""
        return f"aa-standard{_unless(0, 's', self.seed)}@1"


class VerifiedSettings(Section):
    """A sound lower bound of every margin over the L∞ ball."""

    kind: Literal["ibp", "crown-ibp"]
    norm: Literal["linf"] = "linf"
    epsilon: Radius

    @property
    def protocol(self) -> str:
        """The protocol id names the bound."""
        return f"{self.kind}@1"


class SmoothingSettings(Section):
    """Randomized smoothing as in Cohen et al. (2019): selection with `n0`, estimation with `samples` draws."""

    kind: Literal["smoothing"] = "smoothing"
    sigma: PositiveFloat = 0.25
    n0: PositiveInt = 100
    samples: PositiveInt = 100_000
    alpha: float = Field(0.001, gt=0, lt=1)
    radii: tuple[NonNegativeFloat, ...] = (0.0, 0.25, 0.5, 0.75)
    seed: NonNegativeInt = 0

    @property
    def protocol(self) -> str:
        """`smoothing-cohen@1` is N0 = 100, N = 100,000, alpha = 0.001, seed 0; whatever differs is spelt out."""
        spelt = _unless(100, "n0_", self.n0) + _unless(100_000, "n", self.samples) + _unless(0.001, "a", self.alpha)
        return f"smoothing-cohen{spelt}{_unless(0, 's', self.seed)}@1"


EvaluationSettings = Annotated[
    CleanSettings | PgdSettings | AutoAttackSettings | VerifiedSettings | SmoothingSettings, Field(discriminator="kind")
]


def _unless(default: float, letter: str, value: float) -> str:
    return "" if value == default else f"-{letter}{value:g}"


def with_default_threat(entry: Any, threat: Mapping[str, Any]) -> Any:
    """Give evaluation options that need a radius and have none the radius (and norm) of `threat`."""
    needs = isinstance(entry, dict) and entry.get("kind") in ("pgd", "autoattack", "ibp", "crown-ibp")
    if not needs or "epsilon" in entry:
        return entry
    if "norm" in entry and entry["norm"] != threat.get("norm", "linf"):
        return entry
    norm = {"norm": threat["norm"]} if threat.get("norm") and entry["kind"] in ("pgd", "autoattack") else {}
    return {**norm, **entry, "epsilon": threat["epsilon"]}
