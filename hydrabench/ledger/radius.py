"""The record of a search for the robust radius of an image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from hydrabench.ledger.attack_records import ATTACK_TOLERANCE
from hydrabench.ledger.records import Record, moved_far
from hydrabench.threat import float_below, read_number


@dataclass(frozen=True)
class RadiusRecord(Record):
    """Two radii around an image, in pixel units: the method proves the smaller one, the larger one is broken.

    verified: whether the whole ball of the largest radius that is searched is proved. verified_radius: the largest
    that was proved, rounded down; 0 if none was. broken_radius: the length of the smallest perturbation that is known
    to change the prediction, rounded up; 0 for a misclassified image, None if nothing breaks it at the largest radius.
    trials: radii at which the method was run. subproblems: of exact, at all of them. found_by, adversarial: what breaks
    it at `broken_radius`, as in `ExactRecord`.
    """

    exact: ClassVar[tuple[str, ...]] = ("prediction", "verified")

    verified: bool
    verified_radius: float
    broken_radius: float | None
    trials: int = 0
    subproblems: int = 0
    found_by: str | None = None
    adversarial: int | None = None

    def problems(self, settings: Mapping[str, Any]) -> Iterator[str]:
        """Yield what cannot be."""
        yield from super().problems(settings)
        largest, broken = read_number(settings.get("epsilon", "1")), self.broken_radius
        assert largest is not None, "the settings are checked before"
        if not 0 <= self.verified_radius <= largest:
            yield f"has verified_radius {self.verified_radius:g}, which lies in [0, {float(largest):g}]"
        if self.verified != (self.verified_radius == float_below(largest)):
            yield f"says verified {self.verified} with verified_radius {self.verified_radius:g}"
        if not self.is_right and (self.verified_radius > 0 or broken != 0):
            yield f"has radii, which needs a right prediction, but predicts {self.prediction} for label {self.label}"
        if self.is_right and broken is not None and not self.verified_radius < broken:
            yield f"is verified at {self.verified_radius:g}, but broken at {broken:g}"
        if min(self.trials, self.subproblems) < 0:
            yield f"counts {self.trials} trials and {self.subproblems} subproblems, which are at least 0"
        found = (self.found_by, self.adversarial)
        if any((part is None) != (broken is None) for part in found) or self.adversarial == self.label:
            yield f"has broken_radius {broken}, found by {self.found_by}, with class {self.adversarial}"

    def example_within(self, settings: Mapping[str, Any]) -> float | None:  # noqa: ARG002
        """Return the radius at which it is broken, None if it is not, or wrong as it is."""
        return self.broken_radius or None

    def without_example(self) -> RadiusRecord:
        """Return the record of an image that nothing is known to break."""
        return replace(self, broken_radius=None, found_by=None, adversarial=None)

    def differences(self, again: Record) -> Iterator[str]:
        """Yield what differs; rounding may move radii a little."""
        yield from super().differences(again)
        for name in ("verified_radius", "broken_radius"):
            yield from moved_far(name, self, again, ATTACK_TOLERANCE)
