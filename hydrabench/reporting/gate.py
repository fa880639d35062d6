"""The gate: no report is made of ledgers that contradict each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction

from hydrabench.errors import GateError
from hydrabench.ledger import name_images
from hydrabench.reporting.evaluations import Evaluation
from hydrabench.threat import Threat

# A misclassified clean image is broken by the perturbation 0, which every ball of every norm contains;
# "l2" because `Threat.contains` finds an L2 ball inside L∞ balls too.
UNPERTURBED = Threat("l2", Fraction(0))


def refuse_contradictions(evaluations: Sequence[Evaluation]) -> None:
    """Stop if one ledger calls an image verified and another (or the same) calls it broken in that ball.

    Compared are ledgers of the same checkpoint (by hash) and the same image, whatever their precision:
    "verified" at threat V, by an evaluator that claims a "lower" bound, contradicts "broken" at threat A, by one that
    claims an "upper" bound, if V contains A (`Threat.contains`), and it contradicts a wrong prediction on the clean
    image at any radius. Smoothing certificates are left out: they speak about the smoothed classifier, and an attack
    on the network it is made from proves nothing about it.

    Raises: GateError naming the checkpoint, both runs, and the images: the first 10 and how many.
    """
    groups = [text for verifier in evaluations for text in _contradictions(verifier, evaluations)]
    if groups:
        raise GateError(
            f"ledgers contradict each other: {'; '.join(groups)}; one of the two is wrong, so no report is made: "
            "evaluate that checkpoint again, and report the bug if it stays"
        )


def _contradictions(verifier: Evaluation, evaluations: Sequence[Evaluation]) -> Iterator[str]:
    """Say which images of `verifier` each of the evaluations contradicts; every image once."""
    threat = verifier.threat
    if verifier.evaluator.claims != "lower" or threat is None:
        return
    open_images = set(verifier.fields["index"][verifier.fields["verified"]].tolist())
    for other in _about_the_same(verifier, evaluations):
        wrong, broken = _misclassified(other), _broken(other)
        for images, breaks, how in (
            (wrong, UNPERTURBED, "misclassified"),
            (broken, other.threat, f"broken at {other.threat}"),
        ):
            found = sorted(open_images & images) if breaks is not None and threat.contains(breaks) else []
            open_images -= set(found)
            if found:
                yield (
                    f"checkpoint {verifier.checkpoint.name} (sha256 {verifier.checkpoint.sha256[:8]}), "
                    f"{len(found)} of {verifier.images.n} images verified at {threat} in {verifier.path} "
                    f"({verifier.protocol}) but {how} in {other.path} ({other.protocol}): {name_images(found)}"
                )


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


def _broken(evaluation: Evaluation) -> set[int]:
    """Return the images that an attack broke, without those misclassified from the start."""
    if evaluation.evaluator.claims != "upper":
        return set()
    return set(evaluation.fields["index"][evaluation.right & ~evaluation.fields["robust"]].tolist())
