"""The record of complete verification: a verdict, and of what class the adversarial example is that goes with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from hydrabench.ledger.attack_records import radius_of
from hydrabench.ledger.records import Record, VerifiedRecord

VERDICTS = ("verified", "broken", "unknown")
FOUND_BY = ("clean", "pgd", "branch-and-bound", "milp")


@dataclass(frozen=True)
class ExactRecord(VerifiedRecord):
    """A verdict: `verified`, `broken` by an adversarial example, or `unknown` when the search had to stop.

    lower: of the margin over the whole ball; of a broken image what was known when it broke. subproblems: that were
    bounded. found_by: what found the adversarial example: the image itself, an attack, or the engine.
    adversarial: its class; its pixels are among the run's stored examples, see `examples`.
    """

    exact: ClassVar[tuple[str, ...]] = ("prediction", "verdict")

    verdict: str = "unknown"
    subproblems: int = 0
    found_by: str | None = None
    adversarial: int | None = None

    def problems(self, settings: Mapping[str, Any]) -> Iterator[str]:
        """Yield what cannot be."""
        yield from super().problems(settings)
        if self.verdict not in VERDICTS:
            yield f"has verdict {self.verdict!r}, which is one of {', '.join(VERDICTS)}"
        if self.verified != (self.verdict == "verified"):
            yield f"says verified {self.verified}, but has verdict {self.verdict}"
        if self.subproblems < 0:
            yield f"bounded {self.subproblems} subproblems, which is at least 0"
        broken, by = self.verdict == "broken", self.found_by
        if broken != (by in FOUND_BY) or broken != (self.adversarial not in (None, self.label)):
            yield f"has verdict {self.verdict}, found by {by}, with class {self.adversarial} for label {self.label}"
        if broken and (by == "clean") == self.is_right:
            yield f"was found by {by}, but predicts {self.prediction} for label {self.label}"

    def example_within(self, settings: Mapping[str, Any]) -> float | None:
        """Return the radius of the ball if the image is broken, but not as it is."""
        return None if self.verdict != "broken" or self.found_by == "clean" else radius_of(settings)

    def without_example(self) -> ExactRecord:
        """Return the record of an image of which nothing is known."""
        return replace(self, verdict="unknown", found_by=None, adversarial=None)

    def differences(self, again: Record) -> Iterator[str]:
        """Yield what differs but for bounds and adversarial examples, which rounding may lead elsewhere."""
        yield from Record.differences(self, again)
