"""Contradictions: an image that one ledger calls verified and another broken. No report is made of such ledgers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from hydrabench.errors import GateError
from hydrabench.files import json_text
from hydrabench.ledger import name_images
from hydrabench.reporting.commands import command_of
from hydrabench.reporting.evaluations import Evaluation
from hydrabench.threat import NORM_TEXTS, Threat, read_number

DISTANCES = ("distance", "broken_radius")  # fields that say how far from each image its adversarial example lies


@dataclass(frozen=True, eq=False)
class Contradiction:
    """Images that `verifier` calls verified and `other` calls `how`: misclassified, or broken at a threat."""

    verifier: Evaluation
    other: Evaluation
    images: tuple[int, ...]
    how: str

    def __str__(self) -> str:
        verifier, other = self.verifier, self.other
        own = "radii of their own up to " * ("verified_radius" in verifier.fields)
        return (
            f"checkpoint {verifier.checkpoint.name} (sha256 {verifier.checkpoint.sha256[:8]}), "
            f"{len(self.images)} of {verifier.images.n} images verified at {own}{verifier.threat} in {verifier.path} "
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
    if verifier.evaluator.claims != "lower" or verifier.threat is None:
        return
    proved = _proved(verifier, verifier.threat)
    for other in _about_the_same(verifier, evaluations):
        wrong = dict.fromkeys(_misclassified(other), "misclassified")
        for breaks in (wrong, _broken_within(other, proved)):
            found = sorted(proved.keys() & breaks.keys())
            proved = {index: threat for index, threat in proved.items() if index not in breaks}
            if found:
                yield Contradiction(verifier, other, tuple(found), breaks[found[0]])


def _proved(verifier: Evaluation, threat: Threat) -> dict[int, Threat]:
    """Return the ball of each verified image: that of the run, or of a search for radii, its own."""
    fields = verifier.fields
    if "verified_radius" not in fields:
        return dict.fromkeys(fields["index"][fields["verified"]].tolist(), threat)
    radii = zip(fields["index"].tolist(), fields["verified_radius"].tolist(), strict=True)
    return {index: Threat(threat.norm, Fraction(radius)) for index, radius in radii if radius > 0}


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


def _broken_within(other: Evaluation, proved: Mapping[int, Threat]) -> dict[int, str]:
    """Return how images were broken inside the balls that were `proved`, without those wrong from the start."""
    breaks, own = _breaks(other), any(name in other.fields for name in DISTANCES)
    known: dict[tuple[int, int], bool] = {}  # nearly all images share one ball
    found = {}
    for index in proved.keys() & breaks.keys():
        inner, outer = breaks[index], proved[index]
        key = (id(inner), id(outer))
        if key not in known:
            known[key] = outer.contains(inner)
        if known[key]:
            far = f"{NORM_TEXTS[inner.norm]} distance {float(inner.epsilon):.9g}"
            found[index] = f"broken at {far if own else inner}"
    return found


def _breaks(other: Evaluation) -> dict[int, Threat]:
    """Return the ball in which each image was broken: that of the run, or where records have distances, its own."""
    fields, threat = other.fields, other.threat
    name = next((one for one in DISTANCES if one in fields), None)
    if threat is None or not ({*DISTANCES, "robust", "verdict"} & fields.keys()):
        return {}
    if name is None:
        broken = fields["verdict"] == "broken" if "verdict" in fields else ~fields["robust"]
        return dict.fromkeys(fields["index"][other.right & broken].tolist(), threat)
    exact = {float(radius): radius for radius in map(read_number, other.settings.get("epsilons", ())) if radius}
    near = zip(fields["index"].tolist(), fields[name].tolist(), strict=True)
    return {index: Threat(threat.norm, exact.get(far, Fraction(far))) for index, far in near if far}
