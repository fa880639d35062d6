"""Records: one image's result. Each class checks its own consistency and compares two records."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from pydantic import ConfigDict

from hydrabench.laws import radius_of

ABSTAIN = -1
# Sums of floats in another order, on another machine or among other images, move numbers by about this much.
NUMBER_TOLERANCE = 1e-4
# Verdicts that rest on a margin this close to 0 may turn with rounding.
MARGIN_TOLERANCE = 1e-5
VOTES_TOLERANCE = 1e-3  # fraction of the draws whose votes rounding may turn, at least `FEWEST_VOTES`
FEWEST_VOTES = 2

Smoothed = TypeVar("Smoothed", bound="SmoothedRecord")

SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Record:
    """The part of a record that all evaluators write about an image.

    index: position in the data set's split. input_sha: SHA-256 of the [0, 1] float32 pixels.
    label, prediction: classes; the prediction is that of the evaluated classifier on the clean image
    (of the smoothed classifier for smoothing, -1 if it abstains). seconds: never compared.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid")
    lowest_prediction: ClassVar[int] = 0
    exact: ClassVar[tuple[str, ...]] = ("prediction",)  # what must be the same when the record is made again

    index: int
    input_sha: str
    label: int
    prediction: int
    seconds: float

    @property
    def is_right(self) -> bool:
        """True if the prediction is the label."""
        return self.prediction == self.label

    def problems(self, settings: Mapping[str, Any]) -> Iterator[str]:  # noqa: ARG002
        """Yield what cannot be, going by the record alone and the run's settings; "the record" is the subject."""
        if min(self.index, self.label, self.seconds) < 0 or self.prediction < self.lowest_prediction:
            lowest = {"index": 0, "label": 0, "prediction": self.lowest_prediction, "seconds": 0}
            for name, least in lowest.items():
                if getattr(self, name) < least:
                    yield f"has {name} {getattr(self, name)}, which is at least {least}"
        if not SHA256.fullmatch(self.input_sha):
            yield f"has input_sha {self.input_sha[:20]!r}, which is no SHA-256 in hexadecimal"

    def example_within(self, settings: Mapping[str, Any]) -> float | None:  # noqa: ARG002
        """Return how far from the image its adversarial example may lie, in pixel units; None if it has none."""
        return None

    def without_example(self) -> Record:
        """Return the record that says that no adversarial example was found."""
        return self

    def differences(self, again: Record) -> Iterator[str]:
        """Yield the differences of a recomputed record, beyond rounding; verdicts first."""
        for name in ("input_sha", "label", *self.exact):
            if getattr(self, name) != getattr(again, name):
                yield _changed(name, self, again)


@dataclass(frozen=True)
class VerifiedRecord(Record):
    """`verified` if `lower`, the lower bound of the margin over the whole ball, is positive.

    A cascade bounds images that are misclassified, or that one step of an attack breaks, by intervals alone.
    method: which method of a cascade proved it; None if none did, and where only one was asked. rechecked: whether
    rounding could have turned the verdict in float32, or lifted the bound of a misclassified image above 0, so that
    `lower` is what float64 gave.
    """

    exact: ClassVar[tuple[str, ...]] = ("prediction", "verified")

    verified: bool
    lower: float
    method: str | None = None
    rechecked: bool = False

    def problems(self, settings: Mapping[str, Any]) -> Iterator[str]:
        """Yield what cannot be."""
        yield from super().problems(settings)
        if self.verified and not self.is_right:
            yield f"is verified, which needs a right prediction, but predicts {self.prediction} for label {self.label}"
        if self.verified and not self.lower > 0:
            yield f"is verified, which needs a bound above 0, with lower {self.lower:g}"
        if not self.verified and self.is_right and self.lower > 0:
            yield f"is not verified, although the prediction is right and lower is {self.lower:g}"
        if self.method is not None and not self.verified:
            yield f"is not verified, but says that {self.method} proved it"
        if self.method is not None and self.method not in settings.get("methods", (self.method,)):
            yield f"was proved by {self.method}, none of the methods {', '.join(settings['methods'])}"

    def differences(self, again: Record) -> Iterator[str]:
        """Yield what differs; a verdict at a bound next to 0 may turn."""
        assert isinstance(again, VerifiedRecord)
        if turned(self, again, "verified", [self.lower, again.lower]):
            return
        yield from super().differences(again)
        if self.verified == again.verified:
            yield from moved_far("lower", self, again, NUMBER_TOLERANCE)


@dataclass(frozen=True)
class SmoothedRecord(Record):
    """A certificate of the smoothed classifier: `count` of `samples` noisy copies fell on the selected class.

    selected: class chosen by the selection samples (with the most votes, for `predict`). p_lower: lower
    confidence bound of its probability, less what integer noise costs. radius: certified L2 radius in pixel
    units, 0 if abstained. Ledgers from before the other fields hold Cohen's mode.

    mode: when sampling stopped, as in the settings. selection, counts: votes of all classes among the selection
    and the estimation samples. looks: [draws, count] each time the rule looked. alpha_spent: failure probability
    used up by them. skipped: nothing was estimated, because the selection picked another class than the label.
    radius_linf: the L∞ radius that the L2 one implies, radius / sqrt(C * H * W). p_value: of `predict` only.
    """

    lowest_prediction: ClassVar[int] = ABSTAIN
    exact: ClassVar[tuple[str, ...]] = ("prediction", "abstain", "selected")

    selected: int
    count: int
    samples: int
    p_lower: float
    radius: float
    abstain: bool
    mode: str = "cohen"
    selection: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    looks: list[list[int]] = field(default_factory=list)
    alpha_spent: float | None = None
    skipped: bool = False
    radius_linf: float | None = None
    p_value: float | None = None

    @classmethod
    def abstaining(cls: type[Smoothed], **others: Any) -> Smoothed:
        """Return a record without a certificate, of no samples, with the other fields as given."""
        return cls(prediction=ABSTAIN, count=0, samples=0, p_lower=0.0, radius=0.0, abstain=True, **others)

    def problems(self, settings: Mapping[str, Any]) -> Iterator[str]:
        """Yield what cannot be."""
        yield from super().problems(settings)
        if self.mode != settings.get("mode", "cohen"):
            yield f"has mode {self.mode}, the run {settings.get('mode', 'cohen')}"
        if self.abstain != (self.prediction == ABSTAIN):
            yield f"predicts {self.prediction} with abstain {self.abstain}; -1 and true go together"
        if not self.abstain and self.prediction != self.selected:
            yield f"predicts {self.prediction}, but class {self.selected} was selected"
        if self.abstain and self.radius != 0:
            yield f"abstains, so it has no radius, but says {self.radius:g}"
        if self.mode != "predict":
            yield from self._problems_of_radius(settings)
        yield from self._problems_of_votes(settings)

    def _problems_of_radius(self, settings: Mapping[str, Any]) -> Iterator[str]:
        if not 0 <= self.p_lower <= 1:
            yield f"has p_lower {self.p_lower:g}, which is a probability"
            return
        known = self.p_lower if self.p_lower < 1 else 0.0
        implied = radius_of(known, sigma=settings["sigma"], law=settings.get("law", "gaussian")) or 0.0
        if not math.isclose(self.radius, implied, rel_tol=1e-6, abs_tol=1e-9):
            yield f"has radius {self.radius:g}, but p_lower {self.p_lower:g} gives {implied:g} at this sigma"
        elif self.abstain != (implied == 0):
            yield f"says abstain {self.abstain} with p_lower {self.p_lower:g}; a bound above 0.5 decides"

    def _problems_of_votes(self, settings: Mapping[str, Any]) -> Iterator[str]:
        most = settings.get("samples", math.inf)
        if not 0 <= self.count <= self.samples <= most:
            yield f"counts {self.count} votes of {self.samples} samples, of at most {most}"
        if self.counts and (min(self.counts) < 0 or sum(self.counts) > self.samples):
            yield f"has counts of {sum(self.counts)} votes for {self.samples} samples"
        if self.counts and self.counts[self.selected : self.selected + 1] != [self.count]:
            yield f"counts {self.count} votes for class {self.selected}, which its counts do not say"
        if any(draws > self.samples or not 0 <= votes <= draws for draws, votes in self.looks):
            yield f"looked at more votes than there are draws, or at more than {self.samples} draws"

    def differences(self, again: Record) -> Iterator[str]:
        """Yield what differs; rounding may turn a few votes, and the numbers that follow from them."""
        assert isinstance(again, SmoothedRecord)
        yield from super().differences(again)
        if self.samples != again.samples:
            return  # a rule that stops early may have stopped at another look
        if self.count == again.count:
            for name in ("p_lower", "radius"):
                yield from moved_far(name, self, again, NUMBER_TOLERANCE)
        elif abs(self.count - again.count) > max(FEWEST_VOTES, VOTES_TOLERANCE * self.samples):
            yield _changed("count", self, again)


@dataclass(frozen=True)
class ReuseRecord(SmoothedRecord):
    """A certificate derived from that of a parent network, see `smoothing.reuse`; mode is "reused".

    `samples` noisy copies were shown to both networks, `count` of them fell on `selected`, the parent's class, for
    both; counts: the same for all classes. looks: [draws, lost] each time; lost: votes of the parent for `selected`
    that the child did not give; disagreements: all draws on which the two differ.
    parent_looks: [draws, count] of the parent's ledger; parent_p_lower: its bound at level alpha_parent; alpha_lost
    goes to the lost votes, alpha_direct (always 0) is kept for older ledgers. passes: forward passes spent, the
    parent's included. certificate: "reused", or "none": the parent abstains, so nothing was drawn.
    """

    parent_looks: list[list[int]] = field(default_factory=list)
    parent_p_lower: float = 0.0
    alpha_parent: float = 0.0
    alpha_lost: float = 0.0
    alpha_direct: float = 0.0
    lost: int = 0
    disagreements: int = 0
    passes: int = 0
    certificate: str = "none"

    def problems(self, settings: Mapping[str, Any]) -> Iterator[str]:
        """Yield what cannot be."""
        yield from super().problems(settings)
        if self.certificate not in ("reused", "none"):
            yield f"has certificate {self.certificate!r}, which is reused or none"
        if self.certificate == "none" and not self.abstain:
            yield "has no certificate, but does not abstain"
        if self.certificate == "reused" and self.p_lower > self.parent_p_lower:
            yield f"has p_lower {self.p_lower:g}, above that of its parent, {self.parent_p_lower:g}"
        if not 0 <= self.lost <= self.disagreements:
            yield f"lost {self.lost} votes in {self.disagreements} disagreements"


def _changed(name: str, old: Record, new: Record) -> str:
    return f"{name} was {_text(getattr(old, name))} and is now {_text(getattr(new, name))}"


def _text(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)[:16]


def turned(old: Record, new: Record, verdict: str, margins: Sequence[float]) -> bool:
    """Return whether two records say the same but for a verdict that rests on a margin next to 0."""
    same = all(getattr(old, name) == getattr(new, name) for name in ("index", "input_sha", "label"))
    next_to_zero = any(abs(margin) < MARGIN_TOLERANCE for margin in margins)
    return same and getattr(old, verdict) != getattr(new, verdict) and next_to_zero


def moved_far(name: str, old: Record, new: Record, tolerance: float) -> Iterator[str]:
    """Yield a number that moved by more than `tolerance`, relative where it is above 1."""
    before, after = getattr(old, name), getattr(new, name)
    if None in (before, after):
        if before is not after:
            yield _changed(name, old, new)
    elif abs(before - after) > tolerance * max(1.0, abs(before), abs(after)):
        yield f"{_changed(name, old, new)}, beyond the tolerance of {tolerance:g}"
