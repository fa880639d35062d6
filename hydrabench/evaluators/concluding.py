"""What follows from the attempts of an AutoAttack run: the record of an image, and what a cascade has saved."""

from __future__ import annotations

from collections.abc import Sequence

from hydrabench.evaluators.autoattack_settings import SHORT_PGD
from hydrabench.evaluators.blocks import duration
from hydrabench.ledger import AS_IT_IS, AttackRecord, Attempt


def conclude(index: int, sha: str, label: int, attempts: Sequence[Attempt]) -> AttackRecord:
    """Return the record that an image's attempts make.

    Args: attempts: the clean one first; at most the last has broken the image.
    """
    clean, last = attempts[0], attempts[-1]
    assert clean.attack == AS_IT_IS
    assert clean.prediction is not None
    return AttackRecord(
        index=index,
        input_sha=sha,
        label=label,
        prediction=clean.prediction,
        seconds=sum(one.seconds for one in attempts),
        robust=not last.broken,
        broken_by=last.attack if last.broken else None,
        step=0 if last.broken and last is clean else None,
        margin=-last.loss if last.broken else None,
    )


def saved_by_cascade(attempts: Sequence[Attempt]) -> str | None:
    """Return what a cascade's ten steps of PGD have saved, measured in this run; None if there were none.

    An image that they break would have met APGD-CE next, which takes as long for each image as it does for the others.
    """
    first = [one for one in attempts if one.attack == SHORT_PGD]
    second = [one.seconds for one in attempts if one.attack == "apgd-ce"]
    if not first:
        return None
    broken, spent = sum(one.broken for one in first), sum(one.seconds for one in first)
    text = f"{SHORT_PGD} broke {broken} of {len(first)} images in {duration(spent)}"
    if not second:
        return text
    mean = sum(second) / len(second)
    saved = broken * mean - spent
    verdict = f"{duration(saved)} saved" if saved > 0 else f"{duration(-saved)} lost"
    return f"{text}; apgd-ce takes {duration(mean)} an image here, so {verdict}"
