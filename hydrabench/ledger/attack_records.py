"""Records of attacks: what broke an image, or that nothing did."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from hydrabench.ledger.records import Record, moved_far, turned
from hydrabench.threat import read_number

# An attack repeats rounding in every step, so that where it ends may move further.
ATTACK_TOLERANCE = 1e-2


def radius_of(settings: Mapping[str, Any]) -> float:
    """Return the radius of the ball that settings as `run.json` has them are about, in pixel units."""
    return float(read_number(settings.get("epsilon", "")) or 0)


@dataclass(frozen=True)
class AttackRecord(Record):
    """`robust` if no attack changed the prediction; otherwise which one did, after how many steps.

    broken_by: "clean" if the clean image is misclassified already, else the attack's name. step: the
    iterations done when it broke, None where the attack does not tell. margin: smallest margin seen.
    restart: in which random start of that attack it broke, from 0; None where it does not tell.
    certified_by: the certificate, of an earlier run, because of which the image was not attacked.
    """

    exact: ClassVar[tuple[str, ...]] = ("prediction", "robust")

    robust: bool
    broken_by: str | None
    step: int | None
    margin: float | None
    restart: int | None = field(default=None, kw_only=True)
    certified_by: str | None = field(default=None, kw_only=True)

    def problems(self, settings: Mapping[str, Any]) -> Iterator[str]:
        """Yield what cannot be."""
        yield from super().problems(settings)
        if self.robust and not self.is_right:
            yield f"is robust, which needs a right prediction, but predicts {self.prediction} for label {self.label}"
        if self.robust != (self.broken_by is None) or (self.robust and self.step is not None):
            yield f"says robust {self.robust}, broken_by {self.broken_by!r}, step {self.step}, which does not fit"
        if (self.broken_by == "clean") == self.is_right and not self.robust:
            yield f"is broken by {self.broken_by!r}, but predicts {self.prediction} for label {self.label}"
        if self.step is not None and not 0 <= self.step <= settings.get("steps", math.inf):
            yield f"was broken at step {self.step} of {settings.get('steps', 'none below 0')}"
        if self.certified_by is not None and not self.robust:
            yield f"is certified by {self.certified_by}, but says robust {self.robust}"
        if self.restart is not None and (self.robust or not 0 <= self.restart < settings.get("restarts", math.inf)):
            yield f"says robust {self.robust}, broken in restart {self.restart} of {settings.get('restarts', 'none')}"
        if self.margin is not None and (self.margin < 0 if self.robust else self.margin > 0):
            yield f"says robust {self.robust} with a smallest margin of {self.margin:g}"

    def example_within(self, settings: Mapping[str, Any]) -> float | None:
        """Return the radius of the ball if an attack broke the image, None if it is robust or wrong as it is."""
        return None if self.robust or self.broken_by == "clean" else radius_of(settings)

    def without_example(self) -> AttackRecord:
        """Return the record of a robust image, of whose smallest margin nothing is known."""
        return replace(self, robust=True, broken_by=None, step=None, restart=None, margin=None)

    def differences(self, again: Record) -> Iterator[str]:
        """Yield what differs; a verdict at a margin next to 0 may turn, and the end of an attack moves a little."""
        assert isinstance(again, AttackRecord)
        margins = [margin for margin in (self.margin, again.margin) if margin is not None]
        if turned(self, again, "robust", margins):
            return
        yield from super().differences(again)
        if self.robust == again.robust and self.certified_by is None:
            yield from moved_far("margin", self, again, ATTACK_TOLERANCE)


@dataclass(frozen=True)
class CurveRecord(AttackRecord):
    """A verdict at several radii at once.

    distance: length in pixel units of the smallest perturbation that is known to break the image, of a search at given
    radii the smallest of these; 0 if it is misclassified as it is, None if nothing was found.
    """

    distance: float | None

    def problems(self, settings: Mapping[str, Any]) -> Iterator[str]:
        """Yield what cannot be."""
        yield from super().problems(settings)
        epsilon = radius_of(settings)
        if self.distance is not None and self.distance < 0:
            yield f"has distance {self.distance:g}, which is at least 0"
        if self.robust != (self.distance is None or self.distance > epsilon):
            yield f"says robust {self.robust} with distance {self.distance} at the radius {epsilon:g}"
        if (self.distance == 0) == self.is_right:
            yield f"has distance {self.distance}, but predicts {self.prediction} for label {self.label}"

    def example_within(self, settings: Mapping[str, Any]) -> float | None:  # noqa: ARG002
        """Return the distance, which may be larger than the run's radius; None if nothing was found or needed."""
        return self.distance or None

    def without_example(self) -> CurveRecord:
        """Return the record of an image of which no perturbation is known."""
        return replace(self, robust=True, broken_by=None, step=None, restart=None, margin=None, distance=None)

    def differences(self, again: Record) -> Iterator[str]:
        """Yield what differs; the smallest perturbation moves with the end of an attack."""
        assert isinstance(again, CurveRecord)
        yield from super().differences(again)
        if self.robust == again.robust:
            yield from moved_far("distance", self, again, ATTACK_TOLERANCE)
