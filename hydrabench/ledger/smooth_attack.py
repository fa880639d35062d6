"""Records of attacks on a smoothed classifier."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from hydrabench.ledger.attack_records import radius_of
from hydrabench.ledger.records import FEWEST_VOTES, VOTES_TOLERANCE, Record


@dataclass(frozen=True)
class SmoothAttackRecord(Record):
    """`robust` unless fresh noise shows another majority than the label, at the image or at the end of PGD.

    prediction: the class with the most votes at the image itself. broken_by: "clean" or "smooth-pgd". votes: of all
    classes at the point that decided.
    """

    exact: ClassVar[tuple[str, ...]] = ("prediction",)

    robust: bool
    broken_by: str | None
    votes: list[int]

    def problems(self, settings: Mapping[str, Any]) -> Iterator[str]:
        """Yield what cannot be."""
        yield from super().problems(settings)
        if self.robust != (self.broken_by is None):
            yield f"says robust {self.robust}, broken_by {self.broken_by!r}, which does not fit"
        if sum(self.votes) != settings.get("draws", sum(self.votes)) or min(self.votes, default=0) < 0:
            yield f"has {sum(self.votes)} votes, the run {settings.get('draws')} draws"
        elif not self.robust and self.votes[self.label : self.label + 1] == [max(self.votes)]:
            yield f"is not robust, but class {self.label} has the most votes"

    def example_within(self, settings: Mapping[str, Any]) -> float | None:
        """Return the radius of the ball if the attack broke the image."""
        return None if self.robust or self.broken_by == "clean" else radius_of(settings)

    def without_example(self) -> SmoothAttackRecord:
        """Return the record of an image that nothing is shown of."""
        return replace(self, robust=True, broken_by=None)

    def differences(self, again: Record) -> Iterator[str]:
        """Yield what differs; rounding may turn a few votes, and a verdict that rests on them."""
        assert isinstance(again, SmoothAttackRecord)
        yield from super().differences(again)
        allowed = max(FEWEST_VOTES, VOTES_TOLERANCE * sum(self.votes))
        moved = max((abs(a - b) for a, b in zip(self.votes, again.votes, strict=False)), default=0)
        if self.broken_by == again.broken_by and moved > allowed:
            yield f"votes moved by {moved}, more than {allowed:g}"
        elif self.robust != again.robust and moved > allowed:
            yield f"robust was {self.robust} and is now {again.robust}"
