"""The gate: no report is made of ledgers that contradict each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from hydrabench.errors import GateError
from hydrabench.files import json_text
from hydrabench.ledger import name_images
from hydrabench.reporting.commands import command_of
from hydrabench.reporting.evaluations import Evaluation
from hydrabench.threat import NORM_TEXTS, Threat, read_number


@dataclass(frozen=True, eq=False)
class Contradiction:
    """Images that `verifier` calls verified and `other` calls `how`: misclassified, or broken at a threat."""

    verifier: Evaluation
    other: Evaluation
    images: tuple[int, ...]
    how: str

    def __str__(self) -> str:
        verifier, other = self.verifier, self.other
        return (
            f"checkpoint {verifier.checkpoint.name} (sha256 {verifier.checkpoint.sha256[:8]}), "
            f"{len(self.images)} of {verifier.images.n} images verified at {verifier.threat} in {verifier.path} "
            f"({verifier.protocol}) but {self.how} in {other.path} ({other.protocol}): {name_images(self.images)}"
        )

    def reproducer(self) -> dict[str, str]:
        """Return files that say what contradicts what on the first image, and the two commands that show it again."""
        index = self.images[0]
        told = {"verified": self.verifier, "contradicted": self.other}
        about = self.verifier.checkpoint
        records = {name: next(r for r in one.records if r["index"] == index) for name, one in told.items()}
        contents = {
            "checkpoint": {"name": about.name, "sha256": about.sha256},
            "dataset": {"name": self.verifier.images.name, "split": self.verifier.images.split, "index": index},
            "threat": str(self.verifier.threat),
            "how": self.how,
            "runs": {name: {"path": str(one.path), "protocol": one.protocol} for name, one in told.items()},
            "records": records,
            "images": list(self.images),
        }
        commands = [command_of(one, index) for one in told.values()]
        if commands[1] and "keep" in self.other.evaluator.settings.model_fields:
            commands[1] += " --keep adversarial"
        return {"contradiction.json": json_text(contents), "reproduce.sh": "\n".join(["#!/bin/sh", *commands, ""])}


class ContradictionError(GateError):
    """Ledgers contradict each other. contradictions: all of them."""

    def __init__(self, message: str, contradictions: tuple[Contradiction, ...]) -> None:
        super().__init__(message)
        self.contradictions = contradictions


def refuse_contradictions(evaluations: Sequence[Evaluation]) -> None:
    """Stop if one ledger calls an image verified and another (or the same) calls it broken in that ball.

    Compared are ledgers of the same checkpoint (by hash) and the same image, whatever their precision:
    "verified" at threat V, by an evaluator that claims a "lower" bound, contradicts "broken" at threat A, by one that
    claims an "upper" bound or decides completely, if V contains A (`Threat.contains`), and it contradicts a wrong
    prediction on the clean image at any radius. Where records have a distance, as those of fast minimum norm and of
    security curves, A is the ball of that radius, image by image. Smoothing certificates are left out: they speak about
    the smoothed classifier, and an attack on the network it is made from proves nothing about it.

    Raises: ContradictionError naming the checkpoint, both runs, and the images: the first 10 and how many.
    """
    found = [one for verifier in evaluations for one in _contradictions(verifier, evaluations)]
    if found:
        raise ContradictionError(
            f"ledgers contradict each other: {'; '.join(map(str, found))}; one of the two is wrong, so no report is "
            "made: evaluate that checkpoint again, and report the bug if it stays",
            tuple(found),
        )


def _contradictions(verifier: Evaluation, evaluations: Sequence[Evaluation]) -> Iterator[Contradiction]:
    """Yield what each of the evaluations contradicts of `verifier`; every image once."""
    threat = verifier.threat
    if verifier.evaluator.claims != "lower" or threat is None:
        return
    open_images = set(verifier.fields["index"][verifier.fields["verified"]].tolist())
    for other in _about_the_same(verifier, evaluations):
        wrong, broken = _misclassified(other), _broken_within(other, threat)
        for breaks in (dict.fromkeys(wrong, "misclassified"), broken):
            found = sorted(open_images & breaks.keys())
            open_images -= set(found)
            if found:
                yield Contradiction(verifier, other, tuple(found), breaks[found[0]])


def _about_the_same(verifier: Evaluation, evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Return the evaluations of the same network (not smoothed) on the same split."""
    same = (verifier.checkpoint.sha256, verifier.images.name, verifier.images.split)
    return [
        other
        for other in evaluations
        if not other.evaluator.claims.startswith("smoothed")
        and (other.checkpoint.sha256, other.images.name, other.images.split) == same
    ]


def _misclassified(evaluation: Evaluation) -> set[int]:
    return set(evaluation.fields["index"][~evaluation.right].tolist())


def _broken_within(other: Evaluation, threat: Threat) -> dict[int, str]:
    """Return how each image was broken by a perturbation that `threat` allows, without those wrong from the start."""
    fields, found = other.fields, other.threat
    if found is None or not ({"robust", "verdict"} & fields.keys()):
        return {}
    if "distance" in fields:
        near = {int(index): far for index, far in zip(fields["index"], fields["distance"], strict=True) if far}
        exact = {float(radius): radius for radius in map(read_number, other.settings.get("epsilons", ())) if radius}
        at = {index: Threat(found.norm, exact.get(far, Fraction(far))) for index, far in near.items()}
        reached = [index for index, one in at.items() if threat.contains(one)]
        return {index: f"broken at {NORM_TEXTS[found.norm]} distance {near[index]:.9g}" for index in reached}
    broken = fields["verdict"] == "broken" if "verdict" in fields else ~fields["robust"]
    if not threat.contains(found):
        return {}
    return dict.fromkeys(fields["index"][other.right & broken].tolist(), f"broken at {found}")
