"""The record of complete verification: a verdict, and the adversarial example that goes with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from hydrabench.ledger.records import Record, VerifiedRecord

VERDICTS = ("verified", "broken", "unknown")
FOUND_BY = ("clean", "pgd", "branch-and-bound", "milp")


@dataclass(frozen=True)
class ExactRecord(VerifiedRecord):
    """A verdict: `verified`, `broken` by an adversarial example, or `unknown` when the search had to stop.

    lower: of the margin over the whole ball; of a broken image what was known when it broke. subproblems: that were
    bounded. found_by: what found the adversarial example: the image itself, an attack, or the engine.
    adversarial: its class. counterexample: its pixels, float32 in little-endian order, in base64; None where it is the
    image itself.
    """

    exact: ClassVar[tuple[str, ...]] = ("prediction", "verdict")

    verdict: str = "unknown"
    subproblems: int = 0
    found_by: str | None = None
    adversarial: int | None = None
    counterexample: str | None = None

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
        if (self.counterexample is not None) != (broken and by != "clean"):
            yield f"has verdict {self.verdict}, found by {by}, which does not go with its counterexample"

    def differences(self, again: Record) -> Iterator[str]:
        """Yield what differs but for bounds and adversarial examples, which rounding may lead elsewhere."""
        yield from Record.differences(self, again)
