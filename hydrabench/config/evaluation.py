"""Settings of the evaluators: the `evaluate:` entries of a recipe, or the options of `attack` and `certify`.

Each knows its protocol id, which names exactly how a number is made; a setting that differs from
the protocol's default is spelt out in the id, so that different procedures never share a column.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from hydrabench.config.fields import Radius, Section, members_by_tag
from hydrabench.config.protocol import unless
from hydrabench.config.smoothing import SmoothingSettings
from hydrabench.config.verified import AlphaCrownSettings, VerifiedSettings
from hydrabench.threat import Norm, Threat, doubt


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
        return f"pgd-{self.steps}{unless(1, 'r', self.restarts)}{losses}{unless(0, 's', self.seed)}@1"


class AutoAttackSettings(Section):
    """The standard AutoAttack ensemble (APGD-CE, APGD-T, FAB-T, Square) in seeded blocks."""

    kind: Literal["autoattack"] = "autoattack"
    norm: Norm = "linf"
    epsilon: Radius
    seed: NonNegativeInt = 0

    @property
    def protocol(self) -> str:
        """The protocol id."""
        return f"aa-standard{unless(0, 's', self.seed)}@1"


EvaluationSettings = Annotated[
    CleanSettings | PgdSettings | AutoAttackSettings | VerifiedSettings | AlphaCrownSettings | SmoothingSettings,
    Field(discriminator="kind"),
]


def at(settings: EvaluationSettings) -> str:
    """What tells numbers of one protocol apart: " at L∞ 8/255", " at σ=0.25", or nothing."""
    if isinstance(settings, SmoothingSettings):
        return f" at σ={settings.sigma:g}"
    return "" if isinstance(settings, CleanSettings) else f" at {Threat(settings.norm, settings.epsilon)}"


def doubt_of(settings: EvaluationSettings) -> str | None:
    """A line for the user about a radius that looks like one of another norm."""
    return doubt(settings.norm, settings.epsilon) if "epsilon" in type(settings).model_fields else None  # type: ignore[union-attr]


EVALUATIONS = members_by_tag(EvaluationSettings, "kind")


def with_default_threat(entry: Any, threat: Mapping[str, Any]) -> Any:
    """Give evaluation options that lack a radius, or a noise level, that of `threat`, and its norm with the radius."""
    settings = EVALUATIONS.get(str(entry.get("kind"))) if isinstance(entry, dict) else None
    if settings is None:
        return entry
    if "sigma" in settings.model_fields and "sigma" in threat:
        return {"sigma": threat["sigma"], **entry}
    if "epsilon" not in settings.model_fields or "epsilon" in entry or "epsilon" not in threat:
        return entry
    if "norm" in entry and entry["norm"] != threat.get("norm", "linf"):
        return entry
    norm = {"norm": threat["norm"]} if threat.get("norm") and "norm" in settings.model_fields else {}
    return {**norm, **entry, "epsilon": threat["epsilon"]}
